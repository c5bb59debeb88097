"""Example tasks before and after adaptation, as plain data: made by running a learner, kept beside the run.

What a task looks like decides its form: images with one or three channels, a function of one variable, texts, or else a
table of numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from metafast.files import replacing
from metafast.tasks import TEST, Episode, Splits, Tasks, TextTasks, Vocabulary, generator

#: Points of the line that an adapted network draws.
GRID = 120
#: Query examples shown of a task, and support examples of a class.
QUERIES, SUPPORT = 10, 5

Names = tuple[str, ...]
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Classified:
    """What the examples of a classification task share."""

    names: Names  # of the task's classes
    support_labels: Array  # [N]
    labels: Array  # [Q] the true classes of query examples
    before: Array  # [Q] the predicted ones before adaptation
    after: Array  # [Q] and after
    steps: int  # inner steps in between


@dataclass(frozen=True)
class ImagesExample(Classified):
    support: Array  # uint8 [N, height, width, 1 or 3]
    query: Array  # uint8 [Q, height, width, 1 or 3]


@dataclass(frozen=True)
class TextExample(Classified):
    support: Names  # N texts
    query: Names  # Q texts


@dataclass(frozen=True)
class CurveExample:
    """A function of one variable."""

    support_x: Array  # [N]
    support_y: Array  # [N]
    query_x: Array  # [Q]
    query_y: Array  # [Q]
    x: Array  # [P] ascending
    steps: tuple[int, ...]  # of each line
    lines: Array  # [len(steps), P] what the network says at x after so many inner steps


@dataclass(frozen=True)
class TableExample:
    """Predictions for query examples that are neither: true value, before and after adaptation."""

    truth: Names  # [Q]
    before: Names  # [Q]
    after: Names  # [Q]
    right: Array  # bool [2, Q] before and after; empty where right and wrong are a matter of degree
    steps: int


Example = ImagesExample | TextExample | CurveExample | TableExample
FORMS: dict[str, type[Any]] = {form.__name__: form for form in (ImagesExample, TextExample, CurveExample, TableExample)}


def examples(
    learner: nn.Module,
    tasks: Tasks | Splits | Episode,
    seed: int = 0,
    count: int = 4,
    *,
    class_names: Sequence[str] | Sequence[Sequence[str]] | None = None,
    vocabulary: Vocabulary | Sequence[str] | None = None,
    steps: int | None = None,
) -> list[Example]:
    """Adapt ``learner`` to a few test tasks and keep what it says of their query sets before and after.

    The tasks are the first of a test stream of their own, never chosen by their outcome.

    Args:
        learner: called as ``learner(support, query, steps=k).logits``.
        tasks: where the tasks come from (of splits, the test part), or a meta-batch of them.
        seed: of the tasks.
        count: how many tasks, of a meta-batch at most those it has.
        class_names: of labels 0, 1, ... of every task, or a list of them for each task. None: as ``tasks`` calls them
            (:meth:`metafast.tasks.Tasks.label_names`), or else "class 1", ...
        vocabulary: the word of every token id, for integer inputs [T, N, length]; empty words are padding. None: that
            of :class:`metafast.tasks.TextTasks`.
        steps: inner steps of "after"; None means the learner's own, at least 1.
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    own = getattr(learner, "steps", 1)
    after = max(1, own if isinstance(own, int) else 1) if steps is None else steps
    if isinstance(tasks, Splits):
        tasks = tasks.test
    if vocabulary is None and isinstance(tasks, TextTasks):
        vocabulary = tasks.vocabulary
    if isinstance(vocabulary, Vocabulary):
        vocabulary = ("", "?", *vocabulary.words)  # padding, and what it does not know
    episode = tasks if isinstance(tasks, tuple) else tasks.sample(count, generator(seed, TEST, 1))
    if class_names is None and isinstance(tasks, Tasks):
        class_names = tasks.label_names(count, generator(seed, TEST, 1))
    (xs, ys), (xq, yq) = episode = Episode(*((x[:count], y[:count]) for x, y, *_ in episode))
    where = next(learner.parameters()).device

    def logits(xq: Tensor, yq: Tensor, k: int) -> Tensor:
        with torch.no_grad():
            support, query = Episode(episode.support, (xq, yq)).to(where)
            out: Tensor = learner(support, query, steps=k).logits
        return out.detach().cpu()

    classes = not yq.is_floating_point() and yq.ndim == 2
    if not classes and xs.ndim == 3 == ys.ndim and xs.shape[-1] == 1 == ys.shape[-1] and xs.is_floating_point():
        return _curves(episode, logits, sorted({0, 1, after}))
    said = [logits(xq, yq, k) for k in (0, after)]
    if not classes or said[0].ndim != 3:
        return [_numbers(yq[t], said[0][t], said[1][t], after) for t in range(len(xs))]
    before, predicted = (out.argmax(-1) for out in said)
    made: list[Example] = []
    for t in range(len(xs)):
        names = _names(class_names, t, said[0].shape[-1])
        shown, given = _of_each_class(yq[t], QUERIES), _of_each_class(ys[t], SUPPORT * len(names), SUPPORT)
        truth, first, final = (a[t, shown].numpy() for a in (yq.cpu(), before, predicted))
        shared = (names, ys[t, given].cpu().numpy(), truth, first, final, after)
        if xs.ndim == 5 and xs.shape[2] in (1, 3):
            made.append(ImagesExample(*shared, *_pixels(xs[t, given], xq[t, shown])))
        elif vocabulary is not None and xs.ndim == 3 and not xs.is_floating_point():
            made.append(TextExample(*shared, _texts(xs[t, given], vocabulary), _texts(xq[t, shown], vocabulary)))
        else:
            said_true, said_first, said_final = (tuple(names[i] for i in v) for v in (truth, first, final))
            right = np.stack([first == truth, final == truth])
            made.append(TableExample(said_true, said_first, said_final, right, after))
    return made


