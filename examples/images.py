"""Few-shot classification of colour images: drawings of emoji that meta-training did not see, from one image of each.

A task is five of 80 emoji; of each, one maker's drawing is shown, and five other makers' are to be recognised. The
network is the Conv-4 of Vinyals et al. (2016), on 3x32x32 images, meta-trained by MAML (Finn et al. 2017). Beside it
stand the same network adapted from random weights, and the class whose mean image is nearest.

    python examples/images.py --data emoji.zip                # a table, two pictures, results.json
    python examples/images.py --data emoji.zip --size 84 --lr 0.015 --meta-steps 120 --meta-batch 4 --tasks 100
    python examples/images.py --data emoji.zip --meta-steps 2 --tasks 4 --channels 4

``--data`` is a folder of images, or a zip of one: <class>/<image>. Without Python, `metafast train images` does this.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import one_hot

import metafast as mf
from metafast.tasks import TEST, Augmented, ImageFolder, Tasks, generator
from metafast.training.evaluation import Estimate
from metafast.training.networks import conv4

STEPS = (0, 1, 3, 5, 10)


def nearest_class_mean(tasks: Tasks, ways: int, count: int, seed: int) -> Tensor:
    """[count] accuracies of the nearest mean image of a class, by Euclidean distance of pixels."""
    found = []
    for done in range(0, count, 25):  # the tasks of mf.evaluate
        (xs, ys), (xq, yq) = tasks.sample(min(25, count - done), generator(seed, TEST, done))
        of_class = one_hot(ys, ways).mT.float()
        means = of_class @ xs.flatten(2) / of_class.sum(-1, keepdim=True)
        found.append((torch.cdist(xq.flatten(2), means).argmin(-1) == yq).double().mean(1))
    return torch.cat(found)


def tasks_drawn(path: Path, learner: mf.MAML, tasks: Tasks, ways: int, seed: int, count: int = 3) -> None:
    """Some tasks: what is shown of each class, then what is asked, framed green where it is recognised, else red with
    the class that it is taken for."""
    from matplotlib.figure import Figure

    (xs, ys), (xq, yq) = tasks.sample(count, generator(seed, TEST, 0))
    with torch.no_grad():
        taken_for = learner((xs, ys), (xq, yq)).logits.argmax(-1)
    asked = xq.shape[1] // ways
    figure = Figure(figsize=(1.5 + count * (asked + 1) * 0.55, ways * 0.62), layout="constrained")
    for t, part in enumerate(figure.subfigures(1, count, squeeze=False)[0]):
        grid = part.subplots(ways, asked + 1, squeeze=False)
        for label in range(ways):
            shown = xs[t][ys[t] == label][:1]
            queries, answers = xq[t][yq[t] == label], taken_for[t][yq[t] == label]
            for place, image in enumerate([*shown, *queries]):
                axes = grid[label, place]
                axes.imshow(image.permute(1, 2, 0))
                axes.set(xticks=[], yticks=[])
                if place == 0:
                    axes.set_ylabel("abcdefghij"[label], rotation=0, labelpad=8)
                    axes.spines[:].set_visible(False)
                    continue
                answer = int(answers[place - 1])
                axes.spines[:].set(color="C2" if answer == label else "C3", linewidth=2)
                if answer != label:
                    axes.text(0.97, 0.03, "abcdefghij"[answer], color="C3", transform=axes.transAxes, ha="right")
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = os.environ.get("METAFAST_DATA")
    parser.add_argument("--data", type=Path, default=Path(known) / "emoji" / "emoji.zip" if known else None)
    parser.add_argument("--ways", type=int, default=5)
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--queries", type=int, default=5)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--channels", type=int, default=32, help="of each convolution")
    parser.add_argument("--lr", type=float, default=0.1, help="of the inner loop; larger images need smaller steps")
    parser.add_argument("--meta-steps", type=int, default=600)
    parser.add_argument("--meta-batch", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=300, help="test tasks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/images"))
    args = parser.parse_args()
    if args.data is None:
        parser.error("--data is missing: a folder of images or a zip of one, <class>/<image>")
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    begin = time.perf_counter()

    images = ImageFolder.load(args.data, size=args.size, channels=3)
    tasks = images.splits(ways=args.ways, shots=args.shots, queries=args.queries, seed=args.seed)
    network = conv4(args.channels, args.ways, in_channels=3, image_size=args.size)
    learner = mf.MAML(network, lr=args.lr, steps=3)
    example = (args.meta_batch, args.ways * args.shots, 3, args.size, args.size)
    print(mf.explain(network, example, "cross_entropy", steps=learner.steps, queries=args.ways * args.queries))

    testing = {"count": args.tasks, "seed": args.seed, "metrics": ["accuracy"]}
    untrained = mf.evaluate(learner, tasks, STEPS, **testing)
    history = mf.meta_train(
        learner,
        Augmented(tasks.train, flip=True, crop=args.size // 10),
        validation=tasks.validation,
        validate_every=max(1, args.meta_steps // 10),
        validation_tasks=min(100, args.tasks),
        meta_lr=0.002,
        scheduler="cosine",
        max_iters=args.meta_steps,
        meta_batch=args.meta_batch,
        seed=args.seed,
    )
    print(history)
    trained = mf.evaluate(learner, tasks, STEPS, **testing)
    pixels = nearest_class_mean(tasks.test, args.ways, args.tasks, args.seed)
    seconds = time.perf_counter() - begin

    at = trained.steps.index(learner.steps)
    gain = Estimate.of(trained.per_task["accuracy"][at] - pixels)
    rows = {"nearest class mean of pixels": Estimate.of(pixels)}
    for name, found in (("untrained", untrained), ("MAML", trained)):
        rows |= {f"{name}, {k} steps": estimate for k, estimate in found.estimates["accuracy"].items()}
    rows["MAML less nearest class mean, task by task"] = gain
    print(f"accuracy on {args.tasks} tasks of unseen classes, 95 % interval; {seconds:.0f} s in all")
    for name, estimate in rows.items():
        print(f"  {name:44} {estimate.percent()}")
    content = {
        "settings": {name: str(value) for name, value in vars(args).items()},
        "seconds": seconds,
        "results": {name: vars(estimate) for name, estimate in rows.items()},
    }
    (args.out / "results.json").write_text(json.dumps(content, indent=2))
    history.plot(args.out / "training.png")
    tasks_drawn(args.out / "tasks.png", learner, tasks.test, args.ways, args.seed)
    print(f"results and pictures: {args.out}")


if __name__ == "__main__":
    main()
