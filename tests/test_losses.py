"""Losses: torch's values, two derivatives of everything that is a real number, and the ways to ask for one."""

from __future__ import annotations

import functools
import math
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metafast as mf
from metafast import _native, losses
from metafast.model.program import Loss
from oracle import torch_loss


def outputs(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2


def classes(n: int, c: int) -> Tensor:
    return torch.arange(n) * 7 % c


def cross_entropy(smoothing: float) -> Loss:
    return Loss("cross_entropy", (("label_smoothing", smoothing), ("ignore_index", -100.0)))


Case = tuple[Any, Loss, tuple[int, ...], Tensor]
#: how a user asks for it, the Loss, the shape of the output, the target
CASES: dict[str, Case] = {
    "cross_entropy": ("cross_entropy", cross_entropy(0.0), (6, 4), classes(6, 4)),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.2), cross_entropy(0.2), (6, 4),
                 classes(6, 4)),
    "probabilities": (F.cross_entropy, cross_entropy(0.0), (6, 4),
                      outputs(6, 4).softmax(1)),
    "probabilities, smoothed": (functools.partial(F.cross_entropy, label_smoothing=0.1),
                                cross_entropy(0.1), (6, 4), outputs(6, 4).softmax(1)),
    "mse": (nn.MSELoss(), Loss("mse"), (5, 2, 3), outputs(5, 2, 3) + 0.3),
    "mse of scalars": (F.mse_loss, Loss("mse"), (5,), outputs(5) + 0.3),
    "bce": (nn.BCEWithLogitsLoss(), Loss("bce_with_logits", (("pos_weight", 1.0),)), (5, 3), outputs(5, 3).sigmoid()),
    "bce, far out": ("bce_with_logits", Loss("bce_with_logits", (("pos_weight", 1.0),)), (4,),
                     torch.tensor([0.0, 1, 0.5, 1]).double()),
    "huber": (nn.HuberLoss(delta=0.7), Loss("huber", (("delta", 0.7),)), (5, 3), outputs(5, 3).flip(0)),
    "huber by name": ("huber", Loss("huber", (("delta", 1.0),)), (5, 3), outputs(5, 3).flip(0)),
    "nll": (F.nll_loss, Loss("nll", (("ignore_index", -100.0),)), (6, 4), classes(6, 4)),
    "l1": (nn.L1Loss(), Loss("l1"), (5, 3), outputs(5, 3) + 0.3),
    "bce of probabilities": (F.binary_cross_entropy, Loss("bce"), (5, 3), outputs(5, 3).sigmoid()),
    "soft_margin": ("soft_margin", Loss("soft_margin"), (5, 3), outputs(5, 3).sign()),
    "poisson_nll": (F.poisson_nll_loss, Loss("poisson_nll", (("log_input", 1.0), ("eps", 1e-8))), (5, 3),
                    outputs(5, 3).abs()),
    "poisson_nll of rates": (functools.partial(F.poisson_nll_loss, log_input=False, eps=0.5),
                             Loss("poisson_nll", (("log_input", 0.0), ("eps", 0.5))), (5, 3), outputs(5, 3).abs()),
    "kl_div": (F.kl_div, Loss("kl_div", (("log_target", 0.0),)), (5, 3), outputs(5, 3).softmax(1)),
    "kl_div, logarithms": (nn.KLDivLoss(reduction="mean", log_target=True), Loss("kl_div", (("log_target", 1.0),)),
                           (5, 3), outputs(5, 3).log_softmax(1)),
    "dice": ("dice", Loss("dice", (("smooth", 1.0),)), (5, 3), outputs(5, 3).sigmoid()),
    "dice of scalars": (functools.partial(losses.dice_loss, smooth=0.2), Loss("dice", (("smooth", 0.2),)), (5,),
                        outputs(5).sigmoid()),
    "multi_margin": (F.multi_margin_loss, Loss("multi_margin", (("p", 1.0), ("margin", 1.0))), (6, 4), classes(6, 4)),
    "multi_margin, squared": (nn.MultiMarginLoss(p=2, margin=0.8), Loss("multi_margin", (("p", 2.0), ("margin", 0.8))),
                              (6, 4), classes(6, 4)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_value_and_two_derivatives(case: Case) -> None:
    asked, loss, shape, target = case
    known, function = losses.resolve(asked)
    assert known == loss
    assert losses.why_not_native(asked) == ""
    torchs = torch_loss(loss.kind)
    output = outputs(*shape)
    if loss.kind == "bce" or ("log_input", 0.0) in loss.attributes:
        output = output.sigmoid()
    settings = {
        key: int(value) if key in ("p", "ignore_index") else bool(value) if key.startswith("log_") else value
        for key, value in loss.attributes
        if key != "pos_weight"
    }
    each = losses.per_example(loss, output, target)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "reduction: 'mean' divides the total loss by both")  # F.kl_div
        of_each = [torchs(o[None], t[None], **settings) for o, t in zip(output, target, strict=True)]
        of_all = torchs(output, target, **settings)
    torch.testing.assert_close(each, torch.stack(of_each), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(function(output, target), of_all, rtol=1e-13, atol=1e-15)
    inputs = [t.clone().requires_grad_() for t in (output, target) if t.is_floating_point()]
    fixed = [] if len(inputs) == 2 else [target]

    def run(*tensors: Tensor) -> Tensor:
        return losses.per_example(loss, *tensors, *fixed)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_both_lists_say_the_same() -> None:
    """metafast/losses.py and csrc/formulas/losses/list.h."""
    assert _native.losses() == {
        name: (dict(known.settings), known.classes, known.numbers) for name, known in losses.NAMED.items()
    }


@pytest.mark.parametrize("name", losses.NAMED)
def test_the_forms_of_torch_have_these_settings_with_these_defaults(name: str) -> None:
    known = losses.NAMED[name]
    assert losses.resolve(known.function)[0] == losses.resolve(name)[0]
    if known.module is not None:
        module = known.module()
        assert {key: getattr(module, key) for key in known.settings if key != "pos_weight"} == {
            key: value for key, value in known.settings.items() if key != "pos_weight"
        }
        assert known.function is torch_loss(name)
        assert losses.resolve(module)[0] == losses.resolve(name)[0]


@pytest.mark.parametrize(
    ("loss", "reduction", "elements"),
    [
        (nn.MSELoss(reduction="sum"), "sum", "sum"),
        (functools.partial(F.l1_loss, reduction="sum"), "sum", "sum"),
        (nn.KLDivLoss(reduction="batchmean"), "weighted_mean", "sum"),
        (nn.HuberLoss(), "weighted_mean", "mean"),
    ],
)
def test_reductions_of_torch(loss: Any, reduction: str, elements: str) -> None:
    known, function = losses.resolve(loss)
    assert known is not None and (known.reduction, known.elements) == (reduction, elements)
    output, target = outputs(4, 2, 3), outputs(4, 2, 3).flip(0).softmax(1)
    torch.testing.assert_close(function(output, target), loss(output, target), rtol=1e-13, atol=1e-13)
    if reduction == "sum":
        with pytest.raises(ValueError, match="has reduction='sum' itself; reduction is 'mean'"):
            losses.resolve(loss, "mean")


WEIGHT = torch.tensor([0.5, 2.0, 1.25, 0.0], dtype=torch.float64)
OF_CLASSES: dict[str, nn.Module] = {
    "weight": nn.CrossEntropyLoss(WEIGHT),
    "weight, smoothed": nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.3),
    "ignored": nn.CrossEntropyLoss(ignore_index=2, label_smoothing=0.3),
    "weight, ignored": nn.CrossEntropyLoss(WEIGHT, ignore_index=-1),
    "weight, ignored, sum": nn.CrossEntropyLoss(WEIGHT, ignore_index=1, reduction="sum"),
    "nll": nn.NLLLoss(WEIGHT, ignore_index=0),
    "nll, sum": nn.NLLLoss(WEIGHT, reduction="sum"),
}


