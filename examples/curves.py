"""Real curves from a few of their points: a group of a table is a task, its rows are the examples.

gapminder: life expectancy over the years 1960 to 2016 for 185 countries; held-out countries are drawn from all, or are
one continent at a time, which is harder. remifentanil: the logarithm of an opioid's concentration in the blood of 65
patients over the time of an infusion and after it, its rate, age, sex and body (Minto et al. 1997). The tables are
those of the R packages dslabs (figures of gapminder.org) and nlme, with their columns. From five points of a group the
others are to be predicted, by

- the mean of the five;
- a straight line through them (gapminder: over the year; remifentanil: over the logarithm of the time since the start);
- a network trained on all rows of the training groups, which knows nothing of the group (pooled);
- the same with a shift, the mean of its five errors; or fine-tuned on the five by Adam;
- a random network trained on the five alone;
- MAML (Finn, Abbeel and Levine 2017, arXiv:1703.03400), a network meta-trained to learn from five, before and after
  1, 5 and 10 steps.

    python examples/curves.py --data FOLDER               # with gapminder.csv, remifentanil.csv
    python examples/curves.py --data FOLDER --meta-steps 2 --splits 1 --tasks 20
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

import metafast as mf
from metafast.tasks import TEST, VALIDATION, Episode, GroupedTable, GroupTasks, Splits
from metafast.training.evaluation import Estimate

SHOTS, QUERIES = 5, 12
STEPS = (0, 1, 5, 10)
#: Steps of Adam on a task's five points, and its rates.
TUNING, RATES = 50, (0.0003, 0.001, 0.003, 0.01, 0.03)
Predict = Callable[[tuple[Tensor, Tensor], Tensor], Tensor]


def gapminder(folder: Path, count: int) -> tuple[dict[str, list[Splits]], str]:
    rows = list(csv.DictReader((folder / "gapminder.csv").open(encoding="utf-8")))
    names = ("country", "year", "life_expectancy")
    country, year, life = ([row[name] for row in rows] for name in names)
    table = GroupedTable([float(value) for value in year], [float(value) for value in life], country)
    continent = {row["country"]: row["continent"] for row in rows}
    by_continent = []
    for held_out in sorted(set(continent.values()))[: count if count < 3 else None]:
        known = [name for name in continent if continent[name] != held_out]
        test = [name for name in continent if continent[name] == held_out]
        parts = {"train": [n for i, n in enumerate(known) if i % 5], "validation": known[::5], "test": test}
        by_continent.append(table.splits(shots=SHOTS, queries=QUERIES, names=parts))
    at_random = [table.splits(shots=SHOTS, queries=QUERIES, seed=seed) for seed in range(count)]
    return {"gapminder": at_random, "gapminder, a new continent": by_continent}, "life expectancy, years"


def remifentanil(folder: Path, count: int) -> tuple[dict[str, list[Splits]], str]:
    rows = list(csv.DictReader((folder / "remifentanil.csv").open(encoding="utf-8")))
    ended: dict[str, float] = {}  # when a patient's infusion did
    highest: dict[str, float] = {}
    for row in rows:
        patient, at, rate = row["ID"], float(row["Time"]), float(row["Rate"])
        highest[patient] = max(rate, highest.get(patient, 0.0))
        if rate > 0:
            ended[patient] = at
    x = [
        [
            math.log1p(float(row["Time"])),
            math.log1p(max(0.0, float(row["Time"]) - ended[row["ID"]])),
            float(float(row["Rate"]) > 0),
            math.log(highest[row["ID"]]),
            *(float(row[name]) for name in ("Age", "Wt", "LBM")),
            float(row["Sex"] == "Male"),
        ]
        for row in rows
    ]
    y = [math.log(float(row["conc"])) if row["conc"] else math.nan for row in rows]
    table = GroupedTable(x, y, [row["ID"] for row in rows])
    return {
        "remifentanil": [table.splits(shots=SHOTS, queries=QUERIES, seed=seed) for seed in range(count)]
    }, "log ng/ml"


def network(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))


def line(support: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    """Least squares over the first feature; a task whose points have one and the same gets their mean."""
    xs, ys = support[0][..., :1], support[1]
    centre, level = xs.mean(1, keepdim=True), ys.mean(1, keepdim=True)
    spread = (xs - centre).square().sum(1, keepdim=True)
    slope = ((xs - centre) * (ys - level)).sum(1, keepdim=True) / spread.clamp(min=1e-6)
    return level + slope * (x[..., :1] - centre)


def steps_of(learner: mf.MAML, steps: int) -> Predict:
    return lambda support, x: learner.predict(learner.adapt(support, steps=steps), x)


def rmse(predict: Predict, episodes: list[Episode], unit: float) -> Tensor:
    """[tasks] in the unit of the table."""
    with torch.no_grad():
        return torch.cat([(predict(s, xq) - yq).square().mean((1, 2)).sqrt() * unit for s, (xq, yq) in episodes])


def tuned(model: nn.Module, held_out: list[Episode]) -> Predict:
    """Fine-tuning by Adam, at the rate that is the best on validation tasks."""
    each = [steps_of(mf.MAML(copy.deepcopy(model), rule=mf.Adam(rate), loss="mse"), TUNING) for rate in RATES]
    return min(each, key=lambda predict: float(rmse(predict, held_out, 1.0).mean()))


def ways_to_predict(tasks: Splits, args: argparse.Namespace, seed: int) -> Iterator[tuple[str, Predict]]:
    train = tasks.train
    assert isinstance(train, GroupTasks)
    held_out = list(islice(tasks.validation.stream(50, seed=seed, stream=VALIDATION), max(1, args.tasks // 100)))
    random = network(train.x.shape[1])
    yield "mean of the five", lambda support, x: support[1].mean(1, keepdim=True).expand(*x.shape[:2], 1)
    yield "straight line", line
    rows = train.groups.rows
    pooled = mf.fine_tune(
        copy.deepcopy(random), (train.x[rows], train.y[rows]), steps=args.meta_steps, loss="mse", batch_size=128
    )
    yield "pooled", lambda support, x: pooled(x)
    yield "pooled, shifted", lambda support, x: pooled(x) + (support[1] - pooled(support[0])).mean(1, keepdim=True)
    yield "pooled, fine-tuned", tuned(pooled, held_out)
    yield "from scratch", tuned(random, held_out)
    rates = {name: 0.05 for name, _ in random.named_parameters()}
    learner = mf.MAML(random, lr=rates, steps=5, loss="mse", learn_lr=True)
    mf.meta_train(learner, tasks, max_iters=args.meta_steps, meta_lr=0.003, scheduler="cosine", seed=seed)
    for steps in STEPS:
        yield f"MAML, {steps} steps", steps_of(learner, steps)


def picture(path: Path, shown: list[tuple[str, Splits, dict[str, Predict]]], units: dict[str, str]) -> None:
    """Three tasks of each kind: the five points, the others, and what some of the ways make of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3 * len(shown)), layout="constrained")
    styles = {"straight line": "C7:", "pooled, shifted": "C1--", "MAML, 0 steps": "C0:", "MAML, 5 steps": "C0-"}
    for row, (kind, tasks, ways) in zip(figure.subplots(len(shown), 3, squeeze=False), shown, strict=True):
        test: GroupTasks = tasks.test
        minutes = kind == "remifentanil"

        def draw(axes, x: Tensor, y: Tensor, style: str, label: str, test=test, minutes=minutes) -> None:
            at = test.x_scale.undo(x)[:, 0]
            axes.plot(at.expm1() if minutes else at, test.y_scale.undo(y)[:, 0], style, linewidth=1, label=label)

        (episode,) = islice(test.stream(3, seed=3, stream=TEST), 1)
        for task, axes in enumerate(row):
            (xs, ys), (xq, yq) = ((x[task : task + 1], y[task : task + 1]) for x, y in episode)
            x = torch.cat([xs, xq], 1)
            x = x[:, x[0, :, 0].argsort()]
            with torch.no_grad():
                for name, style in styles.items():
                    draw(axes, x[0], ways[name]((xs, ys), x)[0], style, name)
            draw(axes, xq[0], yq[0], "k.", "to be predicted")
            draw(axes, xs[0], ys[0], "ko", "known")
            axes.set_title(kind, fontsize=9)
            axes.set(xlabel="minutes" if minutes else "year", ylabel=units[kind])
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = os.environ.get("METAFAST_DATA")
    parser.add_argument("--data", type=Path, default=Path(known) / "curves" if known else None)
    parser.add_argument("--meta-steps", type=int, default=2000)
    parser.add_argument("--splits", type=int, default=3, help="ways to hold groups out; 3 or more: every continent")
    parser.add_argument("--tasks", type=int, default=500, help="test tasks of each split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/curves"))
    args = parser.parse_args()
    if args.data is None:
        parser.error("--data is missing: a folder with gapminder.csv and remifentanil.csv")
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    begin = time.perf_counter()

    results, shown, units = {}, [], {}
    for read in (gapminder, remifentanil):
        kinds, unit = read(args.data, args.splits)
        for kind, splits in kinds.items():
            errors: dict[str, list[Tensor]] = {}
            for seed, tasks in enumerate(splits, args.seed):
                episodes = list(islice(tasks.test.stream(20, seed=seed, stream=TEST), max(1, args.tasks // 20)))
                ways = {}
                for name, ways[name] in ways_to_predict(tasks, args, seed):
                    errors.setdefault(name, []).append(rmse(ways[name], episodes, float(tasks.test.y_scale.deviation)))
            estimates = {name: Estimate.of(torch.cat(values)) for name, values in errors.items()}
            shown.append((kind, tasks, ways))
            print(f"{kind}: root mean square error, {unit}; mean of {len(torch.cat(errors['pooled']))} tasks")
            best, rival = (torch.cat(errors[name]) for name in ("MAML, 10 steps", "pooled, fine-tuned"))
            estimates["MAML, 10 steps, less fine-tuned"] = Estimate.of(best - rival)
            for name, estimate in estimates.items():
                print(f"  {name:32s}{estimate}", flush=True)
            results[kind], units[kind] = {name: asdict(estimate) for name, estimate in estimates.items()}, unit
    seconds = time.perf_counter() - begin
    settings = {name: str(value) for name, value in vars(args).items()}
    content = {"settings": settings, "seconds": seconds, "results": results}
    (args.out / "results.json").write_text(json.dumps(content, indent=2))
    picture(args.out / "curves.png", shown, units)
    print(f"{seconds:.0f} s in all; results and picture: {args.out}")


if __name__ == "__main__":
    main()
