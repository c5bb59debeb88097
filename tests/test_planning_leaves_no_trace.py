"""To plan takes no random number from anybody, runs no kernel of torch and sees no other thread's parameters."""

from __future__ import annotations

import importlib
import multiprocessing
import random
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from random import random as draw_by_name
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import metafast as mf
from planned import LR, sets

# ---------------------------------------------------------------------------------- random numbers


class Draws(nn.Module):
    def __init__(self, draw: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body, self.draw = nn.Linear(3, 2).double(), draw

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.body(x)
        return h + self.draw(h)


DRAWS: dict[str, Callable[[Tensor], Any]] = {
    "torch.rand": lambda h: torch.rand(2),
    "torch.randint": lambda h: float(torch.randint(3, (1,))),
    "torch.bernoulli": lambda h: torch.bernoulli(torch.ones(2) / 2),
    "normal_": lambda h: torch.empty(2).normal_(),
    "random.random": lambda h: random.random(),
    "random.choice": lambda h: random.choice((1, 2, 3)),
    "random.gauss": lambda h: random.gauss(0, 1),
    "numpy.random.rand": lambda h: np.random.rand(),  # noqa: NPY002
    "numpy.random.choice": lambda h: float(np.random.choice(3)),  # noqa: NPY002
    "caught": lambda h: caught_draw(),
}
OTHER_DRAWS: dict[str, Callable[[Tensor], Any]] = {
    "torch.rand_like": lambda h: torch.rand_like(h),
    "dropout": lambda h: nn.functional.dropout(h, 0.5),
    "feature dropout": lambda h: nn.functional.dropout1d(h[None])[0],
    "noise": lambda h: torch.normal(h.detach(), 1.0),
}
OWN_GENERATORS = {"random": random.Random(0), "numpy": np.random.default_rng(0), "old": np.random.RandomState(0)}
GENERATOR = torch.Generator()
DRAWS_OF_THEIR_OWN: dict[str, Callable[[Tensor], Any]] = {
    "random.Random": lambda h: OWN_GENERATORS["random"].random(),
    "default_rng": lambda h: OWN_GENERATORS["numpy"].random(),
    "RandomState": lambda h: OWN_GENERATORS["old"].rand(),  # type: ignore[union-attr]
    "torch.Generator": lambda h: torch.rand(2, generator=GENERATOR),
    "imported by name": lambda h: draw_by_name(),
}


def caught_draw() -> float:
    try:
        return random.random()
    except Exception:
        return 0.0


def states() -> list[Any]:
    return [random.getstate(), torch.get_rng_state().tolist(), repr(np.random.get_state())]  # noqa: NPY002


@pytest.mark.parametrize("draw", [*DRAWS, *OTHER_DRAWS])
def test_planning_takes_no_number_from_anybody(draw: str) -> None:
    model = Draws((DRAWS | OTHER_DRAWS)[draw])
    x = sets()[0][0]
    before = states()
    for backend in ("torch", "auto"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mf.MAML(model, LR, 1, "mse", backend=backend)._plans().plan("x", x)
    mf.explain(model, x, "mse")
    assert states() == before


@pytest.mark.parametrize("draw", [*DRAWS, *DRAWS_OF_THEIR_OWN])
def test_a_draw_is_never_made_a_constant(draw: str) -> None:
    model = Draws((DRAWS | DRAWS_OF_THEIR_OWN)[draw])
    with pytest.raises(RuntimeError, match="native engine cannot be used, because of the model: Draws"):
        mf.MAML(model, LR, 1, "mse", strict=True)(*sets())


def test_a_draw_that_does_not_happen_is_none() -> None:
    def draw(h: Tensor) -> Any:
        return random.random() + np.random.rand() if model.training else h  # noqa: NPY002

    model = Draws(draw)
    model.eval()
    support, query = sets()
    ours = mf.MAML(model, LR, 1, "mse", strict=True).meta_gradient(support, query)[1]
    theirs = mf.MAML(model, LR, 1, "mse", backend="torch").meta_gradient(support, query)[1]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


IMPORTED = """
import random, numpy, torch
from random import random as draw
random.seed(3)
SCALE = random.Random(5).random() + random.random() + numpy.random.rand() + float(torch.rand(1))
"""


def test_what_an_import_in_forward_draws_is_the_modules_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    name = f"drawn_while_imported_by_{backend}"
    (tmp_path / f"{name}.py").write_text(IMPORTED)
    monkeypatch.syspath_prepend(tmp_path)
    model = Draws(lambda h: h if importlib.import_module(name).SCALE > 0 else -h)
    support, query = sets()
    theirs, ours = (
        mf.MAML(model, LR, 1, "mse", backend=backend, strict=strict).meta_gradient(support, query)[1]
        for strict in (backend == "native", False)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    random.seed(1)
    drawn = importlib.import_module(name).draw()  # a name it keeps is that of everybody's generator
    random.seed(1)
    assert drawn == random.random()


def test_planning_beside_a_thread_that_draws() -> None:
    """It gets the numbers of its seeds, each once, and nobody takes them for forward's."""
    torch.default_generator.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    drawn: list[tuple[float, float, float]] = []
    stop = threading.Event()

    def draw() -> None:
        while not stop.is_set():
            drawn.append((float(torch.rand(())), random.random(), float(np.random.rand())))  # noqa: NPY002

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        data = sets(torch.Generator().manual_seed(0))
        for _ in range(20):
            mf.MAML(nn.Sequential(nn.Linear(3, 2, dtype=torch.float64)), LR, 1, "mse", strict=True)(*data)
            model = Draws(lambda h: torch.nn.functional.softsign(h))
            mf.MAML(model, LR, 1, "mse", backend="torch")(*data)
    finally:
        stop.set()
        thread.join()
    alone = random.Random(1), np.random.RandomState(1)
    assert [(b, c) for _, b, c in drawn] == [(alone[0].random(), alone[1].rand()) for _ in drawn]
    assert len({a for a, _, _ in drawn}) > len(drawn) * 0.99


# ---------------------------------------------------------------------------------- threads and forks


def convolutions() -> nn.Module:
    torch.default_generator.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def meta_step(pipe: Any) -> None:
    random = torch.Generator().manual_seed(0)
    task = torch.randn(2, 4, 3, 16, 16, generator=random), torch.randint(3, (2, 4), generator=random)
    _, gradients = mf.MAML(convolutions(), 0.1, 2, strict=True).meta_gradient(task, task)
    pipe.send([g.tolist() for g in gradients])


def parent_of_a_fork(pipe: Any) -> None:
    torch.set_num_threads(2)
    convolutions()(torch.randn(16, 3, 32, 32)).sum().backward()  # torch's threads start here, and are not in the child
    processes = multiprocessing.get_context("fork")
    receive, send = processes.Pipe(duplex=False)
    child = processes.Process(target=meta_step, args=(send,))
    child.start()
    pipe.send(receive.recv() if receive.poll(30) else None)
    child.kill()
    meta_step(pipe)


def test_planning_in_a_fork_runs_no_kernel_of_torch() -> None:
    processes = multiprocessing.get_context("spawn")
    receive, send = processes.Pipe(duplex=False)
    parent = processes.Process(target=parent_of_a_fork, args=(send,))
    parent.start()
    try:
        assert receive.poll(120), "the new process hangs"
        got = receive.recv()
        assert got is not None, "the child hangs"
        assert got == receive.recv()
    finally:
        parent.kill()


def test_a_learner_is_made_while_another_thread_runs_its_model() -> None:
    inside, finished = threading.Event(), threading.Event()

    class Waits(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if not self.weight.requires_grad and not inside.is_set():  # what functional_call has put in its place
                inside.set()
                finished.wait(0.5)
            return super().forward(x)

    model = Waits(3, 2).double()
    data = sets()

    def call() -> None:
        with torch.no_grad():
            mf.MAML(model, LR, 1, "mse", backend="torch")(*data)

    thread = threading.Thread(target=call)
    thread.start()
    assert inside.wait(30)
    try:
        maml = mf.MAML(model, LR, 1, "mse", learn_lr=True, backend="torch")
    finally:
        finished.set()
        thread.join()
    assert all(g.abs().sum() > 0 for g in maml.meta_gradient(*data)[1])
