"""Networks with a task in each lane of a SIMD register (csrc/cpu/kernels/pack.h): the laws again, and the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import metafast as mf
from judge import Case
from law import Law
from laws import LAWS
from metafast._native import primitives
from metafast.engine import native
from problems import lowered
from row import Row
from rows import ROWS

#: The laws that run every pass with every option, and those about several tasks.
CHOSEN = {
    "outputs_equal_the_oracle",
    "gradient_of_loss_equals_the_oracle",
    "gradient_of_adapted_equals_the_oracle",
    "gradient_of_task_loss_equals_the_oracle",
    "cotangents_on_all_outputs_add_up",
    "gradient_of_parameters_alone_equals_the_oracle",
    "float32_errs_little_more_than_torch",
    "hvp_equals_the_oracle",
    "grad_and_its_own_gradient_equal_the_oracle",
    "predict_undoes_adapt",
    "no_steps_give_the_plain_gradient",
    "memory_is_only_memory",
    "threads_do_not_change_bits",
    "tasks_at_once_equal_tasks_one_by_one",
    "nan_stays_in_its_task",
}


def packable(row: Row) -> bool:
    if not row.native or row.by_torch:
        return False
    program = lowered(row)
    in_packs = primitives()
    flat = all(len(shape) == 1 for shape in program.values)
    return flat and all(in_packs[node.op] for node in program.nodes)


PACKABLE = [row for row in ROWS if packable(row)]


def test_what_has_no_form_in_packs_is_known() -> None:
    """Were another operation left out, all that use it would be left out of the tests below."""
    in_packs = primitives()
    assert {op for op in in_packs if not in_packs[op]} == {
        "conv2d", "conv_transpose2d", "batch_norm", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "flatten",
        "normalise", "softmax", "log_softmax", "dropout", "embedding", "matmul",
    }  # fmt: skip
    assert {law.name for law in LAWS} >= CHOSEN


def cases() -> Iterator[object]:
    for law in LAWS:
        if law.name in CHOSEN:
            for case in law.cases(PACKABLE, "cpu"):
                if case.backend == "native":
                    kind = str(case.dtype).removeprefix("torch.")
                    yield pytest.param(law, case, id=f"{law.name}-{case.row.name}-{kind}")


@pytest.mark.parametrize(("law", "case"), list(cases()))
def test_law(law: Law, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "packing", "whole")
    law.check(case)


def lanes(dtype: torch.dtype) -> int:
    """How many numbers a register of the instruction set in use holds."""
    size = {"avx512": 64, "avx2": 32}.get(native.build_info()["isa"], 16)
    return size * 8 // torch.finfo(dtype).bits


def at_once(maml: mf.MAML, tasks: int, dtype: torch.dtype) -> int:
    sets = [(torch.randn(tasks, n, 2, dtype=dtype), torch.randn(tasks, n, 1, dtype=dtype)) for n in (5, 4)]
    maml.meta_gradient(*sets)
    plan = maml._planner.plan("x", sets[0][0])
    return [p.session.tasks_at_once for p in native.handle(plan.program).sessions.values()][-1]


def small(dtype: torch.dtype, **options: Any) -> mf.MAML:
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)
    return mf.MAML(model, lr=0.1, steps=2, loss="mse", strict=True, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_tasks_of_a_small_network_run_in_packs(dtype: torch.dtype) -> None:
    threads = torch.get_num_threads()
    whole = lanes(dtype)
    # Only AVX-512 has packs of half a register, for processors on which they take half as long.
    widths = {whole, whole // 2} if native.build_info()["isa"] == "avx512" else {whole}
    assert at_once(small(dtype), 4 * threads * whole, dtype) in widths
    assert at_once(small(dtype), 1, dtype) == 1
    wide = nn.Sequential(nn.Linear(2, 1000), nn.Tanh(), nn.Linear(1000, 1)).to(dtype)  # larger than the cache
    deep = mf.MAML(
        nn.Sequential(wide, nn.Linear(1, 1000).to(dtype), nn.Linear(1000, 1).to(dtype)), loss="mse", steps=50
    )
    assert at_once(deep, 4 * threads * lanes(dtype), dtype) == 1


#: All in one order; packs of half a register are whole ones where the instruction set has no use for them.
PACKING = ["never", "whole", "small", "mixed"]

LOSSES = ["mse", "huber", "bce_with_logits", "cross_entropy", "multi_margin", nn.CrossEntropyLoss(label_smoothing=0.1)]


@pytest.mark.parametrize("tasks", [1, 7, 16, 25, 300])
@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_packs_change_no_bit(
    tasks: int, loss: Any, weighted: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 10), nn.ReLU(), nn.Linear(10, 17), nn.Tanh(), nn.Linear(17, 5)).to(dtype)
    classes = loss not in ("mse", "huber", "bce_with_logits")

    def batch(n: int) -> tuple[torch.Tensor, ...]:
        y = torch.randint(5, (tasks, n)) if classes else torch.rand(tasks, n, 5, dtype=dtype)
        weights = [torch.rand(tasks, n, dtype=dtype)] if weighted else []
        return torch.randn(tasks, n, 3, dtype=dtype), y, *weights

    sets = batch(6), batch(4)
    lr = torch.tensor([0.3, 0.1, 0.2], dtype=dtype)
    found = []
    for packing in PACKING:
        monkeypatch.setattr(native, "packing", packing)
        maml = mf.MAML(model, lr=lr, steps=3, loss=loss, learn_lr=True)
        out = maml(*sets)
        found.append([*out, *torch.autograd.grad(out.loss, list(maml.parameters()))])
    for one, *packed in zip(*found, strict=True):
        for other in packed:
            assert torch.equal(other, one)


class Twice(nn.Module):
    """One layer at two places: neither may take the step of its weight by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(torch.relu(self.first(x)))))  # type: ignore[no-any-return]


