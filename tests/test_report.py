"""report.html: whole, self-contained, true to the run's files, and harmless whatever names say."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import metafast as mf
from metafast import report
from metafast.cli import main
from metafast.cli import run as run_module
from metafast.report import charts, numbers
from metafast.report.markup import join, tag
from metafast.run_folder import RunFolder
from metafast.tasks import Sinusoids
from metafast.training import networks
from pages import Page, images
from run_folders import MACHINE, estimate, run_folder

EVIL = "<script>alert('1')</script>\" onload=\"x"
NAMES = ("cat", EVIL, "a & b")


def numbers_in(value: Any) -> set[float]:
    if isinstance(value, dict):
        return set().union(*map(numbers_in, value.values()))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {float(value)}
    return set()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = run_folder(tmp_path_factory.mktemp("run"), name=EVIL)
    learner, tasks = images()
    return Page(report.write(folder, report.examples(learner, tasks, count=2, class_names=NAMES)))


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


# ---- Small parts ---------------------------------------------------------------------
def colours(style: str, part: int) -> dict[str, str]:
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", style.split(":root {")[part].split("}")[0]))


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("part", [1, 2, 3], ids=["light", "dark", "print"])
def test_text_and_lines_stand_out(part: int) -> None:
    """Contrast as WCAG 2.2 asks for, level AA: 4.5 of text, 3 of lines."""
    own = colours((Path(report.__file__).parent / "style.css").read_text(), part)
    for least, names in ((4.5, ("ink", "soft", "good", "bad", "one")), (3.0, ("faint", "two", "three", "four"))):
        for name in names:
            for ground in ("page", "card"):
                dark, light = sorted((luminance(own[name]), luminance(own[ground])))
                assert (light + 0.05) / (dark + 0.05) >= least, (name, ground)


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
