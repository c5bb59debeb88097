"""Values of a rule's hyper-parameters: every form a user may give them in, as what an engine takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metafast.call import Hyper
from metafast.model.program import Parameter


@dataclass(frozen=True)
class Frame:
    """What values must fit: the steps of a call, the parameters that the inner loop moves, all names that a dict may
    hold, and the dtype and device of the model. ``declared`` is how many steps a tensor with a step axis must have;
    None where it was checked before."""

    steps: int
    declared: int | None
    adapted: Sequence[Parameter]
    known: Sequence[str]
    dtype: torch.dtype
    device: torch.device


class LearntValues(nn.Module):
    """A dict of learnt values, held under the parameters' own dotted names (``lr.0.weight`` in a state_dict)."""

    def __init__(self, values: Mapping[str, float | Tensor], dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        for name, value in values.items():
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
    """A value as a parameter to optimise; one that is a Parameter already stays the user's own."""
    if isinstance(value, nn.Parameter):
        return value
    return nn.Parameter(torch.as_tensor(value).detach().to(dtype=dtype, device=device, copy=True))


def hyper(name: str, value: Any, per_step: bool, fit: Frame) -> Hyper:
    """The values of the hyper-parameter ``name`` in any of their forms."""
    if isinstance(value, Mapping):
        return _by_name(name, value, per_step, fit)
    shape = (fit.steps, len(fit.adapted))
    if not isinstance(value, Tensor):
        if per_step and name == "lr":
            raise TypeError(f"per_step=True describes a dict of learning rates; lr is a {type(value).__name__}")
        with torch.inference_mode(False):
            return Hyper(torch.full(shape, _number(name, value), dtype=fit.dtype, device=fit.device))
    if per_step and name == "lr":
        raise TypeError(f"per_step=True describes a dict of learning rates; lr is a {type(value).__name__}")
    tensor = _tensor(name, value, fit)
    if tensor.ndim == 0:
        return Hyper(tensor.expand(shape))
    if tensor.ndim != 1:
        raise ValueError(
            f"{name} is a tensor of shape {list(value.shape)}; expected [] or [steps], or a dict from parameter name "
            "to tensor"
        )
    return Hyper(_rows(name, tensor, fit).unsqueeze(1).expand(shape))


def hypers(order: Sequence[str], value_of: Callable[[str], Any], per_step: bool, fit: Frame) -> tuple[Hyper, ...]:
    """The values of all hyper-parameters of a rule."""
    return tuple(hyper(name, value_of(name), per_step, fit) for name in order)


def _by_name(name: str, values: Mapping[str, float | Tensor], per_step: bool, fit: Frame) -> Hyper:
    unknown = [key for key in values if key not in fit.known]
    if unknown:
        raise ValueError(
            f"{name} names {unknown[0]!r}, which is no parameter of the model; it has {', '.join(fit.known)}"
        )
    columns: list[Tensor] = []
    elementwise: list[tuple[int, Tensor]] = []
    for a, parameter in enumerate(fit.adapted):
        if parameter.name not in values:
            raise ValueError(f"{name} has no entry for {parameter.name!r}, which the inner loop moves")
        where, value = f"{name}[{parameter.name!r}]", values[parameter.name]
        if isinstance(value, Tensor):
            tensor = _tensor(where, value, fit)
        else:
            with torch.inference_mode(False):
                tensor = torch.full((), _number(where, value), dtype=fit.dtype, device=fit.device)
        if per_step:
            if tensor.ndim == 0:
                raise ValueError(f"{where} has shape []; with per_step=True it needs a leading axis of steps")
            tensor = _rows(where, tensor, fit)
        inner = tuple(tensor.shape[1:] if per_step else tensor.shape)
        if inner not in ((), parameter.shape):
            lead = "steps, " if per_step else ""
            raise ValueError(
                f"{where} has shape {list(value.shape) if isinstance(value, Tensor) else []}; expected "
                f"[{lead.strip(', ')}] or [{lead}{', '.join(map(str, parameter.shape))}]"
            )
        if inner == ():
            columns.append(tensor if per_step else tensor.expand(fit.steps))
        else:
            elementwise.append((a, tensor))
            columns.append(torch.zeros((), dtype=fit.dtype, device=fit.device).expand(fit.steps))
    return Hyper(torch.stack(columns, 1), tuple(elementwise))


def _rows(name: str, value: Tensor, fit: Frame) -> Tensor:
    """The first axis of ``value`` fitted to the steps."""
    length = value.shape[0]
    if length == 0 or fit.declared not in (None, length):
        expected = f"steps={fit.declared}" if fit.declared is not None else "at least one"
        raise ValueError(
            f"{name} has shape {list(value.shape)}: {length} values along its step axis; expected {expected}"
        )
    if length >= fit.steps:
        return value[: fit.steps]
    return torch.cat([value, value[-1:].expand(fit.steps - length, *value.shape[1:])])


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a float or a tensor; it is a {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite; it is {number}")
    return number


def _tensor(name: str, value: Tensor, fit: Frame) -> Tensor:
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating; it is a tensor of {value.dtype}")
    if value.device.type == "cpu" and not math.isfinite(value.detach().sum().item()):
        finite = torch.isfinite(value.detach())  # a sum of finite values can overflow
        if not finite.all():
            raise ValueError(f"{name} must be finite; {int((~finite).sum())} of its {value.numel()} values are not")
    same = value.dtype == fit.dtype and value.device == fit.device
    return value if same else value.to(dtype=fit.dtype, device=fit.device)
