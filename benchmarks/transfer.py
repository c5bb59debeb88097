"""What the inner loop costs behind a frozen base that torch runs: MobileNetV2 on 84x84 images, a new head, K = 5.

``python -m benchmarks.transfer [--threads N] [--rounds N] [--tasks T] [--shots N]`` first checks that the meta-step on
images gives what the loop on precomputed features gives. Then it prints times, all taken in turns, of

* base: torch's forward pass of the frozen base over the support and the query set of each task;
* features: a meta-step of the head alone on the base's features, with K = 5 and K = 55. A tenth of their difference is
  five steps of the inner loop, without what a call costs besides;
* images: the same of the whole network, with the base answered from memory: all that the learner does but the forward
  pass of the base;
* whole: the meta-step on images, K = 5.

A meta-step is ``torch.autograd.grad(learner(support, query).loss, parameters)``.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import metafast as mf
from benchmarks import machine
from examples.transfer_mobilenet import MobileNetV2
from metafast.engine.static import Composed

WAYS, STEPS, MANY, RATE = 5, 5, 55, 0.01
#: The base runs on the same numbers both ways, and the loop too: what is left is rounding.
TOLERANCE = 1e-4

Batch = tuple[Tensor, Tensor]
Key = TypeVar("Key")


def problem(tasks: int, shots: int, queries: int) -> tuple[nn.Module, Batch, Batch]:
    """The network, whose random weights take as long as any, and a meta-batch."""
    torch.manual_seed(0)
    model = mf.transfer(MobileNetV2(), head=WAYS, freeze="features.*").eval()
    support, query = (
        (torch.rand(tasks, n * WAYS, 3, 84, 84), torch.arange(WAYS).repeat(n).expand(tasks, -1).contiguous())
        for n in (shots, queries)
    )
    return model, support, query


def features(model: nn.Module, x: Tensor) -> Tensor:
    """What the head reads, [T, N, 1280], task by task."""
    body = mf.transfer(model, head=("classifier", nn.Identity()))
    with torch.no_grad():
        return torch.stack([body(each) for each in x])


@contextmanager
def answered_from_memory() -> Iterator[None]:
    """The base's features come from its last run on tensors of this shape."""
    run = Composed._features
    kept: dict[Any, Tensor] = {}

    def remembered(self: Composed, parameters: Any, x: Tensor, *rest: Any) -> Tensor:
        if x.data_ptr() not in kept:
            kept[x.data_ptr()] = run(self, parameters, x, *rest)
        return kept[x.data_ptr()]

    Composed._features = remembered  # type: ignore[method-assign]
    try:
        yield
    finally:
        Composed._features = run  # type: ignore[method-assign]


def stepping(learner: mf.MAML, support: Batch, query: Batch) -> Callable[[], list[Tensor]]:
    """Computes the outputs and the meta-gradient."""
    learnt = [parameter for parameter in learner.parameters() if parameter.requires_grad]

    def step() -> list[Tensor]:
        out = learner(support, query)
        return [out.logits, *torch.autograd.grad(out.loss, learnt)]

    return step


def check(images: list[Tensor], precomputed: list[Tensor]) -> None:
    """The same outputs and the same meta-gradient of the head."""
    for ours, expected in zip(images, precomputed, strict=True):
        error = float((ours - expected).norm() / expected.norm())
        if not error < TOLERANCE:
            raise AssertionError(f"the meta-step on images is off by {error:.3g} from the loop on features")


def times(runs: Mapping[Key, Callable[[], Any]], rounds: int) -> dict[Key, float]:
    """Milliseconds of the processor, of all threads together, which others on the machine disturb least, all in turns;
    the median of the faster half."""
    taken: dict[Key, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            taken[name].append(1e3 * (time.process_time() - begin))
    return {name: statistics.median(sorted(each)[: len(each) // 2 + 1]) for name, each in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--queries", type=int, default=5)
    args = parser.parse_args()
    machine.confine(args.threads)
    warnings.simplefilter("ignore")
    model, support, query = problem(args.tasks, args.shots, args.queries)
    made = (features(model, support[0]), support[1]), (features(model, query[0]), query[1])
    head = mf.transfer(model.classifier[1])  # type: ignore[index,arg-type]
    learners = {
        (name, k): stepping(mf.MAML(network, RATE, k, backend="native"), *data)
        for name, network, data in (("images", model, (support, query)), ("features", head, made))
        for k in (STEPS, MANY)
    }
    check(learners["images", STEPS](), learners["features", STEPS]())

    body = mf.transfer(model, head=("classifier", nn.Identity()))

    def base() -> None:
        with torch.no_grad():
            for each in (*support[0], *query[0]):
                body(each)

    long = times({"base": base, "whole": learners["images", STEPS]}, args.rounds)
    with answered_from_memory():
        for run in learners.values():
            run()
        short = times(learners, 100 * args.rounds)
    loops = {name: (short[name, MANY] - short[name, STEPS]) / 10 for name in ("features", "images")}
    print(f"T = {args.tasks} tasks, {WAYS} ways, {args.shots} shots, {args.queries} queries; milliseconds")
    print(f"{'':10}{'K = 5':>10}{'K = 55':>10}{'five steps':>12}")
    for name, loop in loops.items():
        print(f"{name:10}{short[name, STEPS]:10.3f}{short[name, MANY]:10.3f}{loop:12.3f}")
    print(f"base {long['base']:.1f}, whole {long['whole']:.1f}\n\nratios, K = 5")
    print(f"inner loop, images / features   {loops['images'] / loops['features']:.3f}")
    print(f"a call, images / features       {short['images', STEPS] / short['features', STEPS]:.3f}")
    print(f"whole / (base + features)       {long['whole'] / (long['base'] + short['features', STEPS]):.3f}")


if __name__ == "__main__":
    main()
