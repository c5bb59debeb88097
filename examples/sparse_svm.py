"""Sparse adaptation like a support vector machine's: the hinge loss and a soft threshold in the inner loop.

Five icons are told apart from five drawings of each. A small convolutional network gives 512 features, which are
meta-learnt, and a linear head is adapted to the task by proximal gradient descent (ISTA, Beck and Teboulle 2009) on the
multi-class hinge loss (Weston and Watkins 1999), the mean of sum_{c != y} max(0, 1 - o_y + o_c) / C, and an L1 penalty:

    W <- shrink(W - lr dL/dW, s),    shrink(w, s) = sign(w) max(|w| - s, 0)

So weights become exactly zero, and drawings outside of the margin have no say. The meta-gradient is exact through all
of it, as MetaOptNet's (Lee et al. 2019, arXiv:1904.03758) is through the solver of a support vector machine. For
several strengths s: accuracy, the share of zeros in the adapted head, and that of support vectors, the drawings within
the margin of 1. Beside it on the same tasks are plain MAML and ANIL with cross-entropy, and the head of s = 0 whose
smallest weights are cut off after adaptation, to as many zeros.

    python examples/sparse_svm.py --data icons.zip        # a table, a picture, results.json
    python examples/sparse_svm.py --data icons.zip --meta-steps 2 --tasks 10 --strengths 0.001

``--data`` is a folder of images, or a zip of one: <class>/<image>.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

import metafast as mf
from metafast.tasks import TEST, Episode, ImageFolder, Splits
from metafast.training.evaluation import Estimate

WAYS, SHOTS, QUERIES, SIDE, STEPS = 5, 5, 5, 28, 5
HEAD = ("head.weight", "head.bias")


class Network(nn.Sequential):
    """Drawings [N, 1, 28, 28] to [N, 5]; BatchNorm takes the statistics of the task's own drawings."""

    def __init__(self) -> None:
        super().__init__()
        for i, (inputs, outputs) in enumerate(((1, 16), (16, 32), (32, 32))):
            self.add_module(f"conv{i}", nn.Conv2d(inputs, outputs, 3, stride=2, padding=1))
            self.add_module(f"norm{i}", nn.BatchNorm2d(outputs))
            self.add_module(f"relu{i}", nn.ReLU())
        self.add_module("flatten", nn.Flatten())
        self.add_module("head", nn.Linear(32 * (SIDE // 7) ** 2, WAYS))


def learner(model: nn.Module, loss: str, strength: float = 0.0, every_layer: bool = False) -> mf.MAML:
    """What adapts its own copy of ``model``; the bias of the head is not shrunk."""
    model = copy.deepcopy(model)
    moved = [name for name, _ in model.named_parameters()] if every_layer else list(HEAD)
    rule = mf.SGD(dict.fromkeys(moved, 0.05), learn=("lr",))
    if strength:
        rule = mf.chain(rule, mf.soft_threshold(dict(zip(HEAD, (strength, 0.0), strict=True))))
    return mf.MAML(model, steps=STEPS, loss=loss, rule=rule, adapt_params=moved)


def cut(weights: Tensor, share: float) -> Tensor:
    """weights [T, 5, F] with this share of the smallest of each task at zero."""
    size = weights.abs().flatten(1)
    least = size.sort(1).values[:, min(round(share * size.shape[1]), size.shape[1] - 1)]
    return torch.where(weights.abs() < least.view(-1, 1, 1), 0.0, weights)


def judge(trained: mf.MAML, episodes: list[Episode], share: float = 0.0) -> dict[str, Estimate]:
    """Accuracy, zeros of the adapted head, and support vectors; after striking out ``share`` of the head's weights."""
    rows = []
    with torch.no_grad():
        for (xs, ys), (xq, yq) in episodes:
            adapted = trained.adapt((xs, ys))
            weights = adapted["head.weight"] = cut(adapted["head.weight"], share)
            right = (trained.predict(adapted, xq).argmax(-1) == yq).double().mean(1)
            outputs = trained.predict(adapted, xs)
            own = nn.functional.one_hot(ys, WAYS).bool()
            margin = outputs[own].view(ys.shape) - outputs.masked_fill(own, -torch.inf).amax(-1)
            rows.append((right, (weights == 0).double().mean((1, 2)), (margin < 1).double().mean(1)))
    names = ("accuracy", "zeros", "support vectors")
    return {name: Estimate.of(torch.cat(values)) for name, values in zip(names, zip(*rows, strict=True), strict=True)}


def picture(path: Path, found: dict[str, dict[str, Estimate]], trained: mf.MAML, episode: Episode) -> None:
    """Accuracy over zeros, and a task's adapted head."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
    for label, style in (("hinge, s", "C0o-"), ("hinge, cut", "C1s--"), ("", "C2^")):
        rows = {name: row for name, row in found.items() if (name.startswith(label) if label else "entropy" in name)}
        zeros, accuracy = ([row[key] for row in rows.values()] for key in ("zeros", "accuracy"))
        left.errorbar(
            [100 * each.mean for each in zeros], [100 * each.mean for each in accuracy],
            [100 * each.interval for each in accuracy], fmt=style, capsize=2, label=label or "cross-entropy",
        )  # fmt: skip
    left.set(xlabel="zeros of the adapted head, %", ylabel="accuracy, %")
    left.legend(fontsize=8)
    left.grid(alpha=0.3)
    with torch.no_grad():
        weights = trained.adapt(episode.support)["head.weight"][0]
    most = float(weights.abs().max())
    right.imshow(weights, aspect="auto", cmap="RdBu", vmin=-most, vmax=most, interpolation="nearest")
    right.set(xlabel="feature", ylabel="class", title="a head adapted at the largest strength (white: zero)")
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = os.environ.get("METAFAST_DATA")
    parser.add_argument("--data", type=Path, default=Path(known) / "icons" / "icons.zip" if known else None)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.001, 0.003, 0.01, 0.03])
    parser.add_argument("--meta-steps", type=int, default=500, help="of each learner")
    parser.add_argument("--tasks", type=int, default=300, help="test tasks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/sparse_svm"))
    args = parser.parse_args()
    if args.data is None:
        parser.error("--data is missing: a folder of images or a zip of one, <class>/<image>")
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    begin = time.perf_counter()
    images = ImageFolder.load(args.data, size=SIDE, channels=1)
    tasks: Splits = images.splits(ways=WAYS, shots=SHOTS, queries=QUERIES, seed=args.seed)
    episodes = list(islice(tasks.test.stream(10, seed=args.seed, stream=TEST), max(1, args.tasks // 10)))
    model, found = Network(), {}

    def tell(name: str, row: dict[str, Estimate]) -> None:
        found[name] = row
        print(
            f"{name:32s}" + "".join(f"{100 * e.mean:10.1f} +- {100 * e.interval:.1f}" for e in row.values()), flush=True
        )

    def trained(made: mf.MAML) -> mf.MAML:
        mf.meta_train(made, tasks.train, meta_batch=4, max_iters=args.meta_steps, scheduler="cosine", seed=args.seed)
        return made

    heading = "".join(f"{name:>17s}" for name in ("accuracy", "zeros", "support vectors"))
    print(f"% of {10 * len(episodes)} tasks{'':11s}{heading}")
    tell("cross-entropy, MAML", judge(trained(learner(model, "cross_entropy", every_layer=True)), episodes))
    tell("cross-entropy, ANIL", judge(trained(learner(model, "cross_entropy")), episodes))
    dense = trained(learner(model, "multi_margin"))
    tell("hinge, s = 0", judge(dense, episodes))
    for strength in args.strengths:
        sparse = trained(learner(model, "multi_margin", strength))
        tell(f"hinge, s = {strength:g}", judge(sparse, episodes))
    for strength in args.strengths:
        share = found[f"hinge, s = {strength:g}"]["zeros"].mean
        tell(f"hinge, cut as s = {strength:g}", judge(dense, episodes, share))
    seconds = time.perf_counter() - begin
    settings = {name: str(value) for name, value in vars(args).items()}
    results = {name: {key: asdict(value) for key, value in row.items()} for name, row in found.items()}
    content = {"settings": settings, "seconds": seconds, "results": results}
    (args.out / "results.json").write_text(json.dumps(content, indent=2))
    picture(args.out / "sparse_svm.png", found, sparse, episodes[0])
    print(f"{seconds:.0f} s in all; results and picture: {args.out}")


if __name__ == "__main__":
    main()
