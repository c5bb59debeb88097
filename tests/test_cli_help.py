"""The command line as a new user meets it: every command without arguments and with --help."""

from __future__ import annotations

import argparse
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from metafast.cli import COMMANDS, main, parser
from metafast.experiments import settings
from metafast.training import networks

Found = tuple[tuple[str, ...], argparse.ArgumentParser]


def walk(words: tuple[str, ...], root: argparse.ArgumentParser) -> Iterator[Found]:
    """Every parser below ``root``, itself first, and the words that lead to it."""
    yield words, root
    for name, sub in choices(root).items():
        yield from walk((*words, name), sub)


def choices(of: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [a.choices for a in of._actions if isinstance(a, argparse._SubParsersAction)]
    return {name: sub for choice in found for name, sub in choice.items()}


ALL = list(walk((), parser()))
MENUS = [words for words, found in ALL if choices(found)]
LEAVES = [words for words, found in ALL if not choices(found)]


def named(words: tuple[str, ...]) -> str:
    return " ".join(("metafast", *words))


def flat(text: str) -> str:
    return " ".join(text.split())


def test_the_walk_meets_every_command() -> None:
    assert {" ".join(words) for words in LEAVES} == {command.NAME for command in COMMANDS}
    assert MENUS == [(), ("train",), ("search",)]


@pytest.mark.parametrize(("words", "found"), ALL, ids=[named(words) for words, _ in ALL])
def test_help_is_printed_and_describes_every_argument(
    words: tuple[str, ...], found: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    out, err = capsys.readouterr()
    assert not err
    assert out.startswith(f"usage: {named(words)} ")
    assert found.description is not None and found.description in out
    for action in found._actions:
        if action.help is not argparse.SUPPRESS:
            text = action.help % vars(action) if action.help else ""
            assert flat(text) in flat(out)
            assert text or isinstance(action, argparse._SubParsersAction), f"{action.dest} is not described"
    for name, sub in choices(found).items():
        assert sub.description is not None
        assert f"{name} {flat(sub.description.splitlines()[0]).rstrip('.')}" in flat(out)


@pytest.mark.parametrize("words", MENUS, ids=named)
def test_a_choice_not_made_shows_what_there_is(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(list(words)) == 2
    shown = capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    assert shown.out == capsys.readouterr().out
    assert not shown.err


@pytest.mark.parametrize("words", LEAVES, ids=named)
def test_a_bare_command_runs_or_names_just_what_it_needs(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = (sub for others, sub in ALL if others == words)
    (command,) = (command for command in COMMANDS if " ".join(words) == command.NAME)
    needed = [
        "/".join(action.option_strings) or action.metavar or action.dest
        for action in found._actions
        if action.required and action.nargs != "*"
    ]
    if not needed:
        assert parser().parse_args(list(words)).run == command.run
        return
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"usage: {named(words)} ")
    assert err.endswith(f"the following arguments are required: {', '.join(map(str, needed))}\n")


def test_the_command_itself_shows_its_help(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for words, code in (([], 2), (["--help"], 0), (["train"], 2)):
        command = [sys.executable, "-m", "metafast", *words]
        shown = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
        assert shown.returncode == code
        assert shown.stdout.startswith("usage: metafast ")
        assert "Traceback" not in shown.stderr


@dataclass
class Percents:
    part: float = settings.setting(0.5, "part, 50 % or so")
    whole: bool = settings.setting(True, "all 100 %")


def test_a_percent_sign_in_an_option_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    made = argparse.ArgumentParser()
    settings.add_flags(made, Percents)
    made.print_help()
    assert "part, 50 % or so (default 0.5)" in (shown := flat(capsys.readouterr().out))
    assert "all 100 % (default yes)" in shown


def test_explain_names_the_settings_of_every_network(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["explain", "--help"])
    lines = capsys.readouterr().out.splitlines()
    for name, build in networks.NETWORKS.items():
        (line,) = (line for line in lines if line.startswith(f"  {name} "))
        given = [part.split("=") for part in line.split()[1:]]
        expected = inspect.signature(build).parameters
        assert [key for key, _ in given] == list(expected)
        for key, value in given:
            default = expected[key].default
            assert default is inspect.Parameter.empty or str(default) == value
