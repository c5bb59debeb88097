"""report.html and comparison.html: whole, self-contained, true to the run's files, and harmless whatever names say."""

from __future__ import annotations

import json
import signal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import metafast as mf
from metafast import report
from metafast.cli import main
from metafast.cli import run as run_module
from metafast.report import charts, example, numbers
from metafast.report.markup import VOID, join, tag
from metafast.run_folder import RunFolder
from metafast.tasks import TEST, Episode, ImageTasks, Sinusoids, Tasks, TaskSampler, generator
from metafast.training import networks
from run_folders import COMMAND, MACHINE, estimate, run_folder

EVIL = "<script>alert('1')</script>\" onload=\"x"
NAMES = ("cat", EVIL, "a & b")


class Page(HTMLParser):
    """A page, checked while it is read: every element is closed in its turn."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attrs)))
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open, f"<{name}/>"  # only there does HTML have such
        self.elements.append((name, dict(attrs)))

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.elements if found == name]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    @property
    def numbers(self) -> set[float]:
        """Those of the page with all their digits."""
        return {float(element["value"] or "") for element in self.all("data")}


def numbers_in(value: Any) -> set[float]:
    if isinstance(value, dict):
        return set().union(*map(numbers_in, value.values()))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {float(value)}
    return set()


def images(steps: int = 2) -> tuple[mf.MAML, ImageTasks]:
    pixels = torch.randint(0, 256, (6, 4, 3, 16, 16), dtype=torch.uint8, generator=generator(0))
    learner = mf.MAML(networks.conv4(4, 3, 3, 16), lr=0.1, steps=steps)
    return learner, ImageTasks(pixels, ways=3, shots=1, queries=3)


class Words(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(vocabulary, 5), nn.Linear(5, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids).mean(-2))


class Texts(Tasks):
    """Two classes: small ids and large ones."""

    def sample(self, tasks: int, generator: torch.Generator) -> Episode:
        labels = torch.tensor([0, 1]).repeat_interleave(3).expand(tasks, -1).contiguous()

        def draw() -> tuple[Tensor, Tensor]:
            return torch.randint(1, 4, (tasks, 6, 4), generator=generator) + 4 * labels.unsqueeze(-1), labels

        return Episode(draw(), draw())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = run_folder(tmp_path_factory.mktemp("run"), name=EVIL)
    learner, tasks = images()
    return Page(report.write(folder, report.examples(learner, tasks, count=2, class_names=NAMES)))


# ---- The page ------------------------------------------------------------------------
def test_nothing_is_fetched_and_no_script_runs(page: Page) -> None:
    assert not {name for name, _ in page.elements} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for name, attributes in page.elements:
        assert not any(key.startswith("on") for key in attributes), (name, attributes)
        for key in ("src", "href", "xlink:href", "data", "poster", "srcset"):
            assert (attributes.get(key) or "#").startswith(("#", "data:image/png;base64,")), (name, attributes)
        assert "http" not in (attributes.get("style") or "")
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert (policy or "").startswith("default-src 'none'")


def test_every_number_of_the_run_is_there(page: Page, tmp_path: Path) -> None:
    facts = json.loads((run_folder(tmp_path / "same") / "run.json").read_text())
    wanted = numbers_in({key: facts[key] for key in ("settings", "meta_steps", "seconds", "best", "results")})
    wanted -= {200.0}  # tasks, which the caption says
    assert len(wanted) > 15
    assert not wanted - page.numbers
    assert "Mean over 200 test tasks" in page.words


def test_results_are_written_to_the_digits_that_the_interval_leaves(page: Page) -> None:
    assert "Accuracy on unseen tasks is 91.23 % ± 0.99 % after 10 inner steps, 33.3 % before adaptation." in page.words
    assert "0.299 ± 0.046" in page.words
    assert "images --data 'my images' --ways 3" in page.words
    assert all(part in page.words for part in ("torch", MACHINE["torch"], "cuda:0 <GPU> & more", "network.channels"))


def test_names_do_no_harm(page: Page) -> None:
    assert page.words.count("<script>alert('1')</script>") >= 4  # title, heading, a class
    alts = [image["alt"] or "" for image in page.all("img")]
    assert any(EVIL in alt for alt in alts)
    assert all(set(image) == {"src", "alt", "width", "height"} for image in page.all("img"))


def test_who_cannot_see_it_is_told(page: Page) -> None:
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    assert page.all("svg") and all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert page.all("img") and all(image["alt"] for image in page.all("img"))
    assert page.all("th") and all(cell["scope"] in ("col", "row") for cell in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert ids and len(ids) == len(set(ids))  # of several drawings
    signs = [a["aria-label"] for a in page.all("span") if a.get("role") == "img"]
    assert len(signs) == 2 * 9 * 2 and set(signs) <= {"right:", "wrong:"}


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"stopped": "interrupted"}, "Not finished: interrupted, after 1000 meta-steps"),
        ({"stopped": "running"}, "Not finished: still running when this page was written"),
        ({"stopped": "diverged", "reason": "the loss is not finite at meta-step 7"}, "not finite at meta-step 7"),
        ({"stopped": "interrupted", "results": {}}, "No results on test tasks yet, after 1000 meta-steps."),
        ({"command": None}, "The run was started from Python"),
        ({"results": {"estimates": {"r2": {"1": estimate(None, None)}}}}, "R² on unseen tasks is not a number"),
        ({"results": {"accuracy": estimate(0.5, 0.1), "ways": 5}}, "Accuracy on unseen tasks is 50 % ± 10 %."),
    ],
)
def test_any_state_of_a_run_has_a_page(tmp_path: Path, facts: dict[str, Any], says: str) -> None:
    page = Page(report.write(run_folder(tmp_path, metrics=False, **facts)))
    assert says in page.words
    assert ("Not finished" in page.words) == (facts.get("stopped") is not None)
    assert "Example tasks" not in page.words


def test_the_least_that_a_run_can_have_said(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format": "metafast-run", "version": 1}')
    (tmp_path / "metrics.jsonl").write_text(
        '{"kind": "train", "meta_step": 5, "before": null, "after": 2.5}\n{"kind": "tr'
    )
    page = Page(report.write(tmp_path))
    assert "No results on test tasks yet" in page.words
    assert len(page.all("svg")) == charts.available()


def test_without_matplotlib_the_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "available", lambda: False)
    page = Page(report.write(run_folder(tmp_path)))
    assert "pip install matplotlib" in page.words and not page.all("svg")
    assert 0.91234 in page.numbers


@pytest.mark.parametrize(
    ("run", "metrics", "says"),
    [
        (None, "", "has no run.json"),
        ("{", "", "run.json is damaged"),
        ("[]", "", "does not describe a metafast run"),
        ('{"format": "metafast-run", "version": 9}', "", "has format version 9, this metafast reads version 1"),
        ('{"format": "metafast-run", "version": 1}', "x\n{}\n", "metrics.jsonl, line 1, is damaged"),
        ('{"format": "metafast-run", "version": 1}', "[]\n{}\n", "line 1, is damaged"),
    ],
)
def test_a_folder_that_is_none_of_a_run(tmp_path: Path, run: str | None, metrics: str, says: str) -> None:
    if run is not None:
        (tmp_path / "run.json").write_text(run)
        (tmp_path / "metrics.jsonl").write_text(metrics)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=says):
        report.write(tmp_path)
    assert sorted(tmp_path.iterdir()) == before


# ---- Examples ------------------------------------------------------------------------
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


# ---- At the end of a run -------------------------------------------------------------
def test_meta_training_leaves_a_report_of_what_is_true_now(tmp_path: Path) -> None:
    def train(steps: int, **how: Any) -> Page:
        learner = mf.MAML(networks.mlp([1, 4, 1]), lr=0.01, steps=1, loss="mse")
        mf.meta_train(learner, Sinusoids(), out=tmp_path, max_iters=steps, meta_batch=2, progress=False, **how)
        return Page(tmp_path / "report.html")

    assert "No results on test tasks yet, after 3 meta-steps." in train(3).words
    learner, tasks = images()
    report.write(tmp_path, report.examples(learner, tasks, count=1), {"accuracy": estimate(0.5, 0.1)})
    assert RunFolder(tmp_path).read()["results"]["accuracy"]["mean"] == 0.5
    assert "Accuracy on unseen tasks" in train(3, resume=True).words  # nothing has changed
    words = train(5, resume=True).words
    assert "after 5 meta-steps" in words and "Accuracy" not in words and "Example tasks" not in words


def test_a_page_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    run_folder(tmp_path)
    (tmp_path / "examples.npz").write_text("no archive")
    with pytest.warns(RuntimeWarning, match=r"the run has no report: .*examples\.npz does not hold"):
        report.leave(tmp_path)


def test_an_interrupted_command_leaves_a_page_that_says_how_it_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(maml: mf.MAML, tasks: Any, **how: Any) -> Any:
        return mf.meta_train(maml, tasks, **{**how, "callbacks": [lambda *_: signal.raise_signal(signal.SIGINT)]})

    monkeypatch.setattr(run_module, "meta_train", interrupt)
    command = ["train", "sinusoid", "--width", "4", "--meta-steps", "1000", "--out", str(tmp_path / "run")]
    assert main(command) == 130
    words = Page(tmp_path / "run" / "report.html").words
    assert "Not finished" in words and f"metafast {' '.join(command)}" in words


# ---- Several runs --------------------------------------------------------------------
def accuracies(mean: float) -> dict[str, Any]:
    return {"accuracy": {"1": estimate(mean, 0.01)}, "loss": {"1": estimate(1 - mean, 0.01)}}


def test_a_comparison_marks_the_best_and_what_is_not_told_from_it(tmp_path: Path) -> None:
    runs = [
        run_folder(tmp_path / name, results=accuracies(mean), settings={"inner": {"lr": mean}, "same": 7})
        for name, mean in (("poor", 0.5), ("good", 0.9), ("close", 0.885))
    ]
    report.write(runs[1])
    text = report.compare(runs, tmp_path / "all.html")
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert lines["inner.lr"] == ["inner.lr", "0.5", "0.9", "0.885"] and "same" not in lines
    assert lines["accuracy, 1 step"][3:] == "50.0 % ± 1.0 % 90.0 % ± 1.0 % ★ 88.5 % ± 1.0 % ≈".split()
    assert lines["query loss, 1 step"][4:] == "0.500 ± 0.010 0.100 ± 0.010 ★ 0.115 ± 0.010 ≈".split()
    page = Page(tmp_path / "all.html")
    assert {0.5, 0.9, 0.885} <= page.numbers
    assert [a["href"] for a in page.all("a")] == ["good/report.html"]
    assert "best in accuracy, 1 step is good with 90.0 % ± 1.0 %" in page.words
    signs = [a["aria-label"] for a in page.all("span") if a.get("role") == "img"]
    assert signs == ["the best", "not told from the best"] * 2
    assert page.all("svg") or not charts.available()


def test_runs_on_different_tasks_are_not_mixed(tmp_path: Path) -> None:
    runs = [run_folder(tmp_path / str(ways), settings={"ways": ways}) for ways in (5, 20)]
    runs.append(run_folder(tmp_path / "other" / "5", name="texts", metrics=False))
    text = report.compare(runs, tmp_path / "all.html")
    first, second, third = text.split("\n\n")
    assert first.startswith("images, ways 5\n") and second.startswith("images, ways 20\n") and third.startswith("texts")
    assert not any("★" in line for line in text.splitlines() if "%" in line and "±" in line)  # alone, none is best
    assert "3 kinds of tasks" in Page(tmp_path / "all.html").words


def test_a_comparison_needs_two_runs_that_are_different(tmp_path: Path) -> None:
    one = run_folder(tmp_path / "one")
    with pytest.raises(ValueError, match="at least two runs, got 1"):
        report.compare([one], tmp_path / "all.html")
    with pytest.raises(ValueError, match="named twice"):
        report.compare([one, tmp_path / "." / "one"], tmp_path / "all.html")
    with pytest.raises(ValueError, match=r"no run\.json"):
        report.compare([one, tmp_path], tmp_path / "all.html")
    assert not (tmp_path / "all.html").exists()


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    run_folder(tmp_path / "a"), run_folder(tmp_path / "b", settings={"seed": 1})
    assert main(["report", "a"]) == 0
    assert main(["compare", "a", "b"]) == 0
    out = capsys.readouterr().out
    assert "report: a/report.html" in out and "page: comparison.html" in out and "accuracy, 10 steps" in out
    assert COMMAND[0] in Page(tmp_path / "a" / "report.html").words and Page(tmp_path / "comparison.html").all("table")
    assert main(["report", "nowhere"]) == 1
    assert "nowhere is not the folder of a run" in capsys.readouterr().err


# ---- Small parts ---------------------------------------------------------------------
def test_tags_escape_all_but_tags() -> None:
    assert tag("p", "a < b", tag("b", "&"), class_='"') == '<p class="&quot;">a &lt; b<b>&amp;</b></p>'
    assert tag("img", alt="x", aria_label=None) == '<img alt="x">'
    assert join("<", None, tag("i")) == "&lt;<i></i>"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (1234.56, "1235"),
        (12345, "12\u202f345"),
        (0.00012345, "0.0001234"),
        (3.0, "3"),
        (float("nan"), "not a number"),
        (float("-inf"), "minus infinite"),
        ("text", "text"),
    ],
)
def test_numbers_are_written_as_people_do(value: Any, written: str) -> None:
    assert numbers.number(value) == written


def test_a_long_curve_is_thinned_to_means() -> None:
    x, y = charts.thinned(range(1, 2001), [float(i % 2) for i in range(2000)], points=10)
    assert x.tolist() == list(range(200, 2001, 200)) and y.tolist() == [0.5] * 10
    assert charts.moving_mean(np.array([0.0, 3.0, 0.0, 3.0]), 3).tolist() == [1.5, 1.0, 2.0, 1.5]
