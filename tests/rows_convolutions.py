"""Rows of convolutions, and of the networks that are made of little else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import seq
from row import C, L, Row, conv, transposed

CT = nn.ConvTranspose2d


class TiedDepthwise(nn.Module):
    """A depthwise convolution called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = C(3, 3, 3, padding=1, groups=3), L(60, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(torch.tanh(self.conv(x)))).flatten(1))  # type: ignore[no-any-return]


class ConvAutoencoder(nn.Module):
    """A decoder that is the encoder's transpose: one weight of a convolution and of a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = C(2, 5, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.encoder(x))
        return F.conv_transpose2d(code, self.encoder.weight, stride=2, padding=1, output_padding=(1, 0))


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
]  # fmt: skip
