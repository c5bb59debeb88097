"""Rows of whole networks and of models that people adapt, narrow, but of the structure that is published."""

from __future__ import annotations

from torch import nn

from models import mlp, seq
from models_of_images import ResNet12, SearchCell, UNet, convnet, densenet, wide_resnet
from models_of_users import (
    DeepSets,
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
from row import Row

IMAGES = [
    Row(
        "network/resnet-12",
        lambda: ResNet12((1, 2, 2, 3), 1, 3),
        (1, 16, 16),
        "cross_entropy",
        shots=3,
        steps=1,
        smooth=False,
    ),
    Row(
        "network/resnet-12-excited",
        lambda: ResNet12((2, 2, 2, 2), 1, 3, reduction=2),
        (1, 16, 17),
        "cross_entropy",
        shots=3,
        steps=1,
        smooth=False,
    ),
    Row(
        "network/wrn-10",
        lambda: wide_resnet(10, 1, 2, 1, 3),
        (1, 8, 8),
        "cross_entropy",
        shots=4,
        steps=1,
        smooth=False,
    ),
    Row("network/convnet-3", lambda: convnet(3, 8, 1, 3, 3), (1, 8, 8), "cross_entropy", smooth=False),
    Row(
        "network/densenet-bc",
        lambda: densenet(1, (2, 2), 2, 2, 1, 3),
        (1, 4, 4),
        "cross_entropy",
        shots=4,
        queries=3,
        steps=1,
        smooth=False,
    ),
    Row(
        "network/darts-cell",
        lambda: SearchCell(2, 2, 1),
        (1, 4, 4),
        "cross_entropy",
        adapt_params="[!a]*",
        shots=4,
        queries=3,
        steps=1,
        smooth=False,
    ),
    Row(
        "network/u-net-pixels",
        lambda: UNet((2, 3), 1),
        (1, 4, 6),
        nn.CrossEntropyLoss(ignore_index=1),
        shots=2,
        steps=1,
        smooth=False,
    ),
    Row(
        "network/u-net-cross-entropy-and-dice",
        lambda: UNet((2, 2), 1),
        (1, 4, 4),
        cross_entropy_and_dice,
        soft=True,
        steps=1,
        smooth=False,
    ),
]

USERS = [
    # Sines of 30 times something, one in another, multiply what is rounded as kinks do.
    Row("network/siren", lambda: Siren(5, 1), (2,), lr=1e-4, smooth=False),
    Row(
        "network/siren-latent-adapted",
        lambda: ModulatedSiren(5, 1, 4),
        (2,),
        lr=1e-4,
        adapt_params="latent",
        steps=3,
        lr_form="per_element",
        smooth=False,
        static=True,
    ),
    Row("network/deep-sets", lambda: DeepSets(2, 3, 2), (4, 2), smooth=False),
    Row(
        "network/neural-process",
        lambda: NeuralProcess(4),
        loss=gaussian_nll,
        smooth=False,
        inputs=(((3, 1), 0), ((3, 1), 0), ((2, 1), 0)),
    ),
    Row(
        "network/transformer-classifier",
        lambda: TransformerClassifier(6, 4, 4, 2, 6, 1, 3),
        (4,),
        "cross_entropy",
        vocabulary=6,
    ),
    Row(
        "network/tagger",
        lambda: Tagger(6, 4, 3),
        loss=nn.CrossEntropyLoss(ignore_index=2),
        inputs=(((4,), 6), ((4,), 2)),
        smooth=False,
    ),
    Row(
        "network/gru-classifier",
        lambda: RecurrentClassifier(nn.GRU, 6, 3, 2, 3),
        (4,),
        "cross_entropy",
        vocabulary=6,
        steps=1,
    ),
    Row(
        "network/lstm-classifier",
        lambda: RecurrentClassifier(nn.LSTM, 6, 2, 2, 3),
        (3,),
        "cross_entropy",
        vocabulary=6,
        steps=1,
    ),
    Row(
        "network/text-cnn",
        lambda: TextCNN(7, 3, 2, (2, 3), 3),
        (5,),
        "cross_entropy",
        vocabulary=7,
        training=False,
        smooth=False,
    ),
    Row("network/log-softmax", lambda: seq(mlp(outputs=3), nn.LogSoftmax(dim=1)), loss=nn.NLLLoss()),
    Row("network/policy-gradient", lambda: Policy(3, 4, 2), loss=policy_gradient, lr_form="per_step"),
    Row("network/clipped-surrogate", lambda: Policy(3, 4, 2), loss=clipped_surrogate, smooth=False),
]

WHOLE = [*IMAGES, *USERS]
