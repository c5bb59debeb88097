"""The benchmarks tell the truth: what they time is the exact gradient, and a wrong one is never timed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import checkout
from benchmarks import check, floors, machine, rivals, run, scaling, table, timing, workloads
from benchmarks.__main__ import main
from benchmarks.workloads import WORKLOADS, Workload


def conv2(channels: int) -> torch.nn.Sequential:
    """The first two blocks of Conv-4, and its last layer."""
    blocks = list(workloads.conv4(channels, 5, 1, 16))[:8]
    return torch.nn.Sequential(*blocks, torch.nn.Flatten(), torch.nn.Linear(4 * channels, 5))


#: As small as the second-order term allows, each kind of layer, loss and result at least once.
TINY = {
    "W1": dict(tasks=3),
    "W2": dict(tasks=2, support=6, query=5, steps=2),
    "W3": dict(tasks=2, support=5, query=10, steps=1, network=lambda: conv2(3), example=(1, 8, 8)),
    "W5": dict(tasks=2, support=4, query=4, steps=12),
    "W7": dict(tasks=2, support=6),
    "W1-fo": dict(tasks=3),
}
#: Compiling takes longer than a test may.
QUICK_RIVALS = [name for name in rivals.RIVALS if name != "torch.compile"]
BRIEF = timing.Effort(turn=0.0, rounds=(1, 1), seconds=0.0)


def tiny(name: str) -> Workload:
    return replace(WORKLOADS[name], **TINY[name])  # type: ignore[arg-type]


@pytest.mark.parametrize("rival", QUICK_RIVALS)
@pytest.mark.parametrize("name", TINY)
def test_every_form_of_every_rival_is_exact(name: str, rival: str) -> None:
    judge = check.Judge(tiny(name))
    try:
        forms = rivals.prepare(rival, tiny(name).problem(torch.float64))
    except rivals.Unable as reason:
        pytest.skip(str(reason))
    for step in forms.values():
        judge.double(step())
        judge.double(step())  # and leaves nothing behind


@pytest.mark.parametrize("name", ["W1", "W3"])
def test_a_gradient_without_its_second_order_term_is_wrong(name: str) -> None:
    judge = check.Judge(tiny(name))
    (first_order,) = rivals.prepare("torch loop", replace(tiny(name), first_order=True).problem()).values()
    with pytest.raises(check.Wrong):
        judge.single(first_order())


def test_a_gradient_that_is_nan_is_wrong() -> None:
    judge = check.Judge(tiny("W1"))
    (step,) = rivals.prepare("torch loop", tiny("W1").problem()).values()
    result = [g * math.nan for g in step()]
    for verdict in (judge.single, judge.double):
        with pytest.raises(check.Wrong):
            verdict(result)


def test_repeated_tasks_are_judged_by_the_distinct_ones() -> None:
    many = replace(WORKLOADS["W1"], tasks=2 * workloads.DISTINCT_TASKS)
    (step,) = rivals.prepare("metafast", many.problem(torch.float64)).values()
    check.Judge(many).double(step())


def test_problems_are_seeded_and_the_same_in_both_precisions() -> None:
    state = torch.get_rng_state()
    single, again, double = (tiny("W7").problem(dtype) for dtype in (torch.float32, torch.float32, torch.float64))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b, c in zip(_numbers(single), _numbers(again), _numbers(double), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a.double(), c.double())


def _numbers(problem: workloads.Problem) -> list[torch.Tensor]:
    sets = (*problem.support, *problem.query)
    return [*problem.parameters.values(), *sets, *problem.per_task.values(), *problem.vectors.values()]


def test_floors_count_what_a_sweep_computes() -> None:
    # 1-40-40-1, 10 examples each: gradients 2 x 40 + 3 x 1640 multiply-adds, the product 2 x 40 + 6 x 1640.
    assert floors.flops(WORKLOADS["W1"]) == 2 * 25 * 10 * (2 * 5000 + 9920)
    assert floors.flops(WORKLOADS["W1-fo"]) == 2 * 25 * 10 * (2 * 5000)
    # An independent account of the same: GFLOP of each workload, to the digits given.
    for name, giga in {"W1b": 0.0398, "W2": 2.130, "W3": 69.2, "W4": 88.7, "W5": 2.345, "W7": 0.3015}.items():
        assert floors.flops(WORKLOADS[name]) / 1e9 == pytest.approx(giga, rel=2e-3)


def test_turns_alternate() -> None:
    order: list[str] = []
    steps = {name: lambda name=name: order.append(name) or [] for name in ("ours", "a", "b")}
    ours, others = timing.in_turns(steps["ours"], {name: steps[name] for name in "ab"}, replace(BRIEF, rounds=(2, 2)))
    runs = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert runs == ["ours", "a", "ours", "b"] * 2
    assert len(ours) >= 4
    assert all(len(times) >= 2 for times in others.values())


def test_what_takes_very_long_takes_one_turn() -> None:
    steps = {"a": lambda: ["a"], "b": lambda: ["b"]}
    seconds = {(): 1.0, ("a",): 8.1, ("b",): 8.0}
    effort = replace(BRIEF, turn=0.0, rounds=(3, 3))
    ours, others = timing.in_turns(list, steps, effort, clock=lambda step: seconds[tuple(step())])
    assert others == {"a": [8.1], "b": [8.0] * 3}
    assert ours == [1.0] * 6


@pytest.mark.parametrize("cores", [2, 3])
def test_efficiency_compares_turns_of_the_same_round(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    """Three rounds, in the last of which the machine is half as fast. Cores that take 4 and 6 s alone could take 2.4 s
    together: 0.96 of 2.5. Where threads have no core each, one thread's 4 s could become 2: 0.8."""
    pinned = cores == 2
    round_ = [[4.0], [6.0], [2.5]] if pinned else [[4.0], [2.5]]
    turns = iter([*round_, *round_, *[[2 * t for t in times] for times in round_]])
    seen: list[tuple[int, set[int]]] = []
    places: list[set[int]] = [set(range(cores))]
    monkeypatch.setattr(scaling.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(scaling.os, "sched_setaffinity", lambda _, to: places.append(set(to)), raising=False)

    def turn(step: object, seconds: float) -> list[float]:
        seen.append((torch.get_num_threads(), places[-1]))
        return next(turns)

    monkeypatch.setattr(scaling, "turn", turn)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = scaling.over_threads(list, replace(BRIEF, rounds=(3, 3)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    everywhere = set(range(cores))
    assert seen == ([(1, {0}), (1, {1}), (2, everywhere)] if pinned else [(1, everywhere), (2, everywhere)]) * 3
    assert places[-1] == everywhere
    one_ms, efficiency = (6000.0, 0.96) if pinned else (4000.0, 0.8)
    assert found == {
        "threads": 2,
        "one_ms": one_ms,
        "all_ms": 2500.0,
        "efficiency": pytest.approx(efficiency),
        "pinned": pinned,
    }


def test_growth_with_tasks_is_measured_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([[2e-5], [9e-5], [2e-5], [1e-4], [3e-5], [1e-4]])
    monkeypatch.setattr(scaling, "turn", lambda step, seconds: next(times))
    found = scaling.over_tasks({1: list, 10: list}, replace(BRIEF, rounds=(3, 3)))
    assert found == {"tasks": [1, 10], "us_per_task": [pytest.approx(20.0), pytest.approx(10.0)]}


def result_of_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Two tiny workloads through the command itself, and the JSON it wrote."""
    for name in ("W1", "W7"):
        monkeypatch.setitem(WORKLOADS, name, tiny(name))
    monkeypatch.setattr(timing, "QUICK", BRIEF)
    monkeypatch.setattr(machine, "confine", lambda threads: None)
    monkeypatch.setattr(run.limits, "measure", lambda threads: {"matmul_gflops": 100.0, "copy_gbps": 10.0})
    monkeypatch.setattr(run.overhead, "microseconds", lambda: {"call": 20.0, "call and backward": 30.0})
    assert main(["--quick", "--only", "w1,W7", "--rivals", "torch loop,higher", "--out", str(tmp_path)]) == 0
    result: dict[str, Any] = json.loads((tmp_path / "bench.json").read_text())
    return result


def test_the_command_writes_what_it_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = result_of_a_run(monkeypatch, tmp_path)
    assert result["schema"] == run.SCHEMA
    assert result["command"].startswith("python -m benchmarks --quick --only w1,W7 ")
    assert {"cpu", "threads", "instruction set", "packages", "load"} <= set(result["machine"])
    assert 0 <= result["stolen"] <= 1 if Path("/proc/stat").exists() else "stolen" not in result
    assert [line["name"] for line in result["workloads"]] == ["W1", "W7"]
    for line in result["workloads"]:
        ours, loop, higher = line["results"]
        assert (ours["rival"], loop["rival"], higher["rival"]) == ("metafast", "torch loop", "higher")
        assert ours["error64"] < 1e-9
        assert loop["ratio"] == loop["ms"] / ours["ms"]
        assert loop["low_ms"] <= loop["ms"] <= loop["high_ms"]
        assert line["over_floor"] == pytest.approx(ours["ms"] * 100e6 / line["flops"])
    assert result["workloads"][0]["second_order_term"] > 1e-3
    assert result["workloads"][1]["second_order_term"] is None
    assert "ms" not in higher
    assert "skipped" in higher

    printed = capsys.readouterr().out
    assert printed == table.table(result) + "\n"
    assert "higher on W7:" in printed or "higher: not installed" in printed
    pytest.importorskip("matplotlib")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_rival_that_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_order(problem: workloads.Problem) -> rivals.Forms:
        return rivals.loop.meta_gradient(replace(problem, workload=replace(problem.workload, first_order=True)))

    from benchmarks.rivals import torch_func

    monkeypatch.setattr(torch_func, "meta_gradient", first_order)
    options = run.Options([tiny("W1")], ["torch.func"], BRIEF, extras=False)
    (line,) = run.measure(options, say=lambda text: None)["workloads"]
    assert "ms" not in line["results"][1]
    assert "off by" in line["results"][1]["skipped"]


@pytest.mark.parametrize(("seconds", "tried"), [(0, 1), (60, 3)])
def test_forms_are_compared_where_calls_are_short(monkeypatch: pytest.MonkeyPatch, seconds: int, tried: int) -> None:
    monkeypatch.setattr(run, "TWICE", seconds)
    workload = tiny("W1")
    judge, calls = check.Judge(workload), []
    monkeypatch.setattr(judge, "single", lambda result: calls.append(result) or 0.0)
    _, row = run.contestant("torch.func", workload, judge, 60)
    assert len(calls) == tried
    assert (row["form"], row["error64"]) == ("autograd of vmap", None) if tried == 1 else row["error64"] < 1e-9


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.rivals import torch_func

    def endless(problem: workloads.Problem) -> rivals.Forms:
        while True:
            pass

    monkeypatch.setattr(torch_func, "meta_gradient", endless)
    options = run.Options([tiny("W1")], ["torch.func"], BRIEF, extras=False, patience=1)
    (line,) = run.measure(options, say=lambda text: None)["workloads"]
    assert line["results"][1]["skipped"] == "no answer in 1 s"


@pytest.mark.parametrize("arguments", [["--only", "W9"], ["--rivals", "tensorflow"]])
def test_unknown_names_are_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert arguments[1] in capsys.readouterr().err


def test_it_is_run_as_a_module_of_the_checkout() -> None:
    command = [sys.executable, "-m", "benchmarks", "--help"]
    shown = subprocess.run(command, cwd=checkout.ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("usage: python -m benchmarks ")
    assert "--rivals" in shown.stdout
