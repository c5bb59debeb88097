"""What is measured: one dataclass, an instance per workload, and the seeded problem each one stands for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.updates import ADAM, MOMENTUM, SGD
from metafast.training.networks import conv4, mlp

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}

META_GRADIENT, HESSIAN_VECTOR = "meta-gradient", "Hessian-vector product"

#: Tasks beyond these repeat them, so that the float64 loop that judges every result stays quick at 10 000 tasks.
DISTINCT_TASKS = 100

#: Learning rates: one number; a tensor for each parameter; such tensors whose gradients are part of the result.
ONE, PER_ELEMENT, LEARNT = "one", "per element", "learnt"


class Set(NamedTuple):
    """A support or query set of every task: x [T, N, *example], y [T, N] classes or [T, N, *output]."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Workload:
    """One exact meta-gradient (or one Hessian-vector product per task) of a network on synthetic tasks."""

    name: str
    title: str
    network: Callable[[], nn.Module]
    example: tuple[int, ...]  # shape of one input
    outputs: int  # numbers in one target, or classes
    tasks: int
    support: int  # examples per task
    query: int
    steps: int
    lr: float
    loss: str
    first_order: bool = False
    kind: str = META_GRADIENT
    device: str = "cpu"
    rule: str = SGD  # what benchmarks.updates calls it
    rates: str = ONE
    adapts: str = "*"  # names of the parameters that the inner loop moves, as a glob
    memory: str = "auto"  # metafast's policy
    most_distinct: int = DISTINCT_TASKS  # fewer where the float64 loop takes seconds for each

    @property
    def distinct(self) -> int:
        """Tasks that differ. All are repeated as often, so that their mean is that of all tasks."""
        return max(d for d in range(1, min(self.tasks, self.most_distinct) + 1) if self.tasks % d == 0)

    def problem(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> Problem:
        """Model and data, drawn in float32: another ``dtype`` holds the very same numbers."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.network()
        generator = torch.Generator().manual_seed(seed)

        def draw(examples: int) -> Set:
            shape = (self.distinct, examples)
            x = torch.randn(*shape, *self.example, generator=generator)
            if self.loss == "mse":
                y = torch.randn(*shape, self.outputs, generator=generator).to(dtype)
            else:  # every class as often as every other
                order = torch.rand(shape, generator=generator).argsort(dim=1)
                y = order % self.outputs
            return Set(_repeat(x.to(dtype), self.tasks), _repeat(y, self.tasks))

        support, query = draw(self.support), draw(self.query)
        per_task, vectors = {}, {}
        if self.kind == HESSIAN_VECTOR:
            for name, p in model.named_parameters():
                shape = (self.tasks, *p.shape)
                per_task[name] = (p.detach() + 0.02 * torch.randn(shape, generator=generator)).to(dtype)
                vectors[name] = torch.randn(shape, generator=generator).to(dtype)
        rates = {}
        if self.rates != ONE:
            for name, p in model.named_parameters():
                rates[name] = (self.lr * (0.5 + torch.rand(p.shape, generator=generator))).to(dtype)
        support, query = (Set(*(tensor.to(self.device) for tensor in batch)) for batch in (support, query))
        groups = (per_task, vectors, rates)
        per_task, vectors, rates = ({n: v.to(self.device) for n, v in group.items()} for group in groups)
        return Problem(self, model.to(self.device, dtype), support, query, per_task, vectors, rates)


@dataclass(frozen=True)
class Problem:
    """What every rival computes from: the same numbers for all."""

    workload: Workload
    model: nn.Module
    support: Set
    query: Set
    per_task: dict[
        str, Tensor
    ]  # parameter sets of their own for the tasks, name -> [T, *shape]: Hessian-vector products
    vectors: dict[str, Tensor]  # v of H_t v_t, name -> [T, *shape]
    rates: dict[str, Tensor]  # learning rates, name -> [*shape]; empty where there is one for all

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    @property
    def loss(self) -> Loss:
        return LOSSES[self.workload.loss]


def _repeat(values: Tensor, tasks: int) -> Tensor:
    """[D, ...] -> [tasks, ...], laid out as if every task had come by itself."""
    return values[torch.arange(tasks) % len(values)].contiguous()


def count(tasks: int) -> str:
    """So many tasks, in words."""
    return f"{tasks:,}".replace(",", " ") + (" tasks" if tasks > 1 else " task")


W1 = Workload(
    "W1", "MLP 1-40-40-1 ReLU, 1 step", lambda: mlp([1, 40, 40, 1]), (1,), 1,
    tasks=25, support=10, query=10, steps=1, lr=0.01, loss="mse",
)  # fmt: skip
W1b = replace(W1, name="W1b", title="MLP 1-40-40-1 ReLU, 5 steps", steps=5)
W1_ADAM = replace(W1, name="W1-adam", title="MLP 1-40-40-1 ReLU, 10 steps of Adam", steps=10, rule=ADAM)
W2 = Workload(
    "W2", "MLP 784-64-64-10 ReLU, 5 steps", lambda: mlp([784, 64, 64, 10]), (784,), 10,
    tasks=16, support=50, query=50, steps=5, lr=0.05, loss="cross_entropy",
)  # fmt: skip
W2_MOMENTUM = replace(
    W2, name="W2-momentum", title="MLP 784-64-64-10 ReLU, 5 steps of momentum, learnt rates per element",
    rule=MOMENTUM, rates=LEARNT,
)  # fmt: skip
W3 = Workload(
    "W3", "Conv-4, 64 channels, 1x28x28, 5 steps", lambda: conv4(64, 5, 1, 28), (1, 28, 28), 5,
    tasks=8, support=5, query=75, steps=5, lr=0.4, loss="cross_entropy",
)  # fmt: skip
W3_1 = replace(W3, name="W3-1", title=f"{W3.title}, 1 task", tasks=1)
W4 = Workload(
    "W4", "Conv-4, 32 channels, 3x84x84, 5 steps", lambda: conv4(32, 5, 3, 84), (3, 84, 84), 5,
    tasks=4, support=5, query=75, steps=5, lr=0.01, loss="cross_entropy",
)  # fmt: skip
W5 = Workload(
    "W5", "MLP 32-64-64-1 tanh, 100 steps", lambda: mlp([32, 64, 64, 1], "tanh"), (32,), 1,
    tasks=8, support=32, query=32, steps=100, lr=0.01, loss="mse",
)  # fmt: skip
LONG_1, LONG_8 = LONG = [
    replace(
        W5, name=f"W5-2000-{tasks}", title=f"MLP 32-64-64-1 tanh, 2 000 steps, {count(tasks)}",
        tasks=tasks, steps=2000, memory="checkpoint", most_distinct=2,
    )
    for tasks in (1, 8)
]  # fmt: skip
W6 = [
    replace(W1, name=f"W6-{tasks}", title=f"{W1.title}, {count(tasks)}", tasks=tasks)
    for tasks in (1, 10, 100, 1_000, 10_000)
]
W7 = replace(W2, name="W7", title="MLP 784-64-64-10 ReLU, Hessian-vector products", kind=HESSIAN_VECTOR, steps=0)
FIRST_ORDER = [replace(w, name=f"{w.name}-fo", title=f"{w.title}, first order", first_order=True) for w in (W1, W3)]

ALL = (W1, W1b, W1_ADAM, W2, W2_MOMENTUM, W3, W3_1, W4, W5, *LONG, *W6, W7, *FIRST_ORDER)
WORKLOADS = {w.name: w for w in ALL}
#: For a GPU also sizes that fill it.
FILLING = [
    replace(w, name=f"{w.name}-{tasks}", title=f"{w.title}, {tasks} tasks", tasks=tasks)
    for w, tasks in ((W3, 32), (W3, 256), (W4, 32))
]


def on(device: str) -> dict[str, Workload]:
    """All workloads of a device, by name."""
    if device == "cpu":
        return WORKLOADS
    return {w.name: replace(w, device=device) for w in (*WORKLOADS.values(), *FILLING)}


def chosen(names: list[str], device: str = "cpu") -> list[Workload]:
    """The workloads of these names, in the table's order; ``W6`` stands for all of its sizes. ValueError for others."""
    there = on(device)
    known = {name.lower(): {name} for name in there}
    known["w6"] = {w.name for w in W6}
    if unknown := [name for name in names if name.lower() not in known]:
        raise ValueError(f"no workload {', '.join(unknown)}; there are {', '.join(there)}, and W6 for all its sizes")
    wanted = set().union(*(known[name.lower()] for name in names))
    return [w for name, w in there.items() if name in wanted]
