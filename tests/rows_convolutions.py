"""Rows of convolutions, and of the networks that are made of little else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from models import seq
from models_of_convolutions import Causal, ConvAutoencoder, InvertedResidual, TiedDepthwise, separable
from row import C, L, Row, conv, transposed

C1, CT = nn.Conv1d, nn.ConvTranspose2d


CONVOLUTIONS = [
    conv("1x1", 1),
    conv("3x3", 3),
    conv("3x3-pad1", 3, padding=1),
    conv("3x3-same", 3, padding="same"),
    conv("3x3-valid", 3, padding="valid"),
    conv("3x3-no-bias", 3, padding=1, bias=False),
    conv("5x3-pad2x1", (5, 3), padding=(2, 1)),
    conv("1x5", (1, 5)),
    conv("2x2", 2),
    conv("4x2-pad1", (4, 2), padding=1),
    conv("3x3-stride2", 3, stride=2),
    conv("3x3-stride2-pad1", 3, stride=2, padding=1),
    conv("3x3-stride3-pad1", 3, stride=3, padding=1),
    conv("3x3-stride2x1", 3, stride=(2, 1), padding=(0, 2)),
    conv("2x2-stride3", 2, stride=3),
    conv("1x1-stride2", 1, stride=2),
    conv("1x1-pad1", 1, padding=1),
    conv("3x3-dilation2", 3, dilation=2),
    conv("3x3-dilation2x1-pad2", 3, dilation=(2, 1), padding=2),
    conv("3x3-stride2-dilation2-pad3", 3, stride=2, dilation=2, padding=3),
    conv("3x3-pad4", 3, padding=4),
    conv("whole-image", (5, 6)),
    conv("3x3-one-pixel-image", 3, padding=1, example=(2, 1, 1)),
    conv("3x3-tall", 3, padding=1, example=(2, 9, 1)),
    conv("7x7-stride2-pad3", 7, stride=2, padding=3, example=(2, 8, 7)),
    Row("conv/channels-7-9", lambda: seq(C(7, 9, 3, padding=1), nn.Tanh(), C(9, 5, 3), nn.Flatten()), (7, 4, 5)),
    Row("conv/channels-17-33", lambda: seq(C(1, 17, 3, padding=1), nn.SiLU(), C(17, 33, 3), nn.Flatten()), (1, 3, 4)),
    Row(
        "conv/stem-stride2", lambda: seq(C(3, 4, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(), L(24, 2)), (3, 5, 4)
    ),
    Row("conv/image-output", lambda: seq(C(2, 3, 3, padding=1), nn.Tanh(), C(3, 1, 3, padding=1)), (2, 4, 3)),
    Row(
        "conv/14x13",
        lambda: seq(C(1, 2, 3, padding=1), nn.Tanh(), C(2, 2, 3, stride=2), nn.Flatten(), L(72, 2)),
        (1, 14, 13),
    ),
    # Enough channels and positions in the support set for Winograd's algorithm, not in the query set.
    *(
        Row(
            f"conv/winograd-pad{pad}",
            lambda p=pad: seq(C(1, 16, 1), nn.Tanh(), C(16, 17, 3, padding=p), nn.AvgPool2d(3), nn.Flatten(), L(68, 2)),
            (1, *size),
        )
        for pad, size in [(1, (7, 8)), (0, (9, 10)), ((2, 1), (6, 8))]
    ),
    # In groups: each channel its own, several results of each, and groups of more.
    conv("groups-depthwise", 3, padding=1, groups=3, outputs=3),
    conv("groups-depthwise-stride2-same-dilation2", 3, padding=2, dilation=2, stride=2, groups=3, outputs=3),
    conv("groups-multiplier3-no-bias", (2, 3), padding=(0, 1), groups=3, outputs=9, bias=False),
    conv("groups-2-of-4", 3, stride=(2, 1), padding=1, groups=2, inputs=4, outputs=6),
    conv("groups-5-inputs-15", 1, groups=5, inputs=15, outputs=5),
    Row(
        "conv/groups-first-wide",  # on the input as it stands, more pixels than one block of a row
        lambda: seq(C(3, 3, 5, padding=2, groups=3), nn.Tanh(), nn.AvgPool2d(5), nn.Flatten(), L(9, 2)),
        (3, 5, 19),
    ),
    Row(
        "conv/groups-separable",
        lambda: seq(
            C(1, 17, 1), nn.BatchNorm2d(17), nn.SiLU(), C(17, 17, 3, padding=1, groups=17), nn.BatchNorm2d(17),
            nn.SiLU(), C(17, 4, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), L(4, 3),
        ),
        (1, 5, 6),
        "cross_entropy",
        lr_form="per_element",
    ),
    Row(  # of whole vectors, which are products of their own
        "conv/groups-2-of-32",
        lambda: seq(
            C(1, 32, 1), nn.Tanh(), C(32, 32, 3, padding=(1, 0), groups=2), nn.Tanh(),
            CT(32, 32, 2, stride=2, groups=2), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), L(128, 2),
        ),
        (1, 3, 4),
    ),
    Row("conv/groups-tied", TiedDepthwise, (3, 4, 5), adapt_params="conv.*"),
    transposed("2x2-stride2", 2, stride=2),
    transposed("3x3-stride2-pad1-more1", 3, stride=2, padding=1, output_padding=1),
    transposed("3x3-pad3-dilation2", 3, padding=3, dilation=2, bias=False),
    transposed("3x2-stride1x3-more0x2", (3, 2), stride=(1, 3), output_padding=(0, 2)),
    transposed("1x1-pad1", 1, padding=1),
    transposed("2x2-dilation3-more2", 2, stride=2, dilation=3, output_padding=2, padding=1),
    transposed("groups-3", 3, stride=2, padding=1, groups=3, outputs=6),
    Row("conv/transposed-first", lambda: seq(CT(2, 3, 2, stride=2), nn.Tanh(), C(3, 1, 3)), (2, 3, 2)),
    Row("conv/transposed-autoencoder", ConvAutoencoder, (2, 6, 7)),
    # Padded otherwise than with zeros on both sides.
    conv("reflect-3x2", (3, 2), padding=(2, 1), padding_mode="reflect"),
    conv("replicate-stride2-groups", 3, stride=2, padding=(1, 2), padding_mode="replicate", groups=3, outputs=3),
    conv("circular-same", 4, padding="same", padding_mode="circular"),
    conv("same-4x3-dilation1x2", (4, 3), padding="same", dilation=(1, 2)),
    Row(
        "conv/constant-pad",
        lambda: seq(C(2, 2, 2), nn.ConstantPad2d((1, 0, 2, -1), 0.7), C(2, 2, 2), nn.Flatten()),
        (2, 3, 3),
    ),
    Row("conv/reflect-first", lambda: seq(nn.ReflectionPad2d((1, 2, 0, 1)), C(2, 2, 3), nn.Flatten()), (2, 3, 3)),
]  # fmt: skip


def along(name: str, *layers: Callable[[], nn.Module], example: tuple[int, ...] = (2, 7), **options: Any) -> Row:
    """Layers of [N, 3, L] with smooth ones on both sides."""
    return Row(
        f"conv1d/{name}",
        lambda: seq(C1(example[0], 3, 1), nn.Tanh(), *(layer() for layer in layers), nn.Softplus(), nn.Flatten()),
        example,
        **options,
    )


#: The same along one axis.
ALONG_ONE_AXIS = [
    along("3-pad1", lambda: C1(3, 4, 3, padding=1)),
    along("2-stride2-dilation3-no-bias", lambda: C1(3, 2, 2, stride=2, dilation=3, padding=1, bias=False)),
    along("same-2-groups", lambda: C1(3, 6, 2, padding="same", groups=3)),
    along("circular", lambda: C1(3, 2, 3, padding=2, padding_mode="circular")),
    along("transposed", lambda: nn.ConvTranspose1d(3, 2, 3, stride=2, padding=1, output_padding=1)),
    along("max-pool", lambda: nn.MaxPool1d(3, stride=2, padding=1, ceil_mode=True), smooth=False),
    along("avg-pool", lambda: nn.AvgPool1d(3, stride=2, padding=1, count_include_pad=False), example=(2, 8)),
    along("adaptive-pool", lambda: nn.AdaptiveAvgPool1d(3)),
    along("adaptive-max-pool", lambda: nn.AdaptiveMaxPool1d(1), smooth=False),
    along("constant-pad", lambda: nn.ConstantPad1d((1, 2), -0.4), lambda: C1(3, 2, 3)),
    along("norm", lambda: nn.BatchNorm1d(3), shots=4, queries=3, weighted=True),
    Row("conv1d/norm-of-rows", lambda: seq(L(4, 4), nn.BatchNorm1d(3), nn.Tanh()), (3, 4), shots=4, queries=3),
    along("norm-eval", lambda: nn.BatchNorm1d(3), training=False),
    Row(
        "conv1d/classifier",
        lambda: seq(
            C1(1, 4, 5, padding=2), nn.BatchNorm1d(4), nn.ReLU(), nn.MaxPool1d(2), C1(4, 5, 3), nn.ReLU(),
            nn.AdaptiveAvgPool1d(1), nn.Flatten(), L(5, 3),
        ),
        (1, 12),
        "cross_entropy",
        smooth=False,
    ),
    Row("conv1d/causal", lambda: seq(Causal(2, 1), Causal(2, 2), C1(2, 1, 1)), (2, 6), lr_form="per_tensor"),
]  # fmt: skip


def network(name: str, *layers: Callable[[], nn.Module], head: int, example: tuple[int, ...], **options: Any) -> Row:
    def build() -> nn.Module:
        return seq(*(layer() for layer in layers), nn.AdaptiveAvgPool2d(1), nn.Flatten(), L(head, 3))

    return Row(f"network/{name}", build, example, "cross_entropy", shots=4, queries=3, **options)


NETWORKS = [
    network(
        "mobilenet",
        lambda: C(1, 3, 3, 2, padding=1, bias=False),
        lambda: separable(3, 4),
        lambda: separable(4, 5, stride=2),
        head=5,
        example=(1, 7, 8),
    ),
    network(
        "mobilenet-v2",
        lambda: C(1, 3, 3, padding=1, bias=False),
        lambda: InvertedResidual(3, 3, 1, nn.ReLU6),
        lambda: InvertedResidual(3, 4, 2, nn.ReLU6),
        head=4,
        example=(1, 5, 6),
        smooth=False,
    ),
    network(
        "vgg",
        lambda: seq(C(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(True), nn.MaxPool2d(2)),
        lambda: seq(C(3, 4, 3, padding=1), nn.ReLU(True), C(4, 4, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2)),
        head=4,
        example=(1, 8, 9),
        smooth=False,
    ),
]
