"""The losses that have a name: their mathematics in plain torch, and how users may ask for them.

For an output o and a target y of one example (means run over the elements of the example's output, and are sums where
torch's module has ``reduction="sum"``, or ``"batchmean"`` for a divergence). Where y are classes, outputs are [N, C] or
[N, C, *positions], and the loss is that of each position:

================ ===================================================================================================
cross_entropy    -sum_c q_c log softmax(o)_c, with q = (1 - s) y + s / C for probabilities y, or y the one-hot vector
                 of a class; s is ``label_smoothing``. Terms are multiplied by the weights of the classes, if any
nll              -o_y for log-probabilities o and a class y
mse              mean (o - y)^2
l1               mean |o - y|
bce_with_logits  mean -w y log sigmoid(o) - (1 - y) log sigmoid(-o), w being ``pos_weight``, one number
bce              mean -y log o - (1 - y) log(1 - o) for probabilities o; no logarithm is below -100, as in torch
soft_margin      mean log(1 + exp(-y o)) for labels y of 1 and -1
poisson_nll      mean exp(o) - y o, or o - y log(o + eps) without ``log_input``
kl_div           mean y (log y - o) for log-probabilities o and probabilities y, or their logarithms with ``log_target``
dice             1 - (2 sum p y + smooth) / (sum p + sum y + smooth) with p = sigmoid(o); sums run over all of the
                 example's output (Drozdzal et al., 2016, "The importance of skip connections in biomedical image
                 segmentation")
huber            mean of d^2 / 2 where d = |o - y| < delta, else delta (d - delta / 2)
smooth_l1        mean of d^2 / (2 beta) where d = |o - y| < beta, else d - beta / 2
multi_margin     sum_{c != y} max(0, margin - o_y + o_c)^p / C, p = 1 or 2
================ ===================================================================================================

Each is differentiable twice, targets included where they are real numbers. torch's own multi_margin_loss is not, and
torch has no Dice loss: that is :func:`dice_loss`.
:func:`reduced` makes the loss of a task of those of its examples. Weights of classes and ``ignore_index`` count in the
divisor of a mean as in torch: sum(l) / sum(weights of the classes that are not ignored).

To add one: its formula, and an entry of ``NAMED``; csrc/formulas/losses/list.h lists the native ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafast.model.program import Loss

LossFunction = Callable[[Tensor, Tensor], Tensor]
REDUCTIONS = ("weighted_mean", "mean", "sum")
#: What torch's reductions come to: how the loss of a task is made of its examples', and theirs of their elements'.
_TORCH_REDUCTIONS: Mapping[str, Mapping[str, Any]] = {
    "mean": {}, "sum": {"reduction": "sum", "elements": "sum"}, "batchmean": {"elements": "sum"},
}  # fmt: skip


@dataclass(frozen=True)
class Named:
    """What is known of a loss that has a name.

    Attributes:
        each: the losses [N], or [N, *elements], of outputs [N, *output] and targets; settings are keywords.
        module, function: torch's forms, which call the settings by the same names. Not all have a module.
        settings: their defaults.
        classes, numbers: whether targets may be class indices [N], and real numbers [N, *output].
        vectors: outputs are [N, C] alone.
        weights: of classes, the keyword ``weight``, are known.
        valid: what must hold of the settings, in words and as a predicate.
    """

    each: Callable[..., Tensor]
    module: type[nn.Module] | None
    function: Callable[..., Tensor]
    settings: Mapping[str, float] = field(default_factory=dict)
    classes: bool = False
    numbers: bool = True
    vectors: bool = False
    weights: bool = False
    valid: Mapping[str, Callable[[Mapping[str, float]], bool]] = field(default_factory=dict)


def _cross_entropy(
    output: Tensor, target: Tensor, label_smoothing: float, ignore_index: float, weight: Tensor | None = None
) -> Tensor:
    return F.cross_entropy(
        output, target, weight, reduction="none", ignore_index=int(ignore_index), label_smoothing=label_smoothing
    )


def _nll(output: Tensor, target: Tensor, ignore_index: float, weight: Tensor | None = None) -> Tensor:
    return F.nll_loss(output, target, weight, reduction="none", ignore_index=int(ignore_index))


def _mse(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square()


def _l1(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).abs()


def _bce_with_logits(output: Tensor, target: Tensor, pos_weight: float) -> Tensor:
    return -pos_weight * target * F.logsigmoid(output) - (1 - target) * F.logsigmoid(-output)


def _bce(output: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy(output, target, reduction="none")


def _soft_margin(output: Tensor, target: Tensor) -> Tensor:
    return -F.logsigmoid(target * output)


def _poisson_nll(output: Tensor, target: Tensor, log_input: float, eps: float) -> Tensor:
    return output.exp() - target * output if log_input else output - target * (output + eps).log()


def _kl_div(output: Tensor, target: Tensor, log_target: float) -> Tensor:
    if log_target:
        return target.exp() * (target - output)
    return torch.xlogy(target, target) - target * output


def dice_loss(output: Tensor, target: Tensor, smooth: float = 1.0, reduction: str = "mean") -> Tensor:
    """1 - (2 sum p y + smooth) / (sum p + sum y + smooth) with p = sigmoid(output), of each example [N, ...]; their
    mean, their sum, or with reduction "none" all of them."""
    p, y = output.sigmoid().flatten(1), target.flatten(1)
    each = 1 - (2 * (p * y).sum(1) + smooth) / (p.sum(1) + y.sum(1) + smooth)
    return each if reduction == "none" else getattr(each, reduction)()


def _dice(output: Tensor, target: Tensor, smooth: float) -> Tensor:
    return dice_loss(output.unsqueeze(-1), target.unsqueeze(-1), smooth, "none")


def _huber(output: Tensor, target: Tensor, delta: float) -> Tensor:
    difference = output - target
    size = difference.abs()
    return torch.where(size < delta, difference.square() / 2, delta * (size - delta / 2))


def _smooth_l1(output: Tensor, target: Tensor, beta: float) -> Tensor:
    difference = output - target
    size = difference.abs()
    return torch.where(size < beta, difference.square() / (2 * beta or 1), size - beta / 2)


def _multi_margin(output: Tensor, target: Tensor, p: float, margin: float) -> Tensor:
    excess = F.relu(margin - output.gather(1, target[:, None]) + output)
    others = torch.arange(output.shape[1], device=output.device) != target[:, None]
    return torch.where(others, excess if p == 1 else excess.square(), 0).mean(1)


NAMED: dict[str, Named] = {
    "cross_entropy": Named(
        _cross_entropy, nn.CrossEntropyLoss, F.cross_entropy, {"label_smoothing": 0.0, "ignore_index": -100},
        classes=True, weights=True,
        valid={"label_smoothing from 0 to 1": lambda s: 0 <= s["label_smoothing"] <= 1},
    ),
    "nll": Named(
        _nll, nn.NLLLoss, F.nll_loss, {"ignore_index": -100}, classes=True, numbers=False, weights=True
    ),
    "mse": Named(_mse, nn.MSELoss, F.mse_loss),
    "l1": Named(_l1, nn.L1Loss, F.l1_loss),
    "bce_with_logits": Named(
        _bce_with_logits, nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits, {"pos_weight": 1.0}
    ),
    "bce": Named(_bce, nn.BCELoss, F.binary_cross_entropy),
    "soft_margin": Named(_soft_margin, nn.SoftMarginLoss, F.soft_margin_loss),
    "poisson_nll": Named(
        _poisson_nll, nn.PoissonNLLLoss, F.poisson_nll_loss, {"log_input": True, "eps": 1e-8}
    ),
    "kl_div": Named(_kl_div, nn.KLDivLoss, F.kl_div, {"log_target": False}),
    "dice": Named(
        _dice, None, dice_loss, {"smooth": 1.0}, valid={"smooth >= 0": lambda s: s["smooth"] >= 0}
    ),
    "huber": Named(
        _huber, nn.HuberLoss, F.huber_loss, {"delta": 1.0}, valid={"delta > 0": lambda s: s["delta"] > 0}
    ),
    "smooth_l1": Named(
        _smooth_l1, nn.SmoothL1Loss, F.smooth_l1_loss, {"beta": 1.0}, valid={"beta >= 0": lambda s: s["beta"] >= 0}
    ),
    "multi_margin": Named(
        _multi_margin, nn.MultiMarginLoss, F.multi_margin_loss, {"p": 1.0, "margin": 1.0},
        classes=True, numbers=False, vectors=True, valid={"p = 1 or 2": lambda s: s["p"] in (1, 2)},
    ),
}  # fmt: skip
_MODULES: dict[type, str] = {known.module: name for name, known in NAMED.items() if known.module}
_FUNCTIONS: dict[Any, str] = {known.function: name for name, known in NAMED.items()}
#: Further settings of torch's forms, and the values that mean nothing; others have no native form.
_UNUSED: Mapping[str, Any] = {"weight": None, "pos_weight": None, "ignore_index": -100, "full": False}


def per_example(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
    """The losses [N] of outputs [N, *output] against classes [N, *positions] or targets [N, *output]."""
    weight = {"weight": output.new_tensor(loss.class_weights)} if loss.class_weights else {}
    return _over_elements(loss, NAMED[loss.kind].each(output, target, **dict(loss.attributes), **weight))


def masses(loss: Loss, output: Tensor, target: Tensor) -> Tensor | None:
    """What the examples [N] count in the divisor of a mean, before their weights; None: 1 each."""
    if loss.ignored is None or target.is_floating_point():
        return None
    counted = target != loss.ignored
    if not loss.class_weights:
        return _over_elements(loss, counted.to(output.dtype))
    weight = output.new_tensor(loss.class_weights)
    return _over_elements(loss, torch.where(counted, weight[torch.where(counted, target, 0)], 0))


def _over_elements(loss: Loss, each: Tensor) -> Tensor:
    """[N, *elements] -> [N]"""
    if each.ndim == 1:
        return each
    return each.flatten(1).sum(1) if loss.elements == "sum" else each.flatten(1).mean(1)


def reduced(loss: Loss, each: Tensor, weights: Tensor | None, masses: Tensor | None = None) -> Tensor:
    """The losses [...] of tasks whose examples have the losses ``each``, the ``weights``, or 1, and the :func:`masses`,
    or 1: all [..., N]."""
    weighted = each if weights is None else weights * each
    if loss.reduction == "sum":
        return weighted.sum(-1)
    if loss.reduction == "mean" or weights is None:
        return weighted.mean(-1) if masses is None else weighted.sum(-1) / masses.sum(-1)
    return weighted.sum(-1) / (weights if masses is None else weights * masses).sum(-1)


def unweighted(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
    """The loss [] of a task without weights."""
    return reduced(loss, per_example(loss, output, target), None, masses(loss, output, target))


def resolve(loss: Any, reduction: str = "weighted_mean") -> tuple[Loss | None, LossFunction]:
    """A name, a torch.nn module, a torch.nn.functional function or any other callable, as ``(Loss, function)``.

    ``function(output, target)`` is a task's loss without weights. The Loss is None for callables that only torch can
    differentiate; :func:`why_not_native` says why.

    Raises:
        ValueError: an unknown name, a torch loss whose own reduction makes more than one number or is another one than
            ``reduction`` asks for, an unknown ``reduction``, or one other than the default for a callable whose value
            per example is not known.
    """
    known, function = _resolve(loss)
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}; it is {reduction!r}")
    if reduction == "weighted_mean":
        return known, function
    if known is None:
        raise ValueError(
            f"reduction={reduction!r} needs a loss known by name, whose value per example is defined; "
            f"{why_not_native(loss)}, which makes one number of a task's examples itself. Write the reduction into the "
            f"loss, or name one of {_known()}"
        )
    if known.reduction not in ("weighted_mean", reduction):
        raise ValueError(f"loss {known.kind} has reduction={known.reduction!r} itself; reduction is {reduction!r}")
    known = replace(known, reduction=reduction)
    return known, functools.partial(unweighted, known)


def _resolve(loss: Any) -> tuple[Loss | None, LossFunction]:
    if isinstance(loss, str):
        if loss not in NAMED:
            raise ValueError(f"loss {loss!r} is unknown; known are {_known()}, a torch.nn loss module and any function")
        return _named(loss)
    if isinstance(loss, functools.partial) and not loss.args and loss.func in _FUNCTIONS:
        name = _FUNCTIONS[loss.func]
        made = loss.keywords.get("reduction", "mean")
        _check_reduction(made, name, name == "kl_div")
        given = {key: value for key, value in loss.keywords.items() if key != "reduction"}
        return (None, loss) if _foreign(name, given, tensors=False) else _named(name, given, made)
    if isinstance(loss, nn.Module):
        made = getattr(loss, "reduction", "mean")
        _check_reduction(made, type(loss).__name__, isinstance(loss, nn.KLDivLoss))
        if type(loss) not in _MODULES or why_not_native(loss):
            return None, loss
        name = _MODULES[type(loss)]
        return _named(name, _of_module(loss), made)
    if not callable(loss):
        raise ValueError(f"loss must be one of {_known()}, a torch.nn loss module or a function; it is {loss!r}")
    return _named(_FUNCTIONS[loss]) if loss in _FUNCTIONS else (None, loss)


def why_not_native(loss: Any) -> str:
    """Why :func:`resolve` gives no Loss for it; empty if it gives one."""
    if isinstance(loss, str):
        return ""
    if isinstance(loss, nn.Module) and type(loss) in _MODULES:
        used = _foreign(_MODULES[type(loss)], _of_module(loss))
        return f"{type(loss).__name__} with {' and '.join(used)} has no native form" if used else ""
    if isinstance(loss, nn.Module):
        return f"{type(loss).__name__} has no native form"
    if isinstance(loss, functools.partial):
        name = getattr(loss.func, "__name__", repr(loss.func))
        return "" if resolve(loss)[0] else f"{name} with {', '.join(loss.keywords)} has no native form"
    return (
        ""
        if loss in _FUNCTIONS
        else f"{getattr(loss, '__name__', repr(loss))} is a function that only torch can differentiate"
    )


def _of_module(loss: nn.Module) -> dict[str, Any]:
    names = {*NAMED[_MODULES[type(loss)]].settings, *_UNUSED}
    return {name: getattr(loss, name) for name in sorted(names) if hasattr(loss, name)}


def _foreign(kind: str, given: Mapping[str, Any], tensors: bool = True) -> list[str]:
    """Those of the settings that have no native form: ``tensors`` that are wanted elsewhere, or may change unseen."""
    known = NAMED[kind]

    def fits(name: str, value: Any) -> bool:
        if value is None:
            return True
        if isinstance(value, Tensor):
            as_weights = known.weights and name == "weight" and value.ndim == 1
            as_number = name in known.settings and value.numel() == 1
            return tensors and not value.requires_grad and (as_weights or as_number)
        return name in known.settings or (name in _UNUSED and value == _UNUSED[name])

    return [name for name, value in given.items() if not fits(name, value)]


def _named(kind: str, given: Mapping[str, Any] | None = None, reduction: str = "mean") -> tuple[Loss, LossFunction]:
    given = {name: value for name, value in (given or {}).items() if value is not None}
    settings = {name: given.get(name, usual) for name, usual in NAMED[kind].settings.items()}
    for words, holds in NAMED[kind].valid.items():
        if not holds(settings):
            raise ValueError(f"{kind} needs {words}; it has {', '.join(f'{n}={v}' for n, v in settings.items())}")
    attributes = tuple((name, float(value)) for name, value in settings.items())
    weights = tuple(given["weight"].tolist()) if "weight" in given else ()
    loss = Loss(kind, attributes, class_weights=weights, **_TORCH_REDUCTIONS[reduction])
    return loss, functools.partial(unweighted, loss)


def _check_reduction(reduction: str, name: str, batchmean: bool) -> None:
    if reduction not in _TORCH_REDUCTIONS or (reduction == "batchmean" and not batchmean):
        raise ValueError(f"loss {name} has reduction={reduction!r}; expected 'mean' or 'sum', which make one number")


def _known() -> str:
    return ", ".join(map(repr, NAMED))
