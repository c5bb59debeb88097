"""The CUDA engine, executed on the CPU by csrc/cuda/shim.h in both of its styles: the laws, and that nothing but the
program decides a bit."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch

import metafast as mf
from judge import Case, assert_close, assert_same_bits, forward, gradients
from law import Law
from laws import LAWS
from laws_of_bits import all_bits
from metafast import arguments
from metafast.engine import device
from models import mlp
from problems import lowered
from row import Row
from rows import ROWS

_emulated = pytest.importorskip("metafast._emulated", reason="built without METAFAST_EMULATE=1")

STYLES = ("persistent", "batched")

#: Laws that together run every pass with every option. The others are about Python, or follow from the same bits. Each
#: row is judged by half of them in either style, because test_only_the_program_decides_bits joins the styles.
CHOSEN = {
    "outputs_equal_the_oracle",
    "gradient_of_loss_equals_the_oracle",
    "gradient_of_adapted_equals_the_oracle",
    "cotangents_on_all_outputs_add_up",
    "hvp_equals_the_oracle",
    "grad_and_its_own_gradient_equal_the_oracle",
    "predict_undoes_adapt",
    "no_steps_give_the_plain_gradient",
    "memory_is_only_memory",
    "nan_stays_in_its_task",
    "float32_errs_little_more_than_torch",
}


@functools.cache
def obstacle(row: Row) -> str:
    if row.by_torch:  # of which the device is given no more than a linear layer
        return ""
    program = lowered(row)
    with device.emulated():
        return device.obstacle(program)


SUPPORTED = [row for row in ROWS if row.native and not obstacle(row)]


def cases() -> Iterator[object]:
    chosen = [law for law in LAWS if law.name in CHOSEN]
    for i, law in enumerate(chosen):
        for case in law.cases(SUPPORTED, "cpu"):
            if case.backend == "native":
                style = STYLES[(i + SUPPORTED.index(case.row)) % 2]
                yield pytest.param(law, case, style, id=f"{law.name}-{case.row.name}-{style}")


@pytest.mark.parametrize(("law", "case", "style"), list(cases()))
def test_law(law: Law, case: Case, style: str) -> None:
    with device.emulated(style):
        law.check(case)


def test_the_chosen_laws_are_there() -> None:
    assert {law.name for law in LAWS} >= CHOSEN


@pytest.mark.parametrize("row", SUPPORTED, ids=str)
def test_only_the_program_decides_bits(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the style, not the order of threads and blocks, not how many tasks are done at a time, not a task's place."""
    case = Case(row, torch.float32, "cpu", "native")
    with device.emulated("persistent"):
        expected = all_bits(case, case.problem())
    monkeypatch.setenv("METAFAST_SHIM_SEED", "17")
    monkeypatch.setenv("METAFAST_CUDA_TASKS", "1")
    with device.emulated("batched"):
        assert_same_bits(all_bits(case, case.problem()), expected)


#: Few, because under the thread sanitizer, which they are for, each takes seconds; together every kind of phase.
THREADED = ("linear/sequence", "loss/cross-entropy-weighted", "act/gelu", "option/lr-per_element", "norm/2d")
THREADED += ("conv/transposed-groups-3",)
THREADED += ("conv/3x3-stride2-pad1", "conv/3x3-same", "pool/max-2", "pool/avg-2", "graph/residual", "graph/conv4")


