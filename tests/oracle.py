"""The truth: MAML as a plain autograd loop, one task at a time, with nothing clever in it.

Every other implementation is judged by this file, so it must be readable in a minute and share no code with what it
judges. No vmap (its second derivatives through norms are wrong), no batching, no caching; run it in float64.

    theta_0 = init,   theta_{k+1} = theta_k - lr_k * dL(theta_k; S)/dtheta,   loss = mean_t L(theta_K; Q)
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Parameters = dict[str, Tensor]
#: (inputs, targets) or (inputs, targets, weights) of one task, or of T tasks behind a leading axis
Batch = tuple[Tensor, ...]
#: one step size; one per step; or one per parameter (a scalar, or a tensor of the parameter's shape)
Rate = float | Tensor | dict[str, Tensor]
LossName = str | nn.Module | Callable[[Tensor, Tensor], Tensor]


class Unrolled(NamedTuple):
    loss: Tensor  # []
    task_loss: Tensor  # [T]
    logits: Tensor  # [T, Nq, ...]
    support_loss: Tensor  # [T, K] before each step
    adapted: Parameters  # name -> [T, *shape]


# ------------------------------------------------------------------------------------------------------ the losses


def multi_margin(output: Tensor, target: Tensor, p: int, margin: float) -> Tensor:
    """l_i = sum_{j != y_i} max(0, margin - x_iy + x_ij)^p / C, written out: torch's own has no double backward."""
    excess = (margin - output.gather(1, target[:, None]) + output).clamp(min=0) ** p
    others = F.one_hot(target, output.shape[1]) == 0
    return (excess * others).sum(1) / output.shape[1]


