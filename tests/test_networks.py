"""The networks and models that people adapt have a native form: those of the rows, narrow, and in their full size."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import metafast as mf
from judge import Case
from models_attention import Autoencoder
from models_of_convolutions import ConvAutoencoder
from models_of_images import ResNet12, SearchCell, UNet, convnet, densenet, vgg, wide_resnet
from models_of_users import (
    DeepSets,
    ImageFilm,
    ModulatedSiren,
    NeuralProcess,
    Policy,
    RecurrentClassifier,
    Siren,
    Tagger,
    TextCNN,
    TransformerClassifier,
    clipped_surrogate,
    cross_entropy_and_dice,
    gaussian_nll,
    policy_gradient,
)
from rows import BY_NAME

#: Rows of what the other files of rows hold.
ELSEWHERE = (
    "conv/groups-separable",
    "conv/transposed-autoencoder",
    "matmul/tied-autoencoder",
    "attention/transformer",
    "recurrent/rnn",
    "recurrent/gru",
    "recurrent/lstm",
    "inputs/text-cnn",
    "inputs/two-towers",
    "inputs/masked-tokens",
    "parts/context-alone-adapted",
    "parts/dense-block",
    "pairs/film-context-alone-adapted",
    "pairs/squeeze-and-excitation",
    "pairs/mixture",
    "loss/cross-entropy-tokens",
)


@pytest.mark.parametrize("name", [name for name in BY_NAME if name.startswith("network/") or name in ELSEWHERE])
def test_each_is_native_narrow(name: str) -> None:
    row = BY_NAME[name]
    problem = Case(row, torch.float64, "cpu", "native").problem()
    told = mf.explain(problem.model, problem.support[0], row.loss, row.adapt_params)
    assert told.native, told.reason


def mobilenet() -> nn.Module:
    """The whole network of the example of transfer."""
    path = Path(__file__).parents[1] / "examples" / "transfer_mobilenet.py"
    spec = importlib.util.spec_from_file_location("transfer_mobilenet", path)
    assert spec is not None and spec.loader is not None
    example: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example.MobileNetV2(5)  # type: ignore[no-any-return]


IMAGE, SMALL = (2, 5, 3, 84, 84), (2, 5, 3, 32, 32)
IDS = torch.zeros(2, 5, 64, dtype=torch.int64)
VGG11 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")
POINTS = ((2, 5, 10, 1), (2, 5, 10, 1), (2, 5, 100, 1))
MASK = torch.ones(2, 5, 64, dtype=torch.bool)

#: Builders of the published sizes, inputs, losses and what is adapted.
FULL: dict[str, tuple[Callable[[], nn.Module], Any, Any, Any]] = {
    "ResNet-12": (lambda: ResNet12((64, 160, 320, 640)), IMAGE, "cross_entropy", None),
    "ResNet-12, excited": (lambda: ResNet12((64, 160, 320, 640), reduction=16), IMAGE, "cross_entropy", None),
    "WRN-28-10": (lambda: wide_resnet(28, 10), IMAGE, "cross_entropy", None),
    "VGG-11": (lambda: vgg(VGG11, 4096, 7).eval(), IMAGE, "cross_entropy", None),
    "MobileNetV2": (mobilenet, (2, 5, 3, 96, 96), "cross_entropy", "classifier.*"),
    "DenseNet-40": (lambda: densenet(12, (12, 12, 12), 16, 0), SMALL, "cross_entropy", None),
    "DenseNet-BC": (lambda: densenet(12, (6, 6), 24, 4), (2, 5, 3, 16, 16), "cross_entropy", None),
    "ConvNet-3": (lambda: convnet(128, 32), SMALL, "cross_entropy", None),
    "DARTS": (lambda: SearchCell(16, 4), SMALL, "cross_entropy", "[!a]*"),
    "U-Net": (lambda: UNet((32, 64, 128, 256)), (2, 5, 3, 32, 32), cross_entropy_and_dice, None),
    "SIREN": (lambda: Siren(256, 3), (2, 1024, 2), "mse", None),
    "functa": (lambda: ModulatedSiren(256, 10, 64), (2, 1024, 2), "mse", "latent"),
    "FiLM": (lambda: ImageFilm(64, 16, 5), (2, 5, 1, 28, 28), "cross_entropy", "context"),
    "DeepSets": (lambda: DeepSets(3, 256, 40), (2, 5, 100, 3), "cross_entropy", None),
    "neural process": (lambda: NeuralProcess(128), POINTS, gaussian_nll, None),
    "transformer": (lambda: TransformerClassifier(1000, 64, 64, 4, 256, 2, 5), IDS, "cross_entropy", None),
    "tagger": (lambda: Tagger(1000, 64, 9), (IDS, MASK), nn.CrossEntropyLoss(ignore_index=0), None),
    "GRU": (lambda: RecurrentClassifier(nn.GRU, 1000, 64, 128, 5), IDS[..., :8], "cross_entropy", None),
    "LSTM": (lambda: RecurrentClassifier(nn.LSTM, 1000, 64, 128, 5), IDS[..., :8], "cross_entropy", None),
    "text CNN": (lambda: TextCNN(1000, 300, 100, (3, 4, 5), 2), IDS, "cross_entropy", None),
    "autoencoder": (Autoencoder, (2, 5, 5), "mse", None),
    "convolutional autoencoder": (ConvAutoencoder, (2, 5, 2, 32, 31), "mse", None),
    "policy": (lambda: Policy(2, 100, 2), (2, 200, 2), policy_gradient, None),
    "clipped policy": (lambda: Policy(2, 100, 2), (2, 200, 2), clipped_surrogate, None),
}


def test_each_is_native_in_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    for draw in ("kaiming_uniform_", "uniform_"):  # takes longer than all the rest
        monkeypatch.setattr(nn.init, draw, lambda tensor, *args, **keywords: tensor)
    for name, (build, inputs, loss, adapted) in FULL.items():
        told = mf.explain(build(), inputs, loss, adapted)
        assert told.native, f"{name}: {told.reason}"
