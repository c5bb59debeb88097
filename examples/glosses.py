"""Few-shot classification of texts: definitions of WordNet, of kinds of words that were not seen in meta-training.

A task is five of WordNet's 38 classes (a food, an animal, a verb of motion ...), with one or five definitions each and
the word itself masked; ten further definitions of each class are to be sorted (Bao et al. 2020, arXiv:1908.06039, ask
the same of news). The network is the plainest there is: the mean of the word vectors, and a linear layer.

  - nearest class mean: cosine to the mean tf-idf vector of each class; nothing is trained;
  - ANIL (Raghu et al. 2020): the word vectors are meta-learnt, the linear layer adapts. The words stand before all that
    moves, so torch runs them once for each task, and the inner loop is native;
  - MAML (Finn et al. 2017): from there on the word vectors adapt as well. Where the engine has no native form of an
    embedding that moves, torch runs this, after a warning.

    python examples/glosses.py --data glosses.tsv.gz
    python examples/glosses.py --data glosses.tsv.gz --meta-steps 4 --maml-steps 1 --tasks 10

``--data`` is a table, TSV or CSV, with the columns class and gloss.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

import metafast as mf
from metafast.tasks import TEST, Splits, TaskSampler, Texts, Vocabulary, generator
from metafast.tasks.vocabulary import PADDING, UNKNOWN
from metafast.training.evaluation import Estimate

WAYS, QUERIES, LENGTH, WIDTH = 5, 10, 24, 64
STEPS = (0, 1, 5, 10)


class MeanOfWords(nn.Module):
    """Texts as numbers of words, [N, length], to logits [N, ways]. ``weights`` [words] say what a word counts at
    first: with random vectors this is then about the tf-idf vector, thrown onto WIDTH directions."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(weights), WIDTH, padding_idx=PADDING)
        self.head = nn.Linear(WIDTH, WAYS)
        with torch.no_grad():
            self.embedding.weight.mul_((weights / weights.median()).unsqueeze(1))
            self.head.weight.zero_()
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x).sum(1) / (x != PADDING).sum(1, keepdim=True))


def rarity(rows: Tensor, words: int) -> Tensor:
    """[words] idf: log of the number of texts to one with the word, smoothed. Padding and unknown count nothing."""
    ordered = rows.sort(1).values
    first = torch.cat([torch.ones(len(rows), 1, dtype=torch.bool), ordered[:, 1:] != ordered[:, :-1]], 1)
    idf = 1 + torch.log((1 + len(rows)) / (1 + torch.bincount(ordered[first], minlength=words).float()))
    idf[[PADDING, UNKNOWN]] = 0
    return idf


def nearest_class_mean(tasks: TaskSampler, idf: Tensor, count: int, seed: int) -> Tensor:
    """[count] accuracies of the cosine to the nearest mean of tf-idf vectors."""

    def vectors(x: Tensor) -> Tensor:
        counts = torch.zeros(*x.shape[:2], len(idf)).scatter_add_(2, x, torch.ones(x.shape))
        return normalize(torch.where(counts > 0, 1 + counts.log(), 0.0) * idf, dim=-1)

    found = []
    for done in range(0, count, 25):  # the tasks of mf.evaluate
        (xs, ys), (xq, yq) = tasks.sample(min(25, count - done), generator(seed, TEST, done))
        means = nn.functional.one_hot(ys, WAYS).mT.float() @ vectors(xs)
        nearest = (vectors(xq) @ normalize(means, dim=-1).mT).argmax(-1)
        found.append((nearest == yq).double().mean(1))
    return torch.cat(found)


