"""The one table of cases: models x losses x shapes x options, each a line. The laws run over all of them.

To add a case, add a line to the table it belongs to. Everything a row leaves out has a small default, so that a line
says only what is special about it. Models are tiny on purpose: a law over the whole table must take seconds.
"""

from __future__ import annotations

from torch import nn

from models import Functional, Methods, Residual, Reused, Tied, Twice, TwoHeads, Unused, conv4, frozen, mlp, seq
from row import POINTWISE as POINTWISE
from row import C, L, Row, act, pool
from rows_attention import ATTENTION
from rows_convolutions import ALONG_ONE_AXIS, CONVOLUTIONS, NETWORKS
from rows_inputs import INPUTS
from rows_norms import NORMS
from rows_of_derivatives import DERIVATIVES
from rows_of_losses import LOSSES
from rows_of_networks import WHOLE
from rows_of_parts import PAIRS, PARTS
from rows_of_pointwise import POINTWISE_ROWS
from rows_of_traced_losses import TRACED
from rows_on_torch import FALLBACK, STATIC
from rows_recurrent import RECURRENT

# ----------------------------------------------------------------------------------------------------------- the table

LINEAR = [
    Row("linear/1x1", lambda: L(1, 1), (1,), shots=1, queries=1, tasks=1),
    Row("linear/no-bias", lambda: seq(L(3, 4, bias=False), nn.Tanh(), L(4, 2, bias=False))),
    *(
        Row(f"linear/{i}-{h}-{o}", lambda i=i, h=h, o=o: seq(L(i, h), nn.Tanh(), L(h, o)), (i,), shots=n, queries=q)
        for i, h, o, n, q in [
            (1, 40, 1, 10, 10),
            (31, 33, 3, 5, 1),
            (33, 31, 1, 1, 7),
            (8, 16, 8, 8, 16),
            (3, 65, 17, 33, 31),
        ]
    ),
    Row("linear/sequence", lambda: seq(L(3, 4), nn.Tanh(), L(4, 2)), (5, 3)),
    Row(  # by way of its inputs, transposed weights recomputed
        "linear/wide-inputs-rates",
        lambda: seq(L(96, 16), nn.Tanh(), L(16, 12), nn.Tanh(), L(12, 1)),
        (96,),
        shots=40,
        steps=3,
        lr_form="per_tensor",
        weighted=True,
    ),
    Row("linear/identity", lambda: seq(nn.Identity(), L(3, 4), nn.Identity(), nn.Tanh(), L(4, 2), nn.Identity())),
    Row("linear/only", lambda: L(3, 2), steps=3),
    Row("linear/only-one-output", lambda: L(3, 1), steps=3),
    Row("linear/one-unit", lambda: seq(L(3, 19), nn.Tanh(), L(19, 1), nn.Tanh(), L(1, 2)), shots=11),
    Row("linear/one-output-no-bias", lambda: seq(L(3, 32), nn.SiLU(), L(32, 1, bias=False))),
    Row("linear/one-output-sequence", lambda: seq(L(3, 4), nn.Tanh(), L(4, 1)), (5, 3)),
    Row("linear/one-output-rates", lambda: seq(L(3, 18), nn.Tanh(), L(18, 1)), lr_form="per_element"),
    Row("linear/one-output-frozen", lambda: seq(L(3, 9), nn.Tanh(), L(9, 1)), adapt_params="0.*"),
    Row("linear/one-output-image", lambda: seq(C(2, 3, 2), nn.Tanh(), nn.Flatten(), L(12, 1)), (2, 3, 3)),
    Row("linear/one-output-twice", TwoHeads),
    Row("linear/flatten-image", lambda: seq(nn.Flatten(), L(12, 4), nn.SiLU(), L(4, 2)), (1, 3, 4)),
    Row("linear/deep", lambda: seq(*(layer for _ in range(6) for layer in (L(4, 4), nn.Tanh()))), (4,)),
]

