"""Threads, forks and copies: a learner used from anywhere gives the bits it gives here."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import metafast as mf

Task = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
BACKENDS = ("native", "torch")


def network(width: int = 24) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(36, width), nn.Tanh(), nn.Linear(width, 5),
    )  # fmt: skip


def episode(seed: int, tasks: int = 6, shots: int = 5) -> Task:
    random = torch.Generator().manual_seed(seed)

    def half() -> tuple[Tensor, Tensor]:
        return torch.randn(tasks, shots, 1, 6, 7, generator=random), torch.randint(5, (tasks, shots), generator=random)

    return half(), half()


def meta_step(maml: mf.MAML, seed: int, parameters: list[nn.Parameter] | None = None) -> list[Tensor]:
    """Everything a step computes, the gradient taken without touching ``.grad``, which threads would share."""
    out = maml(*episode(seed))
    gradients = torch.autograd.grad(out.loss, parameters or list(maml.parameters()))
    return [out.loss.detach(), out.task_loss.detach(), out.logits.detach(), out.support_loss, *gradients]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=BACKENDS)
def maml(request: pytest.FixtureRequest) -> mf.MAML:
    return mf.MAML(network(), lr=0.1, steps=3, backend=request.param)


def in_child(maml: mf.MAML, seed: int, pipe: multiprocessing.connection.Connection) -> None:
    pipe.send([tensor.tolist() for tensor in meta_step(maml, seed)])
    pipe.close()


def forked(used_before: bool, pipe: multiprocessing.connection.Connection) -> None:
    """Sends what a forked child computes, or None if it hangs, then what its parent does."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    maml = mf.MAML(nn.Sequential(nn.Flatten(), nn.Linear(42, 24), nn.Tanh(), nn.Linear(24, 5)), lr=0.1, steps=3)
    if used_before:
        meta_step(maml, 1)
    processes = multiprocessing.get_context("fork")
    receive, send = processes.Pipe(duplex=False)
    child = processes.Process(target=in_child, args=(maml, 7, send))
    child.start()
    pipe.send(receive.recv() if receive.poll(60) else None)
    child.kill()
    pipe.send([tensor.tolist() for tensor in meta_step(maml, 7)])


@pytest.mark.parametrize("used_before", [False, True], ids=["first use in child", "used before the fork"])
def test_fork_after_use(used_before: bool) -> None:
    """The child has none of the parent's threads, and must not wait for them. Nor has it torch's own, for which torch
    waits where the parent has used them: so all this is in a new process, and its network has no convolution."""
    processes = multiprocessing.get_context("spawn")
    receive, send = processes.Pipe(duplex=False)
    parent = processes.Process(target=forked, args=(used_before, send))
    parent.start()
    try:
        assert receive.poll(120), "the new process hangs"
        got = receive.recv()
        assert got is not None, "the child hangs"
        assert got == receive.recv()
        parent.join(60)
        assert parent.exitcode == 0
    finally:
        parent.kill()


def test_eight_threads_give_the_bits_of_one(maml: mf.MAML) -> None:
    seeds = list(range(8)) * (8 if maml.backend == "native" else 1)
    expected = [meta_step(maml, seed) for seed in seeds]
    start = threading.Barrier(8)
    parameters = list(maml.parameters())  # as an optimiser holds them: torch.func shows others to whoever looks inside

    def work(place: int) -> list[list[Tensor]]:
        start.wait()
        return [meta_step(maml, seed, parameters) for seed in seeds[place::8]]

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(work, range(8)))
    for place, results in enumerate(done):
        assert all(map(same, results, expected[place::8]))


def test_eight_threads_with_learners_of_their_own() -> None:
    """Lowering, caches and the thread pool are shared by learners that know nothing of each other."""

    def work(width: int) -> list[Tensor]:
        return meta_step(learners[width], width)

    learners = {width: mf.MAML(network(width), lr=0.1, steps=2, backend="native") for width in range(3, 11)}
    fresh = copy.deepcopy(learners)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(work, learners))
    learners = fresh
    assert all(same(got, work(width)) for got, width in zip(together, learners, strict=True))


def test_backward_on_another_thread(maml: mf.MAML) -> None:
    expected = meta_step(maml, 3)
    out = maml(*episode(3))
    with ThreadPoolExecutor(1) as pool:
        gradients = pool.submit(torch.autograd.grad, out.loss, list(maml.parameters())).result()
    assert same(list(gradients), expected[4:])


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda maml: pickle.loads(pickle.dumps(maml))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_copies_are_independent_and_equal(maml: mf.MAML, again: object, used: bool) -> None:
    if used:
        meta_step(maml, 0)
    twin = again(maml)  # type: ignore[operator]
    expected = meta_step(maml, 5)
    assert same(meta_step(twin, 5), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    assert same(meta_step(maml, 5), expected)
    assert not same(meta_step(twin, 5), expected)


def test_a_long_call_releases_the_interpreter() -> None:
    """Another Python thread keeps its pace while one native call runs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 5))
    maml = mf.MAML(model, lr=0.01, steps=5, backend="native")
    tasks = 48
    data = torch.randn(tasks, 64, 64), torch.randint(5, (tasks, 64))
    maml(data, data)  # lowered, and its memory touched

    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    watcher = threading.Thread(target=tick, daemon=True)
    watcher.start()
    begin = time.perf_counter()
    maml(data, data)
    end = time.perf_counter()
    stop.set()
    watcher.join()
    quarter = (end - begin) / 4
    assert quarter > 0.01, "the call is too short to tell"
    assert sum(begin + quarter < moment < end - quarter for moment in ticks) >= 3