def _curves(episode: Episode, logits: Any, steps: list[int]) -> list[Example]:
    (xs, ys), (xq, yq) = (tuple(part.detach().cpu() for part in pair) for pair in episode)
    both = torch.cat([xs, xq], 1).flatten(1)
    low, high = both.min(1, keepdim=True).values, both.max(1, keepdim=True).values
    x = low + (high - low) * torch.linspace(0, 1, GRID, dtype=xs.dtype)  # [T, P]
    drawn = torch.stack([logits(x.unsqueeze(-1), torch.zeros_like(x).unsqueeze(-1), k) for k in steps])[..., 0]
    a, b, c, d = (values[..., 0].numpy() for values in (xs, ys, xq, yq))
    return [
        CurveExample(a[t], b[t], c[t], d[t], x[t].numpy(), tuple(steps), drawn[:, t].numpy()) for t in range(len(xs))
    ]


def _numbers(truth: Tensor, before: Tensor, after: Tensor, steps: int) -> TableExample:
    """Targets that are numbers, or classes at many places."""

    def words(values: Tensor) -> Names:
        rows = values[:QUERIES].reshape(min(QUERIES, len(values)), -1).tolist()
        return tuple(", ".join(f"{value:.4g}" for value in row[:4]) + (" …" if len(row) > 4 else "") for row in rows)

    return TableExample(words(truth), words(before), words(after), np.zeros((2, 0), dtype=bool), steps)


def _names(given: Any, task: int, classes: int) -> Names:
    names = [] if given is None else given[task] if given and not isinstance(given[0], str) else given
    return (*map(str, names[:classes]), *(f"class {i + 1}" for i in range(len(names), classes)))


def _of_each_class(labels: Tensor, most: int, each: int | None = None) -> Array:
    """Places of the first of every class, then the second, ..., at most ``most`` in all; in the order of classes."""
    seen: dict[int, int] = {}
    order = []
    for place, value in enumerate(labels.tolist()):
        rank = seen[value] = seen.get(value, -1) + 1
        if each is None or rank < each:
            order.append((rank, value, place))
    chosen = sorted(order)[:most]
    return np.array([place for _, _, place in sorted(chosen, key=lambda item: (item[1], item[0]))], dtype=np.int64)


def _pixels(support: Tensor, query: Tensor) -> tuple[Array, Array]:
    """[N, channels, height, width] of any range -> uint8 [N, height, width, channels]: values within [0, 1] as they
    are, others stretched together."""
    values = [part.detach().cpu().double() for part in (support, query)]
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    if low < 0 or high > 1:
        values = [(v - low) / max(high - low, 1e-12) for v in values]
    first, second = ((255 * v).round().to(torch.uint8).permute(0, 2, 3, 1).numpy() for v in values)
    return first, second


def _texts(ids: Tensor, vocabulary: Sequence[str]) -> Names:
    known = len(vocabulary)
    rows = [[vocabulary[i] if 0 <= i < known else f"#{i}" for i in row] for row in ids.tolist()]
    return tuple(" ".join(word for word in row if word) for row in rows)


# ---- Kept beside the run -------------------------------------------------------------
def save(path: str | Path, made: Sequence[Example]) -> None:
    """Write them to an .npz of plain arrays, whole or not at all."""
    arrays: dict[str, Any] = {"forms": np.array([type(example).__name__ for example in made], dtype=str)}
    for i, example in enumerate(made):
        for part in fields(example):
            value = getattr(example, part.name)
            arrays[f"{i}.{part.name}"] = np.array(value, dtype=str if part.type == "Names" else None)
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)


def load(path: str | Path) -> list[Example]:
    """Read what :func:`save` wrote, executing nothing. ValueError says what is wrong with another file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return [_restored(i, str(form), file) for i, form in enumerate(file["forms"])]
    except (KeyError, ValueError, OSError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} does not hold the examples of a report: {error}") from None


def _restored(i: int, form: str, file: Mapping[str, Array]) -> Example:
    kind = FORMS[form]
    plain: dict[str, Callable[[Array], Any]] = {
        "Names": lambda a: tuple(map(str, a.tolist())),
        "int": int,
        "tuple[int, ...]": lambda a: tuple(map(int, a.tolist())),
    }
    parts = {p.name: plain.get(str(p.type), np.asarray)(file[f"{i}.{p.name}"]) for p in fields(kind)}
    made: Example = kind(**parts)
    return made