ACTIVATIONS = [
    act("relu", nn.ReLU, smooth=False),
    act("relu-inplace", lambda: nn.ReLU(inplace=True), smooth=False),
    act("relu-at-zero", nn.ReLU, smooth=False, zeros=True),
    act("leaky-relu", nn.LeakyReLU, smooth=False),
    act("leaky-relu-0.3", lambda: nn.LeakyReLU(0.3), smooth=False),
    # The sign of these says nothing of the sign of their input.
    act("leaky-relu-falling", lambda: nn.LeakyReLU(-0.4), smooth=False),
    act("elu-falling", lambda: nn.ELU(-0.5), smooth=False),
    act("leaky-relu-flat", lambda: nn.LeakyReLU(0.0), smooth=False),
    act("elu", nn.ELU, smooth=False),  # its second derivative jumps
    act("elu-0.5", lambda: nn.ELU(0.5), smooth=False),
    act("silu", nn.SiLU),
    act("gelu", nn.GELU),
    act("gelu-tanh", lambda: nn.GELU(approximate="tanh")),
    act("tanh", nn.Tanh),
    act("sigmoid", nn.Sigmoid),
    act("softsign", nn.Softsign, smooth=False),  # its second derivative jumps
    act("softplus", nn.Softplus),
    act("softplus-beta2", lambda: nn.Softplus(beta=2.0)),
    act("softplus-threshold", lambda: nn.Softplus(beta=3.0, threshold=0.7), smooth=False),
    act("dropout-eval", lambda: nn.Dropout(0.5), training=False),
    Row("act/relu-at-zero-no-bias", lambda: seq(L(3, 4, bias=False), nn.ReLU(), L(4, 2)), smooth=False, zeros=True),
    Row("act/leaky-at-zero", lambda: seq(L(3, 4, bias=False), nn.LeakyReLU(0.2), L(4, 2)), smooth=False, zeros=True),
    Row("act/elu-at-zero", lambda: seq(L(3, 4, bias=False), nn.ELU(1.5), L(4, 2)), smooth=False, zeros=True),
    Row("act/last", lambda: seq(L(3, 4), nn.Sigmoid())),
    Row("act/first", lambda: seq(nn.SiLU(), L(3, 2)), steps=3, static=True),
    Row("act/in-a-row", lambda: seq(L(3, 4), nn.Tanh(), nn.Softplus(), nn.GELU(), L(4, 2))),
    Row("act/in-a-row-by-output", lambda: seq(L(3, 4), nn.ReLU(), nn.Tanh(), nn.Sigmoid(), L(4, 2)), smooth=False),
]

POOLS = [
    pool("max-2", lambda: nn.MaxPool2d(2), smooth=False),
    pool("max-3-stride2", lambda: nn.MaxPool2d(3, stride=2), smooth=False),
    pool("max-3-stride1-pad1", lambda: nn.MaxPool2d(3, stride=1, padding=1), smooth=False),
    pool("max-2-ceil", lambda: nn.MaxPool2d(2, ceil_mode=True), smooth=False),
    pool("max-3-stride2-pad1-ceil", lambda: nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), smooth=False),
    pool("max-2-dilation2", lambda: nn.MaxPool2d(2, stride=1, dilation=2), smooth=False),
    pool("max-3x2-stride1x2", lambda: nn.MaxPool2d((3, 2), stride=(1, 2), padding=(1, 0)), smooth=False),
    pool("max-2-stride3", lambda: nn.MaxPool2d(2, stride=3), smooth=False),
    pool("avg-2", lambda: nn.AvgPool2d(2)),
    pool("avg-3-stride1-pad1", lambda: nn.AvgPool2d(3, stride=1, padding=1)),
    pool("avg-3-stride2-pad1-uncounted", lambda: nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)),
    pool("avg-2-ceil", lambda: nn.AvgPool2d(2, ceil_mode=True)),
    pool("avg-3-stride2-pad1-ceil", lambda: nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True)),
    pool("avg-3x2", lambda: nn.AvgPool2d((3, 2), stride=(1, 3), padding=(0, 1))),
    pool("adaptive-1", lambda: nn.AdaptiveAvgPool2d(1)),
    pool("adaptive-2x3", lambda: nn.AdaptiveAvgPool2d((2, 3))),
    pool("adaptive-5x4", lambda: nn.AdaptiveAvgPool2d((5, 4))),
    Row(
        "pool/adaptive-max",
        lambda: seq(C(2, 3, 2), nn.AdaptiveMaxPool2d((3, 1)), nn.Tanh(), nn.Flatten(), L(9, 2)),
        (2, 7, 5),
        smooth=False,
    ),
    pool("adaptive-upwards", lambda: nn.AdaptiveAvgPool2d((4, 5)), (2, 3, 3)),
    pool("adaptive-keep", lambda: nn.AdaptiveAvgPool2d((None, 2))),
    Row(
        "pool/relu-max-ties",
        lambda: seq(C(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), L(12, 2)),
        (1, 6, 6),
        smooth=False,
    ),
    Row(
        "pool/max-ties",
        lambda: seq(nn.MaxPool2d(2), nn.Flatten(), L(4, 2)),
        (1, 4, 4),
        smooth=False,
        zeros=True,
        static=True,
    ),
]

