"""Rows of normalisation: over a batch, and of each example by itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import frozen, seq
from row import C, L, Row, norm

BATCH_NORMS = [
    norm("1d", lambda: nn.BatchNorm1d(5)),
    norm("1d-plain", lambda: nn.BatchNorm1d(5, affine=False)),
    norm("1d-no-statistics", lambda: nn.BatchNorm1d(5, track_running_stats=False)),
    norm("1d-no-statistics-eval", lambda: nn.BatchNorm1d(5, track_running_stats=False), training=False),
    norm("1d-eval", lambda: nn.BatchNorm1d(5), training=False),
    norm("1d-plain-eval", lambda: nn.BatchNorm1d(5, affine=False), training=False),
    norm("1d-eps", lambda: nn.BatchNorm1d(5, eps=0.3)),
    norm("1d-cumulative", lambda: nn.BatchNorm1d(5, momentum=None)),
    norm("2d", lambda: nn.BatchNorm2d(3), (2, 3, 3)),
    norm("2d-plain", lambda: nn.BatchNorm2d(3, affine=False), (2, 3, 3)),
    norm("2d-no-statistics", lambda: nn.BatchNorm2d(3, track_running_stats=False), (2, 3, 3)),
    norm("2d-eval", lambda: nn.BatchNorm2d(3), (2, 3, 3), training=False),
    norm("2d-plain-eval", lambda: nn.BatchNorm2d(3, affine=False), (2, 3, 3), training=False),
    norm("2d-eps", lambda: nn.BatchNorm2d(3, eps=0.2), (2, 3, 3)),
    norm("2d-first-order", lambda: nn.BatchNorm2d(3), (2, 3, 3), first_order=True),
    norm(
        "2d-adapted-affine-only", lambda: nn.BatchNorm2d(3), (2, 3, 3), adapt_params=("1.weight", "1.bias"), static=True
    ),
    norm(
        "2d-affine-not-adapted",
        lambda: nn.BatchNorm2d(3),
        (2, 3, 3),
        adapt_params=lambda name: not name.startswith("1."),
    ),
    norm("2d-affine-frozen", lambda: frozen(nn.BatchNorm2d(3), "weight", "bias"), (2, 3, 3)),
    norm("2d-weighted", lambda: nn.BatchNorm2d(3), (2, 3, 3), weighted=True),
    Row("norm/1d-input", lambda: seq(nn.BatchNorm1d(3), L(3, 4), nn.Tanh(), L(4, 2)), shots=4, queries=3),
    Row("norm/2d-input", lambda: seq(nn.BatchNorm2d(2), C(2, 3, 2), nn.Tanh(), nn.Flatten(), L(12, 2)), (2, 3, 3)),
    Row(
        "norm/2d-then-relu",
        lambda: seq(C(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), C(3, 2, 2), nn.Flatten(), L(2, 2)),
        (2, 3, 3),
        smooth=False,
    ),
    Row("norm/2d-last", lambda: seq(C(2, 3, 2), nn.BatchNorm2d(3)), (2, 3, 3)),
    # One step in the engine, with a row and a column that no window covers.
    *(
        Row(
            f"norm/relu-pool{'' if affine else '-plain'}",
            lambda affine=affine: seq(
                C(2, 3, 3), nn.BatchNorm2d(3, affine=affine), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), L(18, 2)
            ),
            (2, 9, 7),
            smooth=False,
        )
        for affine in (True, False)
    ),
]


def body(name: str) -> bool:
    return not name.startswith("1.")


class PreNorm(nn.Module):
    """The feed-forward half of a transformer's layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc, self.out = nn.LayerNorm(4), L(4, 6), L(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(F.gelu(self.fc(self.norm(x))))


