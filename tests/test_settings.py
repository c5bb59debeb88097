"""Settings of a run: flags, a TOML file and a stored run give the same, and what is wrong is named."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from metafast.cli import main
from metafast.cli.train import with_config
from metafast.experiments import EXPERIMENTS, settings
from metafast.experiments.settings import SettingsError, setting


@dataclass(frozen=True, kw_only=True)
class Base:
    rate: float = setting(0.1, "rate", least=0, group="loop")
    name: str = setting("a", "name", choices=("a", "b"), fixed=False)


@dataclass(frozen=True, kw_only=True)
class Kind(Base):
    data: Path = setting(..., "data", fixed=False)
    rate: float = setting(0.2, "rate", least=0)
    sizes: tuple[int, ...] = setting((3,), "sizes", least=1)
    limit: int | None = setting(None, "limit", least=1)
    flag: bool = setting(False, "flag")


def parsed(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    settings.add_flags(parser, Kind)
    return settings.given(Kind, parser.parse_args(list(words)))


ALIKE: list[tuple[str, str, dict[str, Any]]] = [
    ("--data d", "data = 'd'", {"data": Path("d")}),
    ("--data d --rate 1", "data = 'd'\nrate = 1", {"data": Path("d"), "rate": 1.0}),
    ("--data d --sizes 4 5", "data = 'd'\nsizes = [4, 5]", {"data": Path("d"), "sizes": (4, 5)}),
    ("--data d --sizes 4", "data = 'd'\nsizes = 4", {"data": Path("d"), "sizes": (4,)}),
    ("--data d --limit 2 --flag", "data = 'd'\nlimit = 2\nflag = true", {"data": Path("d"), "limit": 2, "flag": True}),
    ("--data d --no-flag --name b", "data = 'd'\nflag = false\nname = 'b'", {"data": Path("d"), "name": "b"}),
]


@pytest.mark.parametrize(("flags", "toml", "expected"), ALIKE)
def test_flags_and_a_file_give_the_same(flags: str, toml: str, expected: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(toml)
    by_flags, by_file = (settings.build(Kind, v) for v in (parsed(*flags.split()), settings.read_toml(file)))
    assert by_flags == by_file == Kind(**expected)
    assert settings.resumed(Kind, settings.plain(by_flags), {}) == by_flags


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"data": "d", "rte": 1}, "there is no setting 'rte'; did you mean 'rate'?"),
    ({"data": "d", "zzz": 1}, "there is no setting 'zzz'; there are rate, name, data, sizes, limit, flag"),
    ({"data": "d", "rate": "fast"}, "rate: expected a number, got 'fast'"),
    ({"data": "d", "rate": True}, "rate: expected a number, got True"),
    ({"data": "d", "rate": -1}, "rate: expected at least 0, got -1.0"),
    ({"data": "d", "rate": float("nan")}, "rate: expected at least 0, got nan"),
    ({"data": "d", "sizes": [3, "4"]}, "sizes: expected a whole number, got '4'"),
    ({"data": "d", "sizes": [3, 0]}, "sizes: expected at least 1, got 0"),
    ({"data": "d", "limit": 1.5}, "limit: expected a whole number, got 1.5"),
    ({"data": "d", "flag": 1}, "flag: expected true or false, got 1"),
    ({"data": "d", "name": "c"}, "name: expected one of a, b, got 'c'"),
    ({"data": 3}, "data: expected a path, got 3"),
    ({"rate": 1.0}, "--data must be given: data"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_what_is_wrong_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        settings.build(Kind, values, where="run.toml")
    assert str(error.value) == f"run.toml: {message}"


def test_a_resumed_run_keeps_what_is_fixed() -> None:
    stored = {"data": "d", "rate": 0.5, "machine": "of others"}
    assert settings.resumed(Kind, stored, {"data": Path("e"), "name": "b", "rate": 0.5}) == Kind(
        data=Path("e"), name="b", rate=0.5
    )
    with pytest.raises(SettingsError, match=r"--rate 0\.6 contradicts the checkpoint, which was trained with 0\.5"):
        settings.resumed(Kind, stored, {"rate": 0.6})


def test_a_setting_that_takes_the_place_of_another_keeps_its_heading() -> None:
    assert {name: each.group for name, each in settings.declared(Kind).items()} == {
        "rate": "loop", "name": "", "data": "", "sizes": "", "limit": "", "flag": "",
    }  # fmt: skip


@pytest.mark.parametrize("kind", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_every_setting_of_an_experiment_is_declared(kind: type) -> None:
    known = settings.declared(kind)
    assert list(known) == [each.name for each in fields(kind)]
    for each in known.values():
        assert each.help
        if not each.required and each.default is not None:
            assert each.checked(each.default) == each.default


# ---- In the command line ---------------------------------------------------------------------------------------------
def failing(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(list(argv)) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("metafast: error: ")
    return line


CONFIG = "experiment = 'sinusoid'\nmeta_steps = 2\nwidth = 6\ntasks = 3\ntest_tasks = 4\n"


def test_a_file_names_its_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text(CONFIG)
    assert with_config(["train", "run.toml", "--seed", "1"]) == [
        "train", "sinusoid", "--config", "run.toml", "--seed", "1",
    ]  # fmt: skip
    assert main(["train", "run.toml", "--no-compare", "--out", "a", "--width", "7"]) == 0
    flags = "--meta-steps 2 --width 7 --tasks 3 --test-tasks 4 --no-compare --out b"
    assert main(["train", "sinusoid", *flags.split()]) == 0
    one, other = ((Path(run) / "metrics.jsonl").read_text() for run in "ab")
    assert one.split('"before"')[1].split('"lr"')[0] == other.split('"before"')[1].split('"lr"')[0]


@pytest.mark.parametrize(
    ("content", "argv", "message"),
    [
        ("meta_steps = 2", "train run.toml", "run.toml must say which experiment it is"),
        (CONFIG.replace("sinusoid", "sinus"), "train run.toml", "found 'sinus'"),
        (CONFIG + "widht = 3", "train run.toml", "there is no setting 'widht'; did you mean 'width'?"),
        (CONFIG + "steps = 'many'", "train run.toml", "steps: expected a whole number, got 'many'"),
        (
            CONFIG,
            "train omniglot --config run.toml",
            "is a configuration of 'sinusoid', not of `metafast train omniglot`",
        ),
        ("steps = = 3", "train run.toml", "run.toml is not valid TOML"),
        (CONFIG, "train nowhere.toml", "there is no file nowhere.toml"),
    ],
)
def test_errors_of_a_file_are_one_line(
    content: str,
    argv: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text(content)
    assert message in failing(capsys, *argv.split())
    assert not Path("runs").exists()
