"""Lowering: every supported form becomes its nodes, with torch's meaning."""

from __future__ import annotations

import copy
import functools
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import interpreter
from forms import IMAGE, VECTOR, C, L, model_of, of, pool, seq
from metafast.model.lowering import Unsupported, lower
from metafast.model.program import Loss


def seen(*build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """In eval mode, after having seen data."""

    def make() -> nn.Module:
        model = nn.Sequential(*(b() for b in build))
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
                module.num_batches_tracked.add_(1)
        return model.eval()

    return make


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = C(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x))
        out += x
        return self.relu(out)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = L(4, 4), L(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Own(nn.Module):
    """Parameters of its own, in the functional forms."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))
        self.list = nn.ParameterList([nn.Parameter(torch.randn(2, 3))])
        self.register_buffer("fixed", torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.weight, bias=self.bias), self.list[0], self.fixed)


class Optional(nn.Module):
    """Other arguments with defaults, and a decision taken from one."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = L(4, 4)

    def forward(self, x: Tensor, residual: bool = True) -> Tensor:
        return x + self.fc(x) if residual else self.fc(x)


def relu_then_read(m: Any, x: Tensor) -> Tensor:
    y = m.fc(x)
    alias = m.same(y)
    F.relu(y, inplace=True)
    return alias + y


@functools.singledispatch
def numbers_of(x: Any) -> Any:
    return [x]


@numbers_of.register
def _(x: Tensor) -> Tensor:
    return x.relu()


def by_type(m: Any, x: Any) -> Tensor:
    features = [x] if isinstance(x, Tensor) else x
    return m.fc(features[0]) if not isinstance(x, (list, tuple)) else x[0]


def alias_then_increase(m: Any, x: Tensor) -> Tensor:
    y = m.fc(x)
    alias = y
    y += x
    return alias + m.fc(alias)


def copy_then_write(m: Any, x: Tensor) -> Tensor:
    y = m.fc(x)
    kept = y.clone()
    y += kept
    y.relu_()
    return kept.add(y)


def preactivation(m: Any, x: Tensor) -> Tensor:
    y = m.fc(x)
    out = m.fc(m.act(y))  # overwrites y
    return out + y


def unpacked(m: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return m.fc(x.reshape(n, c * h * w))


def flat(view: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return of(lambda m, x: m.fc(view(m.conv(x))), conv=lambda: C(2, 3, 3), fc=lambda: L(3 * 4 * 5, 2))


def act(module: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return seq(lambda: L(4, 3), module)


def fun(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return of(lambda m, x: function(m.fc(x)), fc=lambda: L(4, 3))


FLAT = "conv2d flatten linear"
#: what it is, how it is built, the shape of an example, the ops it becomes
FORMS: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], str]] = [
    ("a leaf itself", lambda: L(4, 3), VECTOR, "linear"),
    ("nothing", nn.Identity, VECTOR, ""),
    ("no bias", lambda: L(4, 3, bias=False), VECTOR, "linear"),
    ("linear of sequences", lambda: L(4, 3), (5, 4), "linear"),
    ("nested", seq(seq(lambda: L(4, 5), seq(nn.Tanh)), lambda: L(5, 2)), VECTOR, "linear tanh linear"),
    ("tied", Tied, VECTOR, "linear tanh linear"),
    ("own parameters", Own, VECTOR, "linear linear"),
    ("defaults", Optional, VECTOR, "linear add"),
    ("residual blocks", seq(lambda: C(2, 3, 3), lambda: Block(3), lambda: Block(3)), IMAGE,
     "conv2d" + " conv2d batch_norm add relu" * 2),
    ("conv", lambda: C(2, 3, 3), IMAGE, "conv2d"),
    ("conv, rectangles", lambda: C(2, 3, (3, 2), (2, 1), (1, 2), (1, 3), bias=False), IMAGE, "conv2d"),
    ("conv same", lambda: C(2, 3, (3, 5), padding="same", dilation=(2, 1)), IMAGE, "conv2d"),
    ("conv same, even by dilation", lambda: C(2, 3, 2, padding="same", dilation=2), IMAGE, "conv2d"),
    ("conv valid", lambda: C(2, 3, 2, padding="valid"), IMAGE, "conv2d"),
    ("F.conv2d", of(lambda m, x: F.conv2d(x, m.c.weight, m.c.bias, stride=2, padding=(1,)), c=lambda: C(2, 3, 3)),
     IMAGE, "conv2d"),
    ("norm 1d", seq(lambda: L(4, 3), lambda: nn.BatchNorm1d(3)), VECTOR, "linear batch_norm"),
    ("norm 2d", lambda: nn.BatchNorm2d(2, eps=0.1), IMAGE, "batch_norm"),
    ("norm, not affine", lambda: nn.BatchNorm2d(2, affine=False), IMAGE, "batch_norm"),
    ("norm without statistics", lambda: nn.BatchNorm2d(2, track_running_stats=False).eval(), IMAGE, "batch_norm"),
    ("norm, eval", seen(lambda: nn.BatchNorm2d(2)), IMAGE, "batch_norm"),
    ("norm 1d, eval, not affine", seen(lambda: nn.BatchNorm1d(4, affine=False)), VECTOR, "batch_norm"),
    ("F.batch_norm", of(lambda m, x: F.batch_norm(x, None, None, m.n.weight, m.n.bias, training=True),
                        n=lambda: nn.BatchNorm2d(2)), IMAGE, "batch_norm"),
    ("F.batch_norm, eval", of(lambda m, x: F.batch_norm(x, m.n.running_mean, m.n.running_var, eps=0.2),
                              n=lambda: nn.BatchNorm2d(2)), IMAGE, "batch_norm"),
    ("LayerNorm of four axes", lambda: nn.LayerNorm((5, 4)), (2, 3, 5, 4), "sparse_map normalise"),
    ("GroupNorm of four axes", lambda: nn.GroupNorm(2, 4), (4, 2, 3, 2), "sparse_map normalise"),
    ("LayerNorm of rows", of(lambda m, x: m.n(x.reshape(-1, 4)).view(len(x), 5, 4), n=lambda: nn.LayerNorm(4)), (5, 4),
     "normalise"),
    ("softmax of rows", pool(lambda x: x.reshape(-1, 4).softmax(-1).view(len(x), 5, 4)), (5, 4), "softmax"),
    ("softmax in the middle", pool(lambda x: x.softmax(-2)), (2, 3, 5, 4), "sparse_map softmax sparse_map"),
    ("torch.log_softmax", pool(lambda x: torch.log_softmax(x, 1)), IMAGE, "log_softmax"),
    ("ReLU", act(nn.ReLU), VECTOR, "linear relu"),
    ("ReLU in place", act(lambda: nn.ReLU(inplace=True)), VECTOR, "linear relu"),
    ("LeakyReLU", act(lambda: nn.LeakyReLU(0.2)), VECTOR, "linear leaky_relu"),
    ("ELU", act(lambda: nn.ELU(0.7, inplace=True)), VECTOR, "linear elu"),
    ("SiLU", act(nn.SiLU), VECTOR, "linear silu"),
    ("GELU", act(nn.GELU), VECTOR, "linear gelu"),
    ("GELU tanh", act(lambda: nn.GELU("tanh")), VECTOR, "linear gelu_tanh"),
    ("Tanh", act(nn.Tanh), VECTOR, "linear tanh"),
    ("Sigmoid", act(nn.Sigmoid), VECTOR, "linear sigmoid"),
    ("Softplus", act(lambda: nn.Softplus(2.0, 1.0)), VECTOR, "linear softplus"),
    ("F.relu", fun(F.relu), VECTOR, "linear relu"),
    ("torch.relu", fun(torch.relu), VECTOR, "linear relu"),
    ("torch.relu_", fun(torch.relu_), VECTOR, "linear relu"),
    (".relu()", fun(lambda x: x.relu()), VECTOR, "linear relu"),
    ("F.leaky_relu", fun(lambda x: F.leaky_relu(x, 0.3)), VECTOR, "linear leaky_relu"),
    ("F.elu", fun(lambda x: F.elu(x, alpha=0.3)), VECTOR, "linear elu"),
    ("F.silu", fun(F.silu), VECTOR, "linear silu"),
    ("F.gelu", fun(lambda x: F.gelu(x, approximate="tanh")), VECTOR, "linear gelu_tanh"),
    ("F.softplus", fun(lambda x: F.softplus(x, beta=3)), VECTOR, "linear softplus"),
    ("F.tanh", fun(F.tanh), VECTOR, "linear tanh"),
    ("torch.sigmoid", fun(torch.sigmoid), VECTOR, "linear sigmoid"),
    (".sigmoid_()", fun(lambda x: x.sigmoid_()), VECTOR, "linear sigmoid"),
    ("MaxPool2d", lambda: nn.MaxPool2d(2), IMAGE, "max_pool2d"),
    ("MaxPool2d, all settings", lambda: nn.MaxPool2d((3, 2), (2, 1), (1, 0), (1, 2)), IMAGE, "max_pool2d"),
    ("MaxPool2d, ceil", lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), (2, 6, 8), "max_pool2d"),
    ("F.max_pool2d", pool(lambda x: F.max_pool2d(x, kernel_size=3, stride=2)), IMAGE, "max_pool2d"),
    ("torch.max_pool2d", pool(lambda x: torch.max_pool2d(x, 2)), IMAGE, "max_pool2d"),
    ("AvgPool2d", lambda: nn.AvgPool2d((2, 3)), IMAGE, "avg_pool2d"),
    ("AvgPool2d, padding counts", lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True), (2, 6, 8), "avg_pool2d"),
    ("AvgPool2d, padding does not count", lambda: nn.AvgPool2d(3, 2, 1, True, False), (2, 6, 8), "avg_pool2d"),
    ("F.avg_pool2d", pool(lambda x: F.avg_pool2d(x, 2, padding=1)), IMAGE, "avg_pool2d"),
    ("AdaptiveAvgPool2d", lambda: nn.AdaptiveAvgPool2d((4, None)), IMAGE, "adaptive_avg_pool2d"),
    ("AdaptiveAvgPool2d to its own size", lambda: nn.AdaptiveAvgPool2d((6, 7)), IMAGE, ""),
    ("F.adaptive_avg_pool2d", pool(lambda x: F.adaptive_avg_pool2d(x, 1)), IMAGE, "adaptive_avg_pool2d"),
    ("mean((2, 3))", pool(lambda x: x.mean((2, 3))), IMAGE, "adaptive_avg_pool2d flatten"),
    ("mean([-1, -2])", pool(lambda x: torch.mean(x, dim=[-1, -2])), IMAGE, "adaptive_avg_pool2d flatten"),
    ("mean(1)", pool(lambda x: x.mean(1)), IMAGE, "sparse_map"),
    ("sum(-1), keepdim", pool(lambda x: x.sum(-1, keepdim=True)), IMAGE, "sparse_map"),
    ("view(N, 2, -1)", pool(lambda x: x.view(x.size(0), 2, -1)), IMAGE, ""),
    ("Flatten(1, 2)", lambda: nn.Flatten(1, 2), IMAGE, ""),
    ("[:, 0]", pool(lambda x: x[:, 0]), VECTOR, "sparse_map"),
    ("[:, None]", pool(lambda x: x[:, None]), VECTOR, ""),
    ("[..., 1:4:2]", pool(lambda x: x[..., 1:4:2]), IMAGE, "sparse_map"),
    ("cat", pool(lambda x: torch.cat([x, x[:, :1]], 1)), IMAGE, "sparse_map sparse_map"),
    ("cat of six", pool(lambda x: torch.cat([torch.relu(x[:, i : i + 1]) for i in (0, 1, 2, 3, 2, 1)], 1)), VECTOR,
     "sparse_map relu " * 6 + "sparse_map sparse_map sparse_map"),
    ("transpose", pool(lambda x: x.transpose(1, 2)), IMAGE, "sparse_map"),
    ("permute", pool(lambda x: x.permute(0, 3, 1, 2)), IMAGE, "sparse_map"),
    ("stack", pool(lambda x: torch.stack((x, x), dim=-1)), IMAGE, "sparse_map"),
    ("split", pool(lambda x: x.split((1, 5), dim=2)[1]), IMAGE, "sparse_map"),
    ("chunk", pool(lambda x: torch.chunk(x, 2, 1)[0]), IMAGE, "sparse_map"),
    ("unbind", pool(lambda x: x.unbind(1)[1]), IMAGE, "sparse_map"),
    ("flip", pool(lambda x: x.flip(1, 2)), IMAGE, "sparse_map"),
    ("expand", pool(lambda x: x[:, :1].expand(-1, 3)), VECTOR, "sparse_map sparse_map"),
    ("repeat", pool(lambda x: x.repeat(1, 2)), VECTOR, "sparse_map"),
    ("tril", pool(lambda x: torch.tril(x)), IMAGE, "sparse_map"),
    ("parameter, expanded", of(lambda m, x: torch.cat([x, m.fc.bias.expand(len(x), -1)], 1), fc=lambda: L(4, 4)),
     VECTOR, "parameter sparse_map sparse_map"),
    ("Linear on four axes", lambda: L(4, 3), (2, 3, 5, 4), "linear"),
    ("Linear on three axes", lambda: L(4, 3), (2, 5, 4), "sparse_map linear"),
    ("mean, keepdim", pool(lambda x: x.mean(dim=(2, 3), keepdim=True)), IMAGE, "adaptive_avg_pool2d"),
    ("Flatten", seq(lambda: C(2, 3, 3), nn.Flatten, lambda: L(60, 2)), IMAGE, FLAT),
    ("Flatten of what is flat", seq(nn.Flatten, lambda: L(4, 2)), VECTOR, "linear"),
    ("flatten(1)", flat(lambda x: x.flatten(1)), IMAGE, FLAT),
    ("flatten(1, -1)", flat(lambda x: torch.flatten(x, start_dim=1, end_dim=-1)), IMAGE, FLAT),
    ("view(size(0), -1)", flat(lambda x: x.view(x.size(0), -1)), IMAGE, FLAT),
    ("view(shape[0], -1)", flat(lambda x: x.view(x.shape[0], -1)), IMAGE, FLAT),
    ("view(size()[0], 60)", flat(lambda x: x.view(x.size()[0], 60)), IMAGE, FLAT),
    ("view(len, -1)", flat(lambda x: x.view(len(x), -1)), IMAGE, FLAT),
    ("view(-1, 60)", flat(lambda x: x.view(-1, 60)), IMAGE, FLAT),
    ("reshape((-1, 60))", flat(lambda x: x.reshape((-1, 60))), IMAGE, FLAT),
    ("torch.reshape", flat(lambda x: torch.reshape(x, (x.shape[0], -1))), IMAGE, FLAT),
    ("contiguous().view", flat(lambda x: x.contiguous().view(x.size(0), -1)), IMAGE, FLAT),
    ("n, c, h, w = x.shape", of(unpacked, fc=lambda: L(84, 2)), IMAGE, "flatten linear"),
    ("view of images as images", flat(lambda x: x.view(-1, 3, 4, 5).flatten(1)), IMAGE, FLAT),
    ("flattened, then overwritten", seq(lambda: C(2, 3, 3), nn.Flatten, lambda: nn.ReLU(True)), IMAGE,
     "conv2d flatten relu"),
    ("Dropout in eval", lambda: nn.Sequential(L(4, 3), nn.Dropout(), nn.ReLU()).eval(), VECTOR, "linear relu"),
    ("Dropout(0)", seq(lambda: L(4, 3), lambda: nn.Dropout(0.0)), VECTOR, "linear"),
    ("Dropout2d in eval", lambda: nn.Sequential(nn.Dropout2d(), C(2, 2, 1)).eval(), IMAGE, "conv2d"),
    ("F.dropout", of(lambda m, x: F.dropout(m.fc(x), training=not m.training), fc=lambda: L(4, 3)), VECTOR, "linear"),
    ("x + y", of(lambda m, x: x + m.fc(x), fc=lambda: L(4, 4)), VECTOR, "linear add"),
    ("torch.add", of(lambda m, x: torch.add(m.fc(x), x), fc=lambda: L(4, 4)), VECTOR, "linear add"),
    (".add(y)", of(lambda m, x: m.fc(x).add(x, alpha=1), fc=lambda: L(4, 4)), VECTOR, "linear add"),
    (".add_(y)", of(lambda m, x: m.fc(x).add_(x), fc=lambda: L(4, 4)), VECTOR, "linear add"),
    ("sum of a list", of(lambda m, x: sum([m.fc(x), m.fc(x), x]), fc=lambda: L(4, 4)), VECTOR,
     "linear linear add add"),
    ("an alias sees a write", of(relu_then_read, fc=lambda: L(4, 4), same=nn.Identity), VECTOR, "linear relu add"),
    ("an alias sees +=", of(alias_then_increase, fc=lambda: L(4, 4)), VECTOR, "linear add linear add"),
    ("is_tensor", of(lambda m, x: m.fc(x) if torch.is_tensor(x) else x, fc=lambda: L(4, 4)), VECTOR, "linear"),
    ("singledispatch", of(lambda m, x: numbers_of(m.fc(x)), fc=lambda: L(4, 4)), VECTOR, "linear relu"),
    ("asks whether N is an int", of(lambda m, x: m.fc(x) if isinstance(x.size(0), int) else x, fc=lambda: L(4, 4)),
     VECTOR, "linear"),
    ("asks whether x is a Tensor", of(by_type, fc=lambda: L(4, 4)), VECTOR, "linear"),
    ("a copy does not", of(copy_then_write, fc=lambda: L(4, 4)), VECTOR, "linear add relu add"),
    ("a skip sees the activation in place", of(preactivation, fc=lambda: L(4, 4), act=lambda: nn.ReLU(True)), VECTOR,
     "linear relu linear add"),
    ("what is not used", of(lambda m, x: (m.other(x), m.fc(x))[1], fc=lambda: L(4, 3), other=lambda: L(4, 5)), VECTOR,
     "linear"),
]  # fmt: skip