def compare(tasks: Splits, idf: Tensor, args: argparse.Namespace) -> dict[str, dict[int, Estimate]]:
    """The accuracy of each method after each number of inner steps, on the same test tasks."""
    torch.manual_seed(args.seed)
    plain = Estimate.of(nearest_class_mean(tasks.test, idf, args.tasks, args.seed))
    model = MeanOfWords(idf)
    training = {"meta_lr": args.meta_lr, "seed": args.seed, "validation_tasks": min(100, args.tasks)}
    testing = {"count": args.tasks, "seed": args.seed, "metrics": ["accuracy"]}

    anil = mf.MAML(model, lr=1.0, steps=5, adapt_params="head.*")
    print(mf.meta_train(anil, tasks, max_iters=args.meta_steps, scheduler="cosine", name="ANIL", **training))
    found = mf.evaluate(anil, tasks, STEPS, **testing).estimates["accuracy"]

    maml = mf.MAML(model, lr=1.0, steps=5)
    restart = {**training, "meta_lr": 0.1 * args.meta_lr, "validation_tasks": min(25, args.tasks), "meta_batch": 4}
    print(mf.meta_train(maml, tasks, max_iters=args.maml_steps, validate_every=args.maml_steps, name="MAML", **restart))
    all_moved = mf.evaluate(maml, tasks, STEPS, **testing).estimates["accuracy"]
    return {"nearest class mean": dict.fromkeys(STEPS, plain), "ANIL": found, "MAML from ANIL": all_moved}


def picture(path: Path, results: dict[str, dict[str, dict[int, Estimate]]]) -> None:
    """Accuracy over inner steps, for one and for five examples of a class."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, (shots, methods) in zip(figure.subplots(1, len(results), sharey=True), results.items(), strict=True):
        for (method, of), style in zip(methods.items(), ("k:", "C1-", "C0--"), strict=True):
            mean = torch.tensor([of[k].mean for k in STEPS])
            interval = torch.tensor([of[k].interval for k in STEPS])
            axes.plot(STEPS, mean, style, linewidth=1.2, label=method)
            axes.fill_between(STEPS, mean - interval, mean + interval, color=style.rstrip("-:"), alpha=0.2, linewidth=0)
        axes.axhline(1 / WAYS, color="0.8", label="chance")
        axes.set(title=f"5-way, {shots}", xlabel="inner steps", xticks=STEPS)
    figure.axes[0].set_ylabel("accuracy on unseen classes")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = os.environ.get("METAFAST_DATA")
    parser.add_argument("--data", type=Path, default=Path(known) / "glosses" / "glosses.tsv.gz" if known else None)
    parser.add_argument("--meta-steps", type=int, default=300)
    parser.add_argument("--maml-steps", type=int, default=20)
    parser.add_argument("--meta-lr", type=float, default=0.02)
    parser.add_argument("--tasks", type=int, default=200, help="test tasks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/glosses"))
    args = parser.parse_args()
    if args.data is None:
        parser.error("--data is missing: a table with the columns class and gloss")
    args.out.mkdir(parents=True, exist_ok=True)

    begin = time.perf_counter()
    texts = Texts.read(args.data, text="gloss", label="class")
    # Words of all texts, test classes too: their labels are not used. A word that occurs once cannot be recognised.
    vocabulary = Vocabulary.fit(texts.texts, min_count=2)
    rows = vocabulary.encode(texts.texts, LENGTH)
    idf = rarity(rows, len(vocabulary))
    print(f"{len(rows)} texts, {len(vocabulary)} words")
    results = {}
    for shots in (1, 5):
        tasks = TaskSampler.splits(rows, texts.labels, ways=WAYS, shots=shots, queries=QUERIES, seed=args.seed)
        results[f"{shots}-shot"] = compare(tasks, idf, args)
    seconds = time.perf_counter() - begin

    print(f"accuracy on {args.tasks} tasks of unseen classes, 95 % interval; {seconds:.0f} s in all")
    print(f"{'':20}{'steps':>6}" + "".join(f"{shots:>18}" for shots in results))
    for method in results["1-shot"]:
        for k in STEPS if method != "nearest class mean" else STEPS[:1]:
            print(f"{method:20}{k:6}" + "".join(f"{of[method][k]!s:>18}" for of in results.values()))
    content = {
        "settings": {name: str(value) for name, value in vars(args).items()},
        "seconds": seconds,
        "results": {s: {m: {k: vars(e) for k, e in of.items()} for m, of in r.items()} for s, r in results.items()},
    }
    (args.out / "results.json").write_text(json.dumps(content, indent=2))
    picture(args.out / "glosses.png", results)
    print(f"results and picture: {args.out}")


if __name__ == "__main__":
    main()
