"""Layers that torch differentiates by formulas of its own, on the torch engine: the meta-gradient and a
Hessian-vector product of the meta-loss, which holds every layer's third derivative, against central differences."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metafast as mf
from metafast.engine import higher_order

aten = torch.ops.aten


class Function(nn.Module):
    """A function of the features, and perhaps of a layer or two."""

    def __init__(self, function: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, h: Tensor) -> Any:
        return self.function(h, *self.layers)


class Around(nn.Module):
    """Twelve features in some shape, the layer, and two outputs, with weights on both sides."""

    def __init__(self, shape: tuple[int, ...], layer: nn.Module) -> None:
        super().__init__()
        self.stem, self.shape, self.layer = nn.Linear(4, 12), shape, layer
        self.last = nn.Linear(self.features(torch.randn(6, 4)).shape[1], 2)

    def features(self, x: Tensor) -> Tensor:
        output = self.layer(self.stem(x).view(-1, *self.shape))
        return (output[0] if isinstance(output, tuple) else output).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.last(self.features(x)))


Build = Callable[[], nn.Module]
FLAT, ROWS, COLUMNS, SERIES, IMAGE, VOLUME = (12,), (3, 4), (4, 3), (2, 6), (3, 2, 2), (1, 2, 2, 3)
LAYERS: dict[str, tuple[tuple[int, ...], Build]] = {}


def add(shape: tuple[int, ...], **builds: Build) -> None:
    LAYERS.update({name: (shape, build) for name, build in builds.items()})


def functions(shape: tuple[int, ...], **each: Callable[[Tensor], Any]) -> None:
    add(shape, **{name: (lambda f=f: Function(f)) for name, f in each.items()})


def labels(h: Tensor, classes: int = 12) -> Tensor:
    return torch.arange(len(h)) % classes


def between(h: Tensor) -> Tensor:
    """Targets in [0, 1]."""
    return torch.linspace(0, 1, h.numel(), dtype=h.dtype).view_as(h)


def signs(h: Tensor) -> Tensor:
    return (between(h) - 0.4).sign()


def spread(h: Tensor) -> Tensor:
    """A positive definite matrix with eigenvalues apart."""
    return h @ h.mT + torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=h.dtype))


# ---------------------------------------------------------------------------------------------------------------- norms
add(
    FLAT,
    layer_norm=lambda: nn.LayerNorm(12),
    layer_norm_plain=lambda: nn.LayerNorm(12, elementwise_affine=False, eps=0.1),
    batch_norm_1d=lambda: nn.BatchNorm1d(12),
    batch_norm_of_batch_statistics=lambda: nn.BatchNorm1d(12, track_running_stats=False),
    batch_norm_plain=lambda: nn.BatchNorm1d(12, affine=False, momentum=None),
    batch_norm_eval=lambda: nn.BatchNorm1d(12).eval(),
    rms_norm=lambda: nn.RMSNorm(12),
    rms_norm_eps=lambda: nn.RMSNorm(12, eps=0.1),
    weight_norm=lambda: nn.utils.parametrizations.weight_norm(nn.Linear(12, 5)),
    weight_norm_whole=lambda: nn.utils.parametrizations.weight_norm(nn.Linear(12, 5), dim=None),  # type: ignore[arg-type]
    prelu=lambda: nn.PReLU(),
    rrelu_eval=lambda: nn.RReLU().eval(),
    bilinear=lambda: Function(lambda h, b: b(h[:, :6], h[:, 6:]), nn.Bilinear(6, 6, 3)),
    embedding=lambda: Function(lambda h, e: h * e(labels(h, 5)), nn.Embedding(5, 12)),
    lstm_cell=lambda: nn.LSTMCell(12, 3),
    gru_cell=lambda: nn.GRUCell(12, 3),
    rnn_cell=lambda: nn.RNNCell(12, 3),
)
for _mode in ("sum", "mean", "max"):
    add(
        FLAT,
        **{
            f"embedding_bag_{_mode}": lambda m=_mode: Function(
                lambda h, e: h * e((torch.arange(3 * len(h)) % 5).view(-1, 3)), nn.EmbeddingBag(5, 12, mode=m)
            )
        },
    )
functions(
    FLAT,
    torch_layer_norm=lambda h: torch.layer_norm(h, (12,)),
    torch_native_layer_norm=lambda h: torch.native_layer_norm(h, (12,), None, None, 1e-5),
    aten_layer_norm=lambda h: aten.layer_norm(h, (12,)),
    aten_native_layer_norm=lambda h: aten.native_layer_norm.default(h, (12,), None, None, 1e-5),
    torch_batch_norm=lambda h: torch.batch_norm(h, None, None, None, None, True, 0.1, 1e-5, False),
    native_batch_norm=lambda h: torch.native_batch_norm(h, None, None, None, None, True, 0.1, 1e-5),
    functional_batch_norm=lambda h: F.batch_norm(h, None, None, training=True),
    functional_rms_norm=lambda h: F.rms_norm(h, (12,)),
    normalize=lambda h: F.normalize(h, dim=1),
)
add(
    ROWS,
    layer_norm_2d=lambda: nn.LayerNorm((3, 4)),
    instance_norm=lambda: nn.InstanceNorm1d(3, affine=True),
    instance_norm_tracking=lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True),
    instance_norm_eval=lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True).eval(),
    prelu_by_channel=lambda: nn.PReLU(3),
)
add(COLUMNS, group_norm=lambda: nn.GroupNorm(2, 4), local_response_norm=lambda: nn.LocalResponseNorm(2))
add(IMAGE, batch_norm_2d=lambda: nn.BatchNorm2d(3), instance_norm_2d=lambda: nn.InstanceNorm2d(3))

# ---------------------------------------------------------------------------------------------------------- activations
for _name in (
    "relu relu6 elu selu celu gelu silu mish softplus softsign tanh sigmoid logsigmoid hardswish hardsigmoid hardtanh "
    "leaky_relu softshrink hardshrink tanhshrink"
).split():
    functions(FLAT, **{_name: getattr(F, _name)})
functions(
    FLAT,
    gelu_tanh=lambda h: F.gelu(h, approximate="tanh"),
    glu=F.glu,
    hardsigmoid_in_place=lambda h: F.hardsigmoid(h * 1.5, inplace=True),
    threshold=lambda h: F.threshold(h, 0.1, 0.0),
    softmax=lambda h: F.softmax(h, 1),
    softmin=lambda h: F.softmin(h, 1),
    log_softmax=lambda h: F.log_softmax(h, 1),
)
functions(ROWS, softmax_of_channels=lambda h: F.softmax(h, 1))

# ------------------------------------------------------------------------------------------------ reductions, distances
for _name in "logsumexp cumsum cumprod logcumsumexp prod sum mean var std amax".split():
    functions(ROWS, **{_name: lambda h, name=_name: getattr(torch, name)(h, 1)})
for _p in (1.0, 2.0, 3.0, float("inf")):
    functions(
        ROWS,
        **{
            f"norm_{_p:g}": lambda h, p=_p: torch.norm(h, p, 1),
            f"vector_norm_{_p:g}": lambda h, p=_p: torch.linalg.vector_norm(h, p, 1),
            f"cdist_{_p:g}": lambda h, p=_p: torch.cdist(h, h.flip(1) + 1, p),
        },
    )
    functions(FLAT, **{f"pdist_{_p:g}": lambda h, p=_p: F.pdist(h, p).mean() * h})
functions(
    ROWS,
    cdist_to_itself=lambda h: torch.cdist(h, h),
    cdist_by_products=lambda h: torch.cdist(h, h.flip(1) + 1, compute_mode="use_mm_for_euclid_dist"),
    pairwise_distance=lambda h: F.pairwise_distance(h, h.flip(1)),
    cosine_similarity=lambda h: F.cosine_similarity(h, h.flip(1), dim=2),
    logcumsumexp_method=lambda h: h.logcumsumexp(dim=-1),
    var_mean=lambda h: torch.cat(torch.var_mean(h, 1), 1),
)

# ----------------------------------------------------------------------------------------------- convolutions and pools
add(
    SERIES,
    conv1d=lambda: nn.Conv1d(2, 3, 3),
    conv_transpose1d=lambda: nn.ConvTranspose1d(2, 3, 3),
    max_pool1d=lambda: nn.MaxPool1d(2),
    avg_pool1d=lambda: nn.AvgPool1d(2),
    lp_pool1d=lambda: nn.LPPool1d(2, 2),
    adaptive_avg_pool1d=lambda: nn.AdaptiveAvgPool1d(4),
    adaptive_max_pool1d=lambda: nn.AdaptiveMaxPool1d(4),
)
add(
    IMAGE,
    conv2d=lambda: nn.Conv2d(3, 2, 2, padding=1),
    conv_transpose2d=lambda: nn.ConvTranspose2d(3, 2, 2, stride=2),
    max_pool2d=lambda: nn.MaxPool2d(2),
    avg_pool2d=lambda: nn.AvgPool2d(2),
    lp_pool2d=lambda: nn.LPPool2d(2, 2),
    adaptive_avg_pool2d=lambda: nn.AdaptiveAvgPool2d((1, 2)),
    adaptive_max_pool2d=lambda: nn.AdaptiveMaxPool2d((1, 2)),
    unfold=lambda: nn.Unfold(2, padding=1),
)
add(
    VOLUME,
    conv3d=lambda: nn.Conv3d(1, 2, 2),
    conv_transpose3d=lambda: nn.ConvTranspose3d(1, 2, 2),
    max_pool3d=lambda: nn.MaxPool3d((2, 2, 1)),
    avg_pool3d=lambda: nn.AvgPool3d((2, 2, 1)),
    adaptive_avg_pool3d=lambda: nn.AdaptiveAvgPool3d((1, 2, 2)),
)
add(
    COLUMNS,
    grouped_conv=lambda: nn.Conv1d(4, 4, 2, groups=2),
    fold=lambda: nn.Fold((2, 4), (2, 2)),
    channel_shuffle=lambda: nn.ChannelShuffle(2),
)
add((4, 1, 3), pixel_shuffle=lambda: nn.PixelShuffle(2))
functions(
    SERIES,
    max_unpool=lambda h: F.max_unpool1d(*F.max_pool1d(h, 2, return_indices=True), 2),
    interpolate_linear=lambda h: F.interpolate(h, size=9, mode="linear"),
)
for _mode in ("nearest", "bilinear", "bicubic", "area"):
    functions(IMAGE, **{f"interpolate_{_mode}": lambda h, m=_mode: F.interpolate(h, size=(3, 3), mode=m)})
for _mode in ("nearest", "bilinear", "bicubic"):
    functions(
        FLAT,
        **{
            f"grid_sample_{_mode}": lambda h, m=_mode: F.grid_sample(
                h[:, :4].view(-1, 1, 2, 2), 0.8 * h[:, 4:].tanh().view(-1, 2, 2, 2), mode=m, align_corners=False
            )
        },
    )

# --------------------------------------------------------------------------------------------- recurrence and attention
for _kind in (nn.LSTM, nn.GRU, nn.RNN):
    add(ROWS, **{_kind.__name__.lower(): lambda kind=_kind: kind(4, 3, 2, batch_first=True, bidirectional=True)})


def attend(**settings: Any) -> Callable[[Tensor], Tensor]:
    return lambda h: F.scaled_dot_product_attention(h, h, h.sin(), **settings)


add(
    ROWS,
    attention=lambda: Function(lambda h, m: m(h, h, h), nn.MultiheadAttention(4, 2, batch_first=True)),
    attention_without_weights=lambda: Function(
        lambda h, m: m(h, h, h, need_weights=False), nn.MultiheadAttention(4, 2, batch_first=True)
    ),
    encoder=lambda: nn.TransformerEncoderLayer(4, 2, 5, 0.0, batch_first=True),
    encoder_eval=lambda: nn.TransformerEncoderLayer(4, 2, 5, batch_first=True).eval(),
    decoder=lambda: Function(lambda h, m: m(h, h), nn.TransformerDecoderLayer(4, 2, 5, 0.0, batch_first=True)),
)
functions(
    ROWS,
    sdpa=attend(),
    sdpa_causal=attend(is_causal=True),
    sdpa_bias=lambda h: F.scaled_dot_product_attention(h, h, h.sin(), attn_mask=h[:, :, :3]),
)

# --------------------------------------------------------------------------------------------------------------- losses
for _name, _loss in {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": F.smooth_l1_loss,
    "huber": F.huber_loss,
    "bce_with_logits": F.binary_cross_entropy_with_logits,
}.items():
    functions(FLAT, **{f"loss_{_name}": lambda h, f=_loss: f(h, between(h), reduction="none")})
functions(
    FLAT,
    loss_bce=lambda h: F.binary_cross_entropy(h.sigmoid(), h.cos().sigmoid(), reduction="none"),
    loss_bce_targets=lambda h: F.binary_cross_entropy_with_logits(h, h.sin(), reduction="none"),
    loss_cross_entropy=lambda h: F.cross_entropy(h, labels(h), label_smoothing=0.1) * h,
    loss_cross_entropy_soft=lambda h: F.cross_entropy(h, h.sin().softmax(1)) * h,
    loss_nll=lambda h: F.nll_loss(h.sin(), labels(h)) * h,
    loss_kl=lambda h: F.kl_div(h, h.sin().softmax(1), reduction="none"),
    loss_kl_log=lambda h: F.kl_div(h, h.sin(), reduction="none", log_target=True),
    loss_soft_margin=lambda h: F.soft_margin_loss(h, signs(h), reduction="none"),
    loss_hinge=lambda h: F.hinge_embedding_loss(h, signs(h), reduction="none"),
    loss_multi_margin=lambda h: F.multi_margin_loss(h, labels(h), p=2) * h,
    loss_multilabel_margin=lambda h: F.multilabel_margin_loss(h, torch.arange(h.numel()).view_as(h) % 12) * h,
    loss_poisson=lambda h: F.poisson_nll_loss(0.3 * h, between(h), reduction="none"),
    loss_gaussian=lambda h: F.gaussian_nll_loss(h, between(h), h.sin() ** 2 + 0.5, reduction="none"),
)
functions(
    COLUMNS,
    loss_ctc=lambda h: (
        F.ctc_loss(
            h.permute(1, 0, 2).log_softmax(2),
            torch.ones(len(h), 2, dtype=torch.long),
            torch.full((len(h),), 4),
            torch.full((len(h),), 2),
        )
        * h
    ),
)

# ---------------------------------------------------------------------------------------------------------- mathematics
functions(
    FLAT,
    pow=lambda h: (h * h + 1) ** h.sin(),
    atan2=lambda h: torch.atan2(h, h.cos()),
    erf=torch.erf,
    lgamma=lambda h: torch.lgamma(h.sigmoid() + 0.5),
    sort=lambda h: h.sort(1)[0] * h,
    gather=lambda h: h.gather(1, torch.zeros(len(h), 2, dtype=torch.long)) ** 3,
    fft=lambda h: torch.fft.rfft(h * h.sin()).abs(),
)
functions(
    ROWS,
    einsum=lambda h: torch.einsum("nij,nkj->nik", h, h.sin()),
    inverse=lambda h: torch.linalg.inv(spread(h)),
    cholesky=lambda h: torch.linalg.cholesky(spread(h)),
    eigenvalues=lambda h: torch.linalg.eigvalsh(spread(h)),
)


class Problem:
    """A layer in a model whose meta-loss is a function of a step along a random direction."""

    def __init__(self, name: str) -> None:
        shape, build = LAYERS[name]
        torch.manual_seed(0)
        self.model = Around(shape, build()).double()
        xs, xq = torch.randn(2, 1, 6, 4, dtype=torch.float64)
        ys, yq = torch.randn(2, 1, 6, 2, dtype=torch.float64)
        self.data = (xs, ys), (xq, yq)
        self.maml = mf.MAML(self.model, lr=0.02, steps=2, loss="mse", backend="torch")
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.base = [p.detach().clone() for p in self.parameters]
        self.direction = [0.1 * torch.randn_like(p) for p in self.base]

    def derivatives(self, step: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """The meta-loss L, its slope along the direction v, and the Hessian-vector product H v."""
        with torch.no_grad():
            for p, base, v in zip(self.parameters, self.base, self.direction, strict=True):
                p.copy_(base + step * v)
        loss = self.maml(*self.data).loss
        gradient = torch.autograd.grad(loss, self.parameters, create_graph=True, materialize_grads=True)
        slope = torch.stack([(g * v).sum() for g, v in zip(gradient, self.direction, strict=True)]).sum()
        product = torch.autograd.grad(slope, self.parameters, materialize_grads=True)
        return (
            loss.detach(),
            torch.cat([g.detach().flatten() for g in gradient]),
            torch.cat([*map(torch.flatten, product)]),
        )


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def central(f: Callable[[float], Tensor], h: float = 2e-5) -> Tensor:
    """f'(0) to the fourth order in h."""
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_to_the_third_order_are_those_of_central_differences(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # statistics that were never updated
        problem = Problem(name)
        _, gradient, product = problem.derivatives()
        direction = flat(problem.direction)
        at = {step: problem.derivatives(step) for step in (2e-5, -2e-5, 4e-5, -4e-5)}
    slope = central(lambda step: at[step][0])
    assert float(gradient @ direction) == pytest.approx(float(slope), rel=1e-7, abs=1e-10)
    expected = central(lambda step: at[step][1])
    assert float((product - expected).norm()) < 1e-8 * float(expected.norm())


def test_every_formula_is_exercised_above() -> None:
    used: set[Any] = set()

    class Noting(higher_order.WrittenOut):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            entry = func.overloadpacket if isinstance(func, torch._ops.OpOverload) else func
            used.add(self._entries.get(entry))
            return super().__torch_function__(func, types, args, kwargs)

    for shape, build in LAYERS.values():
        model = Around(shape, build())
        with Noting():
            model(torch.randn(6, 4))
    assert used - {None} == set(higher_order._EVERY.values())


def test_the_replacement_is_over_with_the_call_and_is_not_seen_by_other_threads() -> None:
    x, names = torch.randn(4, 6, requires_grad=True), []

    def node() -> None:
        names.append(type(F.layer_norm(x, (6,)).grad_fn).__name__)

    with higher_order.WrittenOut():
        node()
        other = threading.Thread(target=node)
        other.start()
        other.join()
    node()
    assert names[0] != "NativeLayerNormBackward0" and names[1:] == ["NativeLayerNormBackward0"] * 2
