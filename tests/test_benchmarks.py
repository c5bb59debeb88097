"""The benchmarks tell the truth: what they time is the exact gradient, and a wrong one is never timed."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import checkout
from benchmarks import (
    check,
    floors,
    machine,
    memory,
    outer,
    rivals,
    rules,
    run,
    scaling,
    steps,
    table,
    timing,
    updates,
    workloads,
)
from benchmarks.__main__ import main
from benchmarks.workloads import WORKLOADS, Workload


def conv2(channels: int) -> torch.nn.Sequential:
    """The first two blocks of Conv-4, and its last layer."""
    blocks = list(workloads.conv4(channels, 5, 1, 16))[:8]
    return torch.nn.Sequential(*blocks, torch.nn.Flatten(), torch.nn.Linear(4 * channels, 5))


#: As small as the second-order term allows, each kind of layer, loss and result at least once.
TINY = {
    "W1": dict(tasks=3),
    "W1-adam": dict(tasks=3, steps=2),
    "W2-momentum": dict(tasks=2, support=6, query=5, steps=3),
    "W5-2000-8": dict(tasks=3, support=4, query=4, steps=2 * 40),
    "W2": dict(tasks=2, support=6, query=5, steps=2),
    "W3": dict(tasks=2, support=5, query=10, steps=1, network=lambda: conv2(3), example=(1, 8, 8)),
    "W5": dict(tasks=2, support=4, query=4, steps=12),
    "W7": dict(tasks=2, support=6),
    "W1-fo": dict(tasks=3),
}
#: Compiling takes longer than a test may.
QUICK_RIVALS = [name for name in rivals.RIVALS if name != "torch.compile"]
#: Packages that may be missing here, and forms that they may not have.
OPTIONAL = {"learn2learn", "higher", "torchopt", "jax"}
BRIEF = timing.Effort(turn=0.0, rounds=(1, 1), seconds=0.0)


def tiny(name: str) -> Workload:
    return replace(WORKLOADS[name], **TINY[name])  # type: ignore[arg-type]


@pytest.mark.parametrize("rival", QUICK_RIVALS)
@pytest.mark.parametrize("name", TINY)
def test_every_form_of_every_rival_is_exact(name: str, rival: str) -> None:
    """But for the torch loop, which is the judge itself: other tests hold it to torch.optim."""
    judge = check.Judge(tiny(name))
    try:
        forms = rivals.prepare(rival, tiny(name).problem(torch.float64))
    except rivals.Unable as reason:
        assert rival in OPTIONAL or (rival, name) == ("metafast autograd", "W7"), reason
        pytest.skip(str(reason))
    assert forms
    for step in forms.values():
        judge.double(step())
        judge.double(step())  # and leaves nothing behind


def test_jax_recomputes_segments_of_a_long_inner_loop() -> None:
    pytest.importorskip("jax")
    from benchmarks.rivals import jax

    assert set(jax.loops(tiny("W5-2000-8").problem())) == {rivals.SCANNED, rivals.SEGMENTED}
    assert set(jax.loops(tiny("W5").problem())) == {rivals.SCANNED}


@pytest.mark.parametrize(
    ("rule", "optimiser"),
    [
        (updates.SGD, partial(torch.optim.SGD, lr=0.1)),
        (updates.MOMENTUM, partial(torch.optim.SGD, lr=0.1, momentum=0.9)),
        (updates.ADAM, partial(torch.optim.Adam, lr=0.1)),
    ],
)
def test_updates_are_those_of_torch_optim(rule: str, optimiser: Any) -> None:
    """Four steps along the same gradients, one element's all zero."""
    gradients = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients[:, 2] = 0
    theirs = torch.nn.Parameter(torch.ones(6, dtype=torch.float64))
    stepper = optimiser([theirs])
    p, state = torch.ones(6, dtype=torch.float64), (torch.zeros(6, dtype=torch.float64),) * updates.STATES[rule]
    for g, correction in zip(gradients, updates.corrections(rule, 4), strict=True):
        theirs.grad = g
        stepper.step()
        p, state = updates.update(torch, rule, p, g, state, 0.1, correction)
        torch.testing.assert_close(p, theirs.detach(), rtol=1e-13, atol=0)


def test_adam_has_a_slope_where_a_gradient_is_zero() -> None:
    g = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    zeros = (torch.zeros(1, dtype=torch.float64),) * 2
    p, _ = updates.update(torch, updates.ADAM, torch.ones(1), g, zeros, 0.1, updates.corrections(updates.ADAM, 1)[0])
    (slope,) = torch.autograd.grad(p.sum(), g)
    # (1 - b1) g / (1 - b1) over eps, the root taken for constant.
    assert slope.item() == pytest.approx(-0.1 / updates.EPS)


