"""Warnings, each once, that point at the user's own line."""

from __future__ import annotations

import os
import sys
import warnings

import torch
from torch import nn

from metafast.model.builder import called

CANCELLING = (
    "{} nearly cancel: in some task their sum, by which reduction='weighted_mean' divides its loss, is less than a "
    "thousandth of the sum of their magnitudes. reduction='mean' divides by the number of examples instead, "
    "reduction='sum' by nothing"
)
PADDED = (
    "{} are zero for some examples of a task, as for padding, but {} normalises by the statistics of its batch, which "
    "count padded examples as well: pad no tasks, call eval(), or use a norm of each example by itself"
)
UNTRAINED = (
    "{} is in eval mode and its running statistics were never updated: it normalises by mean 0 and variance 1. Call "
    "train() for statistics of each task's own batch"
)


def warn_once(warned: set[str], message: str) -> None:
    if message not in warned:
        warned.add(message)
        warnings.warn(f"metafast: {message}", stacklevel=_users_level())


def _users_level() -> int:
    """How far up the stack the user's own line is: the first outside this package and outside torch."""
    ours = (os.path.dirname(os.path.dirname(__file__)), os.path.dirname(torch.__file__))  # the packages
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(ours):
        frame, level = frame.f_back, level + 1
    return level


def untrained_norm(model: nn.Module) -> str | None:
    """A batch norm of the model that :data:`UNTRAINED` speaks of."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.training:
            count = module.num_batches_tracked
            if module.running_mean is not None and count is not None and not count.item():
                return f"{called(name)} ({type(module).__name__})"
    return None