class Fork(nn.Module):
    """A ReLU that two layers read, which neither may take over."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(5, 7), nn.Linear(7, 2), nn.Linear(7, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.first(x))
        return self.left(h) + self.right(h)  # type: ignore[no-any-return]


#: Models with five inputs: ReLUs between linear layers, behind one, before one and two in a row; tied weights; a fork;
#: more units than a sum takes at once; a single one.
MODELS = {
    "between": lambda: nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 11), nn.ReLU(), nn.Linear(11, 2)),
    "no bias": lambda: nn.Sequential(nn.Linear(5, 9, bias=False), nn.ReLU(), nn.Linear(9, 2, bias=False)),
    "behind": lambda: nn.Sequential(nn.Linear(5, 2), nn.ReLU()),
    "before": lambda: nn.Sequential(nn.ReLU(), nn.Linear(5, 2)),
    "two": lambda: nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.ReLU(), nn.Linear(9, 2)),
    "tied": Twice,
    "fork": Fork,
    "wide": lambda: nn.Sequential(nn.Linear(5, 2), nn.ReLU(), nn.Linear(2, 300), nn.ReLU(), nn.Linear(300, 2)),
    "one unit": lambda: nn.Sequential(nn.Linear(5, 19), nn.ReLU(), nn.Linear(19, 1), nn.ReLU(), nn.Linear(1, 2)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "one rate": {},
    "rates": {"lr": torch.tensor([0.2, 0.1])},
    "rates of parameters": {"lr": "tensor"},
    "rates of elements": {"lr": "element"},
    "first order": {"first_order": True},
    "recompute": {"memory": "recompute"},
}


@pytest.mark.parametrize("examples", [6, 300])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_packs_change_no_bit_where_work_is_merged(
    model: str, options: str, examples: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = MODELS[model]().to(dtype)
    chosen = {"lr": 0.1, **OPTIONS[options]}
    if chosen["lr"] == "tensor":
        chosen["lr"] = {name: 0.05 + 0.1 * i for i, (name, _) in enumerate(network.named_parameters())}
    elif chosen["lr"] == "element":
        chosen["lr"] = {name: 0.1 * torch.rand_like(p) for name, p in network.named_parameters()}
    sets = [(torch.randn(9, n, 5, dtype=dtype), torch.randn(9, n, 2, dtype=dtype)) for n in (examples, 4)]
    found = []
    for packing in PACKING:
        monkeypatch.setattr(native, "packing", packing)
        maml = mf.MAML(network, steps=2, loss="mse", strict=True, **chosen)
        out = maml(*sets)
        found.append([*out, *torch.autograd.grad(out.loss, list(network.parameters()))])
    for one, *packed in zip(*found, strict=True):
        for other in packed:
            assert torch.equal(other, one)
