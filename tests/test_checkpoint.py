"""Checkpoints: what goes in comes out, and nothing else ever happens."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from metafast.files import replacing
from metafast.training import checkpoint as checkpoints
from metafast.training import networks, random_state
from metafast.training.checkpoint import Checkpoint, CheckpointError
from metafast.training.outer import Budget, Outer


def example(**changes):
    described = Checkpoint(
        network="mlp",
        arguments={"sizes": [1, 4, 1]},
        task={"name": "sinusoid", "shots": 5},
        learner={"lr": 0.01, "steps": 1, "loss": "mse"},
        state={},
    )
    learner = described.build(backend="torch")
    return replace(described, state=learner.state_dict(), step=7, **changes)


def outer(width):
    """An Adam that has taken a step, with a schedule."""
    made = Outer(
        torch.nn.Linear(width, 1), "adam", "cosine", rate=None, weight_decay=0, clip_norm=None, budget=Budget(9, None)
    )
    made.step([torch.ones(1, width), torch.ones(1)])
    return made


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoints.save(path, example())
    return path


def test_round_trip(tmp_path):
    kept = example(
        optimizer=outer(3).state(),
        scheduler=outer(3).schedule(),
        run={"seed": 3, "meta_lr": 0.001},
        progress={"history": [[200, 1.5, float("inf")]]},
        random_state=random_state.capture(),
    )
    checkpoints.save(tmp_path / "new" / "folder" / "c.pt", kept)
    loaded = checkpoints.load(tmp_path / "new" / "folder" / "c.pt")
    for name in ("network", "arguments", "task", "learner", "step", "run", "progress"):
        assert getattr(loaded, name) == getattr(kept, name)
    moments = (made.optimizer["state"]["state"][0]["exp_avg"] for made in (loaded, kept))
    assert torch.equal(*moments)
    assert loaded.scheduler == kept.scheduler
    assert torch.equal(loaded.random_state["torch"], kept.random_state["torch"])
    learner = loaded.build(backend="torch")
    assert learner.state_dict().keys() == kept.state.keys()
    assert all(torch.equal(value, kept.state[name]) for name, value in learner.state_dict().items())


def test_a_failed_write_leaves_the_old_file(saved):
    before = saved.read_bytes()
    with pytest.raises(RuntimeError, match="the power fails"), replacing(saved) as file:
        file.write(b"half of it")
        raise RuntimeError("the power fails")
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_what_cannot_be_written_leaves_the_old_file(saved):
    before = saved.read_bytes()
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        checkpoints.save(saved, example(run={"function": lambda: None}))
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_a_file_has_the_mode_that_the_user_asks_for(saved):
    mask = os.umask(0)
    os.umask(mask)
    assert saved.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_truncated_file_is_refused_at_every_length(saved):
    content = saved.read_bytes()
    for length in {0, 1, 30, 100, *range(0, len(content), len(content) // 23), len(content) - 1}:
        saved.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"truncated|damaged"):
            checkpoints.load(saved)


class Hostile:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_no_code_is_executed(tmp_path, legacy):
    path, trace = tmp_path / "hostile.pt", tmp_path / "executed"
    torch.save(
        {"format": "metafast-checkpoint", "bomb": Hostile(trace)}, path, _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(CheckpointError):
        checkpoints.load(path)
    assert not trace.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.load(path, weights_only=False)
    assert trace.exists(), "the file would not have done anything, so the test says nothing"


def test_a_bare_pickle_is_refused(tmp_path):
    path, trace = tmp_path / "hostile.pt", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Hostile(trace)))
    with pytest.raises(CheckpointError, match="is not a metafast checkpoint"):
        checkpoints.load(path)
    assert not trace.exists()


def rewritten(path, **changes):
    content = torch.load(path, weights_only=True)
    content.update(changes)
    torch.save({name: value for name, value in content.items() if value is not ...}, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "another"}, "is not a metafast checkpoint"),
        ({"version": 99}, "has format version 99, this metafast reads version 2"),
        ({"version": ...}, "has format version None"),
        ({"state": ...}, "its state is missing or of another type"),
        ({"step": "seven"}, "its step is missing or of another type"),
        ({"random_state": ...}, "its random_state is missing"),
        ({"state": {"model.0.weight": 3}}, "not a dictionary of tensors"),
    ],
)
def test_other_content_is_refused(saved, changes, message):
    rewritten(saved, **changes)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "os.system"}, "network: expected one of mlp, conv4, got 'os.system'"),
        ({"arguments": {"sizes": [1, 1 << 40, 1]}}, "sizes: expected an integer between 1 and"),
        ({"arguments": {"sizes": [1, 4, 1], "command": "rm"}}, "unexpected keyword argument 'command'"),
        ({"arguments": {"sizes": [1, 5, 1]}}, r"model.0.weight is torch.float32 \[4, 1\] in the file, .* \[5, 1\]"),
        ({"arguments": {"sizes": [1, 4, 4, 1]}}, "another architecture: it has no model.4.bias, model.4.weight"),
        (
            {"arguments": {"sizes": [1, 1]}},
            "another architecture: it has model.2.bias, model.2.weight, the model",
        ),
        ({"learner": {"lr": 0.1, "what": "x"}}, "unknown learner settings: what"),
        ({"learner": {"rule": [["sgdd", {}]]}}, r"rule: expected \[name, settings\] with a name of .*sgd, .*'sgdd'"),
        ({"learner": {"rule": [["sgd", {"rate": 1}]]}}, "rule sgd: .* unexpected keyword argument 'rate'"),
        ({"learner": {"lr": "fast"}}, "a learner that cannot be built"),
    ],
)
def test_another_architecture_is_refused(saved, changes, message):
    rewritten(saved, **changes)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(saved).build(backend="torch")


def test_a_refused_state_changes_nothing(saved):
    learner = replace(example(), state={}).build(backend="torch")
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    stored = checkpoints.load(saved)
    wrong = {**stored.state, "model.2.bias": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"model\.2\.bias"):
        replace(stored, state=wrong).restore(learner)
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (lambda own: (outer(4).state(), own.schedule()), r"shapes: expected \[\[1, 3\], \[1\]\]"),
        (lambda own: ({**own.state(), "class": "SGD"}, own.schedule()), "optimiser: expected Adam"),
        (lambda own: (own.state(), {}), "scheduler: expected Cosine, found none"),
        (lambda own: ({}, own.schedule()), "optimiser: expected Adam, found None"),
    ],
    ids=["shapes", "class", "scheduler", "none"],
)
def test_an_optimiser_of_another_model_is_refused(stored, message):
    own = outer(3)
    before = deepcopy(own.state())
    optimizer, scheduler = stored(own)
    with pytest.raises(CheckpointError, match=message):
        example(optimizer=optimizer, scheduler=scheduler).restore_outer(own)
    after = own.state()["state"]["state"]
    assert all(
        torch.equal(after[i][key], value) for i, of in before["state"]["state"].items() for key, value in of.items()
    )


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*nowhere\.pt"):
        checkpoints.load(tmp_path / "nowhere.pt")


def test_a_zip_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("data.txt", "hello")
    with pytest.raises(CheckpointError, match="is damaged, or holds more than plain values"):
        checkpoints.load(tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mlp", {"sizes": [3]}, "at least an input and an output width"),
        ("mlp", {"sizes": [3, True]}, "expected an integer"),
        ("mlp", {"sizes": [3, 1], "activation": "exec"}, "activation: expected one of relu, tanh"),
        ("conv4", {"image_size": 15}, "image_size: expected at least 16"),
        ("conv4", {"ways": 0}, "ways: expected an integer between 1 and"),
    ],
)
def test_impossible_networks_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        networks.build(name, arguments)


@pytest.mark.parametrize(("side", "channels", "in_channels", "ways"), [(28, 8, 1, 5), (84, 3, 3, 20), (16, 1, 2, 1)])
def test_conv4_has_the_shapes_it_says(side, channels, in_channels, ways):
    network = networks.conv4(channels, ways, in_channels, side)
    x = torch.randn(3, in_channels, side, side)
    assert network(x).shape == (3, ways)
    assert not list(network.buffers())
    network.eval()
    assert not torch.allclose(network(x)[:2], network(x[:2])), "evaluation must use the statistics of the batch, too"
