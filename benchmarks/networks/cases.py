"""Networks that people adapt, one exact meta-gradient each, checked first: metafast beside the loop over tasks.

``python -m benchmarks.models [--threads N] [--rounds N] [--only siren,resnet12]`` prints whether each runs natively,
the relative error of both in float32 against the loop in float64, how far from that the first-order gradient is,
medians in milliseconds taken in turns, and their ratio. The networks themselves are in :mod:`benchmarks.networks`.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import metafast as mf
from benchmarks import machine, networks
from benchmarks.check import Wrong, distance, vector
from benchmarks.timing import turn

#: float64 results agree to this relative error, all gradients as one vector.
EXACT = 1e-9

Draw = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    network: Callable[[], nn.Module]
    x: Callable[[Draw, tuple[int, ...]], Tensor]  # of the leading axes, tasks (and steps) and examples
    y: Callable[[Draw, tuple[int, ...]], Tensor]
    tasks: int
    support: int
    query: int
    steps: int
    lr: float
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    adapts: str = "*"
    stepwise: bool = False
    clip: float | None = None
    rates: str = "one"  # or "per step", "per element"; the latter two are learnt
    wanted: Sequence[str] = field(default_factory=tuple)  # "lr", and of "xs ys xq yq" those that want gradients


class Problem:
    """The same numbers for both, drawn in float32."""

    def __init__(self, case: Case, dtype: torch.dtype = torch.float32) -> None:
        self.case = case
        torch.manual_seed(0)
        self.model = case.network().to(dtype)
        generator = torch.Generator().manual_seed(0)

        def draw(shape: tuple[int, ...], classes: int = 0) -> Tensor:
            if classes:
                return torch.randint(classes, shape, generator=generator)
            return torch.randn(shape, generator=generator).to(dtype)

        lead = (case.tasks, case.steps) if case.stepwise else (case.tasks,)
        sets = {"s": (*lead, case.support), "q": (case.tasks, case.query)}
        self.data = {f"{v}{s}": getattr(case, v)(draw, axes) for s, axes in sets.items() for v in ("x", "y")}
        self.parameters = dict(self.model.named_parameters())
        self.moving = [name for name in self.parameters if fnmatchcase(name, case.adapts)]
        self.lr: Any = case.lr
        if case.rates == "per step":
            self.lr = case.lr * (1 + torch.arange(case.steps, dtype=dtype) / 10)
        elif case.rates == "per element":
            self.lr = {n: case.lr * (1 + draw(tuple(self.parameters[n].shape)).abs() / 10) for n in self.moving}
        elif "lr" in case.wanted:
            self.lr = torch.tensor(case.lr, dtype=dtype)
        rates = list(self.lr.values()) if isinstance(self.lr, dict) else [self.lr]
        others = [rates if name == "lr" else [self.data[name]] for name in case.wanted]
        self.unknowns = [*self.parameters.values(), *(t.requires_grad_() for group in others for t in group)]

    def rate(self, name: str, k: int) -> Any:
        if isinstance(self.lr, dict):
            return self.lr[name]
        return self.lr[k] if self.case.rates == "per step" else self.lr


def clipped(gradients: Sequence[Tensor], limit: float | None) -> Sequence[Tensor]:
    """As torch.nn.utils.clip_grad_norm_ does."""
    if limit is None:
        return gradients
    norm = torch.sqrt(sum((g * g).sum() for g in gradients))  # type: ignore[arg-type]
    factor = torch.clamp(limit / (norm + 1e-6), max=1)
    return [factor * g for g in gradients]


@sdpa_kernel(SDPBackend.MATH)  # the other one has no second derivative
def loop(problem: Problem, first_order: bool = False) -> list[Tensor]:
    """One task after the other, every gradient with its graph."""
    case, model, data = problem.case, problem.model, problem.data
    total: list[Tensor] = []
    for task in range(case.tasks):
        xs, ys, xq, yq = (data[name][task] for name in ("xs", "ys", "xq", "yq"))
        values: dict[str, Tensor] = dict(problem.parameters)
        for k in range(case.steps):
            x, y = (xs[k], ys[k]) if case.stepwise else (xs, ys)
            inner = case.loss(functional_call(model, values, (x,)), y)
            found = torch.autograd.grad(inner, [values[n] for n in problem.moving], create_graph=not first_order)
            for name, g in zip(problem.moving, clipped(found, case.clip), strict=True):
                values[name] = values[name] - problem.rate(name, k) * g
        outer = case.loss(functional_call(model, values, (xq,)), yq) / case.tasks
        gradients = torch.autograd.grad(outer, problem.unknowns, materialize_grads=True)
        total = [a + b for a, b in zip(total, gradients, strict=True)] if total else list(gradients)
    return total


def metafast(problem: Problem, strict: bool = False) -> Callable[[], Sequence[Tensor]]:
    case, data = problem.case, problem.data
    rule = mf.SGD() if case.clip is None else mf.chain(mf.clip_norm(case.clip), mf.SGD())
    learner = mf.MAML(
        problem.model, rule=rule, steps=case.steps, loss=case.loss, adapt_params=case.adapts, strict=strict
    )
    support, query = (data["xs"], data["ys"]), (data["xq"], data["yq"])

    def step() -> Sequence[Tensor]:
        out = learner(support, query, lr=problem.lr, stepwise=case.stepwise)
        return torch.autograd.grad(out.loss, problem.unknowns, materialize_grads=True)

    return step


def native(problem: Problem) -> str:
    """ "native", or why not."""
    try:
        metafast(problem, strict=True)()
    except RuntimeError as error:
        return str(error)
    return "native"


def images(size: int) -> Callable[[Draw, tuple[int, ...]], Tensor]:
    return lambda draw, axes: draw((*axes, 3, size, size))


def numbers(width: int) -> Callable[[Draw, tuple[int, ...]], Tensor]:
    return lambda draw, axes: draw((*axes, width))


def classes(count: int) -> Callable[[Draw, tuple[int, ...]], Tensor]:
    return lambda draw, axes: draw(axes, count)


def coordinates(draw: Draw, axes: tuple[int, ...]) -> Tensor:
    return torch.tanh(draw((*axes, 2)))


CASES = {
    "fast-weights": Case(
        networks.FastWeights, numbers(128), numbers(128), 8, 64, 64, 8, 0.1, F.mse_loss,
        stepwise=True, clip=1.0, rates="per step", wanted=("xs", "ys", "xq", "yq", "lr"),
    ),
    "resnet12": Case(lambda: networks.ResNet12((32, 64, 128, 256)), images(32), classes(5), 2, 5, 25, 3, 0.01),
    "siren": Case(networks.Siren, coordinates, numbers(3), 4, 1024, 1024, 3, 1e-3, F.mse_loss),
    "latent-siren": Case(
        networks.LatentSiren, coordinates, numbers(3), 16, 1024, 1024, 3, 1e-1, F.mse_loss,
        adapts="latent", rates="per element", wanted=("lr",),
    ),
    "transformer": Case(
        networks.Transformer, lambda draw, axes: draw((*axes, 16), 1000), classes(5), 4, 25, 25, 3, 0.05
    ),
    "distillation": Case(networks.convnet3, images(32), classes(10), 1, 10, 256, 20, 0.01, wanted=("xs", "lr")),
    "policy-gradient": Case(
        networks.GaussianPolicy, numbers(2), numbers(4), 20, 2000, 2000, 1, 0.1, networks.policy_gradient
    ),
}  # fmt: skip


def errors(case: Case) -> tuple[float, float, float]:
    """Of metafast, the loop and the first-order gradient; Wrong unless metafast in float64 is the loop's result."""
    doubled = Problem(case, torch.float64)
    exact = vector(loop(doubled))
    if not (error := distance(vector(metafast(doubled)()), exact)) <= EXACT:
        raise Wrong(f"float64 result is off by {error:.1e}")
    if not (term := distance(vector(loop(doubled, first_order=True)), exact)) > 1e3 * EXACT:
        raise Wrong(f"first and second order are only {term:.1e} apart")
    single = Problem(case)
    return distance(vector(metafast(single)()), exact), distance(vector(loop(single)), exact), term


def medians(problem: Problem, rounds: int) -> tuple[float, float]:
    """Milliseconds of metafast and of the loop, in turns."""
    steps = (metafast(problem), lambda: loop(problem))
    times: tuple[list[float], list[float]] = ([], [])
    for step in steps:
        step()
    for _ in range(rounds):
        for found, step in zip(times, steps, strict=True):
            found += turn(step, 0.1)
    ours, theirs = (1e3 * statistics.median(found) for found in times)
    return ours, theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(CASES))
    args = parser.parse_args()
    machine.confine(args.threads)
    warnings.simplefilter("ignore")
    print(f"{'':18}{'error':>9}{'of loop':>9}{'order 1':>9}{'metafast':>10}{'loop':>9}{'ratio':>7}", flush=True)
    for name in args.only.split(","):
        begin = time.perf_counter()
        found = errors(CASES[name])
        problem = Problem(CASES[name])
        ours, theirs = medians(problem, args.rounds)
        shown = f"{name:18}" + "".join(f"{error:9.1e}" for error in found)
        shown += f"{ours:10.1f}{theirs:9.1f}{theirs / ours:7.2f}"
        print(f"{shown}  {native(problem)} ({time.perf_counter() - begin:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
