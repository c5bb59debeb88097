"""What the inner loop does not move runs once: where models are cut, and that all a learner can be asked for stays."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import judge
import laws
import metafast as mf
import oracle
from judge import Case, assert_close
from metafast.engine import static
from metafast.engine.static import Composed
from models import Cumulative, Recurrent, Residual, Transformer, frozen, mlp, seq
from problems import make
from row import Row
from rows import BY_NAME, ROWS

L, C = nn.Linear, nn.Conv2d
Tensors = dict[str, Tensor]
BY_TORCH = [row for row in ROWS if row.by_torch]


def composed(maml: mf.MAML, x: Tensor) -> Composed | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return maml._plans().plan("x", x).composed


def cut(model: nn.Module, example: tuple[int, ...], adapt_params: Any = None, **options: Any) -> str | None:
    """Where a model is cut, in words."""
    settings = {"loss": "mse", "adapt_params": adapt_params} | options
    found = composed(mf.MAML(model, **settings), torch.randn(2, 3, *example))
    return None if found is None else found.where


# ------------------------------------------------------------------------------------------------------ where it is cut


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_rows_are_marked_as_they_are_cut(row: Row) -> None:
    problem = make(row, torch.float64)
    maml = judge.learner(Case(row, torch.float64, "cpu", "auto"), problem)
    xs = problem.support[0]
    found = composed(maml, oracle.each(xs, lambda x: x[:, 0]) if row.stepwise else xs)
    assert (found is not None) == row.static
    assert (found is not None and found.by_torch) == row.by_torch


class Beside(nn.Module):
    """Two values of the body go on: there is no cut but before both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = L(3, 4), L(4, 4), L(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.tanh(self.first(x))
        return self.head(torch.tanh(self.second(first))) + first


class Foreign(Beside):
    """The same with an operation that has no native form."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.sin(x))


class Between(nn.Module):
    """Sizes of the input, which are no tensors, may be read behind a cut; what is written in place is its author's."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = L(3, 4), nn.LayerNorm(4), L(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        count, features = x.shape[0], self.body(x)
        alias = features
        features.relu_()
        return self.head(self.norm(alias)).view(count, -1)  # type: ignore[no-any-return]


#: Where torch is cut: at the same place.
SAME = "same"


@pytest.mark.parametrize(
    ("model", "example", "adapted", "where", "on_torch"),
    [
        (mlp(), (3,), "4.*", "layer '3'", SAME),
        (mlp(), (3,), "2.*", "layer '1'", SAME),
        (mlp(), (3,), "0.*", None, SAME),
        (mlp(), (3,), None, None, SAME),
        (mlp(), (3,), "*.bias", None, SAME),
        (frozen(mlp(), "0.", "2."), (3,), None, "layer '3'", SAME),
        (seq(nn.Flatten(), L(6, 2)), (2, 3), None, None, SAME),
        (seq(nn.Identity(), nn.Flatten(), L(6, 4), nn.Tanh(), L(4, 2)), (2, 3), "4.*", "layer '3'", SAME),
        (seq(nn.Tanh(), L(3, 2)), (3,), None, "layer '0'", None),
        (seq(L(3, 4), Residual(seq(nn.Tanh(), L(4, 4))), L(4, 2)), (3,), "1.*", "layer '0'", SAME),
        (seq(L(3, 4), Residual(seq(nn.Tanh(), L(4, 4))), L(4, 2)), (3,), "2.*", "layer '1'", "add in layer '1'"),
        (Beside(), (3,), "head.*", "tanh in the model", SAME),
        (Foreign(), (3,), "head.*", "tanh in the model", SAME),
        (seq(L(3, 4), nn.LayerNorm(4), L(4, 2)), (3,), "2.*", "layer '1'", SAME),
        (seq(L(3, 4), nn.LayerNorm(4), L(4, 2)), (3,), "1.*", "layer '0'", SAME),
        (seq(L(3, 4), nn.LayerNorm(4), L(4, 2)), (3,), None, None, SAME),
        (Between(), (3,), "head.*", "layer 'norm'", SAME),
        (Recurrent(), (5, 3), "head.*", "getitem in the model", SAME),
        (Transformer(), (3, 4), "head.*", "sparse_map in the model", "mean in the model"),
    ],
)
def test_the_cut_is_the_last_that_one_tensor_goes_through(
    model: nn.Module, example: tuple[int, ...], adapted: str | None, where: str | None, on_torch: str | None
) -> None:
    assert cut(model, example, adapted) == where
    assert cut(model, example, adapted, backend="torch") == (where if on_torch is SAME else on_torch)


def test_a_cut_leaves_the_modes_of_a_models_modules_as_they_are() -> None:
    """A norm that its user set to eval mode uses its buffers, in a model that is in train mode."""
    model = seq(L(3, 4), nn.BatchNorm1d(4), nn.SiLU(), Cumulative(4), L(4, 2)).double()
    model[1].eval()
    x, y = torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(2, 5, 2, dtype=torch.float64)
    for backend in ("auto", "torch"):
        maml = mf.MAML(model, lr=0.1, steps=1, loss="mse", adapt_params="4.*", backend=backend)
        assert composed(maml, x) is not None
        expected = oracle.unroll(model, "mse", (x, y), (x, y), lr=0.1, steps=1, adapt_params="4.*").logits
        assert_close({"logits": maml((x, y), (x, y)).logits}, {"logits": expected})
        assert model.training and not model[1].training


class Alive(TorchDispatchMode):
    """The most values that operations have made and that are alive at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref[Any]] = []
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.made.append(weakref.ref(out))
            self.most = max(self.most, sum(each() is not None for each in self.made))
        return out


def test_a_frozen_part_lets_go_of_what_is_not_read_again() -> None:
    """As the module itself does: a deep base needs no more memory cut than whole."""
    layers = [each for _ in range(12) for each in (L(4, 4), Cumulative(4), nn.SiLU())]
    model = seq(*layers, L(4, 2))
    for parameter in [*model.parameters()][:-2]:
        parameter.requires_grad_(False)
    x = torch.randn(1, 5, 4)
    found = composed(mf.MAML(model, loss="mse"), x)
    assert found is not None
    before = found.prefix.program.module
    with torch.no_grad(), Alive() as alive:
        made = before(x[0])
    assert torch.equal(made, model[:-1](x[0])) and len(alive.made) >= 36
    assert alive.most <= 4


def test_what_is_random_is_not_static() -> None:
    before = seq(L(3, 4), Cumulative(4), nn.Dropout(0.5), L(4, 2))
    maml = mf.MAML(before, loss="mse", adapt_params="3.*")
    found = maml._plans().plan("x", torch.randn(2, 3, 3)).composed
    assert found is not None and found.by_torch and found.where == "add in layer '1'"  # dropout is drawn at every step
    assert cut(before.eval(), (3,), "3.*") == "layer '2'"
    first = seq(nn.Dropout(0.5), L(3, 4), Cumulative(4), L(4, 2))
    assert cut(first, (3,), "3.*") is None


@pytest.mark.parametrize("row", BY_TORCH, ids=str)
def test_the_inner_loop_of_any_backbone_is_native(row: Row) -> None:
    problem = make(row, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maml = judge.learner(Case(row, torch.float32, "cpu", "native"), problem, strict=True)
        plan = maml._plans().plan("x", problem.support[0], row.stepwise)
    assert plan.words.startswith("native behind ") and "torch runs what is before" in plan.words


class Tanhs(TorchDispatchMode):
    """Counts how often torch runs a tanh, backward passes apart."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.tanh.default
        return func(*args, **(kwargs or {}))


def test_the_prefix_runs_once_per_task_and_set() -> None:
    row = BY_NAME["option/static-cumulative"]
    for backend in ("native", "torch"):
        problem = make(row, torch.float64)
        maml = judge.learner(Case(row, torch.float64, "cpu", backend), problem, steps=7)
        maml(problem.support, problem.query).loss.backward()  # planned here
        with Tanhs() as ran:
            maml(problem.support, problem.query).loss.backward()
        assert ran.count == 2 * row.tasks


def test_without_gradients_nothing_goes_back_through_a_constant_prefix() -> None:
    model = frozen(seq(L(3, 5), Cumulative(5), L(5, 2)), "0.", "1.")
    maml = mf.MAML(model, loss="mse", steps=3)
    found = composed(maml, torch.randn(2, 4, 3))
    assert found is not None
    parameters = [*model.parameters()]
    assert not found._features(parameters, torch.randn(2, 4, 3)).requires_grad
    assert found._features(parameters, torch.randn(2, 4, 3, requires_grad=True)).requires_grad


# --------------------------------------------------------------------------------------- everything else stays as it is


def outcome(row: Row, use: str, backend: str, options: dict[str, Any], start: bool) -> tuple[Tensors, Tensors]:
    """Outputs, and gradients for all leaves, initial parameters of the caller's own among them."""
    problem = make(row, torch.float64)
    leaves = problem.leaves
    given = {}
    if start:
        random = torch.Generator().manual_seed(3)
        for number, (name, p) in enumerate(problem.model.named_parameters()):
            shape = (row.tasks, *p.shape) if number % 2 else p.shape
            value = p.detach() + 0.1 * torch.randn(shape, generator=random).double()
            given[name] = value.requires_grad_(p.requires_grad)
        leaves = leaves | {f"start.{name}": value for name, value in given.items() if value.requires_grad}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(static, "use", use)
        settings = dict(reduction=row.reduction, loss=row.loss, backend=backend, adapt_params=row.adapt_params)
        maml = mf.MAML(problem.model, **{**settings, "steps": 3, "lr": 0.1, **options})
        call = dict(stepwise=True) if row.stepwise else {}
        if row.stepwise:
            call["steps"] = row.steps
        out = maml(problem.support, problem.query, start=given or None, **call)
        outputs = dict(loss=out.loss, task_loss=out.task_loss, logits=out.logits, support_loss=out.support_loss)
        pulled = judge.pull_back(outputs, leaves, judge.cotangents(outputs, "together"))
    return {name: value.detach() for name, value in outputs.items()}, pulled


OPTIONS: dict[str, dict[str, Any]] = {
    "adam": {"rule": mf.Adam(lr=0.02), "lr": mf.learner.DEFAULT_LR},
    "momentum": {"rule": mf.SGD(lr=0.1, momentum=0.9), "lr": mf.learner.DEFAULT_LR},
    "clipped": {"rule": mf.chain(mf.clip_norm(0.3), mf.SGD(lr=0.1)), "lr": mf.learner.DEFAULT_LR},
    "proximal": {"rule": mf.chain(mf.proximal(0.5), mf.SGD(lr=0.1)), "lr": mf.learner.DEFAULT_LR},
    "truncated": {"estimator": mf.Truncated(2)},
    "first order": {"first_order": True},
    "annealed": {"estimator": mf.Annealed(2)},
    "no steps": {"steps": 0},
    "checkpoints": {"memory": mf.Checkpoint(2)},
}
SOME = ["option/head-only-conv", "option/frozen-and-head-only", "option/static-body-then-norm", "option/static-lstm"]
SOME += ["option/static-cumulative-constant", "option/static-cumulative-stepwise"]


@pytest.mark.parametrize("start", [False, True], ids=["own", "start"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", SOME)
def test_every_option_gives_what_the_whole_model_gives(name: str, options: str, start: bool) -> None:
    row = BY_NAME[name]
    if row.stepwise and options == "no steps":
        pytest.skip("minibatches of steps that there are")
    expected = outcome(row, "never", "torch", OPTIONS[options], start)
    for use, backend in (("always", "auto"), ("always", "torch"), ("auto", "auto")):
        actual = outcome(row, use, backend, OPTIONS[options], start)
        assert_close(actual[0], expected[0])
        assert_close(actual[1], expected[1])


@pytest.mark.parametrize("name", SOME)
def test_meta_gradient_is_the_gradient_without_a_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "use", "always")
    row = replace(BY_NAME[name], steps=3)
    problem = make(row, torch.float64)
    maml = judge.learner(Case(row, torch.float64, "cpu", "native"), problem)
    learnt = [p for p in maml.parameters() if p.requires_grad]
    problem.support, problem.query = (
        tuple(tensor.detach() for tensor in batch) for batch in (problem.support, problem.query)
    )
    out = maml(problem.support, problem.query, stepwise=row.stepwise)
    expected = torch.autograd.grad(out.loss, learnt, materialize_grads=True)
    for _ in range(2):
        with torch.inference_mode():
            told, made = maml.meta_gradient(problem.support, problem.query, stepwise=row.stepwise)
        assert torch.equal(told.loss, out.loss.detach())
        assert not any(value.requires_grad for value in (*told, *made))
        assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


@pytest.mark.parametrize("name", ["option/head-only-conv", "option/static-transformer"])
def test_a_cut_learner_is_copied_pickled_and_shared(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "use", "always")
    row = BY_NAME[name]
    problem = make(row, torch.float64)
    case = Case(row, torch.float64, "cpu", "native")
    maml = judge.learner(case, problem)
    loss = maml(problem.support, problem.query).loss
    for other in (copy.deepcopy(maml), pickle.loads(pickle.dumps(maml)), judge.learner(case, problem)):
        assert torch.equal(other(problem.support, problem.query).loss, loss)
    with torch.no_grad():
        for parameter in problem.model.parameters():
            parameter.mul_(1.5)
    moved = maml(problem.support, problem.query, lr=problem.lr)
    expected = judge.run_oracle(row, problem)
    assert_close({"logits": moved.logits}, {"logits": expected["logits"]})


def test_a_model_that_changes_is_cut_anew() -> None:
    model = seq(L(3, 5), Cumulative(5), L(5, 2))
    maml = mf.MAML(model, loss="mse", adapt_params="2.*")
    x, y = torch.randn(2, 4, 3), torch.randn(2, 4, 2)
    assert composed(maml, x) is not None
    model[1] = nn.Tanh()
    found = composed(maml, x)
    assert found is not None and not found.by_torch
    maml.adapt_params = None
    assert composed(maml, x) is None
    assert maml((x, y), (x, y)).loss.isfinite()


def test_tokens_are_embedded_before_a_native_inner_loop() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(7, 4), L(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embedding(x).mean(1))  # type: ignore[no-any-return]

    x, y = torch.randint(7, (2, 5, 6)), torch.randint(3, (2, 5))
    made = {}
    for backend in ("native", "torch"):
        torch.manual_seed(0)
        model = Tokens().double()
        maml = mf.MAML(model, loss="cross_entropy", steps=3, adapt_params="head.*", backend=backend)
        maml((x, y), (x, y)).loss.backward()
        made[backend] = {name: p.grad for name, p in model.named_parameters()}
    assert_close(made["native"], made["torch"])  # type: ignore[arg-type]


def test_small_models_keep_the_short_path() -> None:
    maml = mf.MAML(mlp(), loss="mse", steps=5, adapt_params="4.*")
    batch = torch.randn(2, 4, 3), torch.randn(2, 4, 2)
    assert composed(maml, batch[0]) is not None
    maml(batch, batch).loss.backward()
    assert maml._repeat is not None


def test_a_model_is_not_kept_alive_by_its_plans() -> None:
    model: nn.Module | None = seq(L(3, 5), Cumulative(5), L(5, 2))
    gone = weakref.ref(model)
    batch = torch.randn(2, 4, 3), torch.randn(2, 4, 2)
    maml: mf.MAML | None = mf.MAML(model, loss="mse", adapt_params="2.*")
    maml(batch, batch).loss.backward()  # type: ignore[misc]
    del model, maml
    gc.collect()
    assert gone() is None


def test_start_is_differentiable_where_torch_holds_it_and_refused_where_the_loop_takes_it_for_a_constant() -> None:
    model = frozen(seq(L(3, 5), Cumulative(5), L(5, 4), nn.Tanh(), L(4, 2)), "0.", "1.", "4.bias").double()
    batch = torch.randn(2, 4, 3).double(), torch.randn(2, 4, 2).double()
    made = []
    for backend in ("native", "torch"):
        maml = mf.MAML(model, loss="mse", steps=2, lr=0.1, backend=backend)
        given = {"0.weight": model[0].weight.detach().clone().requires_grad_()}  # type: ignore[union-attr, operator]
        loss = maml(batch, batch, start=given).loss
        made.append({"0.weight": torch.autograd.grad(loss, given["0.weight"])[0]})
    assert_close(*made)
    with pytest.raises(ValueError, match=r"'4.bias'. requires grad, but the model's own does not"):
        given = {"4.bias": torch.zeros(2).double().requires_grad_()}
        mf.MAML(model, loss="mse", backend="native")(batch, batch, start=given)


def test_a_norm_in_the_loop_is_not_trained_on_one_example() -> None:
    model = seq(L(3, 5), Cumulative(5), L(5, 4), nn.BatchNorm1d(4), L(4, 2))
    maml = mf.MAML(model, loss="mse", adapt_params=["3.*", "4.*"])
    many, one = (torch.randn(2, 4, 3), torch.randn(2, 4, 2)), (torch.randn(2, 1, 3), torch.randn(2, 1, 2))
    assert composed(maml, many[0]).by_torch  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"'3' .batch norm. in training mode needs more than 1 value per channel"):
        maml(many, one)


@pytest.mark.parametrize("sweeps", [True, False])
def test_a_prefix_runs_once_where_that_is_less_work(sweeps: bool) -> None:
    model = seq(L(256, 512), nn.ReLU(), L(512, 512), nn.ReLU(), L(512, 5))
    x = torch.randn(4, 25, 256)
    maml = mf.MAML(model, loss="mse", adapt_params="4.*")
    found = composed(maml, x)
    assert found is not None

    def pays(steps: int) -> bool:
        loop = maml._loop(steps, False)
        batch = mf.call.Batch(x, torch.randn(4, 25, 5), None)
        return found._is_worthwhile(mf.call.Call(list(model.parameters()), (), batch, batch), loop, sweeps)

    assert [pays(steps) for steps in (0, 1, 10)] == [False, False, True]


@pytest.mark.parametrize("name", ["option/head-only", "option/static-transformer", "option/static-batch-norm-3d"])
def test_verify_judges_what_is_cut(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = BY_NAME[name]
    monkeypatch.setattr(static, "use", "always")
    problem = make(row, torch.float32)
    report = mf.verify(
        judge.learner(Case(row, torch.float32, "cpu", "native"), problem), problem.support, problem.query
    )
    report.raise_if_wrong()
    assert ("torch runs what is before" in str(report)) == row.by_torch


def test_a_second_differentiation_is_refused_by_name() -> None:
    """Of attention, too, which has no second derivative in torch."""
    laws.a_second_differentiation_is_refused(Case(BY_NAME["option/static-transformer"], torch.float64, "cpu", "native"))


# -------------------------------------------------------------------------------------------- what is wrong is noticed

BROKEN: dict[str, Callable[[Any, Any], Any]] = {
    "features without a gradient": lambda features, self: lambda *a, **k: features(self, *a, **k).detach(),
    "a gradient for the support set alone": lambda features, self: (
        lambda p, x, *a: features(self, p, x, *a) if a else features(self, p, x).detach()
    ),
    "features of another batch": lambda features, self: lambda p, x, *a: features(self, p, x.flip(0), *a),
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("name", ["option/head-only-conv", "option/static-lstm"])
def test_the_law_notices(name: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = Composed._features
    monkeypatch.setattr(Composed, "_features", lambda self, *a, **k: BROKEN[fault](healthy, self)(*a, **k))
    with pytest.raises(AssertionError, match="off by"):
        laws.a_static_prefix_run_once_changes_nothing(Case(BY_NAME[name], torch.float64, "cpu", "native"))