def values_of(model: nn.Module, program: Any) -> list[Tensor]:
    named = dict(model.named_buffers()) | dict(model.named_parameters())
    return [named[p.name] for p in program.parameters]


@pytest.mark.parametrize(("build", "example", "ops"), [f[1:] for f in FORMS], ids=[f[0] for f in FORMS])
def test_form_becomes_its_nodes_with_the_meaning_of_torch(
    build: Callable[[], nn.Module], example: tuple[int, ...], ops: str
) -> None:
    torch.manual_seed(0)
    model = build().double()
    before = copy.deepcopy(model.state_dict())
    program = lower(model, example, dtype=torch.float64)
    assert " ".join(node.op for node in program.nodes) == ops
    assert program.output == len(program.values) - 1 or not program.nodes
    assert [p.name for p in program.parameters if p.role != "constant"] == [n for n, _ in model.named_parameters()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "lowering left a trace"
    for n in (2, 5):  # one Program, any number of examples
        x = torch.randn(n, *example, dtype=torch.float64)
        meant = interpreter.run(program, values_of(model, program), x)
        expected = copy.deepcopy(model)(x.clone())
        assert meant.shape == expected.shape
        torch.testing.assert_close(meant, expected, rtol=1e-12, atol=1e-12)


def test_settings_reach_the_node() -> None:
    model = nn.Sequential(
        C(2, 3, (3, 2), (2, 1), (1, 2), (1, 3)), nn.MaxPool2d((2, 1), padding=(1, 0)), nn.BatchNorm2d(3)
    )
    conv, pooling, norm = lower(model, (2, 9, 9)).nodes
    assert dict(conv.attributes) == {
        "stride_h": 2, "stride_w": 1, "pad_h": 1, "pad_w": 2, "dilation_h": 1, "dilation_w": 3,
    }  # fmt: skip
    assert dict(pooling.attributes) == {
        "kernel_h": 2, "kernel_w": 1, "stride_h": 2, "stride_w": 1, "pad_h": 1, "pad_w": 0,
        "dilation_h": 1, "dilation_w": 1,
    }  # fmt: skip
    assert norm.attributes == (("eps", 1e-5), ("training", 1.0))
    assert [node.where for node in (conv, pooling, norm)] == ["0", "1", "2"]


def test_roles() -> None:
    model = nn.Sequential(L(4, 3), nn.BatchNorm1d(3), L(3, 2)).eval()
    model[0].bias.requires_grad_(False)
    program = lower(model, VECTOR, adapted=lambda name: name.startswith("2."))
    assert [(p.name, p.role) for p in program.parameters] == [
        ("0.weight", "meta"), ("0.bias", "constant"), ("1.weight", "meta"), ("1.bias", "meta"),
        ("2.weight", "adapted"), ("2.bias", "adapted"), ("1.running_mean", "constant"), ("1.running_var", "constant"),
    ]  # fmt: skip


def test_tied_weights_are_one_parameter() -> None:
    program = lower(Tied(), VECTOR)
    assert [p.name for p in program.parameters] == ["first.weight", "first.bias", "second.bias"]
    assert [node.parameters for node in program.nodes if node.op == "linear"] == [(0, 1), (0, 2)]


def test_a_program_is_a_value() -> None:
    first, second = (lower(nn.Sequential(L(4, 3), nn.ReLU()), VECTOR) for _ in range(2))
    assert first == second and hash(first) == hash(second) and pickle.loads(pickle.dumps(first)) == first


def test_a_margin_needs_a_vector() -> None:
    assert lower(L(4, 3), VECTOR, loss=Loss("multi_margin")).loss == Loss("multi_margin")
    with pytest.raises(Unsupported, match=r"loss: .* is native for outputs \[N, C\], not for \[N, 5, 3\]"):
        lower(L(4, 3), (5, 4), loss=Loss("multi_margin"))


def test_positions_of_classes_are_pixels() -> None:
    program = lower(L(4, 3), (5, 4), loss=Loss("cross_entropy"))  # torch: 5 classes at 3 positions
    assert program.values[program.output] == (5, 1, 3) and program.output_shape == (5, 3)


def test_weights_are_of_the_classes_that_there_are() -> None:
    with pytest.raises(Unsupported, match=r"nll has 2 weights of classes for outputs \[N, 3\]"):
        lower(L(4, 3), VECTOR, loss=Loss("nll", class_weights=(1.0, 2.0)))


def test_nothing_is_left_in_place_of_what_code_sees() -> None:
    before = torch.zeros, torch.ones, dict(globals())
    lower(model_of(by_type, fc=L(4, 4)), VECTOR)
    with pytest.raises(Unsupported):
        lower(model_of(lambda m, x: x if len(x) > 2 else m.fc(x), fc=L(4, 4)), VECTOR)
    assert (torch.zeros, torch.ones, dict(globals())) == before
    assert "len" not in before[2] and "type" not in before[2]


def test_gradients_may_be_switched_off_while_a_model_is_lowered() -> None:
    with torch.no_grad():
        assert [node.op for node in lower(nn.Sequential(L(4, 3), nn.ReLU()), VECTOR).nodes] == ["linear", "relu"]


def test_other_threads_run_models_while_one_lowers() -> None:
    """torch.fx patches nn.Module for the whole process."""
    other, x, results = Own(), torch.randn(3, 4), []

    def forward(m: Any, proxy: Tensor) -> Tensor:
        thread = threading.Thread(target=lambda: results.append((other(x), m.fc(x))))
        thread.start()
        thread.join()
        return m.fc(proxy)

    model = model_of(forward, fc=L(4, 4))
    assert [node.op for node in lower(model, VECTOR).nodes] == ["linear"]
    assert torch.equal(results[0][0], other(x)) and torch.equal(results[0][1], model.fc(x))


def test_lowering_in_threads_at_once() -> None:
    models = [nn.Sequential(L(4, n), nn.ReLU(), L(n, 2)) for n in range(1, 9)]
    results: dict[int, Any] = {}

    def run(n: int) -> None:
        results[n] = [lower(models[n], VECTOR) for _ in range(5)]

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(set(results[n]) == {lower(models[n], VECTOR)} for n in range(8))
