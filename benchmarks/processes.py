"""Meta-steps a second of mf.meta_train in one and in two processes, each with one thread.

``python -m benchmarks.processes [--rounds N] [--seconds N]`` first checks that a meta-step comes to the same but for
rounding, then lets them train in turns, and prints medians. One process with two threads stands beside them: on one
machine that is what two processes must beat.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import metafast as mf
from benchmarks.workloads import conv4
from metafast.tasks import ImageTasks, Sinusoids, Tasks
from metafast.training.networks import mlp


class Case(NamedTuple):
    network: Callable[[], nn.Module]
    tasks: Callable[[], Tasks]
    meta_batch: int
    loss: str


def images() -> Tasks:
    pixels = torch.randint(256, (50, 20, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageTasks(pixels, ways=5, shots=1, queries=5)


CASES = {
    "1-40-40-1, 25 tasks": Case(lambda: mlp([1, 40, 40, 1]), Sinusoids, 25, "mse"),
    "Conv-4, 32 channels, 16 tasks": Case(lambda: conv4(32, 5, 1, 28), images, 16, "cross_entropy"),
}
#: Processes, and threads of each.
WAYS = {"one process": (1, 1), "one process, two threads": (1, 2), "two processes": (2, 1)}


def train(case: Case, **budget: Any) -> tuple[float, torch.Tensor]:
    """Meta-steps a second, and the weights."""
    torch.manual_seed(0)
    maml = mf.MAML(case.network(), lr=0.01, steps=1, loss=case.loss, strict=True)
    history = mf.meta_train(maml, case.tasks(), meta_batch=case.meta_batch, progress=False, **budget)
    return history.meta_steps / history.seconds, torch.cat([p.detach().flatten() for p in maml.parameters()])


def rank(number: int, size: int, port: int, threads: int, name: str, out: Path, budget: dict[str, Any]) -> None:
    os.environ.update(RANK=str(number), WORLD_SIZE=str(size), MASTER_ADDR="localhost", MASTER_PORT=str(port))
    torch.set_num_threads(threads)
    train(CASES[name], max_iters=20)  # connect, and look at the model
    found = train(CASES[name], **budget)
    if number == 0:
        torch.save(found, out)


def run(way: str, name: str, **budget: Any) -> tuple[float, torch.Tensor]:
    """:func:`train` in fresh processes."""
    size, threads = WAYS[way]
    with socket.socket() as server:
        server.bind(("localhost", 0))
        port = server.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.pt"
        context = multiprocessing.get_context("fork")
        children = [
            context.Process(target=rank, args=(number, size, port, threads, name, out, budget))
            for number in range(size)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join()
        found: tuple[float, torch.Tensor] = torch.load(out)
        return found


def check(name: str) -> None:
    one, *others = (run(way, name, max_iters=1, optimizer="sgd", meta_lr=0.1)[1] for way in WAYS)
    for other in others:
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    args = parser.parse_args()
    print(f"{'meta-steps a second':32}" + "".join(f"{way:>26}" for way in WAYS))
    for name in CASES:
        check(name)
        rates: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(args.rounds):
            for way, found in rates.items():
                found.append(run(way, name, max_iters=None, seconds=args.seconds)[0])
        print(f"{name:32}" + "".join(f"{statistics.median(found):26.1f}" for found in rates.values()))


if __name__ == "__main__":
    main()
