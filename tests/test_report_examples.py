"""Example tasks of a report: what they show is what the learner says, and they are kept without loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import metafast as mf
from metafast import report
from metafast.report import example
from metafast.tasks import TEST, Episode, Sinusoids, TaskSampler, generator
from metafast.tasks import Texts as WrittenTexts
from metafast.training import networks
from pages import Page, Texts, Words, images
from run_folders import run_folder

NAMES = ("cat", "<b>", "a & b")


def test_examples_of_images_are_what_the_learner_says() -> None:
    learner, tasks = images(steps=2)
    made = report.examples(learner, tasks, seed=3, count=2, class_names=[["a", "b", "c"], ["d", "e", "f"]])
    support, (xq, yq) = tasks.sample(2, generator(3, TEST, 1))
    for t, shown in enumerate(made):
        assert isinstance(shown, report.ImagesExample)
        assert shown.names == (("a", "b", "c"), ("d", "e", "f"))[t] and shown.steps == 2
        assert shown.query.shape == (9, 16, 16, 3) and shown.support.shape == (3, 16, 16, 3)
        order = [
            int(np.abs((255 * xq[t]).round().permute(0, 2, 3, 1).numpy() - q).sum((1, 2, 3)).argmin())
            for q in shown.query
        ]
        for steps, said in ((0, shown.before), (2, shown.after)):
            params = learner.adapt(support, steps=steps)
            assert learner.predict(params, xq)[t, order].argmax(-1).tolist() == said.tolist()
        assert yq[t, order].tolist() == shown.labels.tolist() == sorted(shown.labels)


def test_examples_of_functions_are_the_adapted_networks_curves() -> None:
    learner = mf.MAML(networks.mlp([1, 8, 1]), lr=0.01, steps=3, loss="mse")
    tasks = Sinusoids(shots=4, queries=6)
    (shown,) = report.examples(learner, tasks, seed=1, count=1, steps=5)
    assert isinstance(shown, report.CurveExample)
    (xs, ys), (xq, yq) = tasks.sample(1, generator(1, TEST, 1))
    for own, points in zip(
        (shown.support_x, shown.support_y, shown.query_x, shown.query_y), (xs, ys, xq, yq), strict=True
    ):
        assert own.tolist() == points.flatten().tolist()
    assert shown.steps == (0, 1, 5) and (np.diff(shown.x) > 0).all()
    assert shown.x[0] == torch.cat([xs, xq], 1).min() and abs(shown.x[-1] - torch.cat([xs, xq], 1).max()) < 1e-5
    grid = torch.from_numpy(shown.x).view(1, -1, 1)
    for steps, line in zip(shown.steps, shown.lines, strict=True):
        said = learner.predict(learner.adapt((xs, ys), steps=steps), grid).detach()
        assert np.abs(said.flatten().numpy() - line).max() < 1e-5


def test_examples_of_texts_are_read_with_the_vocabulary() -> None:
    learner = mf.MAML(Words(8), lr=1.0, steps=1, backend="torch")
    vocabulary = ["", "one", "two", "three", "-", "<b>", "six", "seven"]
    (shown,) = report.examples(learner, Texts(), count=1, vocabulary=vocabulary)
    assert isinstance(shown, report.TextExample) and shown.names == ("class 1", "class 2")
    (xs, _), (xq, _) = Texts().sample(1, generator(0, TEST, 1))
    assert shown.query == tuple(" ".join(vocabulary[i] for i in row) for row in xq[0].tolist())
    assert shown.support == tuple(" ".join(vocabulary[i] for i in row) for row in xs[0].tolist())
    rows = {f"{name * 2} {word}": name for name in "abcdef" for word in ("one", "two")}
    parts = {"train": "ab", "validation": "cd", "test": "ef"}
    splits = WrittenTexts(list(rows), list(rows.values())).splits(ways=2, shots=1, queries=1, names=parts)
    (own,) = report.examples(mf.MAML(Words(8), lr=1.0, steps=1, backend="torch"), splits.train, count=1)
    assert isinstance(own, report.TextExample)
    assert [rows[text] for text in own.query] == [own.names[label] for label in own.labels]
    (other,) = report.examples(mf.MAML(Words(8), lr=1.0, steps=1, backend="torch"), splits, count=1)
    assert isinstance(other, report.TextExample) and set(other.names) == {"e", "f"}
    assert set(other.query) <= {"? one", "? two"}  # words of test classes are unknown


def test_examples_of_anything_else_are_a_table(tmp_path: Path) -> None:
    learner = mf.MAML(Words(8), lr=1.0, steps=1, backend="torch")
    (shown,) = report.examples(learner, Texts(), count=1)
    assert isinstance(shown, report.TableExample) and set(shown.truth) == {"class 1", "class 2"}
    assert shown.right.tolist() == [
        [s == t for s, t in zip(said, shown.truth, strict=True)] for said in (shown.before, shown.after)
    ]
    regression = mf.MAML(nn.Linear(2, 2), lr=0.1, steps=1, loss="mse")
    batch = torch.randn(2, 5, 2)
    made = report.examples(regression, Episode((batch, batch), (batch, batch)), count=9)
    assert len(made) == 2  # those of the meta-batch
    first = made[0]
    assert isinstance(first, report.TableExample) and len(first.truth) == 5 and first.right.size == 0
    assert first.truth[0] == ", ".join(f"{value:.4g}" for value in batch[0, 0])
    assert first.truth[0] in Page(report.write(run_folder(tmp_path), made)).words


def test_examples_are_kept_so_that_the_page_can_be_written_again(tmp_path: Path) -> None:
    learner, tasks = images()
    curve = mf.MAML(networks.mlp([1, 4, 1]), steps=1, loss="mse", lr=0.01)
    words = mf.MAML(Words(8), lr=1.0, steps=1, backend="torch")
    made = report.examples(learner, tasks, count=1, class_names=NAMES)
    made += report.examples(curve, Sinusoids(), count=1) + report.examples(
        words, Texts(), count=1, vocabulary=["w"] * 8
    )
    made += report.examples(words, Texts(), count=1)
    first = report.write(run_folder(tmp_path), made).read_text()
    assert report.write(tmp_path).read_text().count("<h3>") == first.count("<h3>") == 3
    for one, other in zip(made, example.load(tmp_path / "examples.npz"), strict=True):
        assert type(one) is type(other)
        assert all(np.array_equal(vars(other)[name], value) for name, value in vars(one).items())
        assert {name: type(value) for name, value in vars(one).items()} == {n: type(v) for n, v in vars(other).items()}


def test_a_file_of_examples_executes_nothing(tmp_path: Path) -> None:
    path = run_folder(tmp_path) / "examples.npz"
    np.savez(path, forms=np.array(["CurveExample"], dtype=object))
    with pytest.raises(ValueError, match=r"examples\.npz does not hold the examples of a report"):
        report.write(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"examples\.npz does not hold the examples of a report"):
        report.write(tmp_path)


def test_classes_are_called_by_their_names() -> None:
    colours = torch.arange(6).mul(40).to(torch.uint8).repeat_interleave(4)
    pixels = colours.view(-1, 1, 1, 1).expand(-1, 3, 16, 16).contiguous()
    tasks = TaskSampler(pixels, [f"colour {value}" for value in colours.tolist()], ways=3, shots=1, queries=2)
    for shown in report.examples(images()[0], tasks, count=3):
        assert isinstance(shown, report.ImagesExample)
        for label, pixel in zip(shown.labels, shown.query[:, 0, 0, 0], strict=True):
            assert shown.names[label] == f"colour {pixel}"
    assert report.examples(*images(), count=1)[0].names[0].startswith("class ")  # type: ignore[union-attr]
