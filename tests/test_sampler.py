"""Tasks drawn from labelled examples: what they hold, that they are drawn evenly, splits, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from metafast.tasks import DataError, TaskSampler, generator
from metafast.tasks.groups import Groups, distinct

SIZES = {"ant": 5, "bee": 9, "cat": 6, "dog": 30, "eel": 7}


def animals(sizes: dict[str, int] = SIZES) -> tuple[torch.Tensor, list[str]]:
    """Inputs (class, example), shuffled with their labels."""
    pairs = [(c, e) for c, count in enumerate(sizes.values()) for e in range(count)]
    order = torch.randperm(len(pairs), generator=generator(0)).tolist()
    names = list(sizes)
    return torch.tensor([pairs[i] for i in order]).float(), [names[pairs[i][0]] for i in order]


def test_tasks_of_classes_of_unequal_sizes():
    x, y = animals()
    tasks = TaskSampler(x, y, ways=3, shots=2, queries=3)
    assert tasks.class_names == ("ant", "bee", "cat", "dog", "eel")
    (xs, ys), (xq, yq) = tasks.sample(200, generator(1))
    assert (xs.shape, xq.shape) == ((200, 6, 2), (200, 9, 2)) and xs.dtype == torch.float32
    assert (ys == torch.tensor([0, 0, 1, 1, 2, 2])).all() and (yq == torch.arange(3).repeat_interleave(3)).all()
    assert ys.dtype == yq.dtype == torch.int64
    whole = torch.cat([xs.view(200, 3, 2, 2), xq.view(200, 3, 3, 2)], 2)
    classes, examples = whole[..., 0].long(), whole[..., 1].long()
    assert (classes == classes[..., :1]).all()  # a label is one class
    assert (classes[..., 0].sort(-1).values.diff(dim=-1) > 0).all()  # labels are of different classes
    assert (examples.sort(-1).values.diff(dim=-1) > 0).all()  # no example twice
    assert (examples < torch.tensor(list(SIZES.values()))[classes]).all()


@pytest.mark.parametrize("count", [7, 2000], ids=["by keys", "by drawing again"])
def test_distinct_numbers_are_drawn_evenly(count):
    taken, repeats = 3, 40000
    drawn = distinct(torch.full((repeats,), count), taken, generator(2))
    assert drawn.shape == (repeats, taken) and drawn.min() == 0 and drawn.max() == count - 1
    assert (drawn.sort(-1).values.diff(dim=-1) > 0).all()
    bins = drawn * 7 // count
    pairs = bins[:, 0] * 49 + bins[:, 1] * 7 + bins[:, 2]  # the joint distribution of the three
    if count == 7:
        expected = repeats / (7 * 6 * 5)
        counts = pairs.bincount(minlength=343)
        counts = counts[counts > 0]
        assert len(counts) == 210
    else:  # nearly independent: a pair coincides once in 2000, a hundredth of the deviation
        expected, counts = repeats / 343, pairs.bincount(minlength=343)
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    freedom = len(counts) - 1
    assert abs(chi_squared - freedom) < 5 * (2 * freedom) ** 0.5


def test_drawing_again_keeps_to_each_count():
    counts = torch.tensor([1000, 5000, 1000, 90000]).repeat(500)
    drawn = distinct(counts, 30, generator(3))
    assert (drawn < counts.unsqueeze(-1)).all() and (drawn.sort(-1).values.diff(dim=-1) > 0).all()
    assert drawn[3::4].max() > 80000


def test_a_generator_decides():
    x, y = animals()
    tasks = TaskSampler(x, y, ways=2, shots=1, queries=1)
    first, again, other = (tasks.sample(8, generator(s)).support[0] for s in (4, 4, 5))
    assert torch.equal(first, again) and not torch.equal(first, other)


class Listed(Dataset):
    def __init__(self, items):
        self.items, self.reads = items, 0

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        self.reads += 1
        return self.items[i]


def test_a_dataset_is_read_once():
    x, y = animals()
    dataset = Listed(list(zip(x, y, strict=True)))
    tasks = TaskSampler(dataset, ways=2, shots=1, queries=2)
    expected = TaskSampler(x, y, ways=2, shots=1, queries=2).sample(5, generator(6))
    drawn = tasks.sample(5, generator(6))
    assert all(torch.equal(a, b) for p, q in zip(drawn, expected, strict=True) for a, b in zip(p, q, strict=True))
    assert dataset.reads == len(x)
    numbered = TensorDataset(x, torch.tensor([len(name) + ord(name[0]) for name in y]))
    assert TaskSampler(numbered, ways=2, shots=1, queries=2).class_names == (100, 101, 102, 103, 104)


def test_a_dataset_of_pictures():
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    pixels = np.arange(4 * 2 * 3 * 3, dtype=np.uint8).reshape(4, 2, 3, 3)
    items = [(image.fromarray(p), i // 2) for i, p in enumerate(pixels)]
    xs = TaskSampler(items, ways=2, shots=1, queries=1).sample(1, generator(0)).support[0]
    assert xs.shape == (1, 2, 3, 2, 3)
    original = {p.transpose(2, 0, 1).tobytes() for p in pixels}
    assert all((x * 255).round().byte().numpy().tobytes() in original for x in xs[0])


@pytest.mark.parametrize(
    ("given", "held"),
    [(np.float64, torch.float32), (np.float32, torch.float32), (np.uint8, torch.float32), (np.int32, torch.int64)],
)
def test_kinds_of_numbers(given, held):
    x = np.arange(12).reshape(6, 2).astype(given)
    tasks = TaskSampler(x, [0, 0, 1, 1, 2, 2], ways=3, shots=1, queries=1)
    xs = tasks.sample(1, generator(0)).support[0]
    assert xs.dtype == held
    largest = torch.cat([*tasks.sample(1, generator(0))[0][:1], tasks.sample(1, generator(0))[1][0]], 1).max()
    assert largest == (torch.tensor(11) / 255 if given is np.uint8 else 11)


def test_moving_keeps_what_a_split_draws():
    x, y = animals()
    one, two = (TaskSampler.splits(x, y, ways=1, shots=1, queries=1).test for _ in range(2))
    two.to("meta")
    assert two.x.device.type == "meta" and len(two.x) == len(one.groups.rows) < len(x)
    two.x = one.x[one.groups.rows]
    assert torch.equal(one.sample(9, generator(0)).query[0], two.sample(9, generator(0)).query[0])


# ---- Splits --------------------------------------------------------------------------
def many(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.arange(classes).repeat_interleave(2)
    return y.float().unsqueeze(-1), y


def test_splits_share_no_class_and_lose_none():
    x, y = many(100)
    splits = TaskSampler.splits(x, y, ways=5, shots=1, queries=1, seed=3)
    names = [set(part.class_names) for part in splits]
    assert [len(part) for part in names] == [64, 16, 20]
    assert set.union(*names) == set(range(100))
    for part, own in zip(splits, names, strict=True):
        assert set(part.sample(200, generator(0)).support[0].flatten().tolist()) == own
    again = TaskSampler.splits(x, y, ways=5, shots=1, queries=1, seed=3)
    other = TaskSampler.splits(x, y, ways=5, shots=1, queries=1, seed=4)
    assert again.train.class_names == splits.train.class_names != other.train.class_names


def test_a_part_has_as_many_classes_as_a_task():
    splits = TaskSampler.splits(*many(20), ways=5, shots=1, queries=1)
    assert [len(part.class_names) for part in splits] == [10, 5, 5]
    with pytest.raises(
        DataError, match=r"14 classes cannot be split by fractions \(.*\) into three parts of .* 5 each"
    ):
        TaskSampler.splits(*many(14), ways=5, shots=1, queries=1)


def test_splits_by_name():
    x, y = animals()
    names = {"train": ["dog", "bee"], "validation": ["cat"], "test": ["ant"]}
    splits = TaskSampler.splits(x, y, ways=1, shots=1, queries=1, names=names)
    assert [part.class_names for part in splits] == [("bee", "dog"), ("cat",), ("ant",)]
    for wrong, message in [
        ({**names, "test": ["cat"]}, "names: class 'cat' is in validation and in test"),
        ({**names, "test": ["cow"]}, "the data has no class 'cow'; it has 'ant', 'bee', 'cat'"),
        ({"train": ["dog"]}, "expected a dict with the keys train, validation, test, got 'train'"),
    ]:
        with pytest.raises(ValueError, match=message):
            TaskSampler.splits(x, y, ways=1, shots=1, queries=1, names=wrong)


def test_small_classes_are_named_or_left_out():
    x, y = animals()
    with pytest.raises(DataError, match=r"shots \+ queries = 7: ant \(5\), cat \(6\)\. Take fewer .* skip_small=True"):
        TaskSampler(x, y, ways=2, shots=3, queries=4)
    tasks = TaskSampler(x, y, ways=2, shots=3, queries=4, skip_small=True)
    assert tasks.class_names == ("bee", "dog", "eel")
    splits = TaskSampler.splits(x, y, ways=1, shots=3, queries=4, skip_small=True)
    assert sorted(name for part in splits for name in part.class_names) == ["bee", "dog", "eel"]


# ---- What is refused -----------------------------------------------------------------
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(4, 2), [0, 1, 0], "got 4 inputs, 3 labels"),
        (torch.zeros(4, 2), [0.0, 1.0, 0.0, 1.0], r"y: expected whole numbers or texts \[M\].*got float64 \[4\]"),
        (torch.zeros(4, 2), torch.zeros(4, 1, dtype=torch.int64), r"got int64 \[4, 1\]"),
        (torch.zeros(0, 2), [], r"at least one example, got torch.float32 \[0, 2\]"),
        (torch.zeros(4, 2), None, r"y: labels \[M\] must be given unless x is a dataset"),
        ([], None, "the dataset is empty"),
        ([1, 2], None, r"item 0 of the dataset must be \(input, label\); it is a int"),
        ([(torch.zeros(2), 0), (torch.zeros(3), 0)], None, r"item 0 has \[2\], item 1 has \[3\]"),
    ],
)
def test_unfit_data_is_refused(x, y, message):
    with pytest.raises((TypeError, ValueError), match=message):
        TaskSampler(x, y, ways=1, shots=1, queries=1)


@pytest.mark.parametrize("setting", ["ways", "shots", "queries"])
@pytest.mark.parametrize("value", [0, -1, 1.0, True, None])
def test_settings_are_whole_numbers(setting, value):
    settings = {"ways": 1, "shots": 1, "queries": 1, setting: value}
    with pytest.raises(ValueError, match=f"{setting}: expected a whole number of at least 1, got"):
        TaskSampler(*animals(), **settings)


def test_groups_say_what_they_are_called():
    groups = Groups.of(np.array(["b", "a", "b"], dtype=object), kind="user")
    assert groups.names == ("a", "b") and groups.rows.tolist() == [1, 0, 2] and groups.counts.tolist() == [1, 2]
    with pytest.raises(ValueError, match="the data has no user 'c'; it has 'a', 'b'"):
        groups.among(["c"])
