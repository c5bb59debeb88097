"""What it saves to run once what the inner loop does not move: K = 10 against K = 1, in turns with running it at every
step.

``python -m benchmarks.static [--threads N] [--rounds N] [--only NAME]`` prints medians in milliseconds and ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

import metafast as mf
from benchmarks import machine
from benchmarks.workloads import conv4
from metafast.engine import static

STEPS = (1, 10)
USES = ("never", "auto")


class Case(NamedTuple):
    network: Callable[[], nn.Module]
    example: tuple[int, ...]
    head: bool = True  # adapt the last layer alone; else all that requires grad
    tasks: int = 4
    support: int = 25
    query: int = 25


def frozen_body() -> nn.Module:
    body = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
    return nn.Sequential(body.requires_grad_(False), nn.Linear(256, 5))


def transformer() -> nn.Module:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
            self.head = nn.Linear(64, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x).mean(1))  # type: ignore[no-any-return]

    return Classifier()


CASES = {
    "ANIL, Conv-4, 64 channels": Case(lambda: conv4(64, 5, 1, 28), (1, 28, 28)),
    "ANIL, Conv-4, 32 channels": Case(lambda: conv4(32, 5, 1, 28), (1, 28, 28)),
    "frozen body, MLP 784-256-256-5": Case(frozen_body, (784,), head=False),
    "ANIL, transformer layer by torch": Case(transformer, (16, 64)),
}


def step(case: Case, steps: int, use: str) -> Callable[[], None]:
    torch.manual_seed(0)
    model = case.network()
    last = [name for name, _ in model.named_parameters()][-1].rpartition(".")[0]
    adapted = f"{last}.*" if case.head else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        maml = mf.MAML(model, lr=0.05, steps=steps, loss="cross_entropy", adapt_params=adapted)
    support, query = (
        (torch.randn(case.tasks, n, *case.example), torch.randint(5, (case.tasks, n)))
        for n in (case.support, case.query)
    )

    def run() -> None:
        static.use = use
        maml(support, query).loss.backward()

    return run


def medians(case: Case, rounds: int) -> dict[tuple[str, int], float]:
    """Milliseconds of a meta-step, all in turns."""
    steps = {(use, k): step(case, k, use) for use in USES for k in STEPS}
    times: dict[tuple[str, int], list[float]] = {key: [] for key in steps}
    for run in steps.values():
        run()
    for _ in range(rounds):
        for key, run in steps.items():
            begin = time.perf_counter()
            run()
            times[key].append(1e3 * (time.perf_counter() - begin))
    return {key: statistics.median(each) for key, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    machine.confine(args.threads)
    warnings.simplefilter("ignore")
    print(f"{'':34}{'run':>8}{'K = 1':>10}{'K = 10':>10}{'ratio':>8}")
    for name, case in CASES.items():
        if args.only in name:
            found = medians(case, args.rounds)
            for use in USES:
                one, ten = (found[use, k] for k in STEPS)
                shown = "K times" if use == "never" else "once"
                print(f"{name:34}{shown:>8}{one:10.2f}{ten:10.2f}{ten / one:8.2f}")


if __name__ == "__main__":
    main()
