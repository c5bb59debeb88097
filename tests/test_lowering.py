"""Lowering: every supported form becomes its steps, with torch's meaning; every other one is refused by name."""

from __future__ import annotations

import copy
import functools
import operator
import pickle
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import interpreter
from metafast.model.lowering import Unsupported, lower
from metafast.model.program import Loss
from metafast.tracking.snapshot import Snapshot

C, L = nn.Conv2d, nn.Linear
IMAGE, VECTOR = (2, 6, 7), (4,)


class Of(nn.Module):
    """A module whose forward is ``forward(modules, x)``."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **modules: Any) -> None:
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def of(function: Callable[[Any, Tensor], Any], **build: Callable[[], Any]) -> Callable[[], nn.Module]:
    return lambda: Of(function, **{name: make() for name, make in build.items()})


def seq(*build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(make() for make in build))


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


def pool(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return of(lambda m, x: function(x))


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
def test_form_becomes_its_steps_with_the_meaning_of_torch(
    build: Callable[[], nn.Module], example: tuple[int, ...], ops: str
) -> None:
    torch.manual_seed(0)
    model = build().double()
    before = copy.deepcopy(model.state_dict())
    program = lower(model, example, dtype=torch.float64)
    assert " ".join(step.op for step in program.steps) == ops
    assert program.output == len(program.values) - 1 or not program.steps
    assert [p.name for p in program.parameters if p.role != "constant"] == [n for n, _ in model.named_parameters()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "lowering left a trace"
    for n in (2, 5):  # one Program, any number of examples
        x = torch.randn(n, *example, dtype=torch.float64)
        meant = interpreter.run(program, values_of(model, program), x)
        expected = copy.deepcopy(model)(x.clone())
        assert meant.shape == expected.shape
        torch.testing.assert_close(meant, expected, rtol=1e-12, atol=1e-12)


class Subclass(nn.Linear):
    pass


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.relu(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


@functools.singledispatch
def numbers_of(x: Any) -> Any:
    return x


def no_grad(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return m.fc(x)


def autocast(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return m.fc(x)


def remembering(m: Any, x: Tensor) -> Tensor:
    m.last = m.fc(x)
    return m.last


def stale(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    z = y.flatten(1)
    y.relu_()
    return m.fc(z)


def assigns(m: Any, x: Tensor) -> Tensor:
    y = m.fc(x)
    y.data = x
    return y


def hooked() -> nn.Module:
    model = nn.Sequential(L(4, 4), nn.ReLU())
    model[1].register_forward_hook(lambda *a: None)
    return model


def parametrized() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(L(4, 4)))


def mixed() -> nn.Module:
    model = nn.Sequential(L(4, 4), L(4, 4))
    model[1].double()
    return model


def fc(function: Callable[[Any, Tensor], Any], **more: Callable[[], Any]) -> Callable[[], nn.Module]:
    return of(function, fc=lambda: L(4, 4), **more)


#: how it is built, the shape of an example, the layer to be named, what the reason must say
REFUSED: list[tuple[Callable[[], nn.Module], tuple[int, ...], str, str]] = [
    (seq(lambda: L(4, 4), lambda: nn.GroupNorm(2, 4)), VECTOR, "1", "GroupNorm has no native form"),
    (lambda: nn.GroupNorm(2, 4), VECTOR, "", "GroupNorm has no native form"),
    (seq(nn.ReLU, lambda: Subclass(4, 4)), VECTOR, "1", "Subclass is a subclass of Linear"),
    (hooked, VECTOR, "1", "ReLU has forward hooks"),
    (parametrized, VECTOR, "0", "ParametrizedLinear has a parametrization"),
    (mixed, VECTOR, "1", "Linear's weight has type torch.float64"),
    (lambda: L(4, 4).half(), VECTOR, "", "Linear's weight has type torch.float16"),
    (lambda: nn.LazyLinear(3), VECTOR, "", "LazyLinear's weight is a UninitializedParameter"),
    (lambda: L(4, 3), (2, 5, 4), "", "Linear is native for inputs [N, I] or [N, L, I], not for [N, 2, 5, 4]"),
    (lambda: L(4, 3), (2, 3, 5, 4), "", "works on [N, 2, 3, 5, 4]"),
    (lambda: L(4, 3), (), "", "works on [N]"),
    (lambda: L(4, 3), (0, 4), "", "works on [N, 0, 4]"),
    (seq(lambda: L(4, 4), lambda: L(4, 0)), VECTOR, "1", "Linear's weight is empty"),
    (lambda: L(4, 3), (5,), "", "Linear fails in torch"),
    (lambda: C(2, 3, 3), (6, 7), "", "not for [N, 6, 7]"),
    (lambda: C(2, 4, 3, groups=2), IMAGE, "", "Conv2d is not native with groups=2"),
    (lambda: C(2, 4, 3, padding=1, padding_mode="reflect"), IMAGE, "", "padding_mode='reflect'"),
    (lambda: C(2, 4, 2, padding="same"), IMAGE, "", "padding='same' and kernel [2, 2]"),
    (lambda: nn.BatchNorm1d(5), (5, 4), "", "BatchNorm1d is native for inputs [N, C], not for [N, 5, 4]"),
    (lambda: nn.BatchNorm2d(4), VECTOR, "", "BatchNorm2d is native for inputs [N, C, H, W]"),
    (lambda: nn.BatchNorm2d(3), IMAGE, "", "do not fit"),
    (pool(lambda x: F.batch_norm(x, None, None)), IMAGE, "", "in eval mode without running statistics"),
    (of(lambda m, x: F.batch_norm(x, m.n.weight, m.n.bias), n=lambda: nn.BatchNorm1d(4)), VECTOR, "",
     "statistics that require a gradient"),
    (of(lambda m, x: F.linear(x, m.n.weight), n=lambda: nn.BatchNorm1d(4)), VECTOR, "", "weight of one dimension"),
    (lambda: nn.MaxPool2d(2, return_indices=True), IMAGE, "", "return_indices"),
    (lambda: nn.AvgPool2d(2, divisor_override=3), IMAGE, "", "divisor_override"),
    (lambda: nn.MaxPool2d(2), (6, 7), "", "MaxPool2d is native for inputs [N, C, H, W]"),
    (lambda: nn.MaxPool2d(9), IMAGE, "", "MaxPool2d fails in torch"),
    (lambda: nn.Dropout(0.3), VECTOR, "", "Dropout is random in training mode (p=0.3)"),
    (of(lambda m, x: F.dropout(x, training=m.training)), VECTOR, "", "dropout() in Of is random"),
    (lambda: nn.Flatten(0), IMAGE, "", "Flatten is native to [N, -1]"),
    (lambda: nn.Flatten(1, 2), IMAGE, "", "Flatten is native to [N, -1]"),
    (pool(lambda x: x.flatten(4)), IMAGE, "", "flatten() in Of names 4, which is no axis"),
    (pool(lambda x: x.flatten()), IMAGE, "", "native to [N, -1]"),
    (pool(lambda x: x.view(2, -1)), IMAGE, "", "to (2, -1)"),
    (pool(lambda x: x.view(-1, 42)), IMAGE, "", "to (-1, 42)"),
    (pool(lambda x: x.view(x.size(0) * 2, -1)), IMAGE, "", "multiplies the number N of examples by"),
    (pool(lambda x: x.view(-1, x.size(0))), IMAGE, "", "to (-1, N)"),
    (pool(lambda x: x.view(x.size(0), 2, -1)), IMAGE, "", "to (N, 2, -1)"),
    (pool(lambda x: x.mean(1)), IMAGE, "", "mean() in Of is native over the axes H, W"),
    (pool(lambda x: x.mean()), IMAGE, "", "mean() in Of is native over the axes H, W"),
    (pool(lambda x: x * 2), VECTOR, "", "* in Of multiplies a tensor computed from the input by"),
    (pool(lambda x: x + 1), VECTOR, "", "+ in Of adds the number 1 to a tensor computed from"),
    (pool(lambda x: x[:, 0]), VECTOR, "", "the operator [] in Of takes a part of a tensor computed from the input"),
    (pool(lambda x: torch.cat([x, x], 1)), VECTOR, "", "cat() in Of has no native form"),
    (pool(lambda x: x.transpose(1, 2)), IMAGE, "", "transpose() in Of has no native form"),
    (pool(lambda x: x.T), VECTOR, "", "reads the attribute 'T'"),
    (pool(lambda x: x.detach()), VECTOR, "", "detach() in Of has no native form"),
    (pool(lambda x: operator.isub(x, x)), VECTOR, "", "the operator -= in Of subtracts a tensor computed from"),
    (fc(lambda m, x: torch.add(x, m.fc(x), alpha=2)), VECTOR, "", "alpha=2"),
    (of(lambda m, x: x + m.fc(x), fc=lambda: L(4, 1)), VECTOR, "", "broadcasts [N, 4] with [N, 1]"),
    (fc(lambda m, x: torch.add(x, x, out=m.fc(x))), VECTOR, "", "add() in Of is called with arguments that have no"),
    (fc(lambda m, x: x + m.fc.bias), VECTOR, "", "adds a parameter of shape [4] to a tensor computed from the input"),
    (fc(lambda m, x: F.linear(x, x)), VECTOR, "", "takes a tensor computed from the input for a weight"),
    (fc(lambda m, x: F.linear(x, m.fc.weight * 2)), VECTOR, "", "* in Of multiplies a parameter of shape [4, 4] by"),
    (fc(lambda m, x: F.linear(x, m.fc.weight.t())), VECTOR, "", "t() in Of has no native form"),
    (fc(lambda m, x: x + torch.ones(4)), VECTOR, "", "uses a tensor that is not computed from the input"),
    (fc(lambda m, x: (x, m.fc(x))), VECTOR, "", "returns a tuple, not one tensor"),
    (fc(lambda m, x: {"out": m.fc(x)}), VECTOR, "", "returns a dict, not one tensor"),
    (fc(lambda m, x: m.fc.weight), VECTOR, "", "returns a parameter of shape [4, 4]"),
    (fc(lambda m, x: m.fc(x) if x.sum() > 0 else x), VECTOR, "", "cannot be traced: its code may take another way"),
    (fc(lambda m, x: m.fc(x) if random.random() < 2 else x), VECTOR, "", "draws random numbers"),
    (fc(lambda m, x: m.fc(x) if torch.rand(()) < 2 else x), VECTOR, "", "draws random numbers"),
    (fc(lambda m, x: m.fc(x) if torch.is_tensor(x) else x), VECTOR, "", "is_tensor asks for the type"),
    (fc(lambda m, x: m.fc(x) if isinstance(x.size(0), int) else x), VECTOR, "", "asks for the type of a size"),
    (fc(lambda m, x: torch.relu(numbers_of(x))), VECTOR, "", "wrapper asks for the type"),
    (fc(lambda m, x: L(4, 4)(x)), VECTOR, "", "calls a Linear that is not registered"),
    (fc(no_grad), VECTOR, "fc", "runs under no_grad"),
    (fc(autocast), VECTOR, "fc", "runs under no_grad, autocast"),
    (fc(lambda m, x: Straight.apply(m.fc(x))), VECTOR, "", "custom autograd function"),
    (fc(remembering), VECTOR, "", "changes attributes"),
    (fc(assigns), VECTOR, "", "assigns to the attribute data"),
    (of(stale, conv=lambda: C(2, 3, 3), fc=lambda: L(60, 2)), IMAGE, "fc", "overwritten in place through another view"),
    (lambda: nn.ReLU(inplace=True), VECTOR, "", "overwrites the model's input"),
    (lambda: Of(lambda m, x: m.inner(x), inner=Of(lambda m, x: x.exp())), VECTOR, "inner", "exp() in Of has no native"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "example", "where", "reason"), REFUSED, ids=[r[3][:50] for r in REFUSED])
def test_everything_else_is_refused_by_name(
    build: Callable[[], nn.Module], example: tuple[int, ...], where: str, reason: str
) -> None:
    model = build()
    attributes = [dict(vars(m)) for m in model.modules()]
    state = torch.get_rng_state()
    with pytest.raises(Unsupported) as caught:
        lower(model, example)
    assert caught.value.where == where
    assert reason in caught.value.reason
    assert str(caught.value).startswith(f"layer {where!r}: " if where else "the model: ")
    assert [dict(vars(m)) for m in model.modules()] == attributes
    assert torch.equal(torch.get_rng_state(), state)


def test_settings_reach_the_step() -> None:
    model = nn.Sequential(
        C(2, 3, (3, 2), (2, 1), (1, 2), (1, 3)), nn.MaxPool2d((2, 1), padding=(1, 0)), nn.BatchNorm2d(3)
    )
    conv, pooling, norm = lower(model, (2, 9, 9)).steps
    assert dict(conv.attributes) == {
        "stride_h": 2, "stride_w": 1, "pad_h": 1, "pad_w": 2, "dilation_h": 1, "dilation_w": 3,
    }  # fmt: skip
    assert dict(pooling.attributes) == {
        "kernel_h": 2, "kernel_w": 1, "stride_h": 2, "stride_w": 1, "pad_h": 1, "pad_w": 0,
        "dilation_h": 1, "dilation_w": 1,
    }  # fmt: skip
    assert norm.attributes == (("eps", 1e-5), ("training", 1.0))
    assert [step.where for step in (conv, pooling, norm)] == ["0", "1", "2"]


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
    assert [step.parameters for step in program.steps if step.op == "linear"] == [(0, 1), (0, 2)]


def test_a_program_is_a_value() -> None:
    first, second = (lower(nn.Sequential(L(4, 3), nn.ReLU()), VECTOR) for _ in range(2))
    assert first == second and hash(first) == hash(second) and pickle.loads(pickle.dumps(first)) == first


@pytest.mark.parametrize("kind", ["cross_entropy", "multi_margin"])
def test_losses_over_classes_need_a_vector(kind: str) -> None:
    assert lower(L(4, 3), VECTOR, loss=Loss(kind)).loss == Loss(kind)
    with pytest.raises(Unsupported, match=r"loss: .* is native for outputs \[N, C\], not for \[N, 5, 3\]"):
        lower(L(4, 3), (5, 4), loss=Loss(kind))


def test_other_threads_run_models_while_one_lowers() -> None:
    """torch.fx patches nn.Module for the whole process."""
    other, x, results = Own(), torch.randn(3, 4), []

    def forward(m: Any, proxy: Tensor) -> Tensor:
        thread = threading.Thread(target=lambda: results.append((other(x), m.fc(x))))
        thread.start()
        thread.join()
        return m.fc(proxy)

    model = Of(forward, fc=L(4, 4))
    assert [step.op for step in lower(model, VECTOR).steps] == ["linear"]
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


# ---- noticing changes ------------------------------------------------------------------------------------------------


def network() -> nn.Sequential:
    return nn.Sequential(
        C(2, 3, 3), nn.BatchNorm2d(3), nn.Sequential(nn.ReLU(), nn.Dropout(0.0)), nn.Flatten(), L(60, 2)
    )


def reshape_parameter(m: nn.Module) -> None:
    m[4].weight.data = torch.randn(3, 60)


def replace_equal_parameter(m: nn.Module) -> None:
    m[1].weight = nn.Parameter(m[1].weight.detach().clone())


CHANGES: dict[str, Callable[[Any], Any]] = {
    "eval": lambda m: m.eval(),
    "one module's training": lambda m: m[2][1].train(False),
    "requires_grad": lambda m: m[0].weight.requires_grad_(False),
    "shape of a parameter": reshape_parameter,
    "dtype": lambda m: m.double(),
    "parameter replaced": replace_equal_parameter,
    "parameter removed": lambda m: m[0].register_parameter("bias", None),
    "buffer replaced": lambda m: m[1].register_buffer("running_mean", torch.zeros(3)),
    "submodule replaced": lambda m: m[2].__setitem__(0, nn.ReLU()),
    "submodule added": lambda m: m.append(nn.ReLU()),
    "setting": lambda m: setattr(m[2][1], "p", 0.5),
    "setting of a leaf": lambda m: setattr(m[1], "eps", 1.0),
    "forward of an instance": lambda m: setattr(m[2][0], "forward", torch.tanh),
    "forward hook": lambda m: m[2].register_forward_hook(lambda *a: None),
    "forward pre-hook": lambda m: m[0].register_forward_pre_hook(lambda *a: None),
    "backward hook": lambda m: m[0].register_full_backward_hook(lambda *a: None),
    "parametrization": lambda m: nn.utils.parametrizations.weight_norm(m[4]),
    "attribute replaced by a tensor": lambda m: setattr(m[1], "eps", torch.ones(2)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_snapshot_notices(change: Callable[[Any], Any]) -> None:
    model = network()
    snapshot = Snapshot(model, model.parameters())
    assert snapshot.holds()
    change(model)
    assert not snapshot.holds()
    assert Snapshot(model, model.parameters()).holds()


def test_a_snapshot_notices_hooks_for_all_modules() -> None:
    model = network()
    snapshot = Snapshot(model, model.parameters())
    handle = nn.modules.module.register_module_forward_hook(lambda *a: None)
    try:
        assert not snapshot.holds()
        with pytest.raises(Unsupported, match="hooks are registered for all modules"):
            lower(model, IMAGE)
    finally:
        handle.remove()
    assert snapshot.holds()


def test_training_does_not_disturb_a_snapshot() -> None:
    model = network()
    snapshot = Snapshot(model, model.parameters())
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.randn(4, *IMAGE)).sum().backward()
    optimiser.step()
    model.load_state_dict(network().state_dict())
    model.eval().train()
    assert snapshot.holds()