def test_learnt_rates_are_judged_apart_from_parameters() -> None:
    """The gradient of the rates alone, off by a thousandth, is wrong in float64; without its second-order term in
    float32."""
    workload = tiny("W2-momentum")
    judge = check.Judge(workload)
    (step,) = rivals.prepare("torch loop", workload.problem(torch.float64)).values()
    (first_order,) = rivals.prepare("torch loop", replace(workload, first_order=True).problem()).values()
    right = step()
    of_parameters = len(right) // 2
    assert [g.shape for g in right[:of_parameters]] == [g.shape for g in right[of_parameters:]]
    judge.double(right)
    judge.single(right)
    with pytest.raises(check.Wrong):
        judge.double([*right[:of_parameters], *(1.001 * g for g in right[of_parameters:])])
    with pytest.raises(check.Wrong):
        judge.single([*right[:of_parameters], *first_order()[of_parameters:]])


@pytest.mark.parametrize("steps", [1, 3])
def test_the_last_layer_alone_is_exact(steps: int) -> None:
    small: dict[str, Any] = {**TINY["W3"], "steps": steps, "adapts": "9.*"}
    workload = replace(rules.last_layer(steps), **small)
    judge = check.Judge(workload)
    (step,) = rivals.prepare("metafast", workload.problem(torch.float64)).values()
    judge.double(step())
    with pytest.raises(rivals.Unable, match="moves every parameter"):
        rivals.prepare("torch.func", workload.problem())


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


@pytest.mark.parametrize(("tasks", "distinct"), [(2 * workloads.DISTINCT_TASKS, workloads.DISTINCT_TASKS), (256, 64)])
def test_repeated_tasks_are_judged_by_the_distinct_ones(tasks: int, distinct: int) -> None:
    many = replace(WORKLOADS["W1"], tasks=tasks)
    assert many.distinct == distinct
    (step,) = rivals.prepare("metafast", many.problem(torch.float64)).values()
    check.Judge(many).double(step())


@pytest.mark.parametrize("name", ["W7", "W2-momentum"])
def test_problems_are_seeded_and_the_same_in_both_precisions(name: str) -> None:
    state = torch.get_rng_state()
    single, again, double = (tiny(name).problem(dtype) for dtype in (torch.float32, torch.float32, torch.float64))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b, c in zip(_numbers(single), _numbers(again), _numbers(double), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a.double(), c.double())


def _numbers(problem: workloads.Problem) -> list[torch.Tensor]:
    sets = (*problem.support, *problem.query)
    groups = (problem.parameters, problem.per_task, problem.vectors, problem.rates)
    return [*sets, *(value for group in groups for value in group.values())]


def test_floors_count_what_a_sweep_computes() -> None:
    # 1-40-40-1, 10 examples each: gradients 2 x 40 + 3 x 1640 multiply-adds, the product 2 x 40 + 6 x 1640.
    assert floors.flops(WORKLOADS["W1"]) == 2 * 25 * 10 * (2 * 5000 + 9920)
    assert floors.flops(WORKLOADS["W1-fo"]) == 2 * 25 * 10 * (2 * 5000)
    # An independent account of the same: GFLOP of each workload, to the digits given.
    for name, giga in {"W1b": 0.0398, "W2": 2.130, "W3": 69.2, "W4": 88.7, "W5": 2.345, "W7": 0.3015}.items():
        assert floors.flops(WORKLOADS[name]) / 1e9 == pytest.approx(giga, rel=2e-3)


def test_every_code_in_the_table_stands_beside_its_name() -> None:
    for name, workload in {**WORKLOADS, **workloads.on("cuda")}.items():
        assert workload.title.startswith(("MLP ", "Conv-4, "))
        assert not re.search(r"\bW\d", workload.title)
        assert name in table.label({"name": name, "title": workload.title}).split()


def test_what_takes_minutes_is_known_by_its_name() -> None:
    for slow in (run.SLOW, run.SLOW_ON_GPU):
        for names in slow.values():
            assert set(names) <= set(workloads.on("cuda"))
    for workload in workloads.LONG:
        assert {"torch loop", "torch.func"} <= {r for r, names in run.SLOW.items() if workload.name in names}
        assert workload.name not in run.SLOW["jax"]