@pytest.mark.parametrize("row", [row for row in SUPPORTED if row.name in THREADED], ids=str)
def test_threads_of_the_system_give_the_same_bits(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the thread sanitizer (make tsan) a barrier that is missing in any kernel is a race here."""
    case = Case(row, torch.float64, "cpu", "native")
    monkeypatch.setenv("METAFAST_SHIM_THREADS", "32")
    results = []
    for mode in ("threads", "fibres"):
        if mode == "fibres" and _emulated.sanitizer() == "thread":
            break
        monkeypatch.setenv("METAFAST_SHIM", mode)
        for style in STYLES:
            with device.emulated(style):
                problem = case.problem()
                out = forward(case, problem)
                results.append(out | gradients(out, problem))
    for other in results[1:]:
        assert_same_bits(other, results[0])


def test_every_loss_and_activation_has_device_code() -> None:
    groups = ("linear/", "act/", "loss/")
    assert not [row.name for row in ROWS if row.native and row.name.startswith(groups) and row not in SUPPORTED]


# ----------------------------------------------------------------------------------------------------- beyond the laws


def inputs(tasks: int = 4, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    return tuple(torch.randn(tasks, n, k, dtype=dtype) for n, k in ((5, 3), (5, 2), (7, 3), (7, 2)))


def meta_gradient(model: torch.nn.Module, xs: torch.Tensor, *others: torch.Tensor) -> dict[str, torch.Tensor]:
    ys, xq, yq = others
    maml = mf.MAML(model, lr=0.1, steps=3, loss="mse", backend="native")
    out = maml((xs, ys), (xq, yq))
    gradients = torch.autograd.grad(out.loss, list(model.parameters()))
    return {"loss": out.loss.detach(), **{str(i): g for i, g in enumerate(gradients)}}


@pytest.mark.parametrize("style", STYLES)
def test_a_hidden_layer_wider_than_a_block(style: str) -> None:
    """Several tiles, several outputs per thread, and too much for shared memory."""
    model = mlp(3, 150, 2).double()
    expected = meta_gradient(model, *inputs())
    with device.emulated(style):
        assert_close(meta_gradient(model, *inputs()), expected, tolerance=1e-13)


@pytest.mark.parametrize("style", STYLES)
def test_memory_that_is_short_means_chunks_of_tasks(style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, healthy = mlp(3, 40, 2).double(), device.allocate
    asked: list[int] = []
    limit = float("inf")

    def allocate(count: int, x: torch.Tensor) -> torch.Tensor:
        asked.append(count)
        if count > limit:
            raise torch.OutOfMemoryError("for the test")
        return healthy(count, x)

    monkeypatch.setattr(device, "allocate", allocate)
    with device.emulated(style):
        expected = meta_gradient(model, *inputs())
        limit = 0.75 * max(asked)
        asked.clear()
        assert_same_bits(meta_gradient(model, *inputs()), expected)
    assert max(asked) > limit > asked[-1], "memory never was short"


@pytest.mark.parametrize("style", STYLES)
def test_many_tasks_are_summed_in_groups_whatever_the_chunks(style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(3, 2).double()
    expected = meta_gradient(model, *inputs(150))
    with device.emulated(style):
        whole = meta_gradient(model, *inputs(150))
        assert_close(whole, expected, tolerance=1e-13)
        for chunk in ("1", "40", "64", "100"):
            monkeypatch.setenv("METAFAST_CUDA_TASKS", chunk)
            assert_same_bits(meta_gradient(model, *inputs(150)), whole)


def test_not_even_one_task_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(count: int, x: torch.Tensor) -> torch.Tensor:
        if count < 20_000:  # constants
            return torch.empty(count, dtype=torch.uint8)
        raise torch.OutOfMemoryError("for the test")

    model = mlp(3, 40, 2).double()
    with device.emulated("batched"):
        meta_gradient(model, *inputs())
        monkeypatch.setattr(device, "allocate", none)
        with pytest.raises(torch.OutOfMemoryError, match=r"one task needs .* MiB of workspace"):
            meta_gradient(model, *inputs())


@pytest.mark.parametrize("label", [-1, 3, 2**40])
def test_a_class_that_does_not_exist_makes_its_task_nan(label: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's labels are not read by the host; METAFAST_CHECK=1 asks for that."""
    monkeypatch.setattr(arguments, "labels", lambda *_, **__: None)
    model = mlp(3, 8, 3).double()
    x, y = torch.randn(3, 4, 3, dtype=torch.float64), torch.randint(3, (3, 4))
    y[1, 2] = label
    maml = mf.MAML(model, lr=0.1, steps=1, loss="cross_entropy", backend="native")
    for style in STYLES:
        with device.emulated(style):
            out = maml((x, torch.randint(3, (3, 4))), (x, y))
            assert out.task_loss.isnan().tolist() == [False, True, False]
            out = maml((x, y), (x, torch.randint(3, (3, 4))))
            assert out.task_loss.isnan().tolist() == [False, True, False]
            assert out.support_loss.isnan().flatten().tolist() == [False, True, False]


def test_an_unknown_style_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAFAST_CUDA_STYLE", "serial")
    with device.emulated(), pytest.raises(ValueError, match="METAFAST_CUDA_STYLE=serial is not one of"):
        meta_gradient(mlp(3, 4, 2).double(), *inputs())
