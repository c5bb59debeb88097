"""Texts as tasks: the tokenizer, the vocabulary's contract, and what a split may see."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.functional import normalize

from metafast.tasks import DataError, Texts, Vocabulary, generator


def test_words_and_their_numbers():
    vocabulary = Vocabulary.fit(["The cat's mat, the mat.", "A MAT of 2 cats"])
    assert vocabulary.tokenize("The Cat’s 2 _ -- naïve") == ["the", "cat’s", "2", "_", "naïve"]
    assert vocabulary.words == ("mat", "the", "2", "a", "cat's", "cats", "of")  # by count, then by alphabet
    assert len(vocabulary) == 9
    rows = vocabulary.encode(["the mat", "a dog of the mat mat", "", "?!"], 4)
    assert rows.dtype == torch.int64
    assert rows.tolist() == [[3, 2, 0, 0], [5, 1, 8, 3], [1, 0, 0, 0], [1, 0, 0, 0]]


def test_limits():
    texts = ["b a a", "a b c d"]
    assert Vocabulary.fit(texts, min_count=2).words == ("a", "b")
    assert Vocabulary.fit(texts, size=5).words == ("a", "b", "c") and len(Vocabulary.fit(texts, size=5)) == 5
    assert Vocabulary.fit(texts, pattern="[ab] [ab]").words == ("a b", "b a")
    with pytest.raises(DataError, match="no word occurs 4 times"):
        Vocabulary.fit(texts, min_count=4)
    with pytest.raises(ValueError, match="size: expected a whole number of at least 3, got 2"):
        Vocabulary.fit(texts, size=2)
    with pytest.raises(ValueError, match="length: "):
        Vocabulary.fit(texts).encode(texts, 0)


def test_saved_and_loaded(tmp_path):
    vocabulary = Vocabulary.fit(["naïve Ünïcode it's"], pattern=r"\S+")
    vocabulary.save(tmp_path / "v.json")
    assert Vocabulary.load(tmp_path / "v.json") == vocabulary
    whole = json.loads((tmp_path / "v.json").read_text())
    for content in ["", "[]", "{}", json.dumps(whole | {"words": [1]}), json.dumps(whole | {"version": 2}),
                    json.dumps(whole | {"words": ["a", "a"]}), json.dumps(whole | {"pattern": "("})]:  # fmt: skip
        (tmp_path / "v.json").write_text(content)
        with pytest.raises(DataError, match=r"v\.json is no vocabulary"):
            Vocabulary.load(tmp_path / "v.json")
    with pytest.raises(DataError, match="does not exist"):
        Vocabulary.load(tmp_path / "none.json")


def words(classes: int = 10) -> Texts:
    """Class i has texts of its own words, i of each text's words being common to all."""
    pairs = [(f"own{c}x{e} own{c} common", f"c{c}") for c in range(classes) for e in range(4)]
    return Texts([text for text, _ in pairs], [label for _, label in pairs])


def test_the_vocabulary_sees_training_classes_alone():
    splits = words().splits(ways=2, shots=1, queries=2, seed=1)
    names = [set(part.class_names) for part in splits]
    assert [len(part) for part in names] == [6, 2, 2] and len(set.union(*names)) == 10
    vocabulary = splits.test.vocabulary
    assert vocabulary is splits.train.vocabulary
    assert {word.split("x")[0] for word in vocabulary.words} == {"common"} | {f"own{name[1:]}" for name in names[0]}
    (xs, _), (xq, _) = splits.test.sample(7, generator(0))
    assert (xs.shape, xq.shape) == ((7, 2, 3), (7, 4, 3)) and xs.dtype == torch.int64
    common = vocabulary.words.index("common") + 2
    assert torch.equal(xs.flatten(0, 1).unique(dim=0), torch.tensor([[1, 1, common]]))
    assert splits.train.sample(7, generator(0)).support[0].min() > 1
    assert words().splits(ways=2, shots=1, queries=2, length=9).train.sample(1, generator(0)).query[0].shape == (
        1,
        4,
        9,
    )


def test_texts_from_files(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("class\ttext\nx\ta, b\ny\tc d\n")
    data = Texts.read(path, text="text", label="class")
    assert (data.texts, data.labels, len(data)) == (["a, b", "c d"], ["x", "y"], 2)
    with pytest.raises(DataError, match="has no column 'label'"):
        Texts.read(path, text="text", label="label")
    path.write_text("class\ttext\nx\ta, b\ny\t\n")
    with pytest.raises(DataError, match=r"t\.tsv, line 3: column 'text' is empty"):
        Texts.read(path, text="text", label="class")
    with pytest.raises(DataError, match="expected a label for each text, got 2 texts, 1 labels"):
        Texts(["a", "b"], [0]).splits(ways=1, shots=1, queries=1)


def test_nearest_class_mean_on_real_glosses(real_data):
    data = Texts.read(real_data("glosses") / "glosses.tsv.gz", text="gloss", label="class")
    assert len(data) == 20977 and len(set(data.labels)) == 38
    # The published oracle: 5-way 5-shot, cosine to the mean of tf-idf vectors (words of two letters at least, the count
    # as 1 + log, idf = log((1 + n) / (1 + df)) + 1, rows of length one), fitted on all glosses.
    vocabulary = Vocabulary.fit(data.texts, pattern=r"\b\w\w+\b")
    rows = vocabulary.encode(data.texts, 60)
    pairs = (torch.arange(len(rows)).unsqueeze(1) * len(vocabulary) + rows).unique()  # of a text and a word in it
    frequency = (pairs % len(vocabulary)).bincount(minlength=len(vocabulary))
    idf = torch.log((1 + len(rows)) / (1 + frequency)) + 1
    idf[:2] = 0  # padding, and texts without a word
    classes = {label: i for i, label in enumerate(sorted(set(data.labels)))}
    labels = torch.tensor([classes[label] for label in data.labels])
    hits = []
    for i in range(200):
        g = generator(0, i)
        own = [(labels == c).nonzero().flatten() for c in torch.randperm(38, generator=g)[:5]]
        drawn = torch.stack([places[torch.randperm(len(places), generator=g)[:15]] for places in own]).flatten()
        used, places = rows[drawn].unique(return_inverse=True)
        counts = torch.zeros(75, len(used)).scatter_add_(1, places, torch.ones(75, 60))
        vectors = normalize(torch.where(counts > 0, 1 + counts.log(), 0) * idf[used], dim=-1).view(5, 15, -1)
        means = normalize(vectors[:, :5].mean(1), dim=-1)
        hits.append(((vectors[:, 5:] @ means.T).argmax(-1) == torch.arange(5).unsqueeze(1)).float().mean())
    values = torch.stack(hits)
    own_interval = 1.96 * values.std() / 200**0.5
    assert abs(values.mean() - 0.448) < 1.5 * (0.013**2 + own_interval**2) ** 0.5
