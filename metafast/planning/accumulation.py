"""What autograd does with gradients at the end of a backward, for parameters where it does no more than add them up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

#: Leaves, and the place of each one's gradient among those that an engine returns.
Receivers = Sequence[tuple[int, Tensor]]


def cotangent(given: Any) -> Tensor | None:
    """``given`` as the gradient of something for the loss, by which all gradients are scaled; None stands for 1."""
    if given is None:
        return None
    if not isinstance(given, Tensor) or not given.is_floating_point():
        raise TypeError(f"gradient must be a torch.Tensor of floating-point numbers or None; it is {given!r}")
    if given.dim() != 0:
        raise ValueError(f"gradient has shape {list(given.shape)}; expected [], that of the loss")
    return given.detach()


def is_plain(receivers: Receivers) -> bool:
    """Whether there is something to add to, and no more is to be done: no hook of the user's, no other layout."""
    for _, tensor in receivers:
        if tensor._backward_hooks or tensor._post_accumulate_grad_hooks or not tensor.is_contiguous():
            return False
    return bool(receivers)


def any_requires_grad(tensors: Iterable[Any]) -> bool:
    return any(isinstance(t, Tensor) and t.requires_grad for t in tensors)


def accumulate(receivers: Receivers, made: Sequence[Tensor], scale: Tensor | None) -> None:
    """Add what an engine has ``made``, times ``scale``, to ``.grad``; what was made is no longer the caller's."""
    if scale is not None:
        torch._foreach_mul_([*made], scale.to(made[0]))
    old: list[Tensor] = []
    new: list[Tensor] = []
    for place, tensor in receivers:
        grad = tensor.grad
        if grad is None:
            tensor.grad = made[place]
        else:
            old.append(grad)
            new.append(made[place])
    if old:
        with torch.no_grad():
            torch._foreach_add_(old, new)