@pytest.mark.parametrize("shape", [(7, 4), (5, 4, 3), (3, 4, 2, 5)], ids=str)
@pytest.mark.parametrize("module", OF_CLASSES.values(), ids=OF_CLASSES)
def test_losses_of_classes_count_as_torch_does(module: nn.Module, shape: tuple[int, ...]) -> None:
    """Of all examples and positions together."""
    known, function = losses.resolve(module)
    assert known is not None
    labels = shape[:1] + shape[2:]
    output, target = outputs(*shape), torch.arange(math.prod(labels)).view(labels) * 7 % 4
    if module.ignore_index < 0:
        target[0] = module.ignore_index
    torch.testing.assert_close(function(output, target), module(output, target), rtol=1e-13, atol=1e-13)
    if isinstance(module, nn.CrossEntropyLoss) and module.ignore_index < 0:
        target = outputs(*shape).softmax(1)
        torch.testing.assert_close(function(output, target), module(output, target), rtol=1e-13, atol=1e-13)


def test_weight_of_positive_targets() -> None:
    module = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.5, dtype=torch.float64))
    known, function = losses.resolve(module)
    assert known is not None and dict(known.attributes) == {"pos_weight": 2.5}
    output, target = outputs(5, 3), outputs(5, 3).sigmoid()
    torch.testing.assert_close(function(output, target), module(output, target), rtol=1e-13, atol=0)


