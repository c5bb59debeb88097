"""Tables in groups and ratings: what is read, how it is scaled and split, and what is refused."""

from __future__ import annotations

import gzip
import math

import numpy as np
import pytest
import torch

from metafast.tasks import DataError, GroupedTable, Ratings, generator

TABLE = """country,year,rate,gdp,continent
Chad,1960,1.5,,Africa
Chad,1961,2.5,7,Africa
Peru,1960,3.5,8,America
Peru,1961,NA,9,America
Peru,1962,5.5,10,America
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    return tmp_path / "t.csv"


@pytest.mark.parametrize("layout", ["csv", "tsv", "gz", "delimiter", "bom"])
def test_columns_are_read(path, layout):
    options = {}
    if layout == "tsv":
        path = path.with_suffix(".tsv")
        path.write_text(TABLE.replace(",", "\t"))
    if layout == "gz":
        path = path.with_suffix(".csv.gz")
        path.write_bytes(gzip.compress(TABLE.encode()))
    if layout == "delimiter":
        path.write_text(TABLE.replace(",", ";"))
        options = {"delimiter": ";"}
    if layout == "bom":
        path.write_bytes(b"\xef\xbb\xbf" + TABLE.replace("\n", "\r\n").encode())
    table = GroupedTable.read_csv(path, group="country", target="rate", features=["year"], **options)
    assert table.x.tolist() == [[1960], [1961], [1960], [1962]] and table.y.tolist() == [[1.5], [2.5], [3.5], [5.5]]
    assert table.groups.names == ("Chad", "Peru") and table.groups.counts.tolist() == [2, 2]
    assert (table.features, table.targets, table.dropped, len(table)) == (("year",), ("rate",), 1, 4)


def test_several_targets_and_all_other_columns(path):
    table = GroupedTable.read_csv(path, group="continent", target=["rate", "gdp"], features=["year"])
    assert table.y.tolist() == [[2.5, 7], [3.5, 8], [5.5, 10]] and table.dropped == 2
    path.write_text(TABLE.replace("Chad", "1").replace("Peru", "2"))
    table = GroupedTable.read_csv(path, group="continent", target="rate")
    assert table.features == ("country", "year", "gdp") and table.x[0].tolist() == [1, 1961, 7]


@pytest.mark.parametrize(
    ("change", "asked", "message"),
    [
        ({}, {"target": "rte"}, r"t\.csv has no column 'rte'; it has 'country', .*; did you mean 'rate'\?"),
        ({}, {"group": "planet"}, r"t\.csv has no column 'planet'; it has 'country', 'year', 'rate', .*"),
        ({}, {"features": ["continent"]}, r"line 2: column 'continent' holds 'Africa', which is no finite number"),
        ({"2.5": "high"}, {}, r"t\.csv, line 3: column 'rate' holds 'high', which is no finite number"),
        ({"2.5": "inf"}, {}, r"line 3: column 'rate' holds 'inf'"),
        ({"2.5,": "2.5,,"}, {}, r"line 3: 6 cells where the first line names 5 columns"),
        ({"gdp": "year"}, {}, "several columns of the name 'year'"),
        ({TABLE: ""}, {}, "holds no rows below a line with the names"),
        ({TABLE: "country,year,rate\n"}, {}, "holds no rows"),
        ({"Chad": '"Chad'}, {}, r"t\.csv, after line 1: cannot read \(',' expected after"),
        ({}, {"missing": "error"}, r"t\.csv, line 5: column 'rate' is empty"),
        ({}, {"missing": "skip"}, "missing: expected 'drop' or 'error', got 'skip'"),
        ({}, {"features": []}, "no column is left for features"),
    ],
)  # fmt: skip
def test_unfit_files_are_refused(path, change, asked, message):
    text = TABLE
    for old, new in change.items():
        text = text.replace(old, new)
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        GroupedTable.read_csv(path, **{"group": "country", "target": "rate", "features": ["year"]} | asked)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv does not exist"):
        GroupedTable.read_csv(tmp_path / "none.csv", group="a", target="b")
    for name, content in {
        "latin.csv": "a,b\n\xe9,1\n".encode("latin-1"),
        "cut.csv.gz": gzip.compress(b"a" * 99)[:-9],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}, after line 1: cannot read .*expected a table in UTF-8"):
            GroupedTable.read_csv(tmp_path / name, group="a", target="b")


def lines(groups: int = 10, rows: int = 12) -> GroupedTable:
    """Group g has the line y = g x + g, at x = 100 g, 100 g + 1, ..."""
    g = np.repeat(np.arange(groups), rows)
    x = 100 * g + np.tile(np.arange(rows), groups)
    return GroupedTable(np.stack([x, np.full_like(x, 3)], 1), g * x + g, g, features=["x", "constant"], targets=["y"])


def test_tasks_are_rows_of_one_group():
    tasks = lines().splits(shots=5, queries=4, standardise=False).train
    (xs, ys), (xq, yq) = tasks.sample(40, generator(0))
    assert (xs.shape, ys.shape, xq.shape, yq.shape) == ((40, 5, 2), (40, 5, 1), (40, 4, 2), (40, 4, 1))
    x, y = torch.cat([xs, xq], 1)[..., 0], torch.cat([ys, yq], 1)[..., 0]
    group = (x / 100).floor()
    assert (group == group[:, :1]).all() and torch.equal(y, group * x + group)
    assert (x.sort(-1).values.diff(dim=-1) > 0).all()  # no row twice
    assert set(group.flatten().int().tolist()) == set(tasks.group_names)


def test_scales_are_those_of_the_training_groups():
    table = lines()
    splits = table.splits(shots=5, queries=4, seed=2)
    assert [len(part.group_names) for part in splits] == [6, 2, 2]
    assert not set(splits.train.group_names) & set(splits.test.group_names)
    own = np.isin(table.groups.index().numpy(), splits.train.group_names)
    x, y = table.x.numpy()[own], table.y.numpy()[own]
    np.testing.assert_allclose(splits.test.x_scale.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(splits.test.x_scale.deviation, [x[:, 0].std(), 1], rtol=1e-12)
    held = splits.train.y[torch.from_numpy(own)].double()
    assert abs(held.mean()) < 1e-6 and abs(held.std(correction=0) - 1) < 1e-6
    (xs, ys), _ = splits.test.sample(20, generator(0))
    x, y = splits.test.x_scale.undo(xs.double())[..., :1], splits.test.y_scale.undo(ys.double())
    group = torch.floor((x + 0.01) / 100)
    torch.testing.assert_close(y, group * x + group, rtol=1e-3, atol=1.0)
    assert set(group.flatten().int().tolist()) == set(splits.test.group_names)


def test_small_groups_and_named_groups():
    table = GroupedTable(np.arange(9), np.arange(9), list("aabbbbccc"))
    with pytest.raises(DataError, match=r"group with fewer examples than shots \+ queries = 3: a \(2\)"):
        table.splits(shots=1, queries=2)
    with pytest.raises(DataError, match="2 groups cannot be split"):
        table.splits(shots=1, queries=2, skip_small=True)
    names = {"train": ["b"], "validation": ["c"], "test": ["c"]}
    with pytest.raises(ValueError, match="names: group 'c' is in validation and in test"):
        table.splits(shots=1, queries=2, names=names)
    splits = table.splits(shots=1, queries=1, names=names | {"test": ["a"]})
    assert splits.train.group_names == ("b",) and splits.test.group_names == ("a",)


@pytest.mark.parametrize(
    ("x", "y", "group", "message"),
    [
        ([1, 2], [1], [0, 0], "expected as many rows of each, got 2, 1 and 2"),
        (["a", "b"], [1, 2], [0, 0], r"x: expected numbers .*, got <U1 \[2\]"),
        ([[[1]]], [1], [0], r"x: expected numbers .* \[1, 1, 1\]"),
        ([math.nan], [1], [0], "no row has all its numbers"),
        ([1, 2], [1, math.nan], [0, 0], "1 rows lack a number, the first of them row 1"),
        ([1, 2], [1, 2], [0.5, 1], r"group: expected whole numbers or texts \[M\]"),
    ],
)
def test_unfit_arrays_are_refused(x, y, group, message):
    with pytest.raises(ValueError, match=message):
        GroupedTable(x, y, group, missing="error" if len(x) > 1 else "drop")


# ---- Ratings -------------------------------------------------------------------------
def stars() -> Ratings:
    """User u rates the items u, u + 1, ... by item / 2 + u; users of 3 and of 8 ratings."""
    pairs = [(u, i) for u in range(12) for i in range(u, u + (3 if u % 4 == 0 else 8))]
    return Ratings([f"u{u:02d}" for u, _ in pairs], [i for _, i in pairs], [i / 2 + u for u, i in pairs])


def test_a_user_is_a_task():
    data = stars()
    splits = data.splits(shots=3, queries=2, standardise=False)
    (xs, ys), (xq, yq) = splits.train.sample(30, generator(0))
    assert xs.dtype == torch.int64 and (xs.shape, ys.shape) == ((30, 3), (30, 3, 1))
    items = torch.tensor(data.item_names)[torch.cat([xs, xq], 1)]
    users = torch.cat([ys, yq], 1).squeeze(-1) - items / 2
    assert (users == users[:, :1]).all() and (items.sort(-1).values.diff(dim=-1) > 0).all()
    assert {f"u{int(u):02d}" for u in users.flatten()} == set(splits.train.group_names)
    names = [name for part in splits for name in part.group_names]
    assert len(names) == len(set(names)) == 9 and splits.test.left_out == 3
    scaled = data.splits(shots=3, queries=2).train.y[:, 0]
    rated = torch.isin(data.users.index(), torch.tensor([data.users.names.index(n) for n in splits.train.group_names]))
    assert abs(scaled[rated].mean()) < 1e-6


def test_items_by_their_features():
    data = stars()
    features = np.stack([np.arange(len(data.item_names)), np.ones(len(data.item_names))], 1)
    indices = data.splits(shots=3, queries=2).test.sample(5, generator(1))
    rows = data.splits(shots=3, queries=2, item_features=features).test.sample(5, generator(1))
    assert torch.equal(rows.support[0], torch.stack([indices.support[0].float(), torch.ones(5, 3)], -1))
    with pytest.raises(ValueError, match=r"item_features: expected \[\d+, F\], a row for each .*, got \[2, 2\]"):
        data.splits(shots=3, queries=2, item_features=torch.zeros(2, 2))


def test_the_last_rating_of_an_item_counts():
    data = Ratings(["a", "b", "a", "a"], ["x", "x", "y", "x"], [1.0, 2.0, 3.0, 4.0])
    assert data.repeated == 1 and len(data) == 3
    assert sorted(zip(data.users.index().tolist(), data.items.tolist(), data.ratings.tolist(), strict=True)) == [
        (0, 0, 4.0), (0, 1, 3.0), (1, 0, 2.0),
    ]  # fmt: skip


def test_ratings_from_a_file(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("userId,movieId,rating\n7,31,2.5\n7,1029,3\n15,31,4\n")
    data = Ratings.read_csv(path, user="userId", item="movieId", rating="rating")
    assert data.item_names == ("1029", "31") and data.users.names == ("15", "7") and data.items.tolist() == [1, 0, 1]
    for text, message in {
        "7,31,": "line 2: column 'rating' is empty",
        ",31,1": "line 2: column 'userId' is empty",
    }.items():
        path.write_text(f"userId,movieId,rating\n{text}\n")
        with pytest.raises(DataError, match=message):
            Ratings.read_csv(path, user="userId", item="movieId", rating="rating")
    for ratings, message in {
        (1.0,): "expected as many of each",
        (math.inf, 1.0): "ratings: number 0 is not finite",
    }.items():
        with pytest.raises(ValueError, match=message):
            Ratings([1, 2], [1, 2], ratings)


# ---- Real tables ---------------------------------------------------------------------
def test_the_common_curve_of_real_countries(real_data):
    path = real_data("curves") / "gapminder.csv"
    table = GroupedTable.read_csv(path, group="country", target="life_expectancy", features=["year"])
    assert (len(table.groups), len(table), table.dropped) == (185, 10545, 0)
    errors = []
    for seed in range(20):  # the mean of the training countries by year; 30 % of the countries held out
        order = torch.randperm(185, generator=generator(seed))
        held = torch.isin(table.groups.index(), order[:56])
        year = (table.x[:, 0] - 1960).long()
        curve = year[~held].bincount(weights=table.y[~held, 0]) / year[~held].bincount()
        errors.append((table.y[held, 0] - curve[year[held]]).square().mean().sqrt())
    values = torch.stack(errors)
    assert abs(values.mean() - 9.54) < 3 * values.std() * (2 / 20) ** 0.5  # both are means of 20 splits


def test_real_patients(real_data):
    path = real_data("curves") / "remifentanil.csv"
    table = GroupedTable.read_csv(path, group="ID", target="conc", features=["Time", "Rate", "Age", "Wt"])
    counts = table.groups.counts
    assert (len(table.groups), len(table), table.dropped) == (65, 1992, 115)
    assert (int(counts.min()), int(counts.max())) == (18, 52)
    assert (float(table.y.min()), float(table.y.max())) == (0.1, 245.4)
    with pytest.raises(DataError, match="line 2: column 'Sex' holds 'Male'"):
        GroupedTable.read_csv(path, group="ID", target="conc", features=["Time", "Sex"])
