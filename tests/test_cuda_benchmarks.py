"""What of the GPU's benchmarks needs no GPU: options, clocks, workloads, the script's text."""

from __future__ import annotations

import subprocess
from typing import ClassVar

import pytest
import torch

import checkout
from benchmarks import cuda, timing, workloads
from benchmarks.__main__ import main

SCRIPT = checkout.ROOT / "benchmarks" / "gpu.sh"


class Event:
    """Stands for torch's: time is the number of calls so far."""

    log: ClassVar[list[str]] = []

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.log.append("record")
        self.at = self.log.count("call")

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.at - self.at)


def test_the_event_clock_times_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Event, "log", [])
    clock = cuda.EventClock(Event)
    ours, others = timing.in_turns(
        lambda: Event.log.append("call") or [], {"a": list}, timing.Effort(0.01, (2, 2), 0.0), clock
    )
    assert set(ours) == {1.0}
    assert set(others["a"]) == {0.0}
    assert Event.log[:4] == ["record", "call", "record", "synchronize"]


def test_host_time_waits_before_each_call() -> None:
    log: ClassVar[list[str]] = []
    assert cuda.host_us(lambda: log.append("call") or [], 2, lambda: log.append("wait")) >= 0
    assert log == ["wait", "call", "wait", "call", "wait"]


def test_a_gpu_has_larger_workloads_too() -> None:
    there = workloads.on("cuda")
    assert set(there) - set(workloads.WORKLOADS) == {"W3-32", "W3-256", "W4-32"}
    assert {w.device for w in there.values()} == {"cuda"}
    assert [w.name for w in workloads.chosen(["w4-32"], "cuda")] == ["W4-32"]
    with pytest.raises(ValueError, match="no workload W4-32"):
        workloads.chosen(["W4-32"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_no_device_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--device", "cuda"])
    assert stop.value.code == 2
    assert "torch finds no CUDA device" in capsys.readouterr().err


def test_the_script_is_bash() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