def test_changed_weights_of_classes_are_seen() -> None:
    torch.manual_seed(0)
    model, loss = nn.Linear(3, 3).double(), nn.CrossEntropyLoss(torch.ones(3, dtype=torch.float64))
    maml = mf.MAML(model, lr=0.1, steps=1, loss=loss, backend="native")
    batch = torch.randn(2, 5, 3).double(), torch.arange(10).view(2, 5) % 3
    first = [maml(batch, batch).loss.item() for _ in range(3)][-1]
    loss.weight[1] = 4.0
    fresh = mf.MAML(model, lr=0.1, steps=1, loss=nn.CrossEntropyLoss(loss.weight.clone()), backend="torch")
    again = maml(batch, batch).loss.item()
    assert again != first and again == pytest.approx(fresh(batch, batch).loss.item(), rel=1e-12)


def test_ignored_labels_need_not_be_classes() -> None:
    model = nn.Linear(3, 3).double()
    x, y = torch.randn(2, 5, 3).double(), torch.arange(10).view(2, 5) % 3
    y[:, 1] = -100
    for backend in ("native", "torch"):
        maml = mf.MAML(model, lr=0.1, steps=1, loss="cross_entropy", backend=backend)
        for _ in range(3):
            kept = maml((x[:, [0, 2, 3, 4]], y[:, [0, 2, 3, 4]]), (x, y)).loss.item()
            assert maml((x, y), (x, y)).loss.item() == pytest.approx(kept, rel=1e-12)
        with pytest.raises(ValueError, match="holds label -1; expected classes 0 to 2"):
            maml((x, y), (x, y.clamp(min=-1)))


def test_bce_keeps_its_precision_far_out() -> None:
    x = torch.tensor([40.0, -40.0, 800.0], dtype=torch.float64)
    each = losses.per_example(
        Loss("bce_with_logits", (("pos_weight", 1.0),)), x, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    )
    tail = torch.log1p(torch.exp(torch.tensor(-40.0, dtype=torch.float64)))
    torch.testing.assert_close(each, torch.stack([tail, tail, x[2]]), rtol=1e-12, atol=0)


def test_what_is_returned_can_be_pickled() -> None:
    _, function = losses.resolve("huber")
    x, y = outputs(4, 2), outputs(4, 2).flip(0)
    assert torch.equal(pickle.loads(pickle.dumps(function))(x, y), function(x, y))


def own(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).abs().mean()


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (own, "own is a function that only torch can differentiate"),
        (F.multilabel_soft_margin_loss, "multilabel_soft_margin_loss is a function"),
        (nn.MultiLabelMarginLoss(), "MultiLabelMarginLoss has no native form"),
        (nn.PoissonNLLLoss(full=True), "PoissonNLLLoss with full"),
        (functools.partial(F.nll_loss, weight=torch.ones(3)), "nll_loss with weight"),
        (nn.CrossEntropyLoss(weight=torch.ones(3, requires_grad=True)), "CrossEntropyLoss with weight"),
        (nn.BCELoss(weight=torch.ones(3)), "BCELoss with weight"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)), "BCEWithLogitsLoss with pos_weight"),
        (nn.MultiMarginLoss(weight=torch.ones(3)), "MultiMarginLoss with weight"),
        (functools.partial(F.cross_entropy, weight=torch.ones(3)), "cross_entropy with weight"),
        (type("Mine", (nn.MSELoss,), {})(), "Mine has no native form"),
    ],
)
def test_others_stay_what_they_are(loss: Any, reason: str) -> None:
    assert losses.resolve(loss) == (None, loss)
    assert reason in losses.why_not_native(loss)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("hinge", "'hinge' is unknown; known are 'cross_entropy', 'nll', 'mse', "),
        (3, "it is 3"),
        (None, "it is None"),
        (nn.L1Loss(reduction="none"), "L1Loss has reduction='none'; expected 'mean' or 'sum'"),
        (nn.MSELoss(reduction="batchmean"), "MSELoss has reduction='batchmean'"),
        (functools.partial(F.mse_loss, reduction="none"), "mse has reduction='none'"),
        (functools.partial(F.multi_margin_loss, p=3), "multi_margin needs p = 1 or 2; it has p=3"),
        (nn.HuberLoss(delta=0.0), "huber needs delta > 0; it has delta=0.0"),
        (nn.CrossEntropyLoss(label_smoothing=1.5), "needs label_smoothing from 0 to 1; it has label_smoothing=1.5"),
    ],
)
def test_errors(loss: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        losses.resolve(loss)