def dice(output: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    p = torch.sigmoid(output)
    both, all_ = (torch.stack([values.sum() for values in of]) for of in (p * target, p + target))
    return 1 - (2 * both + smooth) / (all_ + smooth)


def example_losses(loss: LossName, output: Tensor, target: Tensor) -> Tensor:
    """[N, *out] -> [N]: the loss of each example, a regression's being its mean over the output's elements, or their
    sum for torch's reductions "sum" and "batchmean"."""
    if loss == "multi_margin" or isinstance(loss, nn.MultiMarginLoss):
        return multi_margin(output, target, getattr(loss, "p", 1), getattr(loss, "margin", 1.0))
    if loss == "dice":
        return dice(output, target)
    if loss == "soft_margin":  # torch's has no derivative for the target
        each = F.softplus(-target * output)
    elif isinstance(loss, nn.BCELoss):  # torch's raises for NaN
        each = -target * output.log() - (1 - target) * (1 - output).log()
    elif isinstance(loss, str):
        each = torch_loss(loss)(output, target, reduction="none")
    else:
        single = copy.copy(loss)
        single.reduction = "none"
        if getattr(single, "weight", None) is not None:
            single.weight = single.weight.to(output)
        each = single(output, target)
    if each.dim() == 1:
        return each
    return each.flatten(1).sum(1) if summed(loss) else each.flatten(1).mean(1)


def example_counts(loss: LossName, output: Tensor, target: Tensor) -> Tensor:
    """[N]: what the examples count in the divisor of torch's mean: the mean over positions of the weights of their
    classes, of which that of the ignored class is 0."""
    ignored, weights = getattr(loss, "ignore_index", None), getattr(loss, "weight", None)
    if target.is_floating_point() or (ignored is None and weights is None):
        return output.new_ones(len(output))
    weights = output.new_ones(output.shape[1]) if weights is None else weights.to(output)
    counts = torch.tensor([0 if y == ignored else weights[y] for y in target.flatten().tolist()]).to(output)
    return counts.view(len(output), -1).mean(1)


def summed(loss: LossName) -> bool:
    return getattr(loss, "reduction", "mean") in ("sum", "batchmean")


def torch_loss(name: str) -> Callable[..., Tensor]:
    """mse -> F.mse_loss, cross_entropy -> F.cross_entropy, bce_with_logits -> F.binary_cross_entropy_with_logits"""
    if name == "dice":
        return lambda output, target, smooth=1.0: dice(output, target, smooth).mean()
    name = name.replace("bce", "binary_cross_entropy")
    return getattr(F, name, None) or getattr(F, f"{name}_loss")


def task_loss(
    loss: LossName, output: Tensor, target: Tensor, weight: Tensor | None = None, *, reduction: str = "weighted_mean"
) -> Tensor:
    if callable(loss) and not isinstance(loss, nn.Module):
        return loss(output, target)
    each, counts = example_losses(loss, output, target), example_counts(loss, output, target)
    weight = torch.ones_like(each) if weight is None else weight
    total = (weight * each).sum()
    if getattr(loss, "reduction", "mean") == "sum":
        return total
    return {"weighted_mean": total / (weight * counts).sum(), "mean": total / counts.sum(), "sum": total}[reduction]


# ------------------------------------------------------------------------- several inputs, targets and outputs


def each(x: Any, function: Callable[[Tensor], Any]) -> Any:
    """``function`` of a tensor, or of each of a tuple of them."""
    return tuple(map(function, x)) if isinstance(x, tuple) else function(x)


def at(batch: Batch, i: int) -> list[Any]:
    """The i-th task or step of everything in a batch, whose inputs may be a tuple of tensors."""
    return [each(part, lambda tensor: tensor[i]) for part in batch]


def count(batch: Batch) -> int:
    """How many tasks there are."""
    return len(batch[1][0] if isinstance(batch[1], tuple) else batch[1])


def named(name: str, x: Any) -> dict[str, Tensor]:
    """A tensor by its name, or each of a tuple of them."""
    return {f"{name}[{i}]": part for i, part in enumerate(x)} if isinstance(x, tuple) else {name: x}


def stacked(outputs: list[Any]) -> Any:
    """Of every task's outputs, one tensor or several."""
    return (
        tuple(map(torch.stack, zip(*outputs, strict=True))) if isinstance(outputs[0], tuple) else torch.stack(outputs)
    )


# -------------------------------------------------------------------------------------------------------- the model


def call(model: nn.Module, parameters: Parameters, x: Tensor) -> Tensor:
    """The model at other parameters. Buffers are copied, so that a BatchNorm in training mode cannot change them."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    # torch's fused attention has no double backward.
    with mock.patch.object(F, "embedding_bag", embedding_bag), sdpa_kernel(SDPBackend.MATH):
        return torch.func.functional_call(model, {**buffers, **parameters}, x if isinstance(x, tuple) else (x,))


def embedding_bag(input: Tensor, weight: Tensor, *rest: object) -> Tensor:
    """F.embedding_bag of bags of one size by its definition: torch's own has no double backward."""
    rows = F.embedding(input, weight)
    return rows.sum(1) if "sum" in rest else rows.mean(1)


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """F.batch_norm by its definition: torch's own third derivative, unlike its first and second, is wrong."""
    batch = torch.var_mean(x.transpose(0, 1).flatten(1), 1, correction=0)
    var, mean = batch if training else (running_var, running_mean)
    shape = (-1, *[1] * (x.dim() - 2))
    mean, var, weight, bias = (None if t is None else t.view(shape) for t in (mean, var, weight, bias))
    normal = (x - mean) / torch.sqrt(var + eps)
    return (1 if weight is None else weight) * normal + (0 if bias is None else bias)


def learnt_names(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def adapted_names(model: nn.Module, adapt_params: None | str | list[str] | Callable[[str], bool]) -> list[str]:
    names = learnt_names(model)
    if adapt_params is None:
        return names
    if isinstance(adapt_params, str):
        return [name for name in names if fnmatchcase(name, adapt_params)]
    if callable(adapt_params):
        return [name for name in names if adapt_params(name)]
    return [name for name in names if name in adapt_params]


# --------------------------------------------------------------------------------------------------- the inner loop


def rate(lr: Rate, name: str, step: int) -> float | Tensor:
    if isinstance(lr, dict):
        return lr[name]
    if isinstance(lr, Tensor) and lr.dim() == 1:
        return lr[min(step, len(lr) - 1)]
    return lr


def adapt_one(
    model: nn.Module,
    loss: LossName,
    support: Batch,
    lr: Rate,
    steps: int,
    names: list[str],
    first_order: bool,
    stepwise: bool,
    reduction: str = "weighted_mean",
) -> tuple[Parameters, list[Tensor]]:
    theta: Parameters = dict(model.named_parameters())
    losses = []
    for step in range(steps):
        x, *targets = at(support, step) if stepwise else support
        value = task_loss(loss, call(model, theta, x), *targets, reduction=reduction)
        slopes = torch.autograd.grad(
            value, [theta[name] for name in names], create_graph=not first_order, materialize_grads=True
        )
        theta = theta | {name: theta[name] - rate(lr, name, step) * g for name, g in zip(names, slopes, strict=True)}
        losses.append(value.detach())
    return theta, losses


def unroll(
    model: nn.Module,
    loss: LossName,
    support: Batch,
    query: Batch,
    *,
    lr: Rate,
    steps: int,
    adapt_params: None | str | list[str] | Callable[[str], bool] = None,
    first_order: bool = False,
    stepwise: bool = False,
    reduction: str = "weighted_mean",
) -> Unrolled:
    names = adapted_names(model, adapt_params)
    losses, logits, before, adapted = [], [], [], []
    for task in range(count(support)):
        task_support, (x, *targets) = at(support, task), at(query, task)
        theta, history = adapt_one(model, loss, task_support, lr, steps, names, first_order, stepwise, reduction)
        output = call(model, theta, x)
        losses.append(task_loss(loss, output, *targets, reduction=reduction))
        logits.append(output)
        before.append(torch.stack(history) if history else losses[-1].new_zeros(0))
        adapted.append(theta)
    return Unrolled(
        torch.stack(losses).mean(),
        torch.stack(losses),
        stacked(logits),
        torch.stack(before),
        {name: torch.stack([theta[name] for theta in adapted]) for name in names},
    )


# ------------------------------------------------------------------- gradients and Hessians at each task's parameters


def of_task(parameters: Parameters, task: int, model: nn.Module) -> Parameters:
    """Row ``task`` of parameters that are per task, and parameters that all tasks share as they are."""
    shapes = {name: parameter.dim() for name, parameter in model.named_parameters()}
    return {name: value[task] if value.dim() > shapes[name] else value for name, value in parameters.items()}


def gradient(
    model: nn.Module, loss: LossName, parameters: Parameters, batch: Batch, reduction: str = "weighted_mean"
) -> tuple[Tensor, Parameters]:
    """-> task losses [T] and their gradients, name -> [T, *shape]; differentiable."""
    losses, slopes = [], []
    for task in range(count(batch)):
        theta = of_task(parameters, task, model)
        x, *targets = at(batch, task)
        value = task_loss(loss, call(model, theta, x), *targets, reduction=reduction)
        slopes.append(torch.autograd.grad(value, list(theta.values()), create_graph=True, materialize_grads=True))
        losses.append(value)
    return torch.stack(losses), dict(zip(parameters, map(torch.stack, zip(*slopes, strict=True)), strict=True))


def hvp(
    model: nn.Module,
    loss: LossName,
    parameters: Parameters,
    batch: Batch,
    vectors: Parameters,
    reduction: str = "weighted_mean",
) -> Parameters:
    """H_t v_t for every task: name -> [T, *shape]."""
    products = []
    for task in range(count(batch)):
        theta = of_task(parameters, task, model)
        x, *targets = at(batch, task)
        value = task_loss(loss, call(model, theta, x), *targets, reduction=reduction)
        slopes = torch.autograd.grad(value, list(theta.values()), create_graph=True, materialize_grads=True)
        along = sum((slope * vectors[name][task]).sum() for name, slope in zip(theta, slopes, strict=True))
        along = along + sum(0 * value.sum() for value in theta.values())  # piecewise linear: slopes that are constants
        products.append(torch.autograd.grad(along, list(theta.values()), materialize_grads=True))
    return dict(zip(parameters, map(torch.stack, zip(*products, strict=True)), strict=True))


def predict(model: nn.Module, parameters: Parameters, x: Tensor) -> Tensor:
    return torch.stack([call(model, of_task(parameters, task, model), x[task]) for task in range(len(x))])
