"""Plain training of a network on one task, by any torch optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from metafast import arguments, losses
from metafast.tasks.episode import TRAIN, generator

Optimizer = torch.optim.Optimizer
OptimizerOf = Callable[[list[nn.Parameter]], Optimizer]
#: Of Adam, where no optimiser is given.
RATE = 1e-3


def fine_tune(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    *,
    steps: int | None = None,
    epochs: int | None = None,
    optimizer: Optimizer | OptimizerOf | None = None,
    batch_size: int | None = 32,
    loss: Any = "cross_entropy",
    seed: int = 0,
    callback: Callable[[int, float], Any] | None = None,
) -> nn.Module:
    """Train ``model`` in place on the examples of one task, and return it.

    What requires grad is trained, in train mode; what :func:`metafast.transfer` froze stays in eval mode. From a
    meta-learnt initialisation this is the adaptation to a new task: with all examples in one batch and
    ``torch.optim.SGD`` at the inner learning rate, the K steps are those of ``maml.adapt``. A model in eval
    mode is in eval mode again afterwards.

    Args:
        data: x [N, *example] and y, [N] classes or [N, *output].
        steps, epochs: how long, in steps of the optimiser or in rounds through the data; exactly one of the two. An
            epoch takes every example once, in an order drawn from ``seed``; its last batch may be smaller.
        optimizer: a torch optimiser of the model's parameters, or a function that makes one of a list of parameters,
            such as ``lambda p: torch.optim.SGD(p, 0.01)``; None is Adam with learning rate 0.001.
        batch_size: examples in a step; None takes all.
        loss: as for :class:`metafast.MAML`: a name, a torch.nn loss or a function (output, target) -> mean.
        callback: called after each step with its number and its loss.

    Raises:
        TypeError, ValueError: an argument that does not fit; nothing to train.
        FloatingPointError: the loss is no longer finite; the weights are those before that step.
    """
    x, y, _ = arguments.batch("data", data)
    x = arguments.tensor("data x", x)
    assert y is not None
    if not (x.ndim and y.ndim and len(x) and len(x) == len(y)):
        raise ValueError(f"data: x has shape {list(x.shape)}, y {list(y.shape)}; expected [N, ...] each, N >= 1")
    size = len(x) if batch_size is None else min(_positive("batch_size", batch_size), len(x))
    count = _count(steps, epochs, -(-len(x) // size))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError(f"model: no parameter of {type(model).__name__} requires grad, so there is nothing to train")
    optimizer = _optimizer(optimizer, trained)
    known, function = losses.resolve(loss)
    device, mode = trained[0].device, model.training
    batches = _batches(len(x), size, seed)
    if not mode:
        model.train()
    try:
        for step in range(count):
            at = next(batches).to(x.device)
            optimizer.zero_grad()
            output, target = model(x[at].to(device)), y[at].to(device)
            if known is not None:
                _check_target(output, target, y)
            value = function(output, target)
            now = float(value.detach())
            if not torch.isfinite(value.detach()):
                raise FloatingPointError(
                    f"the loss is {now} at step {step}; the weights are those before it. Try a smaller learning rate"
                )
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if callback is not None:
                callback(step, now)
    finally:
        if not mode:
            model.eval()
    return model


def _check_target(output: Tensor, target: Tensor, y: Tensor) -> None:
    """Real targets have the output's shape: torch would spread one over the other."""
    if target.is_floating_point() and target.shape != output.shape:
        raise ValueError(
            f"data: y has shape {list(y.shape)}; expected that of the outputs, {[len(y), *output.shape[1:]]}, "
            "or integer classes [N]"
        )


def _count(steps: int | None, epochs: int | None, per_epoch: int) -> int:
    if (steps is None) == (epochs is None):
        raise ValueError(f"expected steps or epochs, and not both; they are {steps!r} and {epochs!r}")
    if steps is not None:
        return arguments.steps(steps)
    return _positive("epochs", epochs) * per_epoch


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number >= 1; it is {value!r}")
    return value


def _optimizer(given: Any, trained: list[nn.Parameter]) -> Optimizer:
    if given is None:
        return torch.optim.Adam(trained, RATE)
    made = given if isinstance(given, Optimizer) else given(trained) if callable(given) else None
    if not isinstance(made, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, or a function that makes one; it is {given!r}")
    own = {id(parameter) for parameter in trained}
    if not any(id(parameter) in own for group in made.param_groups for parameter in group["params"]):
        raise ValueError("optimizer: it holds no parameter of the model that requires grad; is it another model's?")
    return made


def _batches(examples: int, size: int, seed: int) -> Iterator[Tensor]:
    """Places of the examples of each step; those of epoch e are a function of (seed, e)."""
    epoch = 0
    while True:
        order = torch.randperm(examples, generator=generator(seed, TRAIN, epoch))
        # one batch of all is the same in any order, but for rounding
        yield from torch.split(torch.arange(examples) if size == examples else order, size)
        epoch += 1
