"""Several processes share the tasks of a meta-batch and are one run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from metafast.cli import main
from metafast.run_folder import RunFolder
from metafast.training import checkpoint as checkpoints
from metafast.training.processes import Alone, Together, processes
from training_runs import SPLITS, TASKS, learner, train

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("torch has no gloo here", allow_module_level=True)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return int(server.getsockname()[1])


def as_rank(rank: int, size: int, port: int, work: Callable[..., Any], folder: Path) -> None:
    """``work(folder)`` as torchrun would start it, its result in a file."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="localhost", MASTER_PORT=str(port))
    torch.save(work(folder), folder / f"rank-{rank}.pt")


def together(work: Callable[..., Any], folder: Path, size: int = 2) -> list[Any]:
    """What ``work(folder)`` returns on each rank."""
    context, port = multiprocessing.get_context("fork"), free_port()
    children = [context.Process(target=as_rank, args=(rank, size, port, work, folder)) for rank in range(size)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        child.kill()
    assert [child.exitcode for child in children] == [0] * size
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(size)]


def state(maml: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in maml.state_dict().items()}


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    for name in b:
        torch.testing.assert_close(a[name], b[name], rtol=1e-9, atol=1e-12)


def doubled(tasks: int) -> Any:
    (xs, ys), (xq, yq) = next(TASKS.stream(tasks))
    return (xs.double(), ys.double()), (xq.double(), yq.double())


def one_gradient(folder: Path) -> Any:
    here = processes(torch.device("cpu"))
    assert isinstance(here, Together)
    asked = here.rank == 1
    taken = here.gradient(learner().double(), doubled(5), lambda: asked)
    return [*taken.gradients, taken.loss, taken.support_loss.mean(), taken.asked, here.any(asked, False)]


def test_the_meta_gradient_is_that_of_one_process(tmp_path):
    """In float64, of parts of two and three tasks; and a request of one rank reaches all."""
    for *numbers, asked, flags in together(one_gradient, tmp_path):
        taken = Alone().gradient(learner().double(), doubled(5), lambda: False)
        wanted = [*taken.gradients, taken.loss, taken.support_loss[:, 0].mean()]
        torch.testing.assert_close(numbers, wanted, rtol=1e-13, atol=1e-15)
        assert asked and flags == (True, False)


def in_doubles(start: int) -> Iterator[Any]:
    for pair in TASKS.stream(5, start=start):
        yield tuple(tuple(part.double() for part in batch) for batch in pair)


def run(folder: Path, **how: Any) -> Any:
    """A run in float64, whose ranks begin with weights of their own."""
    maml = learner(seed=int(os.environ.get("RANK", 0))).double()
    how = {"max_iters": 8, "resume": True, "validate_every": 3, "block": 2, "restore_best": False, **how}
    history = train(maml, in_doubles, validation=[doubled(4)], out=folder / "run", **how)
    rows = [
        {name: value for name, value in row.items() if name not in ("seconds", "rate", "kind", "metric")}
        for row in history.train + history.validation
    ]
    return {"state": state(maml), "rows": rows, "stopped": history.stopped, "meta_steps": history.meta_steps}


def test_two_processes_train_as_one_and_one_writes(tmp_path):
    (tmp_path / "one").mkdir()
    one = run(tmp_path / "one")
    first, second = together(run, tmp_path)
    assert all(torch.equal(first["state"][k], v) for k, v in second["state"].items())
    close(first["state"], one["state"])
    assert first["rows"] == second["rows"]
    for a, b in zip(first["rows"], one["rows"], strict=True):
        assert a == pytest.approx(b, rel=1e-9)
    rows = RunFolder(tmp_path / "run").rows()
    assert [row["meta_step"] for row in rows] == [2, 3, 3, 4, 6, 6, 8, 8]
    assert RunFolder(tmp_path / "run").read()["settings"]["processes"] == 2


def half(folder: Path) -> Any:
    return run(folder, max_iters=4)


