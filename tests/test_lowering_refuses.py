"""Lowering refuses every form that is not supported, and names the layer and the reason."""

from __future__ import annotations

import math
import operator
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forms import IMAGE, VECTOR, C, L, of, pool, seq
from metafast.model.lowering import Unsupported, lower


class Subclass(nn.Linear):
    pass


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.relu(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


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


def caught(m: Any, x: Tensor) -> Tensor:
    try:
        few = x.size(0) < 3
    except Exception:
        few = False
    return x if few else m.fc(x)


def counted(m: Any, x: Tensor) -> Tensor:
    try:
        return sum((m.fc(x) for _ in range(x.size(0))), x)
    except TypeError:
        return x


def squeezed(m: Any, x: Tensor) -> Tensor:
    y = m.fc(x)
    y.unsqueeze_(1)
    return y if y.dim() == 2 else m.fc(y)


def hooked() -> nn.Module:
    model = nn.Sequential(L(4, 4), nn.ReLU())
    model[1].register_forward_hook(lambda *a: None)
    return model


def parametrized() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(L(4, 4)))


def mixed() -> nn.Module:
    model = nn.Sequential(L(4, 4), L(4, 4))
    model[1].double()
    return model


def fc(function: Callable[[Any, Tensor], Any], **more: Callable[[], Any]) -> Callable[[], nn.Module]:
    return of(function, fc=lambda: L(4, 4), **more)


