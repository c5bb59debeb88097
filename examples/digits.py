"""Dense networks on images of digits whose numbers are told anew in every task, from one image of each.

A task takes the ten digits, numbers them at random, and gives one image of each; others are to be numbered. Networks
784-64-64-10 and 784-128-10 are meta-trained by MAML (Finn, Abbeel and Levine 2017, arXiv:1703.03400) with a learnt rate
for each tensor (Li et al. 2017, arXiv:1707.09835, whose rates are finer still), by descent with momentum or without.
What is new in a test task are its images and their numbering; the digits themselves were all seen in training.

Beside them on the same tasks: the same network from random weights; one trained to tell the digits in the plain way,
and then fine-tuned on the task; the nearest class by its outputs, and by pixels. For each that descends, the rate is
the best on validation tasks.

    pip install scikit-learn                              # its 1797 digits of 8x8 pixels, enlarged to 28x28
    python examples/digits.py                             # two networks, two rules: a table, a picture, results.json
    python examples/digits.py --data FOLDER               # of MNIST or Fashion-MNIST: train-images-idx3-ubyte.gz, ...
    python examples/digits.py --meta-steps 5 --tasks 8
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

import metafast as mf
from metafast.tasks import TEST, VALIDATION, Episode, Splits, TaskSampler, generator, read_idx
from metafast.training.evaluation import Estimate, Evaluation

NETWORKS = ((64, 64), (128,))
MOMENTA = (0.0, 0.5)
STEPS = (0, 1, 5, 10)
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)


def images(folder: Path | None) -> tuple[Tensor, Tensor]:
    """Images [M, 784] in [0, 1] and what they show, [M]."""
    if folder is not None:
        x, y = read_idx(*(folder / f"train-{name}-ubyte.gz" for name in ("images-idx3", "labels-idx1")))
        return torch.as_tensor(x).flatten(1).float() / 255, torch.as_tensor(y)
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SystemExit("the digits are scikit-learn's: pip install scikit-learn, or give --data") from None
    small = torch.as_tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 16
    large = interpolate(small, (28, 28), mode="bilinear")
    return large.flatten(1), torch.as_tensor(load_digits().target)


def parts(x: Tensor, y: Tensor, shots: int, seed: int) -> tuple[Splits, Tensor]:
    """Tasks of all ten classes whose images are in one of three parts alone; and which images are to train on."""
    order = torch.randperm(len(x), generator=generator(seed, 0))
    first, second = int(0.6 * len(x)), int(0.8 * len(x))
    rows = order[:first], order[first:second], order[second:]
    return Splits(*(TaskSampler(x[part], y[part], ways=10, shots=shots, queries=5) for part in rows)), rows[0]


def network(hidden: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in zip((784, *hidden), (*hidden, 10), strict=True):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def meta_trained(model: nn.Module, momentum: float, tasks: Splits, args: argparse.Namespace) -> tuple[mf.MAML, float]:
    """The learner, and its meta-steps a second."""
    rates = {name: 0.1 for name, _ in model.named_parameters()}
    learner = mf.MAML(copy.deepcopy(model), steps=5, rule=mf.SGD(rates, momentum=momentum, learn=("lr",)))
    settings = {"meta_batch": 8, "max_iters": args.meta_steps, "validation_tasks": 40, "scheduler": "cosine"}
    history = mf.meta_train(learner, tasks, **settings, validate_every=max(1, args.meta_steps // 5), seed=args.seed)
    return learner, history.meta_steps / history.seconds


def best_rate(model: nn.Module, tasks: Splits, count: int, seed: int) -> mf.MAML:
    """Plain descent from ``model``, at the rate that is the best on validation tasks after 10 steps."""

    def quality(learner: mf.MAML) -> float:
        found = mf.evaluate(learner, tasks.validation, STEPS[-1:], count=count, seed=seed, stream=VALIDATION)
        return found.estimates["accuracy"][STEPS[-1]].mean

    return max((mf.MAML(model, lr=rate, steps=STEPS[-1]) for rate in RATES), key=quality)


def nearest(features: Callable[[Tensor], Tensor], episodes: list[Episode]) -> Estimate:
    """Accuracy of the class whose mean of the support's features is nearest."""
    right = []
    with torch.no_grad():
        for (xs, _), (xq, yq) in episodes:
            means = features(xs).unflatten(1, (10, -1)).mean(2)  # the support is ordered by class
            right.append((torch.cdist(features(xq), means).argmin(-1) == yq).double().mean(-1))
    return Estimate.of(torch.cat(right))


