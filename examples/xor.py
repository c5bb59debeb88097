"""XOR, meta-learnt, and then adapted to the inverted labelling from ten points.

A network of two hidden layers is trained on points of the square [-1, 1]^2 in two ways: on XOR alone, where the label
of a point is whether its coordinates have different signs; and by MAML (Finn, Abbeel and Levine 2017, arXiv:1703.03400,
algorithm 1) over tasks that are XOR turned by an angle of U[0, pi]. The inverted labelling, XOR turned by pi / 2, is
then to be learnt from a few labelled points, from either weights and from random ones, by the rule that MAML trained
for (gradient descent at the meta-learnt rate) and by plain fine-tuning with Adam. The rate of Adam, and that of descent
where nothing learnt it, is the best on other draws of points. What a network trained on XOR alone knows is wrong
everywhere, and it is slow to forget.

    python examples/xor.py                                # 10 000 meta-steps, a table, a picture, results.json
    python examples/xor.py --meta-steps 20 --tasks 10
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import metafast as mf
from metafast.tasks import TEST, VALIDATION, RegressionFamily, generator

LOSS = "bce_with_logits"
SQUARE = ((-1.0, 1.0), (-1.0, 1.0))
#: Inner steps after which accuracy is reported.
STEPS = (0, 1, 5, 20, 100)
RATES = {"descent": (0.03, 0.1, 0.3, 1.0, 3.0), "Adam": (0.003, 0.01, 0.03, 0.1, 0.3)}
#: Mean and interval after each of these, of each way to learn.
Accuracy = dict[str, list[tuple[float, float]]]


def xor(x: Tensor, angle: Tensor) -> Tensor:
    """[*batch, N, 1]: 1 where the coordinates of x [*batch, N, 2], in axes turned by ``angle``, differ in sign."""
    a, b = x[..., :1], x[..., 1:]
    return ((a * angle.cos() + b * angle.sin()) * (b * angle.cos() - a * angle.sin()) < 0).to(x.dtype)


def turned(low: float, high: float, shots: int) -> RegressionFamily:
    return RegressionFamily(xor, {"angle": (low, high)}, SQUARE, shots=shots, queries=100)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))


def learner(model: nn.Module, rule: str, rate: float | Tensor) -> mf.MAML:
    """What adapts ``model`` by ``rule``; its own copy."""
    return mf.MAML(copy.deepcopy(model), loss=LOSS, rule=mf.Adam(rate) if rule == "Adam" else mf.SGD(rate))


def chosen(model: nn.Module, rule: str, tasks: RegressionFamily, count: int, seed: int) -> tuple[mf.MAML, float]:
    """The learner whose rate is the best on validation draws, at the best number of its steps; and the rate."""

    def quality(rate: float) -> float:
        found = mf.evaluate(learner(model, rule, rate), tasks, STEPS, count=count, seed=seed, stream=VALIDATION)
        return max(estimate.mean for estimate in found.estimates["accuracy"].values())

    rate = max(RATES[rule], key=quality)
    return learner(model, rule, rate), rate


def picture(path: Path, ways: dict[str, mf.MAML], tasks: RegressionFamily, accuracy: Accuracy, seed: int) -> None:
    """What three weights say of the square before and after they learn one set of points, and accuracy over steps."""
    from matplotlib.figure import Figure

    side = torch.linspace(-1, 1, 101)
    grid = torch.cartesian_prod(side, side).unsqueeze(0)
    support, _ = tasks.sample(1, generator(seed, TEST, 0))
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    shape = figure.add_gridspec(2, 5)
    for column, (name, way) in enumerate(ways.items()):
        for row, steps in enumerate((0, 5)):
            axes = figure.add_subplot(shape[row, column])
            with torch.no_grad():
                p = way.predict(way.adapt(support, steps=steps), grid).sigmoid().view(101, 101)
            axes.imshow(p.T, origin="lower", extent=(-1, 1, -1, 1), cmap="coolwarm", vmin=0, vmax=1)
            axes.scatter(*support[0][0].T, c=support[1][0, :, 0], cmap="coolwarm", edgecolors="black", s=40)
            axes.set_title(f"{name}\n{steps} steps" if steps else f"{name}\nbefore", fontsize=9)
            axes.set(xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    axes = figure.add_subplot(shape[:, 3:])
    for number, (name, values) in enumerate(accuracy.items()):
        means, intervals = ([100 * each for each in column] for column in zip(*values, strict=True))
        line = "--" if "Adam" in name else "-"
        axes.errorbar(STEPS, means, intervals, fmt=f"C{number // 2}o{line}", capsize=2, markersize=4, label=name)
    axes.set_xscale("symlog", linthresh=1)
    axes.set(xticks=STEPS, xticklabels=STEPS, xlabel="inner steps", ylabel="accuracy on the inverted labelling, %")
    axes.axhline(50, color="grey", linestyle=":")
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meta-steps", type=int, default=10_000)
    parser.add_argument("--shots", type=int, default=10, help="labelled points of a task")
    parser.add_argument("--tasks", type=int, default=500, help="draws of points that are reported on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/xor"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    begin = time.perf_counter()

    random = network()
    maml = mf.MAML(copy.deepcopy(random), lr=0.3, steps=5, loss=LOSS, learn_lr=True)
    history = mf.meta_train(
        maml, turned(0, math.pi, args.shots), max_iters=args.meta_steps, scheduler="cosine", seed=args.seed
    )
    print(history)
    plain = copy.deepcopy(random)
    alone = turned(0, 0, 1000).sample(1, generator(args.seed, TEST, 1))
    mf.fine_tune(plain, (alone.support[0][0], alone.support[1][0]), steps=min(2000, args.meta_steps), loss=LOSS)
    print(f"trained on XOR alone: {float(((plain(alone.query[0][0]) > 0) == alone.query[1][0]).double().mean()):.1%}")

    inverted = turned(math.pi / 2, math.pi / 2, args.shots)
    starts = {"meta-learnt": maml.model, "XOR alone": plain, "random": random}
    rate = maml.hyper("lr").detach()
    ways = {"meta-learnt, descent": (learner(maml.model, "descent", rate), float(rate))}
    for start, model in starts.items():
        for rule in RATES:
            if f"{start}, {rule}" not in ways:
                ways[f"{start}, {rule}"] = chosen(model, rule, inverted, max(2, args.tasks // 5), args.seed)

    print(f"accuracy on the inverted labelling from {args.shots} points, in %, after so many steps:")
    print(f"{'':24s}{'rate':>6s}" + "".join(f"{steps:>14d}" for steps in STEPS))
    results, accuracy = [], Accuracy()
    for name, (way, rate) in ways.items():
        found = mf.evaluate(way, inverted, STEPS, count=args.tasks, seed=args.seed)
        accuracy[name] = [(e.mean, e.interval) for e in found.estimates["accuracy"].values()]
        results.append({"way": name, "rate": rate, **found.as_dict()})
        print(f"{name:24s}{rate:6.3g}" + "".join(f"{100 * m:8.1f} +- {100 * i:.1f}" for m, i in accuracy[name]))
    seconds = time.perf_counter() - begin
    print(f"mean of {args.tasks} draws of points +- 95 % interval; {seconds:.0f} s in all")
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    content = {"settings": settings, "seconds": seconds, "results": results}
    (args.out / "results.json").write_text(json.dumps(content, indent=2))
    shown = {start: ways[f"{start}, descent"][0] for start in starts}
    picture(args.out / "xor.png", shown, inverted, accuracy, args.seed)
    print(f"results and picture: {args.out}")


if __name__ == "__main__":
    main()
