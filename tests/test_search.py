"""A search over settings: what it may choose, that it goes on where it stopped, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metafast.cli import main
from metafast.experiments import EXPERIMENTS, settings, space
from metafast.experiments.settings import SettingsError

SINUSOID, IMAGES = EXPERIMENTS["sinusoid"], EXPERIMENTS["images"]
TINY = "--meta-steps 8 --tasks 2 --width 5 --validate-every 4 --validation-tasks 4 --threads 1"


class Recorder:
    """Takes down how it is asked, and answers with the lower end."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        self.asked.append(("float", low, high, log))
        return low

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int:
        self.asked.append(("int", low, high, log))
        return low

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.asked.append(choices)
        return choices[0]


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("lr=0.01:1", ("float", 0.01, 1.0, True)),
        ("lr=0.5:1", ("float", 0.5, 1.0, False)),
        ("lr=0:1", ("float", 0.0, 1.0, False)),
        ("steps=1:5", ("int", 1, 5, False)),
        ("width=4:64", ("int", 4, 64, True)),
        ("rule=sgd,adam", ("sgd", "adam")),
        ("learn-lr=yes,no", (True, False)),
        ("lr=0.1,1", (0.1, 1.0)),
    ],
)
def test_what_a_search_may_choose(text: str, asked: Any) -> None:
    ((name, dimension),) = space.parse(SINUSOID, [text]).items()
    recorder = Recorder()
    value = dimension.suggest(recorder, name)
    assert recorder.asked == [asked]
    settings.build(SINUSOID, {name: value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr", "expected NAME=LOW:HIGH or NAME=A,B,..., got 'lr'"),
        ("lrr=1,2", "there is no setting 'lrr'; did you mean 'lr'?"),
        ("steps=1:2.5", "steps: expected a whole number, got '2.5'"),
        ("steps=-1:2", "steps: expected at least 0, got -1"),
        ("lr=1:0.1", "lr: expected a range from low to high, got 1:0.1"),
        ("rule=sgd,sdg", "rule: expected one of .*, got 'sdg'"),
        ("rule=sgd:adam", "rule is no number"),
        ("learn_lr=maybe", "learn_lr: expected true or false, got 'maybe'"),
    ],
)
def test_what_it_may_not(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=f"^--over: {message}"):
        space.parse(SINUSOID, [text])


def test_a_search_goes_on_and_leaves_settings_to_train_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="optuna is not installed")
    monkeypatch.chdir(tmp_path)
    line = f"search sinusoid {TINY} --over lr=0.001:0.1 --over rule=sgd,adam --over steps=1:2"
    assert main([*line.split(), "--trials", "2"]) == 0
    assert main([*line.split(), "--trials", "4"]) == 0
    found = json.loads(Path("runs/search-sinusoid/search.json").read_text())
    assert [row["trial"] for row in found["trials"]] == [0, 1, 2, 3]
    tried = [json.dumps(row["settings"]) for row in found["trials"]]
    assert len(set(tried)) == 4
    complete = [row for row in found["trials"] if row["state"] == "complete"]
    best = min(complete, key=lambda row: row["value"])
    written = settings.read_toml(Path("runs/search-sinusoid/best.toml"))
    assert {name: written[name] for name in best["settings"]} == best["settings"]
    assert "2 of 4 trials are done already" in capsys.readouterr().out

    # The value is that of the run that these settings give.
    more = "--validation-tasks 4 --test-tasks 2 --no-compare --out again"
    assert main(["train", "runs/search-sinusoid/best.toml", *more.split()]) == 0
    stored = json.loads(Path("again/run.json").read_text())
    assert stored["best"]["value"] == pytest.approx(best["value"], rel=1e-6)


def test_a_trial_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="optuna is not installed")
    monkeypatch.chdir(tmp_path)
    line = f"search sinusoid {TINY} --over lr=1e30,1e31 --trials 1 --steps 3"
    assert main(line.split()) == 1
    shown = capsys.readouterr()
    assert "failed: training stopped: at meta-step 1" in shown.out
    assert "no trial came to an end" in shown.err


def test_a_search_without_anything_to_choose_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="optuna is not installed")
    monkeypatch.chdir(tmp_path)
    assert main(["search", "sinusoid"]) == 1
    assert "--over NAME=VALUES must be given" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