def test_memory_is_that_of_the_policy_asked_for() -> None:
    """Kept activations of 400 steps take 4 MB a task at least, checkpoints of them less than a fifth of it."""
    pytest.importorskip("resource")
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("resident memory is read from /proc")
    workload = replace(WORKLOADS["W5"], steps=400)
    keep, checkpoint = (memory.growth("metafast", workload, policy) for policy in ("keep", "checkpoint"))
    assert checkpoint < keep / 5


def test_memory_of_many_steps_is_asked_of_torch_on_demand() -> None:
    few, many = WORKLOADS["W5"], WORKLOADS["W5-2000-1"]
    assert ("metafast", "keep") in memory.contestants(few, slow=False)
    assert not any(rival.startswith("torch") for rival, _ in memory.contestants(many, slow=False))
    assert {("torch loop", ""), ("jax", rivals.SEGMENTED)} < set(memory.contestants(many, slow=True))


def test_the_tables_of_memory_and_of_single_calls() -> None:
    line = {"name": "W5", "title": "MLP", "growth_bytes": [{"rival": "jax", "policy": "", "bytes": 2_500_000}]}
    skipped = {"rival": "jax", "policy": "scanned", "skipped": "too slow"}
    rows = table.memory([line, {**line, "name": "W6", "growth_bytes": [skipped]}])
    assert [cells[1:] for cells in rows] == [["jax", "jax, scanned"], ["2.5", "-"], ["-", "-"]]
    timed = {"name": "W5", "results": [{"rival": "a", "calls": 1}, {"rival": "b", "calls": 2}]}
    assert table.once({"workloads": [timed]}) == "a on W5"


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


def test_rules_are_compared_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is half as fast in the second round: the ratio is that of turns of one round."""
    turns = iter([[1.0], [3.0], [2.0], [6.0], [1.0], [3.5]])
    monkeypatch.setattr(rules, "turn", lambda step, seconds: next(turns))
    group = rules.Group("", {"plain": tiny("W1"), "Adam": tiny("W1-adam")}, ("plain",))
    plain, adam = rules.compare(group, replace(BRIEF, rounds=(3, 3)))
    assert (plain["ratios"], adam["ratios"]) == ({"plain": 1.0}, {"plain": 3.0})
    assert (plain["ms"], plain["error64"] < 1e-9, adam["error64"] < 1e-9) == (1000.0, True, True)


def test_what_a_rule_costs_is_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = rules.Group("MLP", {"SGD": tiny("W1"), "Adam": tiny("W1-adam")}, ("SGD",))
    monkeypatch.setattr(rules, "GROUPS", (group,))
    monkeypatch.setattr(timing, "QUICK", BRIEF)
    monkeypatch.setattr(machine, "confine", lambda threads: None)
    assert main(["rules", "--quick", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "rules.json").read_text())
    printed = capsys.readouterr().out
    assert printed == rules.table(result) + "\n"
    assert re.search(r"\nMLP\n +ms +times SGD\nSGD +\S+ +1.00\nAdam +\S+ +\d+\.\d\d\n", printed)


def test_many_steps_are_printed_with_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        memory, "growth", lambda rival, workload, policy: {"checkpoint": 10**6, "recompute": 10**7}[policy]
    )
    monkeypatch.setattr(steps, "W5", tiny("W5"))
    result = steps.measure(BRIEF, "", lambda line: None, steps=(4,))
    assert result["rows"][0]["same_bits"] is True
    cells = steps.table(result).splitlines()[3].split()
    assert cells[:4] == ["4", "1.0", "500.0", "10.0"]


def test_whole_steps_of_a_loop_are_checked_and_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    result = outer.measure(BRIEF, "", lambda line: None, tiny("W1"))
    assert [row["name"] for row in result["rows"]][:2] == [outer.BASE, outer.NATIVE]
    assert result["rows"][0]["ratio"] == 1.0 and all(row["weights"] < 1e-9 for row in result["rows"][1:])
    assert outer.table(result).splitlines()[3].startswith(outer.BASE)
    monkeypatch.setattr(outer.mf.optim, "Adam", torch.optim.AdamW)
    with pytest.raises(check.Wrong, match=r"mf.optim.Adam: weights are off by"):
        outer.check(tiny("W1"))


@pytest.mark.parametrize("options", [["--only", "W1"], ["--all"], ["--rivals", "jax"]])
def test_tables_of_its_own_refuse_options_of_rivals(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["rules", *options])
    assert options[0] in capsys.readouterr().err


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