def picture(path: Path, learner: mf.MAML, episode: Episode, curves: dict[str, Evaluation]) -> None:
    """A task with what the adapted network says, accuracy over steps, and the learnt rates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.3, 1, 0.8))
    (xs, ys), (xq, _) = ((x[:1], y[:1]) for x, y in episode)
    with torch.no_grad():
        said = learner.predict(learner.adapt((xs, ys)), xq).argmax(-1)[0].view(10, -1)
    sets = [pad(x[0].view(10, -1, 28, 28)[:, :3], (3, 3, 3, 3)) for x in (xs, xq)]
    rows = torch.cat([sets[0][:, :1], sets[1]], 1)  # [ten classes, 1 + 3 images, 34, 34]
    left.imshow(torch.cat([torch.cat([*row], 0) for row in rows], 1), cmap="gray_r")
    left.axhline(33.5, color="C0")
    for number in range(10):
        for row in range(3):
            answer = int(said[number, row])
            colour = "C2" if answer == number else "C3"
            left.text(34 * number + 1, 34 * row + 44, str(answer), fontsize=9, color=colour, weight="bold")
    left.set(xticks=[34 * i + 17 for i in range(10)], xticklabels=range(10), yticks=[])
    left.set(title="one image of each; below, what is said of others", xlabel="the task's own numbers")
    for name, found in curves.items():
        estimates = found.estimates["accuracy"].values()
        middle.errorbar(
            found.steps, [100 * e.mean for e in estimates], [100 * e.interval for e in estimates], fmt="o-", label=name
        )
    middle.set(xlabel="inner steps", ylabel="accuracy on new images, %", xticks=STEPS)
    middle.legend(fontsize=7)
    middle.grid(alpha=0.3)
    rates = {name: float(rate.detach()) for name, rate in learner.hyper("lr").items()}
    right.barh(list(rates)[::-1], list(rates.values())[::-1])
    right.axvline(0.1, color="grey", linestyle=":")
    right.set_xlabel("learnt rate (dotted: at first)")
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of MNIST's files; without it scikit-learn's digits")
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--meta-steps", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=300, help="test tasks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    begin = time.perf_counter()

    x, y = images(args.data)
    tasks, known = parts(x, y, args.shots, args.seed)
    episodes = list(islice(tasks.test.stream(20, seed=args.seed, stream=TEST), max(1, args.tasks // 20)))
    results: list[dict[str, Any]] = []

    def tell(net: str, way: str, found: dict[int, Estimate], note: str = "") -> None:
        after = {str(steps): asdict(estimate) for steps, estimate in found.items()}
        results.append({"network": net, "way": way, "accuracy": after, "note": note})
        cells = "".join(f"{100 * e.mean:8.1f} +- {100 * e.interval:.1f}" for e in found.values())
        print(f"{net:14s} {way:34s}{cells}  {note}", flush=True)

    print(f"accuracy on {len(episodes) * len(episodes[0].query[0])} tasks, in %, after inner steps {STEPS}:")
    tell("", "nearest class mean of pixels", {0: nearest(lambda x: x, episodes)})
    for hidden in NETWORKS:
        net, model = "-".join(map(str, (784, *hidden, 10))), network(hidden)
        curves = {}
        for momentum in MOMENTA:
            learner, rate = meta_trained(model, momentum, tasks, args)
            name = f"MAML, momentum {momentum}" if momentum else "MAML"
            curves[name] = mf.evaluate(learner, episodes, STEPS, count=args.tasks)
            tell(net, name, curves[name].estimates["accuracy"], f"{rate:.0f} meta-steps/s")
        plain = mf.fine_tune(copy.deepcopy(model), (x[known], y[known]), steps=args.meta_steps, seed=args.seed)
        for name, start in (("fine-tuned, from plain training", plain), ("from scratch", model)):
            best = best_rate(start, tasks, min(50, args.tasks), args.seed)
            curves[name] = mf.evaluate(best, episodes, STEPS, count=args.tasks)
            tell(net, name, curves[name].estimates["accuracy"], f"rate {best.hyper('lr'):g}")
        tell(net, "nearest class mean of its outputs", {0: nearest(plain, episodes)})
        picture(args.out / f"digits-{len(hidden)}.png", learner, episodes[0], curves)
    seconds = time.perf_counter() - begin
    settings = {name: str(value) for name, value in vars(args).items()}
    content = {"settings": settings, "seconds": seconds, "results": results}
    (args.out / "results.json").write_text(json.dumps(content, indent=2))
    print(f"{seconds:.0f} s in all; results and pictures: {args.out}")


if __name__ == "__main__":
    main()