#: how it is built, the shape of an example, the layer to be named, what the reason must say
REFUSED: list[tuple[Callable[[], nn.Module], tuple[int, ...], str, str]] = [
    (seq(lambda: L(4, 4), lambda: nn.LocalResponseNorm(2)), VECTOR, "1", "LocalResponseNorm has no native form"),
    (lambda: nn.LocalResponseNorm(2), VECTOR, "", "LocalResponseNorm has no native form"),
    (lambda: nn.LayerNorm(3), VECTOR, "", "LayerNorm normalises over [3], which are not the last axes of [N, 4]"),
    (pool(lambda x: F.layer_norm(x, ())), IMAGE, "", "normalises over []"),
    (of(lambda m, x: F.rms_norm(x, (4,), m.fc.weight), fc=lambda: L(4, 4)), VECTOR, "", "weight or bias that is not"),
    (lambda: nn.GroupNorm(2, 4), IMAGE, "", "GroupNorm has a weight or bias that is not of shape [2]"),
    (pool(lambda x: F.group_norm(x, 3)), IMAGE, "", "cuts 2 channels into 3 groups"),
    (pool(lambda x: F.group_norm(x.reshape(-1, 4), 2).view(len(x), 6, 4)), (6, 4), "", "works on 6 N rows"),
    (pool(lambda x: x.reshape(-1, 4).softmax(0).view(len(x), 6, 4)), (6, 4), "", "over the N examples"),
    (pool(lambda x: x.softmax(0)), VECTOR, "", "softmax() in Of is over the N examples"),
    (lambda: nn.Softmax(), VECTOR, "", "Softmax names no axis"),
    (pool(lambda x: F.softmax(x, 1, dtype=torch.float64)), VECTOR, "", "converts to torch.float64"),
    (lambda: nn.InstanceNorm2d(2, track_running_stats=True).eval(), IMAGE, "", "normalises by running statistics"),
    (lambda: nn.InstanceNorm2d(3, affine=True), IMAGE, "", "has 3 features, but its input is [N, 2, "),
    (lambda: nn.InstanceNorm1d(4), VECTOR, "", "InstanceNorm1d is native for inputs [N, C, L], not for [N, 4]"),
    (lambda: nn.InstanceNorm1d(4), (4, 1), "", "needs several positions of each channel, not [N, 4, 1]"),
    (seq(nn.ReLU, lambda: Subclass(4, 4)), VECTOR, "1", "Subclass is a subclass of Linear"),
    (hooked, VECTOR, "1", "ReLU has forward hooks"),
    (lambda: nn.Sequential(nn.Conv3d(2, 2, 1)), (2, 3, 4, 5), "0", "Conv3d has no native form"),
    (parametrized, VECTOR, "0.parametrizations.weight.0", "_SpectralNorm runs under no_grad"),
    (mixed, VECTOR, "1", "Linear's weight has type torch.float64"),
    (lambda: L(4, 4).half(), VECTOR, "", "Linear's weight has type torch.float16"),
    (lambda: nn.LazyLinear(3), VECTOR, "", "LazyLinear's weight is a UninitializedParameter"),
    (lambda: L(4, 3), (), "", "Linear fails in torch"),
    (lambda: L(4, 3), (0, 4), "", "works on [N, 0, 4]"),
    (seq(lambda: L(4, 4), lambda: L(4, 0)), VECTOR, "1", "Linear's weight is empty"),
    (lambda: L(4, 3), (5,), "", "Linear fails in torch"),
    (lambda: C(2, 3, 3), (6, 7), "", "not for [N, 6, 7]"),
    (seq(nn.Tanh, lambda: nn.ConvTranspose2d(2, 3, 1, padding=4)), IMAGE, "1", "ConvTranspose2d fails in torch"),
    (lambda: C(2, 4, 9, padding=8, padding_mode="reflect"), IMAGE, "", "fails in torch: "),
    (pool(lambda x: F.pad(x, (1, 1), value=math.inf)), IMAGE, "", "is not native with the number inf for a value"),
    (pool(lambda x: F.adaptive_max_pool2d(x, 4)), IMAGE, "", "native is where windows do not overlap"),
    (fc(lambda m, x: m.fc(torch.empty_like(x).bernoulli_(1.5))), VECTOR, "", "takes the number 1.5 for a probability"),
    (lambda: nn.BatchNorm1d(5), IMAGE, "", "is native for inputs [N, C] or [N, C, L], not for [N, 2, 6, 7]"),
    (lambda: nn.BatchNorm2d(4), VECTOR, "", "BatchNorm2d is native for inputs [N, C, H, W]"),
    (lambda: nn.BatchNorm2d(3), IMAGE, "", "do not fit"),
    (pool(lambda x: F.batch_norm(x, None, None)), IMAGE, "", "in eval mode without running statistics"),
    (of(lambda m, x: F.batch_norm(x, m.n.weight, m.n.bias), n=lambda: nn.BatchNorm1d(4)), VECTOR, "",
     "statistics that require a gradient"),
    (of(lambda m, x: F.linear(x, 2 * m.fc.weight, m.fc.weight), fc=lambda: L(4, 4)), VECTOR, "", "bias of several"),
    (pool(lambda x: x @ x), (4, 3), "", "fit together"),
    (pool(lambda x: x.view(-1, 2, 2) @ x), VECTOR, "", "by [N, 4] over the axis of the examples"),
    (of(lambda m, x: m.fc.weight @ x, fc=lambda: L(4, 4)), VECTOR, "", "by [N, 4] over the axis of the examples"),
    (of(lambda m, x: m.fc.weight[None] @ x.view(-1, 2, 1, 2), fc=lambda: L(4, 4)), VECTOR, "", "do not fit"),
    (of(lambda m, x: torch.bmm(m.fc.weight[None], x.view(-1, 4, 1)), fc=lambda: L(4, 4)), VECTOR, "", "multiplies"),
    (pool(lambda x: torch.einsum("nc,nc->n", x, x).unsqueeze(1) + torch.einsum("nc,md->nd", x, x)), VECTOR, "",
     "examples must stay first"),
    (pool(lambda x: torch.einsum("nc,nd->nc", x, x)), VECTOR, "", "an axis of one tensor alone must be in the result"),
    (lambda: nn.MaxPool2d(2, return_indices=True), IMAGE, "", "return_indices"),
    (lambda: nn.AvgPool2d(2, divisor_override=3), IMAGE, "", "divisor_override"),
    (lambda: nn.MaxPool2d(2), (6, 7), "", "MaxPool2d is native for inputs [N, C, H, W]"),
    (lambda: nn.MaxPool2d(9), IMAGE, "", "MaxPool2d fails in torch"),
    (of(lambda m, x: x * F.dropout(m.own), own=lambda: nn.Parameter(torch.ones(4))), VECTOR, "",
     "dropout() in Of drops parameters"),
    (of(lambda m, x: F.dropout(x, 1.5)), VECTOR, "", "takes the number 1.5 for a probability"),
    (of(lambda m, x: F.dropout1d(x)), IMAGE, "", "dropout1d() in Of is native for inputs [N, C] or [N, C, L]"),
    (lambda: nn.Flatten(0), IMAGE, "", "Flatten returns a tensor of 84 N rows"),
    (pool(lambda x: x.flatten(4)), IMAGE, "", "flatten() in Of has no native form with these arguments, or fails in"),
    (pool(lambda x: x.flatten()), IMAGE, "", "Of returns a tensor of 84 N rows"),
    (pool(lambda x: x.view(2, -1)), IMAGE, "", "view() in Of joins the axis of the examples with another"),
    (pool(lambda x: x.view(-1, 42)), IMAGE, "", "Of returns a tensor of 2 N rows"),
    (pool(lambda x: x.mean(2, keepdim=True).squeeze()), IMAGE, "", "squeeze() in Of removes the axis of the examples"),
    (pool(lambda x: x.squeeze(-4)), IMAGE, "", "squeeze() in Of removes the axis of the examples where N is 1"),
    (pool(lambda x: x.transpose(0, 1)), IMAGE, "", "for examples in axis 1"),
    (pool(lambda x: x[0]), IMAGE, "", "the operator [] in Of mixes examples"),
    (pool(lambda x: x.flip(0)), IMAGE, "", "flip() in Of mixes examples"),
    (pool(lambda x: torch.cat([x, x], 0)), IMAGE, "", "cat() in Of mixes examples"),
    (pool(lambda x: x.roll(1, 0)), VECTOR, "", "roll() in Of mixes examples"),
    (pool(lambda x: x.view(2, 2, -1)), VECTOR, "", "view() in Of mixes examples"),
    (pool(lambda x: x.view(x.size(0) * 2, -1)), IMAGE, "", "Of returns a tensor of 2 N rows"),
    (pool(lambda x: x.view(-1, x.size(0))), IMAGE, "", "view() in Of mixes examples"),
    (pool(lambda x: x.view(-1, 2, 3).sum(1)), VECTOR, "", "view() in Of has no native form with these arguments"),
    (pool(lambda x: x.view(-1, 7).sum(1)), IMAGE, "", "sum() in Of works on 12 N rows"),
    (pool(lambda x: x.view(-1, 7) + x.view(-1, 42)), IMAGE, "", "cannot broadcast"),
    (of(lambda m, x: x.view(-1, 2) + m.fc.weight, fc=lambda: L(2, 2)), VECTOR, "", "the operator + in Of works on 2 N"),
    (of(lambda m, x: m.fc(x.view(-1)), fc=lambda: L(4, 4)), VECTOR, "fc", "Linear works on 4 N rows"),
    (of(lambda m, x: m.n(x.view(-1, 2)), n=lambda: nn.BatchNorm1d(2)), VECTOR, "n", "BatchNorm1d"),
    (of(lambda m, x: m.conv(x.view(-1, 1, 6, 7)), conv=lambda: C(1, 1, 3)), IMAGE, "conv", "Conv2d"),
    (fc(lambda m, x: m.fc(x) if x.view(-1, 2).shape[0] == 2 * x.shape[0] + 1 else x), VECTOR, "", "decides by the"),
    (pool(lambda x: x.mean(0)), IMAGE, "", "mean() in Of sums over the examples of [N, 2, 6, 7]"),
    (pool(lambda x: x.mean()), IMAGE, "", "mean() in Of sums over the examples of [N, 2, 6, 7]"),
    (pool(lambda x: x * 2j), VECTOR, "", "* in Of multiplies a tensor computed from the input by"),
    (pool(lambda x: 2**x), VECTOR, "", "** in Of raises the number 2 to a tensor computed from"),
    (pool(lambda x: x.T), VECTOR, "", "for examples in axis 1"),
    (pool(lambda x: operator.isub(x, x)), VECTOR, "", "overwrites the model's input in place"),
    (of(lambda m, x: x + m.fc(x), fc=lambda: L(4, 3)), VECTOR, "", "cannot broadcast [N, 4] with [N, 3]"),
    (fc(lambda m, x: x[:, None] + x), VECTOR, "", "broadcasts [N, 1, 4] with [N, 4] over the examples"),
    (fc(lambda m, x: m.fc(x)[:, :1].add_(x)), VECTOR, "", "writes a result of shape [N, 4] over [N, 1]"),
    (fc(lambda m, x: torch.add(x, x, out=m.fc(x))), VECTOR, "", "add() in Of is called with arguments that have no"),
    (fc(lambda m, x: F.linear(x, x)), VECTOR, "", "takes a tensor computed from the input for a weight"),
    (fc(lambda m, x: x + torch.ones(4)), VECTOR, "", "uses a tensor that is not computed from the input"),
    (fc(lambda m, x: (m.fc(x), "logits")), VECTOR, "", "Of returns 'logits', among 2 outputs"),
    (fc(lambda m, x: {"out": m.fc(x), "of": 3}), VECTOR, "", "Of returns the number 3, among 2"),
    (fc(lambda m, x: None), VECTOR, "", "Of returns None; native are tensors"),
    (fc(lambda m, x: m.fc.weight), VECTOR, "", "returns a parameter of shape [4, 4]"),
    (fc(lambda m, x: m.fc(x) if x.sum() > 0 else x), VECTOR, "", "cannot be traced: its code may take another way"),
    (fc(lambda m, x: m.fc(x) if random.random() < 2 else x), VECTOR, "", "draws random numbers"),
    (fc(lambda m, x: m.fc(x) if torch.rand(()) < 2 else x), VECTOR, "", "draws random numbers"),
    (fc(lambda m, x: m.fc(x) if x.size(0) > 1 else x), VECTOR, "", "decides by the number N of examples"),
    (fc(lambda m, x: m.fc(x) if x.shape == (2, 4) else x), VECTOR, "", "decides by the number N of examples"),
    (fc(lambda m, x: m.fc(x) if x.shape[0] % 2 == 0 else x), VECTOR, "", "decides by the number N of examples"),
    (fc(lambda m, x: m.fc(x) if x.size(0) in {2: 3} else x), VECTOR, "", "decides by the number N of examples"),
    (fc(lambda m, x: caught(m, x)), VECTOR, "", "decides by the number N of examples"),
    (fc(lambda m, x: counted(m, x)), VECTOR, "", "decides by the number N of examples"),
    (fc(lambda m, x: m.fc(x) if math.sqrt(x.size(0)) > 2 else x), VECTOR, "", "decides by the number N of examples"),
    (fc(lambda m, x: m.fc(x) + torch.ones(x.size(0), 4)), VECTOR, "", "ones() in Of has no native form"),
    (fc(lambda m, x: nn.Sequential(m.fc, nn.BatchNorm1d(4))(x)), VECTOR, "", "Sequential that is not registered"),
    (fc(lambda m, x: sum(m.fc(x) for _ in range(len(x)))), VECTOR, "", "decides by the number N of examples"),
    (fc(lambda m, x: m.fc(x) if x.numel() > 8 else x), VECTOR, "", "decides by the number N of examples"),
    (fc(lambda m, x: torch.stack([m.fc(row) for row in x])), VECTOR, "", "iterates over a tensor"),
    (fc(lambda m, x: m.fc(x) if x.unknown(1).dim() == 2 else x), VECTOR, "", "has no attribute 'unknown'"),
    (fc(lambda m, x: m.fc(x) if torch.lgamma(x).dim() == 2 else x), VECTOR, "", "lgamma() in Of has no native form"),
    (fc(lambda m, x: squeezed(m, x)), VECTOR, "", "unsqueeze_() in Of has no native form"),
    (fc(lambda m, x: m.fc(x) if x.requires_grad else x), VECTOR, "", "cannot be traced: its code may take another way"),
    (fc(lambda m, x: m.fc(x.half())), VECTOR, "", "half() in Of has no native form"),
    (fc(lambda m, x: m.fc(x.double())), VECTOR, "", "casts a tensor computed from the input to torch.float64"),
    (fc(lambda m, x: m.fc(x.to("cuda:1"))), VECTOR, "", "moves a tensor computed from the input to cuda:1"),
    (fc(lambda m, x: L(4, 4)(x)), VECTOR, "", "calls a Linear that is not registered"),
    (fc(no_grad), VECTOR, "fc", "runs under no_grad"),
    (fc(autocast), VECTOR, "fc", "runs under no_grad, autocast"),
    (fc(lambda m, x: Straight.apply(m.fc(x))), VECTOR, "", "custom autograd function"),
    (fc(remembering), VECTOR, "", "changes attributes"),
    (fc(assigns), VECTOR, "", "assigns to the attribute data"),
    (of(stale, conv=lambda: C(2, 3, 3), fc=lambda: L(60, 2)), IMAGE, "fc", "overwritten in place through another view"),
    (lambda: nn.ReLU(inplace=True), VECTOR, "", "overwrites the model's input"),
    (of(lambda m, x: m.inner(x), inner=of(lambda m, x: x.erfinv())), VECTOR, "inner", "erfinv() in Of has no native"),
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
