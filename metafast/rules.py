"""How parameters move: the inner loop's update rules and their step sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metafast.batch import Rates
from metafast.program import Parameter

#: What the contract allows for ``lr``; see :class:`SGD`.
LearningRate = float | Tensor | Mapping[str, float | Tensor]


@dataclass(frozen=True, eq=False)
class SGD:
    """Gradient descent, the rule of MAML (Finn et al. 2017, eq. 1) and, with learnt rates, Meta-SGD (Li et al. 2017).

    For step k and parameter tensor p::

        theta_{k+1,p} = theta_{k,p} - a_{k,p} * g_{k,p},        g_k = d L(theta_k; S) / d theta

    Args:
        lr: the step size ``a``; None means the learner's ``lr``.

            * float or tensor []: the same for every step and parameter
            * tensor [steps]: one per step; a call with more steps repeats the last, one with fewer drops the rest
            * dict from parameter name to a float, a tensor [] or a tensor of the parameter's shape (Meta-SGD). It names
              every parameter that the inner loop moves; it may name others
        per_step: every tensor in the dict has a leading axis of ``steps``: [steps] or [steps, *shape] (MAML++'s
            per-layer per-step rates, Antoniou et al. 2019).
    """

    lr: LearningRate | None = None
    per_step: bool = False


class LearntRates(nn.Module):
    """A dict of learnt step sizes, held under the parameters' own dotted names (``lr.0.weight`` in a state_dict)."""

    def __init__(self, rates: Mapping[str, float | Tensor], dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        for name, value in rates.items():
            *path, last = name.split(".")
            node: nn.Module = self
            for part in path:
                if part not in node._modules:
                    node.add_module(part, nn.Module())
                node = node._modules[part]  # type: ignore[assignment]
            node.register_parameter(last, learnt(value, dtype, device))

    def as_dict(self) -> dict[str, Tensor]:
        return dict(self.named_parameters())


def learnt(value: float | Tensor, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """A step size as a parameter to optimise; one that is a Parameter already stays the user's own."""
    if isinstance(value, nn.Parameter):
        return value
    return nn.Parameter(torch.as_tensor(value).detach().to(dtype=dtype, device=device, copy=True))


def rates(
    lr: Any,
    per_step: bool,
    steps: int,
    declared: int | None,
    adapted: Sequence[Parameter],
    known: Sequence[str],
    dtype: torch.dtype,
    device: torch.device,
) -> Rates:
    """``lr`` in any of its forms as the engine's Rates for ``steps`` steps.

    ``declared`` is how many steps a per-step tensor must cover; None where it was checked before. ``known`` are the
    names that a dict may use.
    """
    shape = (steps, len(adapted))
    if isinstance(lr, Mapping):
        return _by_name(lr, per_step, steps, declared, adapted, known, dtype, device)
    if per_step:
        raise TypeError(f"per_step=True describes a dict of learning rates; lr is a {type(lr).__name__}")
    if not isinstance(lr, Tensor):
        with torch.inference_mode(False):
            return Rates(torch.full(shape, _number("lr", lr), dtype=dtype, device=device))
    value = _tensor("lr", lr, dtype, device)
    if value.ndim == 0:
        return Rates(value.expand(shape))
    if value.ndim != 1:
        raise ValueError(
            f"lr is a tensor of shape {list(lr.shape)}; expected [] or [steps], or a dict from parameter name to tensor"
        )
    return Rates(_rows("lr", value, steps, declared).unsqueeze(1).expand(shape))


def _by_name(
    lr: Mapping[str, float | Tensor],
    per_step: bool,
    steps: int,
    declared: int | None,
    adapted: Sequence[Parameter],
    known: Sequence[str],
    dtype: torch.dtype,
    device: torch.device,
) -> Rates:
    unknown = [name for name in lr if name not in known]
    if unknown:
        raise ValueError(f"lr names {unknown[0]!r}, which is no parameter of the model; it has {', '.join(known)}")
    columns: list[Tensor] = []
    elementwise: list[tuple[int, Tensor]] = []
    for a, parameter in enumerate(adapted):
        if parameter.name not in lr:
            raise ValueError(f"lr has no entry for {parameter.name!r}, which the inner loop moves")
        name, value = f"lr[{parameter.name!r}]", lr[parameter.name]
        if isinstance(value, Tensor):
            tensor = _tensor(name, value, dtype, device)
        else:
            with torch.inference_mode(False):
                tensor = torch.full((), _number(name, value), dtype=dtype, device=device)
        if per_step:
            if tensor.ndim == 0:
                raise ValueError(f"{name} has shape []; with per_step=True it needs a leading axis of steps")
            tensor = _rows(name, tensor, steps, declared)
        inner = tuple(tensor.shape[1:] if per_step else tensor.shape)
        if inner not in ((), parameter.shape):
            lead = "steps, " if per_step else ""
            raise ValueError(
                f"{name} has shape {list(value.shape) if isinstance(value, Tensor) else []}; expected "
                f"[{lead.strip(', ')}] or [{lead}{', '.join(map(str, parameter.shape))}]"
            )
        if inner == ():
            columns.append(tensor if per_step else tensor.expand(steps))
        else:
            elementwise.append((a, tensor))
            columns.append(torch.zeros((), dtype=dtype, device=device).expand(steps))
    return Rates(torch.stack(columns, 1), tuple(elementwise))


def _rows(name: str, value: Tensor, steps: int, declared: int | None) -> Tensor:
    """The first axis of ``value`` fitted to ``steps``."""
    length = value.shape[0]
    if length == 0 or declared not in (None, length):
        expected = f"steps={declared}" if declared is not None else "at least one"
        raise ValueError(
            f"{name} has shape {list(value.shape)}: {length} values along its step axis; expected {expected}"
        )
    if length >= steps:
        return value[:steps]
    return torch.cat([value, value[-1:].expand(steps - length, *value.shape[1:])])


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a float or a tensor; it is a {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite; it is {number}")
    return number


def _tensor(name: str, value: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating; it is a tensor of {value.dtype}")
    if value.device.type == "cpu" and not math.isfinite(value.detach().sum().item()):
        finite = torch.isfinite(value.detach())  # a sum of finite values can overflow
        if not finite.all():
            raise ValueError(f"{name} must be finite; {int((~finite).sum())} of its {value.numel()} values are not")
    return value if value.dtype == dtype and value.device == device else value.to(dtype=dtype, device=device)