class Functions(nn.Module):
    """Norms by their functions, of images, of their rows and of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = C(2, 3, 2), nn.LayerNorm(3), L(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.instance_norm(self.conv(x), weight=self.norm.weight, bias=self.norm.bias, eps=0.1).movedim(1, -1)
        h = F.layer_norm(F.rms_norm(h, (2, 3)), [3], self.norm.weight)
        return self.head(F.group_norm(h.flatten(1), 4))  # type: ignore[no-any-return]


#: Of each example by itself. The widths 5 and 18 do not fill a register.
SET_NORMS = [
    norm("layer", lambda: nn.LayerNorm(5)),
    norm("layer-plain-eps", lambda: nn.LayerNorm(5, eps=0.2, elementwise_affine=False), lr_form="per_element"),
    norm(
        "layer-no-bias",
        lambda: nn.LayerNorm(5, bias=False),
        adapt_params=("1.weight", "3.weight", "3.bias"),
        steps=3,
        static=True,
    ),
    norm("layer-affine-not-adapted", lambda: nn.LayerNorm(5), adapt_params=body),
    norm("layer-affine-frozen", lambda: frozen(nn.LayerNorm(5), "weight", "bias"), weighted=True),
    norm("rms", lambda: nn.RMSNorm(5)),
    norm("rms-plain-eps", lambda: nn.RMSNorm(5, eps=0.3, elementwise_affine=False), first_order=True),
    norm("group-1d", lambda: nn.GroupNorm(1, 5)),
    norm("group", lambda: nn.GroupNorm(3, 3), (2, 3, 3), lr_form="per_tensor"),
    norm("instance", lambda: nn.InstanceNorm2d(3), (2, 3, 3), training=False),
    norm("instance-affine", lambda: nn.InstanceNorm2d(3, affine=True, eps=0.1), (2, 3, 3), adapt_params=body),
    norm("layer-image", lambda: nn.LayerNorm((3, 2, 2)), (2, 3, 3)),
    Row("norm/layer-sequence", lambda: seq(L(3, 18), nn.LayerNorm(18), nn.Tanh(), L(18, 2)), (4, 3), shots=70),
    Row("norm/rms-sequence-last", lambda: seq(L(3, 4), nn.RMSNorm(4)), (4, 3)),
    Row("norm/layer-over-rows", lambda: seq(L(3, 2), nn.LayerNorm((4, 2)), nn.Tanh(), L(2, 2)), (4, 3)),
    Row("norm/layer-input", lambda: seq(nn.LayerNorm(3), L(3, 4), nn.Tanh(), L(4, 2))),
    Row("norm/group-input", lambda: seq(nn.GroupNorm(2, 4), C(4, 2, 2), nn.Flatten(), L(12, 2)), (4, 3, 4), lr=0.02),
    Row("norm/group-2-of-18", lambda: seq(C(2, 18, 3), nn.GroupNorm(2, 18), nn.SiLU(), C(18, 1, 2)), (2, 20, 21)),
    Row("norm/group-last", lambda: seq(C(2, 4, 2), nn.GroupNorm(2, 4)), (2, 3, 3)),
    Row("norm/instance-1d", lambda: seq(L(3, 5), nn.InstanceNorm1d(4, affine=True), nn.Tanh(), L(5, 2)), (4, 3)),
    Row("norm/pre-norm", PreNorm, (3, 4)),
    Row("norm/functions", Functions, (2, 3, 3)),
]


class Masked(nn.Module):
    """Self-attention's weights over what came before, and softmax over each axis."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.head = L(3, 4), L(4, 2)
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        h = F.softmax(self.scores(x) + self.mask, dim=-1)
        return self.head(torch.log_softmax(h.softmax(1), 2))  # type: ignore[no-any-return]


#: The widths 5 and 18 do not fill a register.
SOFTMAX = [
    Row("softmax/rows", lambda: seq(L(3, 5), nn.Softmax(-1), L(5, 2))),
    Row("softmax/min", lambda: seq(L(3, 5), nn.Softmin(-1), L(5, 2))),
    Row("softmax/2d", lambda: seq(C(2, 3, 2), nn.Softmax2d(), nn.Flatten(), L(12, 2)), (2, 3, 3)),
    Row("softmax/log", lambda: seq(L(3, 5), nn.LogSoftmax(1), L(5, 2)), lr_form="per_element"),
    Row("softmax/wide-sequence", lambda: seq(L(3, 18), nn.Softmax(2), L(18, 2)), (4, 3), weighted=True),
    Row("softmax/channels", lambda: seq(C(2, 5, 2), nn.Softmax(1), C(5, 1, 2)), (2, 4, 5)),
    Row("softmax/positions", lambda: seq(C(2, 3, 2), nn.LogSoftmax(2), nn.Flatten(), L(12, 2)), (2, 3, 3)),
    Row("softmax/input-last", lambda: seq(nn.Softmax(1), L(3, 4), nn.LogSoftmax(1)), static=True),
    Row("softmax/masked", Masked, (4, 3)),
]

NORMS = [*BATCH_NORMS, *SET_NORMS, *SOFTMAX]