GRAPHS = [
    Row("graph/residual", lambda: seq(L(3, 4), Residual(seq(L(4, 4), nn.Tanh())), L(4, 2))),
    Row("graph/residual-of-input", lambda: seq(Residual(seq(L(3, 3), nn.Tanh())), L(3, 2))),
    Row("graph/residual-of-activation", lambda: seq(L(3, 4), Residual(nn.Tanh()), L(4, 2))),
    Row("graph/residual-then-relu", lambda: seq(L(3, 4), Residual(L(4, 4)), nn.ReLU(), L(4, 2)), smooth=False),
    Row("graph/residual-nested", lambda: seq(L(3, 4), Residual(Residual(seq(nn.Sigmoid(), L(4, 4)))), L(4, 2))),
    Row(
        "graph/residual-conv",
        lambda: seq(
            C(2, 3, 3, padding=1),
            Residual(seq(nn.BatchNorm2d(3), nn.SiLU(), C(3, 3, 3, padding=1))),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            L(3, 2),
        ),
        (2, 4, 4),
    ),
    Row("graph/reused-three-times", Reused),
    Row("graph/module-called-twice", Twice),
    Row("graph/tied", Tied, (4,)),
    Row("graph/tied-twice-adapted", Tied, (4,), adapt_params="first.*", steps=3),
    Row("graph/unused-parameter", Unused),
    Row("graph/functional", Functional, (2, 4, 4), smooth=False),
    Row("graph/methods", Methods, (2, 5, 5)),
    Row("graph/nested-modules", lambda: seq(seq(L(3, 4), seq(nn.Tanh())), seq(seq(L(4, 2))))),
    Row("graph/mlp", lambda: mlp(3, 8, 3, nn.ReLU), loss="cross_entropy", steps=3, smooth=False),
    Row("graph/sinusoid", lambda: mlp(1, 40, 1, nn.ReLU), (1,), shots=10, queries=10, steps=1, lr=0.01, smooth=False),
    Row("graph/conv4", conv4, (1, 16, 17), "cross_entropy", shots=3, queries=3, smooth=False),
    Row("graph/conv4-eval", conv4, (1, 16, 16), "cross_entropy", training=False, smooth=False),
    Row(
        "graph/conv4-strided",
        lambda: seq(
            C(1, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3), nn.Softplus(),
            C(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.Softplus(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), L(4, 3),
        ),
        (1, 7, 9),
        "cross_entropy",
    ),
]  # fmt: skip

CLASSIFIER = {"build": lambda: mlp(3, 5, 3), "loss": "cross_entropy"}
SMALL_CONV = {
    "build": lambda: seq(C(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), L(12, 3)),
    "example": (2, 4, 5),
    "loss": "cross_entropy",
}
OPTIONS = [
    *(Row(f"option/steps-{k}", **CLASSIFIER, steps=k) for k in (0, 1, 3, 7)),
    *(Row(f"option/tasks-{t}", **CLASSIFIER, tasks=t) for t in (1, 3, 5, 9)),
    *(
        Row(
            f"option/lr-{form}{'-first-order' * fo}{'-conv' * (base is SMALL_CONV)}",
            **base,
            lr_form=form,
            first_order=fo,
        )
        for base in (CLASSIFIER, SMALL_CONV)
        for form in ("scalar", "per_step", "per_tensor", "per_element")
        for fo in (False, True)
    ),
    Row("option/lr-large", **CLASSIFIER, lr=2.0, steps=3),
    Row("option/first-order-steps-0", **CLASSIFIER, steps=0, first_order=True),
    Row("option/first-order-weighted", **CLASSIFIER, first_order=True, weighted=True, steps=3),
    Row("option/head-only", **CLASSIFIER, adapt_params="4.*", static=True),
    Row("option/head-only-conv", **SMALL_CONV, adapt_params=("5.weight", "5.bias"), steps=3, static=True),
    Row("option/head-only-per-element", **CLASSIFIER, adapt_params="4.*", lr_form="per_element", static=True),
    Row("option/head-only-first-order", **SMALL_CONV, adapt_params="5.*", first_order=True, static=True),
    Row("option/body-only", **CLASSIFIER, adapt_params=lambda name: not name.startswith("4.")),
    Row("option/body-only-conv", **SMALL_CONV, adapt_params=lambda name: not name.startswith("5.")),
    Row("option/bias-only", **CLASSIFIER, adapt_params="*.bias", steps=3),
    Row("option/bias-only-per-tensor", **CLASSIFIER, adapt_params="*.bias", lr_form="per_tensor"),
    Row("option/first-layer-only", **SMALL_CONV, adapt_params="0.*"),
    Row("option/frozen-body", lambda: frozen(mlp(3, 5, 3), "0."), loss="cross_entropy", static=True),
    Row("option/frozen-middle", lambda: frozen(mlp(3, 5, 3), "2."), loss="cross_entropy", steps=3),
    Row("option/frozen-head", lambda: frozen(mlp(3, 5, 3), "4."), loss="cross_entropy"),
    Row("option/frozen-biases", lambda: frozen(mlp(3, 5, 3), "0.bias", "2.bias", "4.bias"), loss="cross_entropy"),
    Row(
        "option/frozen-and-head-only",
        lambda: frozen(mlp(3, 5, 3), "2."),
        loss="cross_entropy",
        adapt_params="4.*",
        static=True,
    ),
    Row("option/stepwise", **CLASSIFIER, stepwise=True, steps=3),
    Row("option/stepwise-weighted", **CLASSIFIER, stepwise=True, weighted=True, steps=3),
    Row("option/stepwise-regression", lambda: mlp(), stepwise=True, lr_form="per_step"),
    Row("option/stepwise-conv", **SMALL_CONV, stepwise=True, lr_form="per_element"),
    Row("option/stepwise-first-order", **SMALL_CONV, stepwise=True, first_order=True),
    Row("option/stepwise-one-step", **CLASSIFIER, stepwise=True, steps=1),
    Row("option/weighted-conv", **SMALL_CONV, weighted=True),
    Row("option/stepwise-weighted-sum", **SMALL_CONV, stepwise=True, weighted=True, reduction="sum"),
    Row("option/first-order-weighted-sum", **CLASSIFIER, first_order=True, weighted=True, reduction="sum"),
    Row("option/one-shot", **SMALL_CONV, shots=1, queries=1),
    Row("option/many-queries", **CLASSIFIER, shots=1, queries=33),
]


ROWS: list[Row] = [
    *LINEAR,
    *CONVOLUTIONS,
    *ALONG_ONE_AXIS,
    *NETWORKS,
    *WHOLE,
    *NORMS,
    *ACTIVATIONS,
    *POINTWISE_ROWS,
    *POOLS,
    *GRAPHS,
    *PARTS,
    *ATTENTION,
    *PAIRS,
    *RECURRENT,
    *INPUTS,
    *LOSSES,
    *TRACED,
    *DERIVATIVES,
    *OPTIONS,
    *STATIC,
    *FALLBACK,
]
BY_NAME = {row.name: row for row in ROWS}
assert len(BY_NAME) == len(ROWS), "two rows share a name"
