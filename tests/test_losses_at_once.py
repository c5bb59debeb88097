"""Which losses cannot read the model, so that the torch backend runs them for all tasks at once."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metafast as mf
from losses_that_read import LR, NQ, STEPS, WAYS, Decaying, N, Objective, data, net, squares, with_model
from metafast.engine import custom_loss, reference

SCALE, MODEL = 0.5, net()


def helper(output: Tensor, target: Tensor) -> Tensor:
    return SCALE * F.mse_loss(output, target)


def through(output: Tensor, target: Tensor) -> Tensor:
    return helper(output, target) + float(math_free())


def math_free() -> int:
    return len([1])


def reads_global(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output, target) + squares(p for p in MODEL.parameters())


def reads_through(output: Tensor, target: Tensor) -> Tensor:
    return reads_global(output, target)


def imports(output: Tensor, target: Tensor) -> Tensor:
    from test_losses_at_once import MODEL as model

    return F.mse_loss(output, target) + squares(model.parameters())


def evaluates(output: Tensor, target: Tensor) -> Tensor:
    return eval("reads_global")(output, target)  # type: ignore[no-any-return]


def default(output: Tensor, target: Tensor, model: nn.Module = MODEL) -> Tensor:
    return squares(model.parameters())


class Hooked(nn.L1Loss):
    pass


def hooked() -> nn.Module:
    loss = nn.L1Loss()
    loss.register_forward_hook(lambda *a: None)
    return loss


CLOSED = {
    "F.l1_loss": F.l1_loss,
    "nn.L1Loss": nn.L1Loss(),
    "weighted classes": nn.CrossEntropyLoss(weight=torch.ones(2)),
    "partial": functools.partial(F.smooth_l1_loss, beta=0.5),
    "partial with a tensor": functools.partial(F.cross_entropy, weight=torch.ones(2)),
    "function": helper,
    "function of functions": through,
    "lambda": lambda o, y: (o - y).abs().mean(),
    "comprehension": lambda o, y: sum((o[:, i] - y[:, i]).abs().mean() for i in range(2)),
}
OPEN = {
    "global": reads_global,
    "global of a function called": reads_through,
    "import": imports,
    "eval": evaluates,
    "default": default,
    "closure": WAYS["parameters()"](MODEL),
    "object": Objective(MODEL),
    "bound method": Objective(MODEL).bound,
    "partial": functools.partial(with_model, model=MODEL),
    "partial with a parameter": functools.partial(F.cross_entropy, weight=MODEL[2].bias),
    "own module": Decaying(MODEL),
    "subclass of torch's": Hooked(),
    "hooks": hooked(),
    "global in a comprehension": lambda o, y: sum(p.square().sum() for p in MODEL.parameters()),
    "bound method of torch's": MODEL[0].bias.dist,
}


@pytest.mark.parametrize("loss", CLOSED.values(), ids=CLOSED)
def test_losses_that_cannot_read_the_model_run_for_all_tasks_at_once(loss: Any) -> None:
    assert custom_loss.sees_only_arguments(loss)
    assert reference.describe(net().float(), loss, lambda name: True, torch.randn(N, 3)).at_once


@pytest.mark.parametrize("loss", OPEN.values(), ids=OPEN)
def test_all_others_run_task_by_task(loss: Any) -> None:
    assert not custom_loss.sees_only_arguments(loss)
    assert not reference.describe(net().float(), loss, lambda name: True, torch.randn(N, 3)).at_once


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (lambda o, y: (o - y).abs(), r"a tensor of shape \[5, 2\]"),
        (functools.partial(F.hinge_embedding_loss, reduction="none"), r"a tensor of shape \[5, 2\]"),
        (lambda o, y, model=MODEL: 0.0, "a float"),
    ],
)
def test_a_loss_returns_one_number(loss: Any, got: str) -> None:
    with pytest.raises(ValueError, match=f"must return one number.*it returned {got}"):
        mf.MAML(net(), LR, STEPS, loss=loss, backend="torch")(data(), data(NQ))
