"""What a module that torch runs gave back: one tensor or several, or an error somewhere inside of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from metafast.call import named
from metafast.model.builder import called
from metafast.model.program import Loss
from metafast.model.several import Several, strange


def returned(module: nn.Module, output: Any, loss: Any, examples: int, given: str) -> Several | None:
    """What ``module`` returned, if that is several tensors; raises ValueError for what no loss can take."""
    name, kind = type(module).__name__, strange(output)
    for at, tensor in ({} if kind else named("", output)).items():
        if not isinstance(tensor, Tensor) or tensor.ndim == 0 or tensor.shape[0] != examples:
            got = f"tensor of shape {list(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            kind = f"a {got}" + f" for {at}" * bool(at)
            break
        if at and not tensor.is_floating_point():
            kind = f"a tensor of {tensor.dtype} for {at}"
            break
    if kind:
        fits = "a tensor [N, *output], or a tuple, list or dict of such"
        raise ValueError(f"{name} returned {kind}; expected {fits}; {given}")
    several = None if isinstance(output, Tensor) else Several.of(output, 1)
    if several is not None and isinstance(loss, Loss):
        raise ValueError(
            f"{name} returned {several}; loss {loss.kind!r} takes one. Pass a function (outputs, targets) as the loss, "
            "which is given what the model returns"
        )
    return several


def running(module: nn.Module, error: BaseException) -> str:
    """The innermost module that was running when ``error`` was raised."""
    names = {id(m): f"{called(name)}: {type(m).__name__}" for name, m in module.named_modules() if name}
    found, frame = type(module).__name__, error.__traceback__
    while frame is not None:
        found = names.get(id(frame.tb_frame.f_locals.get("self")), found)
        frame = frame.tb_next
    return found
