"""A base becomes the network of a new task: what is loaded, replaced, frozen; and its exact meta-gradient."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import metafast as mf
import oracle
from bases import BASES, EXAMPLE, MobileNet, ResNet, Vgg, trained
from judge import assert_close, assert_same_bits

WAYS = 3


def episode(dtype: torch.dtype = torch.float32, tasks: int = 2) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return tuple(  # type: ignore[return-value]
        (torch.randn(tasks, n, *EXAMPLE, dtype=dtype), torch.randint(WAYS, (tasks, n))) for n in (6, 4)
    )


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


# ------------------------------------------------------------------------------------------------------------- the head


@pytest.mark.parametrize("name", BASES)
def test_a_new_head_takes_the_place_of_the_last_linear_layer(name: str) -> None:
    make, place = BASES[name]
    base = trained(make)
    before = state(base)
    network = mf.transfer(base, head=WAYS)
    old, new = base.get_submodule(place), network.get_submodule(place)
    assert type(network) is type(base) and isinstance(old, nn.Linear) and isinstance(new, nn.Linear)
    assert (new.in_features, new.out_features) == (old.in_features, WAYS)
    assert_same_bits(state(base), before)
    assert_same_bits(*({n: v for n, v in state(m).items() if not n.startswith(place)} for m in (network, base)))
    shared = {v.data_ptr() for v in network.state_dict().values()} & {v.data_ptr() for v in base.state_dict().values()}
    assert not shared
    assert network(torch.randn(2, *EXAMPLE)).shape == (2, WAYS)


def test_a_head_may_be_any_module_in_any_place() -> None:
    head = nn.Sequential(nn.Linear(20, 4), nn.Tanh(), nn.Linear(4, WAYS))
    network = mf.transfer(Vgg(), head=("classifier", head), freeze="*")
    assert [n for n, p in network.named_parameters() if p.requires_grad] == [
        f"classifier.{n}" for n, _ in head.named_parameters()
    ]
    assert_same_bits(state(network.get_submodule("classifier")), state(head))
    assert network.get_submodule("classifier") is not head
    assert isinstance(mf.transfer(ResNet(), head=nn.Linear(4, 2)).fc, nn.Linear)


def test_a_head_has_the_dtype_of_the_base_and_its_bias_if_it_had_one() -> None:
    base = nn.Sequential(nn.Linear(3, 4).double(), nn.Linear(4, 5, bias=False).double())
    head = mf.transfer(base, head=2)[1]  # type: ignore[index]
    assert head.weight.dtype == torch.float64 and head.bias is None


@pytest.mark.parametrize(
    ("head", "error", "match"),
    [
        (0, TypeError, "head must be a number of classes > 0"),
        (True, TypeError, "head must be a number of classes > 0"),
        ("fc", TypeError, r"a module or \(name, module\); it is 'fc'"),
        (("fc", 3), TypeError, r"head must be \(name, module\)"),
        (("fcc", nn.Linear(4, 2)), ValueError, "ResNet has no submodule 'fcc'; the nearest names are 'fc'"),
        (nn.Linear(5, 2), ValueError, r"takes 5 features; 'fc' takes 4, nn.Linear\(4, 2\)"),
    ],
)
def test_a_head_that_does_not_fit_is_named(head: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        mf.transfer(ResNet(), head=head)


def test_a_base_without_a_linear_layer_asks_for_a_place() -> None:
    base = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    with pytest.raises(ValueError, match=r"no submodule that is an nn.Linear.*pass \(name, module\).*'0' \(Conv2d\)"):
        mf.transfer(base, head=2)
    with pytest.raises(TypeError, match=r"base must be a torch\.nn.Module; it is a dict"):
        mf.transfer({}, head=2)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------- the weights


@pytest.mark.parametrize("kind", ["dict", "torch", "safetensors"])
def test_weights_come_from_a_dict_or_a_file(kind: str, tmp_path: Path) -> None:
    known = trained()
    weights: Any = known.state_dict()
    if kind == "torch":
        torch.save(weights, tmp_path / "known.pth")
        weights = tmp_path / "known.pth"
    elif kind == "safetensors":
        files = pytest.importorskip("safetensors.torch", reason="safetensors is an extra")
        files.save_file(weights, tmp_path / "known.safetensors")
        weights = str(tmp_path / "known.safetensors")
    assert_same_bits(state(mf.transfer(MobileNet(), weights=weights)), state(known))
    network = mf.transfer(MobileNet(), head=WAYS, weights=weights)
    assert_same_bits(state(network.features), state(known.features))


def test_a_head_that_is_replaced_need_not_be_in_the_weights_or_fit() -> None:
    known = {name: value for name, value in trained().state_dict().items() if name.startswith("features")}
    other = {**known, "classifier.1.weight": torch.zeros(1000, 9), "classifier.1.extra": torch.zeros(1)}
    for weights in (known, other):
        network = mf.transfer(MobileNet(), head=WAYS, weights=weights)
        assert_same_bits(state(network.features), state(trained_features(known)))
    with pytest.raises(ValueError, match=r"2 missing: 'classifier\.1\.weight'"):
        mf.transfer(MobileNet(), weights=known)


def trained_features(known: dict[str, Tensor]) -> nn.Module:
    network = MobileNet()
    network.load_state_dict(known, strict=False)
    return network.features


def changed(**changes: Any) -> dict[str, Any]:
    weights: dict[str, Any] = dict(ResNet().state_dict())
    for old, new in changes.items():
        value = weights.pop(old.replace("__", "."))
        if isinstance(new, str):
            weights[new] = value
        elif new is not None:
            weights[old.replace("__", ".")] = new
    return weights


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (changed(conv1__weight=None), r"fit ResNet: 1 missing: 'conv1.weight' \[4, 3, 3, 3\]"),
        (
            changed(conv1__weight="conv.weight"),
            r"1 missing: .*\(nearest: 'conv.weight'\); 1 unexpected: 'conv.weight' .*\(nearest: 'conv1.weight'\)",
        ),
        (changed(bn1__bias=torch.zeros(5)), r"1 of another shape: 'bn1.bias' \[5\] where \[4\] is expected"),
        (changed(bn1__bias=3), "'bn1.bias' int where"),
        (
            {f"module.{name}": value for name, value in ResNet().state_dict().items()},
            "all names begin with 'module.', and fit without it: .*consume_prefix",
        ),
        ({"epoch": 3, "model": ResNet().state_dict()}, r"hold 'epoch', 'model', of which 'model' is a state_dict"),
    ],
)
def test_weights_that_do_not_fit_are_named(weights: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        mf.transfer(ResNet(), weights=weights)


def test_weights_of_before_batches_were_counted_fit() -> None:
    known = trained(ResNet)
    old = {name: value for name, value in known.state_dict().items() if not name.endswith("num_batches_tracked")}
    network = mf.transfer(ResNet(), weights=old)
    assert_same_bits(*({n: v for n, v in state(m).items() if n in old} for m in (network, known)))


class Armed:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("executed"),)


def test_a_file_that_is_no_state_dict_is_named_and_executes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = io.BytesIO()
    torch.save(ResNet().state_dict(), whole)
    torch.save({"fc.weight": Armed()}, "armed.pth")
    torch.save([torch.zeros(2)], "list.pth")
    Path("short.pth").write_bytes(whole.getvalue()[:500])
    Path("text.pth").write_text("weights")
    Path("bad.safetensors").write_text("weights")
    for name, match in {
        "armed.pth": "more than tensors",
        "list.pth": "holds a list; expected a state_dict",
        "short.pth": "short.pth is damaged",
        "text.pth": "text.pth is damaged",
        "bad.safetensors": "bad.safetensors is damaged or no safetensors file",
    }.items():
        if name.endswith("safetensors"):
            pytest.importorskip("safetensors", reason="safetensors is an extra")
        with pytest.raises(ValueError, match=match):
            mf.transfer(ResNet(), weights=name)
    assert not Path("executed").exists()
    with pytest.raises(FileNotFoundError, match=r"there is no file gone\.pth"):
        mf.transfer(ResNet(), weights="gone.pth")
    with pytest.raises(TypeError, match="weights must be a state_dict or the path of a file with one; it is a int"):
        mf.transfer(ResNet(), weights=3)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- what is frozen


@pytest.mark.parametrize(
    ("globs", "trains"),
    [
        ({"freeze": "features.*"}, ["classifier.1.weight", "classifier.1.bias"]),
        ({"freeze": "*"}, ["classifier.1.weight", "classifier.1.bias"]),
        (
            {"freeze": ["features.[01].*", "features.2.*", "features.3.0.*"], "unfreeze": "*.3.weight"},
            [
                "features.1.conv.3.weight",
                "features.2.conv.3.weight",
                "features.3.1.weight",
                "features.3.1.bias",
                "classifier.1.weight",
                "classifier.1.bias",
            ],
        ),
    ],
)
def test_globs_say_what_is_trained(globs: dict[str, Any], trains: list[str]) -> None:
    network = mf.transfer(MobileNet(), head=WAYS, **globs)
    assert [name for name, p in network.named_parameters() if p.requires_grad] == trains


@pytest.mark.parametrize(
    ("globs", "error", "match"),
    [
        ({"freeze": "feature.*"}, ValueError, "freeze: 'feature.*' matches no .*the nearest names are 'features"),
        ({"freeze": "features"}, ValueError, "did you mean 'features.*'?"),
        ({"freeze": "classifier.1.*"}, ValueError, "freeze: 'classifier.1.*' matches no"),
        ({"unfreeze": ["features.*", "xyz"]}, ValueError, "unfreeze: 'xyz' matches no .*the names are 'features.0.0"),
        ({"freeze": 3}, TypeError, "freeze must be a glob over parameter names, or a list of globs; it is 3"),
    ],
)
def test_a_glob_that_matches_nothing_is_named(globs: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        mf.transfer(MobileNet(), head=WAYS, **globs)


def copied(network: nn.Module, how: str) -> nn.Module:
    if how == "deepcopy":
        return copy.deepcopy(network)
    if how == "pickle":
        return pickle.loads(pickle.dumps(network))  # type: ignore[no-any-return]
    if how == "torch.save":
        file = io.BytesIO()
        torch.save(network, file)
        file.seek(0)
        return torch.load(file, weights_only=False)  # type: ignore[no-any-return]
    if how == "state_dict":
        other = mf.transfer(MobileNet(), head=WAYS, freeze="features.*")
        other.load_state_dict(network.state_dict())
        return other
    return network


@pytest.mark.parametrize("how", ["itself", "deepcopy", "pickle", "torch.save", "state_dict"])
def test_what_is_frozen_keeps_its_statistics_in_train_mode(how: str) -> None:
    """Against a base that is in eval mode throughout."""
    base = trained()
    network = copied(mf.transfer(base, head=WAYS, freeze="features.*"), how)
    network.train()
    network.features.train()
    assert network.training and network.classifier[0].training  # type: ignore[index,union-attr]
    x = torch.randn(5, *EXAMPLE)
    before = state(network)
    features = network.features(x)
    assert torch.equal(features, base.features(x))  # type: ignore[operator]
    network(x).sum().backward()
    assert_same_bits(state(network), before)
    assert not any(module.training for module in network.features.modules())


def test_what_is_partly_frozen_trains() -> None:
    network = mf.transfer(trained(), head=WAYS, freeze="features.*", unfreeze="features.3.*").train()
    modes = {name: module.training for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert modes == {name: name.startswith("features.3") for name in modes}


def test_what_is_transferred_again_may_be_unfrozen() -> None:
    frozen = mf.transfer(trained(), head=WAYS, freeze="features.*").train()
    again = mf.transfer(frozen, unfreeze="features.*")
    assert all(module.training for module in again.modules())
    assert all(parameter.requires_grad for parameter in again.parameters())
    assert not any(module.training for module in frozen.features.modules())  # type: ignore[union-attr]
    twice = mf.transfer(frozen, unfreeze="features.3.*")
    assert [m.training for m in twice.features] == [False, False, False, True]  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------------- meta-gradients


class Count(TorchDispatchMode):
    """How often torch runs a convolution."""

    convolutions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.convolutions += func is torch.ops.aten.convolution.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", BASES)
def test_the_frozen_part_runs_once_and_the_inner_loop_is_native(name: str) -> None:
    make, place = BASES[name]
    network = mf.transfer(trained(make), head=WAYS, freeze="*")
    explained = mf.explain(network, (2, 6, *EXAMPLE), "cross_entropy", steps=5)
    assert explained.cut is not None
    assert {row.layer for row in explained.rows if not row.once} == {place}
    assert explained.native and "once" in str(explained) and explained.cut in str(explained)
    runs = []
    for steps in (1, 5):  # by torch, whose convolutions can be counted
        maml = mf.MAML(network, lr=0.1, steps=steps, backend="torch")
        maml(*episode())
        with Count() as count:
            maml(*episode())
        runs.append(count.convolutions)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    assert runs == [2 * 2 * convolutions] * 2  # 2 tasks, a support and a query set each


@pytest.mark.filterwarnings("ignore:metafast.*running on torch")
def test_a_cut_is_explained_where_torch_runs_the_inner_loop_too() -> None:
    network = mf.transfer(trained(), head=WAYS, freeze="features.*", unfreeze="features.3.*")
    network.features[3].append(nn.LocalResponseNorm(2))  # type: ignore[union-attr, index, operator]
    explained = mf.explain(network, (2, 6, *EXAMPLE), "cross_entropy", steps=5)
    assert explained.cut == "add in layer 'features.2'"
    assert next(row.layer for row in explained.rows if not row.once) == "features.3.0"
    assert "runs on torch: " in str(explained) and "cut behind add in layer 'features.2'" in str(explained)
    planned = mf.MAML(network)._plans().plan("x", episode()[0][0]).composed
    assert planned is not None and planned.where == explained.cut and not planned.by_torch


@pytest.mark.parametrize(
    ("globs", "adapt_params"),
    [
        ({"freeze": "features.*"}, None),  # the head, and nothing else to learn
        ({}, "classifier.*"),  # the head adapts, the base is meta-learnt
        ({"freeze": "features.*", "unfreeze": "features.3.*"}, "classifier.*"),
        ({"freeze": "features.*", "unfreeze": "features.3.*"}, None),
        ({}, None),  # everything adapts
    ],
)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.filterwarnings("ignore:metafast.*running on torch")
def test_the_meta_gradient_is_exact(globs: dict[str, Any], adapt_params: str | None, train: bool) -> None:
    """Of the head and of the base, against the loop of plain autograd, in float64."""
    network = mf.transfer(trained(dtype=torch.float64), head=WAYS, **globs)
    network.train(train)
    network.classifier[0].eval()  # type: ignore[index,union-attr]  dropout draws, and would differ
    support, query = episode(torch.float64)
    maml = mf.MAML(network, lr=0.1, steps=5, adapt_params=adapt_params)
    out, gradients = maml.meta_gradient(support, query)
    learnt = {name: p for name, p in network.named_parameters() if p.requires_grad}
    truth = oracle.unroll(network, "cross_entropy", support, query, lr=0.1, steps=5, adapt_params=adapt_params)
    expected = torch.autograd.grad(truth.loss, [*learnt.values()])
    assert_close({"logits": out.logits}, {"logits": truth.logits.detach()}, 1e-10)
    assert_close(dict(zip(learnt, gradients, strict=True)), dict(zip(learnt, expected, strict=True)), 1e-10)