def test_a_run_of_two_is_resumed_by_one_and_by_two(tmp_path):
    (tmp_path / "one").mkdir()
    one = run(tmp_path / "one")
    together(half, tmp_path)
    stored = checkpoints.load(tmp_path / "run" / "checkpoint.pt")
    assert stored.step == 4
    content = (tmp_path / "run").iterdir()
    copies = {file.name: file.read_bytes() for file in content}
    close(run(tmp_path)["state"], one["state"])
    for name, data in copies.items():
        (tmp_path / "run" / name).write_bytes(data)
    for of_rank in together(run, tmp_path):
        close(of_rank["state"], one["state"])


def interrupted(folder: Path) -> Any:
    """Only rank 1 is told to stop."""

    def stop(moment: Any) -> None:
        if moment.meta_step == 4 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)

    return run(folder, max_iters=10**6, callbacks=[stop])


def test_an_interruption_of_one_stops_all(tmp_path):
    results = together(interrupted, tmp_path)
    assert [r["stopped"] for r in results] == ["interrupted"] * 2
    assert results[0]["meta_steps"] == results[1]["meta_steps"]
    assert RunFolder(tmp_path / "run").read()["stopped"] == "interrupted"


def timed(folder: Path) -> Any:
    return run(folder, max_iters=None, seconds=0.2 if os.environ["RANK"] == "0" else 1000.0)


def test_the_clock_of_one_stops_all(tmp_path):
    results = together(timed, tmp_path)
    assert [r["stopped"] for r in results] == ["seconds"] * 2
    assert results[0]["meta_steps"] == results[1]["meta_steps"] > 0


def refused(folder: Path) -> str:
    """An error of rank 0, which alone looks at the folder, is told to all; too few tasks are refused by all."""
    messages = []
    for how in ({"resume": False, "out": folder / "taken"}, {"meta_batch": 1}):
        with pytest.raises(Exception) as error:
            train(learner(), **how)
        messages.append(str(error.value))
    return "\n".join(messages)


def test_what_is_refused_is_refused_by_all(tmp_path):
    train(learner(), out=tmp_path / "taken")
    for message in together(refused, tmp_path):
        assert "holds a run already" in message
        assert "a meta-batch of 1 tasks is too small for 2 processes" in message


def diverging(folder: Path) -> Any:
    """A task that rank 0 alone has in its part is not finite."""

    def tasks(start: int) -> Any:
        for step, (support, (x, y)) in enumerate(TASKS.stream(4, start=start), start + 1):
            yield support, (x, y.index_fill(0, torch.tensor([0]), float("nan")) if step == 5 else y)

    maml = learner()
    with pytest.warns(RuntimeWarning, match="at meta-step 5 the query loss is nan"):
        history = train(maml, tasks, max_iters=20, block=3)
    return {"state": state(maml), "meta_steps": history.meta_steps}


def test_what_is_not_finite_on_one_stops_all(tmp_path):
    first, second = together(diverging, tmp_path)
    assert first["meta_steps"] == second["meta_steps"] == 4
    assert all(torch.equal(first["state"][k], v) for k, v in second["state"].items())


def test_alone_without_an_environment():
    assert type(processes(torch.device("cpu"))) is Alone
    assert [len(list(islice(SPLITS.train.stream(3), 2))), Alone().size] == [2, 1]


def command_line(folder: Path) -> Any:
    with redirect_stdout(StringIO()) as said:
        sizes = ["--width", "6", "--tasks", "3", "--shots", "4", "--test-tasks", "20", "--meta-steps", "40"]
        code = main(["train", "sinusoid", *sizes, "--no-compare", "--out", str(folder / os.environ.get("RUN", "two"))])
    return code, said.getvalue()


def test_the_command_line(tmp_path, monkeypatch):
    """One rank tests and speaks."""
    (first_code, first), (second_code, second) = together(command_line, tmp_path)
    assert first_code == second_code == 0
    assert first.count("40 meta-steps are done") == 1 and not second
    monkeypatch.setenv("RUN", "one")
    command_line(tmp_path)
    one, two = (checkpoints.load(tmp_path / name / "checkpoint.pt") for name in ("one", "two"))
    for name, value in one.state.items():
        torch.testing.assert_close(two.state[name], value, rtol=1e-4, atol=1e-5)
