"""The command line, through ``main``: what it leaves behind, that it repeats itself, and how it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from drawings import draw
from metafast.cli import comparison, main
from metafast.experiments import omniglot as experiment
from metafast.run_folder import RunFolder
from metafast.tasks import Sinusoids, generator
from metafast.training import checkpoint as checkpoints
from metafast.training.evaluation import Estimate
from metafast.training.interruption import Interruption
from metafast.training.outer import Budget

TINY = "--width 6 --tasks 3 --shots 4 --test-tasks 20 --validation-tasks 4 --threads 1".split()
FILES = ["best.pt", "checkpoint.pt", "curves.png", "examples.npz", "metrics.jsonl", "report.html", "run.json"]
SMALL = [
    *("--subset", "--ways", "3", "--shots", "1", "--queries", "2", "--tasks", "2", "--channels", "3"),
    *("--test-tasks", "6", "--test-queries", "2", "--validation-tasks", "4", "--validate-every", "10"),
    *("--minutes", "0", "--threads", "1"),
]


def sinusoid(out: Path, *more: str) -> int:
    return main(["train", "sinusoid", "--out", str(out), "--no-compare", *TINY, *more])


def weights(run: Path, name: str = "checkpoint.pt") -> dict[str, torch.Tensor]:
    return checkpoints.load(run / name).state


def results_of(run: Path) -> dict[str, Any]:
    return RunFolder(run).read()["results"]


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in RunFolder(run).rows() if row["kind"] == kind]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data(tmp_path, monkeypatch):
    pytest.importorskip("PIL", reason="Pillow is not installed")
    monkeypatch.setenv("METAFAST_CACHE", str(tmp_path / "cache"))
    draw(tmp_path / "data")
    return tmp_path / "data"


# ---- Sinusoid ------------------------------------------------------------------------
def test_sinusoid_leaves_checkpoint_results_and_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert main(["train", "sinusoid", *TINY, "--meta-steps", "250"]) == 0
    out = tmp_path / "runs" / "sinusoid"
    assert sorted(os.listdir(out)) == [*FILES, "sinusoid.png"]
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in ("curves.png", "sinusoid.png"))
    facts, results = RunFolder(out).read(), results_of(out)
    assert facts["meta_steps"] == 250 and facts["stopped"] == "max_iters"
    assert facts["settings"]["width"] == 6 and facts["machine"]["torch"] == torch.__version__
    assert rows(out, "train")[-1]["meta_step"] == 250
    losses = results["loss"]
    assert list(losses) == ["0", "1", "5", "10"]
    assert losses["0"]["tasks"] == 20
    assert results["torch_func"]["relative_difference_float64"] < 1e-12
    assert results["torch_func"]["relative_difference"] < 1e-4
    assert results["torch_func"]["ratio"] > 0
    text = capsys.readouterr().out
    assert "after so many inner steps" in text and "relative difference" in text and "ratio" in text
    # Unasked, the next run finds a folder of its own.
    assert main(["train", "sinusoid", *TINY, "--meta-steps", "1", "--no-compare"]) == 0
    assert checkpoints.load(tmp_path / "runs" / "sinusoid-2" / "checkpoint.pt").step == 1


def test_sinusoid_learns(tmp_path):
    more = ["--width", "20", "--tasks", "10", "--shots", "10", "--meta-lr", "0.01", "--test-tasks", "100"]
    assert sinusoid(tmp_path / "a", *more, "--meta-steps", "400") == 0
    errors = results_of(tmp_path / "a")["loss"]
    assert errors["1"]["mean"] + errors["1"]["interval"] < errors["0"]["mean"] - errors["0"]["interval"]
    assert errors["10"]["mean"] < 0.7 * errors["0"]["mean"]


def test_a_seed_repeats_and_another_does_not(tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert sinusoid(tmp_path / name, "--seed", seed, "--meta-steps", "12") == 0
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))
    a, b = (results_of(tmp_path / name) for name in "ab")
    assert a == b


def test_resuming_continues_exactly(tmp_path):
    assert sinusoid(tmp_path / "whole", "--meta-steps", "450") == 0
    assert sinusoid(tmp_path / "parts", "--meta-steps", "130") == 0
    for meta_steps in ("130", "301", "450"):
        resume = ["--resume", str(tmp_path / "parts"), "--meta-steps", meta_steps]
        assert main(["train", "sinusoid", "--no-compare", "--test-tasks", "20", *resume]) == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    whole, parts = (checkpoints.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "parts"))
    assert whole.step == parts.step == 450
    states = [run.optimizer["state"]["state"] for run in (whole, parts)]
    assert all(torch.equal(states[0][i][key], states[1][i][key]) for i in states[0] for key in states[0][i])


def test_ctrl_c_leaves_a_checkpoint_that_continues_exactly(tmp_path):
    """In a process of its own, interrupted as by a terminal."""
    command = [sys.executable, "-m", "metafast", "train", "sinusoid", "--no-compare", *TINY, "--meta-steps"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    out = tmp_path / "stopped"
    process = subprocess.Popen(
        [*command, "1000000", "--out", str(out)], stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stderr is not None
        seen = ""
        while "meta-step" not in seen:  # the first block is done
            piece = process.stderr.read(1)
            assert piece, seen
            seen += piece
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert f"metafast train sinusoid --resume {out}" in rest
    assert "Traceback" not in rest
    step = checkpoints.load(out / "checkpoint.pt").step
    assert sinusoid(tmp_path / "whole", "--meta-steps", str(step + 3)) == 0
    resume = ["--resume", str(out), "--meta-steps", str(step + 3)]
    assert main(["train", "sinusoid", "--no-compare", *resume]) == 0
    assert same(weights(tmp_path / "whole"), weights(out))


def test_no_meta_steps_evaluates_what_chance_gave(tmp_path):
    assert sinusoid(tmp_path / "a", "--meta-steps", "0") == 0
    assert RunFolder(tmp_path / "a").read()["meta_steps"] == 0


def test_evaluating_a_sinusoid_checkpoint(tmp_path, capsys):
    assert sinusoid(tmp_path / "a", "--meta-steps", "5") == 0
    capsys.readouterr()
    evaluate = ["evaluate", str(tmp_path / "a"), "--test-tasks", "20"]
    assert main([*evaluate, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    results = results_of(tmp_path / "a")
    assert again["estimates"].keys() == {"loss", "rmse", "mae", "r2"}
    assert again["estimates"].items() <= results.items()
    assert main([*evaluate, "--steps", "3", "7", "--seed", "1", "--json"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert other["steps"] == [3, 7] and other["estimates"]["loss"]["3"]["tasks"] == 20


def test_a_wrong_gradient_is_not_timed(monkeypatch):
    learner = checkpoints.Checkpoint("mlp", {"sizes": [1, 4, 1]}, {}, {"lr": 0.1, "steps": 1, "loss": "mse"}, {})
    made = learner.build(backend="torch")
    episode = Sinusoids(shots=3, queries=3).sample(2, generator(0))
    wrong = comparison.metafast_step
    monkeypatch.setattr(comparison, "metafast_step", lambda m, e: lambda: [g * (1 + 1e-8) for g in wrong(m, e)()])
    with pytest.raises(RuntimeError, match=r"disagree on the meta-gradient: .* in float64 is 1\.0e-08"):
        comparison.against_torch_func(made, episode)


# ---- Omniglot ------------------------------------------------------------------------
def omniglot(data: Path, out: Path, *more: str) -> int:
    return main(["train", "omniglot", "--data", str(data), "--out", str(out), *SMALL, *more])


def test_omniglot_from_data_to_test(data, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    out = tmp_path / "run"
    assert omniglot(data, out, "--meta-steps", "25") == 0
    assert sorted(os.listdir(out)) == FILES
    results, validations = results_of(out), rows(out, "validation")
    assert [row["meta_step"] for row in validations] == [10, 20, 25]
    accuracy = results["accuracy"]["1"]
    assert accuracy["tasks"] == 6 and 0 <= accuracy["mean"] <= 1
    best = checkpoints.load(out / "best.pt")
    assert best.step == results["tested_meta_step"]
    accuracies = {row["meta_step"]: row["mean"] for row in validations}
    assert accuracies[best.step] == max(accuracies.values())
    capsys.readouterr()
    data.rename(data.with_name("moved"))
    assert main(["evaluate", str(out), "--data", str(data.with_name("moved")), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["estimates"].items() <= results.items()


def test_omniglot_resumes_exactly(data, tmp_path):
    # The cosine schedule depends on the budget, so the first part is stopped within it, not by it.
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert omniglot(data, whole, "--meta-steps", "23") == 0
    with pytest.MonkeyPatch.context() as patch:
        stream = experiment.Omniglot.tasks

        def tasks(self, split, **settings):
            made = stream(self, split, **settings)
            if split == "train":
                inner = made.stream

                def stopping(*args, **named):
                    for count, episode in enumerate(inner(*args, **named), 1):
                        if count == 13:
                            os.kill(os.getpid(), signal.SIGTERM)
                        yield episode

                made.stream = stopping
            return made

        patch.setattr(experiment.Omniglot, "tasks", tasks)
        assert omniglot(data, parts, "--meta-steps", "23") == 130
    assert checkpoints.load(parts / "checkpoint.pt").step == 13
    assert main(["train", "omniglot", "--resume", str(parts), "--threads", "1"]) == 0
    assert same(weights(whole), weights(parts))
    assert rows(whole, "validation") == rows(parts, "validation")
    assert results_of(whole) == results_of(parts)


def test_learnt_learning_rate_is_saved(data, tmp_path):
    assert omniglot(data, tmp_path / "run", "--meta-steps", "3", "--learn-lr") == 0
    assert weights(tmp_path / "run")["lr"].item() not in (0.5, 0.0)


def test_a_short_run_on_the_real_omniglot(tmp_path, real_data):
    data = str(real_data("omniglot"))
    size = ["--channels", "16", "--tasks", "4", "--meta-steps", "150", "--minutes", "2", "--test-tasks", "100"]
    assert main(["train", "omniglot", "--data", data, "--out", str(tmp_path / "run"), *size]) == 0
    accuracy = results_of(tmp_path / "run")["accuracy"]["1"]
    assert accuracy["mean"] - accuracy["interval"] > 0.4  # chance is 0.2


# ---- What goes wrong -----------------------------------------------------------------
def failing(capsys, *argv: str) -> str:
    assert main(list(argv)) == 1
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("metafast: error: "), captured.err
    return lines[0]


def test_an_unused_folder_is_demanded(tmp_path, capsys):
    assert sinusoid(tmp_path / "a", "--meta-steps", "1") == 0
    before = weights(tmp_path / "a")
    capsys.readouterr()
    train = ["train", "sinusoid", "--no-compare", *TINY, "--out", str(tmp_path / "a"), "--meta-steps", "2"]
    assert "holds a run already" in failing(capsys, *train)
    assert same(weights(tmp_path / "a"), before)
    assert main([*train, "--overwrite"]) == 0
    assert checkpoints.load(tmp_path / "a" / "checkpoint.pt").step == 2


def test_resuming_keeps_the_settings(tmp_path, capsys):
    assert sinusoid(tmp_path / "a", "--meta-steps", "1", "--seed", "5") == 0
    capsys.readouterr()
    message = failing(capsys, "train", "sinusoid", "--resume", str(tmp_path / "a"), "--seed", "6")
    assert "--seed 6 contradicts the checkpoint, which was trained with 5" in message


@pytest.mark.parametrize("command", ["evaluate", "train sinusoid --resume"])
def test_a_broken_checkpoint_is_refused_and_kept(tmp_path, capsys, command):
    assert sinusoid(tmp_path / "a", "--meta-steps", "1") == 0
    path = tmp_path / "a" / "checkpoint.pt"
    content = path.read_bytes()[:-100]
    path.write_bytes(content)
    capsys.readouterr()
    assert "truncated" in failing(capsys, *command.split(), str(path))
    assert path.read_bytes() == content


def test_a_checkpoint_of_another_task_is_refused(tmp_path, capsys):
    assert sinusoid(tmp_path / "a", "--meta-steps", "1") == 0
    capsys.readouterr()
    message = failing(capsys, "train", "omniglot", "--data", ".", "--resume", str(tmp_path / "a"))
    assert "is a run on 'sinusoid', not of `metafast train omniglot`" in message


def test_an_altered_checkpoint_is_refused(tmp_path, capsys):
    assert sinusoid(tmp_path / "a", "--meta-steps", "1") == 0
    path = tmp_path / "a" / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    content["run"]["width"] = 7
    torch.save(content, path)
    capsys.readouterr()
    assert "was altered" in failing(capsys, "train", "sinusoid", "--resume", str(path))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("evaluate nowhere.pt", "no checkpoint at nowhere.pt"),
        ("train omniglot --data nowhere", "data folder nowhere does not exist"),
        ("train omniglot --data . --minutes 0", "a budget is needed"),
        ("train sinusoid --meta-steps -1", "meta_steps: expected at least 0, got -1"),
        ("train sinusoid --test-tasks 1", "test_tasks: expected at least 2, got 1"),
        ("train images", "--data must be given"),
        ("train sinusoid --device nonsense", "nonsense"),
        ("explain mlp 3", "expected NAME=VALUE, got '3'"),
        ("explain conv4 image_size=3", "image_size: expected at least 16"),
    ],
)
def test_errors_are_one_line(argv, message, capsys):
    assert message in failing(capsys, *argv.split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_named(capsys):
    assert "torch finds no usable CUDA device" in failing(capsys, "train", "sinusoid", "--device", "cuda")


def test_debug_shows_where(capsys):
    with pytest.raises(checkpoints.CheckpointError):
        main(["evaluate", "nowhere.pt", "--debug"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("train nothing", "invalid choice: 'nothing'"),
        ("evaluate", "required: checkpoint"),
        ("train sinusoid --what", "unrecognized arguments: --what"),
        ("train sinusoid --threads 0", "--threads: expected at least 1, got 0"),
        ("evaluate a.pt --test-tasks 1", "--test-tasks: expected at least 2, got 1"),
        ("evaluate a.pt --steps few", "--steps: invalid integer value: 'few'"),
    ],
)
def test_wrong_usage_is_code_2(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv.split())
    assert stop.value.code == 2
    captured = capsys.readouterr().err
    assert "usage: metafast" in captured and message in captured


# ---- The smaller parts ---------------------------------------------------------------
def test_info(capsys):
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["torch"] == torch.__version__ and facts["devices"][0] == "cpu"
    assert main(["info"]) == 0
    assert f"torch             {torch.__version__}" in capsys.readouterr().out


@pytest.mark.parametrize("network", ["mlp sizes=[3,5,2] activation=tanh", "conv4 channels=4 ways=3"])
def test_explain(network, capsys):
    assert main(["explain", *network.split()]) == 0
    assert "0" in capsys.readouterr().out


def test_python_m(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "metafast", "info"]
    assert "torch" in subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def test_an_interval_covers_what_it_should():
    """Of 400 samples of 50 from a known distribution, about 95 % have the true mean within the interval."""
    samples = torch.rand(400, 50, generator=torch.Generator().manual_seed(0))
    covered = sum(abs(e.mean - 0.5) <= e.interval for e in map(Estimate.of, samples))
    assert 366 <= covered <= 392  # within about three standard deviations of 380
    assert Estimate.of(samples[0]).interval == pytest.approx(1.96 * samples[0].double().std().item() / 50**0.5)


def test_a_budget_is_what_is_spent_first():
    assert Budget(10, None).fraction(5, 1e9) == 0.5
    assert Budget(None, 10).fraction(10**9, 4) == 0.4
    assert Budget(10, 10).fraction(9, 3) == 0.9
    assert Budget(10, 10).fraction(1, 30) == 1
    assert Budget(0, None).fraction(0, 0) == 1


def test_interruption_is_a_request_once_and_an_exception_twice():
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        assert not interruption
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_training_works_outside_the_main_thread():
    """Where signals cannot be caught, they are left alone."""
    done = []
    thread = threading.Thread(target=lambda: done.append(bool(Interruption().__enter__())))
    thread.start()
    thread.join()
    assert done == [False]
