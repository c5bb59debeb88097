"""How sure is an adapted model? The spread of an ensemble, on sine waves of which five points are known.

A task is a sine wave (Finn et al. 2017). Its five points lie in the left half, x < 0, so that the right half must be
guessed. Two ensembles give a mean and a spread (standard deviation over members):

  - initialisations: every member was meta-trained from other random weights, on other tasks (deep ensembles,
    Lakshminarayanan et al. 2017; as a baseline of Bayesian MAML, Yoon et al. 2018, arXiv:1806.03836);
  - bootstrap: one member, adapted to the points under random weights, exponential ones (Rubin 1981).

All members are meta-trained, and adapted, in one native call: T tasks and M members are M T tasks, each of which starts
from its member's weights (``start=``). Adam works element by element, so this trains each member as if it were alone.

    python examples/ensemble.py
    python examples/ensemble.py --meta-steps 5 --members 3 --tasks 10
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import metafast as mf
from metafast.tasks import TEST, VALIDATION, RegressionFamily, generator
from metafast.tasks.sinusoid import sine
from metafast.training import Estimate
from metafast.training.networks import mlp

TASKS, SHOTS, QUERIES = 16, 5, 50  # of a member and meta-step; of a task
#: A normal distribution has so much of its mass within so many deviations of its mean.
LEVELS = {0.5: 0.674, 0.68: 0.994, 0.9: 1.645, 0.95: 1.960}
BINS = 10


Weights = dict[str, Tensor]  # of M members, each [M, *shape]


def points(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """[..., SHOTS support and then query points, 1]: the former in [-5, 0], the latter in [-5, 5]."""
    x = torch.empty(*shape, 1).uniform_(-5.0, 5.0, generator=generator)
    x[..., :SHOTS, :] = (x[..., :SHOTS, :] - 5.0) / 2
    return x


def waves(queries: int) -> RegressionFamily:
    ranges = {"amplitude": (0.1, 5.0), "phase": (0.0, torch.pi)}
    return RegressionFamily(sine, ranges, points, shots=SHOTS, queries=queries)


def meta_train(learner: mf.MAML, members: int, meta_steps: int, seed: int) -> Weights:
    """The initial weights of all members, trained at once."""
    fresh = [mlp([1, 40, 40, 1]) for _ in range(members)]
    names = [name for name, _ in fresh[0].named_parameters()]
    weights = {name: nn.Parameter(torch.stack([m.get_parameter(name) for m in fresh]).detach()) for name in names}
    optimiser = mf.optim.Adam(weights.values(), lr=0.001)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(meta_steps, 1))
    stream = waves(SHOTS).stream(members * TASKS, seed=seed)
    for step, (support, query) in zip(range(meta_steps), stream, strict=False):
        optimiser.zero_grad()
        start = {name: value.repeat_interleave(TASKS, 0) for name, value in weights.items()}
        loss = learner(support, query, start=start).loss
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 1000 == 0 or step + 1 == meta_steps:
            print(f"meta-step {step + 1:5d}  query loss {loss.item():.3f}", flush=True)
    return {name: value.detach() for name, value in weights.items()}


def predictions(learner: mf.MAML, weights: Weights, support: tuple[Tensor, ...], x: Tensor) -> Tensor:
    """[M, T, N] at x [T, N, 1]: each member adapted to its T tasks of ``support`` [M T, ...], in one native call."""
    members, tasks = len(next(iter(weights.values()))), len(x)
    start = {name: value.repeat_interleave(tasks, 0) for name, value in weights.items()}
    with torch.no_grad():
        adapted = learner.adapt(support, start=start)
        return learner.predict(adapted, x.repeat(members, 1, 1)).view(members, tasks, -1)


def ensembles(learner: mf.MAML, weights: Weights, support: tuple[Tensor, Tensor], x: Tensor) -> dict[str, Tensor]:
    """The predictions [M, T, N] of both ensembles. ``support``: [T, SHOTS, 1] each."""
    members = len(next(iter(weights.values())))
    same = tuple(part.repeat(members, 1, 1) for part in support)  # every member is shown the same points
    first = {name: value[:1].expand_as(value) for name, value in weights.items()}
    exponential = torch.empty(same[0].shape[:2]).exponential_(generator=torch.Generator().manual_seed(0))
    return {
        "initialisations": predictions(learner, weights, same, x),
        "bootstrap": predictions(learner, first, (*same, exponential), x),
    }


class Judged(NamedTuple):
    """How an ensemble compares with the truth; estimates are over tasks."""

    one: Estimate  # RMSE of a member
    mean: Estimate  # RMSE of the mean
    widening: float  # of the spread, so that 68 % of the points of validation tasks are covered as they should be
    coverage: dict[float, tuple[Estimate, Estimate]]  # of each level: with the spread as it is, and widened
    bins: Tensor  # [2, BINS]: root mean square of the spread and of the error, of points sorted by their spread


def judge(test: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]) -> Judged:
    """``test``, ``validation``: predictions [M, T, N] and truth [T, N]."""
    (error, spread), (held_error, held_spread) = (
        ((truth - made.mean(0)).abs(), made.std(0)) for made, truth in (test, validation)
    )
    widening = float((held_error / held_spread).quantile(0.68)) / LEVELS[0.68]
    coverage = {
        level: (
            Estimate.of((error <= deviations * spread).double().mean(1)),
            Estimate.of((error <= deviations * widening * spread).double().mean(1)),
        )
        for level, deviations in LEVELS.items()
    }
    order = spread.flatten().argsort()
    bins = [[part.square().mean().sqrt() for part in of.flatten()[order].tensor_split(BINS)] for of in (spread, error)]
    one = (test[1] - test[0]).square().mean(2).sqrt().mean(0)
    return Judged(Estimate.of(one), Estimate.of(error.square().mean(1).sqrt()), widening, coverage, torch.tensor(bins))


def picture(path: Path, learner: mf.MAML, weights: Weights, judged: dict[str, Judged], seed: int) -> None:
    """Three waves with mean and spread over x, the error of points against their spread, and the coverage."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    shape = figure.add_gridspec(2, 6)
    curves = waves(1).curves(3, points=SHOTS, generator=generator(seed, TEST, 1))
    x = torch.linspace(-5, 5, 200).view(1, -1, 1).expand(3, -1, -1)
    members = ensembles(learner, weights, (curves.x, curves.y), x)["initialisations"]
    widening = judged["initialisations"].widening
    for task in range(3):
        axes = figure.add_subplot(shape[0, 2 * task : 2 * task + 2])
        mean, spread = members[:, task].mean(0), members[:, task].std(0)
        for width, label in ((1.96 * widening, "95 %, spread widened"), (1.96, "95 %, spread as it is")):
            axes.fill_between(
                x[0, :, 0],
                mean - width * spread,
                mean + width * spread,
                color="C0",
                alpha=0.2,
                linewidth=0,
                label=label,
            )
        axes.plot(x[0, :, 0], curves.at(x)[task, :, 0], "k--", linewidth=1, label="truth")
        axes.plot(x[0, :, 0], mean, "C0", label="mean of members")
        axes.plot(curves.x[task, :, 0], curves.y[task, :, 0], "C3^", label="known points")
        axes.set(ylim=(-7, 7), xlabel="x")
    figure.axes[0].legend(fontsize=7)
    left, right = figure.add_subplot(shape[1, :3]), figure.add_subplot(shape[1, 3:])
    for (name, of), colour in zip(judged.items(), ("C0", "C1"), strict=True):
        left.plot(*of.bins, f"{colour}o-", label=name)
        for column, (style, kind) in enumerate((("o--", "as it is"), ("o-", "widened"))):
            covered = [pair[column].mean for pair in of.coverage.values()]
            right.plot(list(of.coverage), covered, colour + style, label=f"{name}, {kind}")
    for axes in (left, right):
        axes.axline((0.5, 0.5), slope=1, color="0.7", linewidth=0.8)
        axes.legend(fontsize=7, handlelength=3)
    left.set(xlabel="spread of members (tenths of all points)", ylabel="error of their mean")
    right.set(xlabel="part of points that should be covered", ylabel="part that is covered", ylim=(0, 1))
    figure.savefig(path, dpi=85)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--meta-steps", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=5, help="of the inner loop")
    parser.add_argument("--tasks", type=int, default=500, help="test tasks, and validation tasks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/ensemble"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    begin = time.perf_counter()

    learner = mf.MAML(mlp([1, 40, 40, 1]), lr=0.01, steps=args.steps, loss="mse")
    weights = meta_train(learner, args.members, args.meta_steps, args.seed)
    made: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}
    for stream in (TEST, VALIDATION):
        support, (x, y) = waves(QUERIES).sample(args.tasks, generator(args.seed, stream, 0))
        made[stream] = {name: (p, y.squeeze(2)) for name, p in ensembles(learner, weights, support, x).items()}
    judged = {name: judge(made[TEST][name], made[VALIDATION][name]) for name in made[TEST]}
    seconds = time.perf_counter() - begin

    print(f"{args.members} members on {args.tasks} new waves, 95 % interval; {seconds:.0f} s in all")
    for name, of in judged.items():
        print(f"{name}: RMSE of a member {of.one}, of their mean {of.mean}; spread to be widened by {of.widening:.2f}")
        for level, (plain, widened) in of.coverage.items():
            print(f"  {100 * level:.0f} % should be covered: {plain.percent()}; widened: {widened.percent()}")
        print("  spread and error, in tenths of the points: " + ", ".join(f"{s:.2f} {e:.2f}" for s, e in of.bins.T))
    content = {
        "settings": {name: str(value) for name, value in vars(args).items()},
        "seconds": seconds,
        "results": {
            name: {
                "rmse": {"member": vars(of.one), "mean": vars(of.mean)},
                "widening": of.widening,
                "coverage": {level: [vars(e) for e in pair] for level, pair in of.coverage.items()},
                "spread_and_error": of.bins.tolist(),
            }
            for name, of in judged.items()
        },
    }
    (args.out / "results.json").write_text(json.dumps(content, indent=2))
    picture(args.out / "ensemble.png", learner, weights, judged, args.seed)
    print(f"results and picture: {args.out}")


if __name__ == "__main__":
    main()
