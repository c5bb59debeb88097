"""A row made into a model and data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import oracle
from metafast import arguments, losses
from metafast.call import Batch
from metafast.model import lowering
from metafast.model.inputs import Inputs
from metafast.model.program import Program
from metafast.planning.plan import Planner
from metafast.planning.reading import kinds_of
from row import Row


@dataclass
class Problem:
    """A row's model and data. Every floating tensor is a leaf that requires a gradient, except what is frozen."""

    row: Row
    model: nn.Module
    support: tuple[Tensor, ...]  # xs, ys and perhaps ws
    query: tuple[Tensor, ...]  # xq, yq and perhaps wq
    lr: Tensor | dict[str, Tensor]

    @property
    def leaves(self) -> dict[str, Tensor]:
        """Every differentiable input, by name."""
        named: dict[str, Tensor] = {f"model.{name}": value for name, value in self.model.named_parameters()}
        for kind, batch in (("s", self.support), ("q", self.query)):
            for part, given in zip("xyw", batch, strict=False):
                named |= oracle.named(f"{part}{kind}", given)
        named |= (
            {f"lr.{name}": value for name, value in self.lr.items()} if isinstance(self.lr, dict) else {"lr": self.lr}
        )
        return {name: value for name, value in named.items() if value.requires_grad}


def inputs(row: Row, lead: tuple[int, ...], random: torch.Generator) -> Any:
    """One tensor, or a tuple of several."""
    return (
        several(row.inputs, lead, random) if row.inputs else several(((row.example, row.vocabulary),), lead, random)[0]
    )


def several(kinds: tuple[tuple[tuple[int, ...], int], ...], lead: tuple[int, ...], random: torch.Generator) -> Any:
    def drawn(shape: tuple[int, ...], vocabulary: int) -> Tensor:
        if not vocabulary:
            return torch.randn(*lead, *shape, generator=random)
        values = torch.randint(vocabulary, (*lead, *shape), generator=random)
        return values.bool() if vocabulary == 2 else values

    return tuple(drawn(*each) for each in kinds)


def make(row: Row, dtype: torch.dtype = torch.float64, seed: int = 0, device: str = "cpu") -> Problem:
    """Tensors for a row. All values are float32 numbers whatever the dtype, so that both precisions see one problem."""
    random = torch.Generator().manual_seed(seed)

    def leaf(value: Tensor) -> Tensor:
        return value.detach().to(device, dtype).requires_grad_() if value.is_floating_point() else value.to(device)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    torch.default_generator.manual_seed(seed)
    model = row.build().train(row.training)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * normal(*parameter.shape)
        for name, buffer in model.named_buffers():
            if buffer.dtype == torch.bool:
                continue
            if not buffer.is_floating_point():
                buffer += 1  # batches tracked
            else:
                buffer += 0.3 * normal(*buffer.shape).abs() if name.endswith("var") else 0.3 * normal(*buffer.shape)
        one = inputs(row, (2,), torch.Generator())
        output = model.to("cpu").eval()(*(one if isinstance(one, tuple) else (one,)))
        output = None if row.targets else output.shape[1:]
    model = model.train(row.training).to(device, dtype)

    def batch(*lead: int) -> tuple[Tensor, ...]:
        x = inputs(row, lead, random)
        if row.zeros:
            x[..., 0, :] = 0 if x.dim() > len(lead) else x[..., 0, :]
            x[x.abs() < 0.3] = 0
        if row.targets:
            y = several(row.targets, lead, random)
        elif row.classes:
            y = torch.randint(output[0], (*lead, *output[1:]), generator=random)
            ignored = getattr(row.loss, "ignore_index", -100)
            if ignored >= 0:  # else some labels are outside of the classes
                y[..., 0] = ignored
        elif row.soft:
            y = normal(*lead, *output).double().softmax(len(lead)).float()  # torch's own bits depend on its threads
        elif row.loss == "bce_with_logits" or isinstance(row.loss, nn.BCEWithLogitsLoss):
            y = normal(*lead, *output).sigmoid()
        else:
            y = normal(*lead, *output)
        if not row.weighted:
            return oracle.each(x, leaf), oracle.each(y, leaf)
        w = torch.rand(lead, generator=random) + 0.25
        w[..., 0] = 0
        return oracle.each(x, leaf), oracle.each(y, leaf), leaf(w)

    lead = (row.tasks, row.steps) if row.stepwise else (row.tasks,)
    support, query = batch(*lead, row.shots), batch(row.tasks, row.queries)
    adapted = {name: dict(model.named_parameters())[name] for name in oracle.adapted_names(model, row.adapt_params)}

    def around_lr(*shape: int) -> Tensor:
        return leaf(row.lr * (0.5 + torch.rand(shape, generator=random)))

    lr: Any = {
        "scalar": lambda: leaf(torch.tensor(row.lr)),
        "per_step": lambda: around_lr(row.steps),
        "per_tensor": lambda: {name: around_lr() for name in adapted},
        "per_element": lambda: {name: around_lr(*value.shape) for name, value in adapted.items()},
    }[row.lr_form]()
    return Problem(row, model, support, query, lr)


def lowered(row: Row) -> Program:
    """What the native engine knows of a row."""
    if row.native and losses.resolve(row.loss)[0] is None:
        problem = make(row)
        targets = kinds_of(Batch(*problem.query, None), None)
        planner = Planner(problem.model, row.loss, row.adapt_params)
        return planner.plan("x", problem.query[0], targets=targets).program
    loss, _ = losses.resolve(row.loss, row.reduction)
    adapts = arguments.predicate(row.adapt_params)
    x = oracle.each(inputs(row, (1,), torch.Generator()), lambda x: x.double() if x.is_floating_point() else x)
    several = Inputs.of(x, 1)
    example, given = (row.example, x.dtype) if several is None else ((sum(several.sizes),), None)
    problem = make(row)
    return lowering.lower(
        problem.model, example, adapted=adapts, loss=loss, dtype=torch.float64, given=given, inputs=several
    )
