"""Normalisation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from metafast.model.builder import Builder, Place, batched
from metafast.model.layers.table import ModuleHandler, lowers, lowers_module
from metafast.model.layers.windows import image_form


@lowers(F.batch_norm)
def batch_norm(
    b: Builder,
    input: Place,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Place:
    b.rank(input, (1, 2, 3), "[N, C], [N, C, L] or [N, C, H, W]")
    input = b.rows(input) if len(input.shape) == 1 else b.image(input, image_form(input.shape))
    if not training and (running_mean is None or running_var is None):
        b.refuse("is in eval mode without running statistics, which has no native form")
    statistics = (None, None) if training else (running_mean, running_var)
    if any(t is not None and t.shape != input.shape[:1] for t in (weight, bias, *statistics)):
        b.refuse(f"has a weight, bias or statistics that do not fit the input {batched(input.shape)}")
    if any(t is not None and t.requires_grad for t in statistics):
        b.refuse("is not native with running statistics that require a gradient")
    parameters, settings = (weight, bias, *statistics), {"eps": eps, "training": training}
    return b.emit("batch_norm", (input,), b.form(input), parameters, settings, shape=input.shape)


def _batch_norm(axes: str, ranks: tuple[int, ...]) -> ModuleHandler:
    def handler(b: Builder, m: nn.BatchNorm2d, x: Place) -> Place:
        b.rank(x, ranks, axes)
        training = m.training or (m.running_mean is None and m.running_var is None)
        return batch_norm(b, x, m.running_mean, m.running_var, m.weight, m.bias, training, eps=m.eps)

    return handler


lowers_module(nn.BatchNorm1d)(_batch_norm("[N, C] or [N, C, L]", (1, 2)))
lowers_module(nn.BatchNorm2d)(_batch_norm("[N, C, H, W]", (3,)))
