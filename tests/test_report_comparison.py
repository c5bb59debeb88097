"""Several runs side by side, on a page and in a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metafast import report
from metafast.cli import main
from metafast.report import charts
from pages import Page
from run_folders import COMMAND, estimate, run_folder


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
    assert lines["accuracy, 1 step"][3:] == "50.0 % +- 1.0 % 90.0 % +- 1.0 % * 88.5 % +- 1.0 % ~".split()
    assert lines["query loss, 1 step"][4:] == "0.500 +- 0.010 0.100 +- 0.010 * 0.115 +- 0.010 ~".split()
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
    assert not any("*" in line or "~" in line for line in text.splitlines() if "+-" in line)  # alone, none is best
    assert "3 kinds of tasks" in Page(tmp_path / "all.html").words


def test_runs_from_python_are_told_apart_by_their_tasks(tmp_path: Path) -> None:
    names = [("a", "ImageTasks", 1), ("b", "ImageTasks", 1), ("c", "ImageTasks", 5), ("d", "Sinusoids", 5)]
    runs = [run_folder(tmp_path / n, name="meta_train", settings={"task": t, "shots": s}) for n, t, s in names]
    titles = [part.splitlines()[0] for part in report.compare(runs, tmp_path / "all.html").split("\n\n")]
    assert titles == [f"{task}, ways 3, shots {shots}" for _, task, shots in names[1:]]
    assert report.write(runs[3]).read_text().count("<h1>d</h1>") == 1  # by its folder


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
