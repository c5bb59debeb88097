"""What a training loop relies on: forms of lr, modules' conventions, state per call, the choice of engine, verify()."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metafast as mf
import oracle
from changes import CHANGES, WAYS, with_norm
from metafast import ops, reference

Pair = tuple[Tensor, Tensor]
T, N, NQ = 3, 5, 4


@pytest.fixture(params=["native", "torch"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, WAYS)).double()


def tasks(lead: tuple[int, ...] = ()) -> tuple[Pair, Pair]:
    def batch(*shape: int) -> Pair:
        return torch.randn(*shape, 4, dtype=torch.float64), torch.randint(WAYS, shape)

    return batch(T, *lead, N), batch(T, NQ)


def gradients(loss: Tensor, *wrt: Any) -> list[Tensor]:
    leaves = [p for w in wrt for p in (w.parameters() if isinstance(w, nn.Module) else [w])]
    return list(torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True))


def same(found: list[Tensor], truth: list[Tensor]) -> None:
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


# ------------------------------------------------------------------------------------------------------ learning rates


def lr_forms(model: nn.Module) -> dict[str, Any]:
    shapes = {name: p.shape for name, p in model.named_parameters()}
    return {
        "int": 1,
        "float": 0.3,
        "[]": torch.tensor(0.3).double(),
        "[steps]": torch.tensor([0.3, 0.2, 0.1]).double(),
        "dict of floats": {name: 0.1 * i for i, name in enumerate(shapes, 1)},
        "dict of []": {name: torch.tensor(0.1 * i).double() for i, name in enumerate(shapes, 1)},
        "dict of elements": {name: torch.rand(shape).double() for name, shape in shapes.items()},
        "dict of both": {n: torch.rand(s if len(s) > 1 else ()).double() for n, s in shapes.items()},
    }


@pytest.mark.parametrize("form", lr_forms(mlp()))
def test_every_form_of_lr_equals_the_oracle(form: str, backend: str) -> None:
    model, (support, query) = mlp(), tasks()
    lr = lr_forms(model)[form]
    out = mf.MAML(model, lr, steps=3, backend=backend)(support, query)
    truth = oracle.unroll(model, "cross_entropy", support, query, lr=lr, steps=3)
    same(gradients(out.loss, model), gradients(truth.loss, model))
    overridden = mf.MAML(model, 0.77, steps=3, backend=backend)(support, query, lr=lr)
    assert torch.equal(overridden.task_loss, out.task_loss)


@pytest.mark.parametrize("elements", [False, True])
def test_rates_per_step_in_a_dict(elements: bool, backend: str) -> None:
    model, (support, query) = mlp(), tasks()
    shapes = {name: p.shape if elements else () for name, p in model.named_parameters()}
    lr = {name: torch.rand(2, *shape).double().requires_grad_() for name, shape in shapes.items()}
    out = mf.MAML(model, steps=2, rule=mf.SGD(lr, per_step=True), backend=backend)(support, query)
    first = {name: rate[0] for name, rate in lr.items()}
    second = {name: rate[1] for name, rate in lr.items()}
    losses = []
    for t in range(T):  # two loops of one step each
        theta, _ = oracle.adapt_one(
            model, "cross_entropy", (support[0][t], support[1][t]), first, 1, list(lr), False, False
        )
        loss = oracle.task_loss("cross_entropy", oracle.call(model, theta, support[0][t]), support[1][t])
        slopes = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        theta = {n: v - second[n] * g for (n, v), g in zip(theta.items(), slopes, strict=True)}
        losses.append(oracle.task_loss("cross_entropy", oracle.call(model, theta, query[0][t]), query[1][t]))
    truth = torch.stack(losses).mean()
    same(gradients(out.loss, model, *lr.values()), gradients(truth, model, *lr.values()))


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_steps_beyond_the_rates_repeat_the_last(steps: int, backend: str) -> None:
    model, (support, query) = mlp(), tasks()
    lr = torch.tensor([0.4, 0.1]).double().requires_grad_()
    out = mf.MAML(model, lr, steps=2, backend=backend)(support, query, steps=steps)
    truth = oracle.unroll(model, "cross_entropy", support, query, lr=lr, steps=steps)
    assert out.support_loss.shape == (T, steps)
    same(gradients(out.loss, model, lr), gradients(truth.loss, model, lr))


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        (float("nan"), "lr must be finite; it is nan"),
        (torch.tensor([0.1, float("inf"), 0.1]), "lr must be finite; 1 of its 3 values are not"),
        (torch.ones(2), r"lr has shape \[2\]: 2 values along its step axis; expected steps=3"),
        (torch.ones(3, 4), r"lr is a tensor of shape \[3, 4\]; expected \[\] or \[steps\]"),
        ({"0.weight": 0.1}, "lr has no entry for '0.bias'"),
        ({"0.wait": 0.1}, "lr names '0.wait', which is no parameter of the model; it has 0.weight, 0.bias"),
        (
            {"0.weight": torch.ones(6), "0.bias": 1.0, "2.weight": 1.0, "2.bias": 1.0},
            r"lr\['0.weight'\] has shape \[6\]; expected \[\] or \[6, 4\]",
        ),
    ],
)
def test_lr_that_does_not_fit(lr: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mf.MAML(mlp(), lr, steps=3)
    support, query = tasks()
    with pytest.raises(ValueError, match=message):
        mf.MAML(mlp(), steps=3)(support, query, lr=lr)


@pytest.mark.parametrize("lr", [True, "0.1", [0.1], torch.tensor(1), None])
def test_lr_of_a_wrong_type(lr: Any) -> None:
    with pytest.raises(TypeError, match="lr must be"):
        mf.MAML(mlp(), lr)


def test_large_finite_rates_are_finite() -> None:
    big = torch.full((3,), torch.finfo(torch.float64).max, dtype=torch.float64)
    mf.MAML(mlp(), big, steps=3)


def test_rule_and_lr_together() -> None:
    assert mf.MAML(mlp(), rule=mf.SGD(0.1)).lr == 0.1
    assert mf.MAML(mlp(), 0.1, rule=mf.SGD()).lr == 0.1
    with pytest.raises(ValueError, match="lr is given twice"):
        mf.MAML(mlp(), 0.2, rule=mf.SGD(0.1))
    with pytest.raises(TypeError, match="per_step=True describes a dict"):
        mf.MAML(mlp(), rule=mf.SGD(0.1, per_step=True))


LEARNT: dict[str, tuple[Callable[[nn.Module], Any], list[str]]] = {
    "float": (lambda m: 0.3, ["lr"]),
    "[steps]": (lambda m: torch.full((2,), 0.3), ["lr"]),
    "dict": (
        lambda m: {n: torch.full(p.shape, 0.3) for n, p in m.named_parameters()},
        ["lr.0.weight", "lr.0.bias", "lr.2.weight", "lr.2.bias"],
    ),
}


@pytest.mark.parametrize("form", LEARNT)
def test_learnt_rates_are_optimised_and_saved(form: str, backend: str) -> None:
    model, (support, query) = mlp(), tasks()
    build, names = LEARNT[form]
    given = build(model)
    maml = mf.MAML(model, given, steps=2, learn_lr=True, backend=backend)
    own = [n for n, _ in maml.named_parameters() if not n.startswith("model.")]
    assert own == names and [n for n in maml.state_dict() if not n.startswith("model.")] == names
    assert all(p.dtype == torch.float64 for p in maml.parameters())

    optimiser = torch.optim.SGD(maml.parameters(), 0.1)
    before = [maml.get_parameter(n).clone() for n in names]
    maml(support, query).loss.backward()
    optimiser.step()
    assert all(not torch.equal(a, maml.get_parameter(n)) for a, n in zip(before, names, strict=True))
    if isinstance(given, Tensor):
        assert torch.equal(given, torch.full((2,), 0.3)), "the user's own tensor is not the learner's"

    other = mf.MAML(mlp(), build(model), steps=2, learn_lr=True, backend=backend)
    other.load_state_dict(maml.state_dict())
    assert torch.equal(other(support, query).loss, maml(support, query).loss)


def test_a_parameter_given_as_lr_belongs_to_the_learner_only_if_learnt(backend: str) -> None:
    rate = nn.Parameter(torch.tensor(0.2).double())
    support, query = tasks()
    fixed, learnt = (mf.MAML(mlp(), rate, backend=backend, learn_lr=learn) for learn in (False, True))
    assert "lr" not in dict(fixed.named_parameters()) and dict(learnt.named_parameters())["lr"] is rate
    for maml in (fixed, learnt):
        (gradient,) = torch.autograd.grad(maml(support, query).loss, rate)
        assert gradient != 0


def test_assigning_another_rate_counts(backend: str) -> None:
    support, query = tasks()
    model = mlp()
    maml = mf.MAML(model, 0.1, backend=backend)
    maml(support, query)
    maml.lr = 0.3
    assert torch.equal(maml(support, query).loss, mf.MAML(model, 0.3, backend=backend)(support, query).loss)


# --------------------------------------------------------------------------------------------------- adapted parameters


@pytest.mark.parametrize("choose", ["2.*", ["2.weight", "2.bias"], lambda name: name.startswith("2.")])
def test_adapt_params_in_every_form(choose: Any, backend: str) -> None:
    model, (support, query) = mlp(), tasks()
    maml = mf.MAML(model, steps=2, adapt_params=choose, backend=backend)
    assert list(maml.adapt(support)) == ["2.weight", "2.bias"]
    truth = oracle.unroll(model, "cross_entropy", support, query, lr=0.4, steps=2, adapt_params="2.*")
    same(gradients(maml(support, query).loss, model), gradients(truth.loss, model))


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        ("head.*", "'head.*' matches no parameter of the model"),
        ("2", r"'2' matches no parameter of the model .* did you mean '2\.\*'"),
        (["2.weight", "3.bias"], "'3.bias' matches no parameter"),
        (lambda name: False, "leaves nothing to adapt"),
        ("0.*", "leaves nothing to adapt"),
    ],
)
def test_adapt_params_that_choose_nothing(choose: Any, message: str) -> None:
    model = mlp()
    model[0].requires_grad_(False)  # type: ignore[index]
    with pytest.raises(ValueError, match=message):
        mf.MAML(model, adapt_params=choose)


def test_adapt_then_predict_is_forward(backend: str) -> None:
    model, (support, query) = with_norm(), tasks()
    maml = mf.MAML(model, steps=3, backend=backend)
    out = maml(support, query)
    logits = maml.predict(maml.adapt(support), query[0])
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), query[1].flatten())
    torch.testing.assert_close(logits, out.logits, rtol=1e-12, atol=1e-14)
    same(gradients(loss, model), gradients(out.loss, model))


def test_predict_takes_shared_and_missing_parameters(backend: str) -> None:
    model, (_, query) = mlp(), tasks()
    maml = mf.MAML(model, backend=backend)
    weight = torch.randn(T, WAYS, 6, dtype=torch.float64)
    found = maml.predict({"2.weight": weight, "0.bias": torch.zeros(6).double()}, query[0])
    for t in range(T):
        other = copy.deepcopy(model)
        other[2].weight.data, other[0].bias.data = weight[t], torch.zeros(6).double()  # type: ignore[index]
        torch.testing.assert_close(found[t], other(query[0][t]), rtol=1e-12, atol=1e-14)


# --------------------------------------------------------------------------------------------------- module conventions


@pytest.mark.parametrize("learn_lr", [False, True])
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), "torch.save"])
def test_copies_are_equal_and_independent(clone: Any, learn_lr: bool, backend: str) -> None:
    support, query = tasks()
    maml = mf.MAML(
        with_norm(), lr={n: 0.2 for n, _ in with_norm().named_parameters()}, learn_lr=learn_lr, backend=backend
    )
    before = maml(support, query).loss  # a learner in use has plans, which must not travel
    if clone == "torch.save":
        file = io.BytesIO()
        torch.save(maml, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = clone(maml)
    assert torch.equal(other(support, query).loss, before)
    with torch.no_grad():
        for p in maml.parameters():
            p.zero_()
    assert torch.equal(other(support, query).loss, before)
    assert not torch.equal(maml(support, query).loss, before)


def test_a_pickle_holds_no_plan(backend: str) -> None:
    fresh = mf.MAML(mlp(), backend=backend)
    size = len(pickle.dumps(fresh))
    fresh(*tasks())
    assert len(pickle.dumps(fresh)) == size


def test_state_dict_keys() -> None:
    assert list(mf.MAML(mlp()).state_dict()) == ["model.0.weight", "model.0.bias", "model.2.weight", "model.2.bias"]


def test_dtype_follows_to(backend: str) -> None:
    support, query = tasks()
    maml = mf.MAML(mlp(), lr=torch.tensor([0.3] * 5), backend=backend)
    exact = maml(support, query).loss
    maml.float()
    single = maml((support[0].float(), support[1]), (query[0].float(), query[1])).loss
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.filterwarnings("ignore:metafast. 1 is in eval mode")
@pytest.mark.parametrize("change", CHANGES)
def test_what_the_user_changes_in_the_model_counts(change: str, backend: str) -> None:
    support, query = tasks()
    model = with_norm()
    maml = mf.MAML(model, steps=2, backend=backend)
    maml(support, query)
    CHANGES[change](model)  # type: ignore[arg-type]
    truth = oracle.unroll(model, "cross_entropy", support, query, lr=0.4, steps=2)
    out = maml(support, query)
    learnt = [p for p in model.parameters() if p.requires_grad]
    torch.testing.assert_close(out.logits, truth.logits, rtol=1e-10, atol=1e-13)
    same(gradients(out.loss, *learnt), gradients(truth.loss, *learnt))


def test_buffers_stay_untouched(backend: str) -> None:
    model = with_norm()
    before = copy.deepcopy(dict(model.named_buffers()))
    maml = mf.MAML(model, backend=backend)
    maml(*tasks()).loss.backward()
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())


def test_data_parallel(backend: str, tmp_path: Path) -> None:
    support, query = tasks()
    model = with_norm()
    maml = mf.MAML(model, steps=2, backend=backend, learn_lr=True)
    expected = gradients(maml(support, query).loss, maml)
    distributed = torch.distributed
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(maml)
        for _ in range(2):
            parallel.zero_grad()
            parallel(support, query).loss.backward()
        same([p.grad for p in maml.parameters() if p.grad is not None], expected)
    finally:
        distributed.destroy_process_group()


# ------------------------------------------------------------------------------------------------------ state per call


def test_no_grad_gives_the_values_alone(backend: str) -> None:
    support, query = tasks()
    maml = mf.MAML(mlp(), backend=backend)
    with_graph = maml(support, query)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            out = maml(support, query)
            params = maml.adapt(support)
        assert not out.loss.requires_grad and not any(p.requires_grad for p in params.values())
        assert all(torch.equal(a, b) for a, b in zip(out, with_graph, strict=True))


def test_several_forwards_before_a_backward(backend: str) -> None:
    model = mlp()
    maml = mf.MAML(model, backend=backend)
    batches = [tasks() for _ in range(3)]
    apart = [gradients(maml(*batch).loss, model) for batch in batches]
    together = torch.autograd.grad(sum(maml(*batch).loss for batch in batches), list(model.parameters()))
    same(list(together), [sum(g) for g in zip(*apart, strict=True)])  # type: ignore[arg-type]


def test_a_graph_kept_gives_the_same_again(backend: str) -> None:
    model = mlp()
    out = mf.MAML(model, backend=backend)(*tasks())
    first = gradients(2 * out.loss, model)
    for g in first:
        g.clone().zero_()
    again = gradients(2 * out.loss, model)
    same(again, first)
    both = gradients(out.loss + out.task_loss.sum(), model)
    same(both, [(1 + T) / 2 * g for g in first])


def test_editing_in_place_before_backward_is_noticed(backend: str) -> None:
    model, (support, query) = mlp(), tasks()
    out = mf.MAML(model, backend=backend)(support, query)
    with torch.no_grad():
        model[2].weight.add_(1)  # type: ignore[index]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.loss.backward()


def test_a_learner_inside_a_learner(backend: str) -> None:
    """The outer learner's adapted parameters start the inner one's loss: both take part in one graph."""
    model, (support, query) = mlp(), tasks()
    outer = mf.MAML(model, steps=1, backend=backend)

    class Meta(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = outer
            self.scale = nn.Parameter(torch.tensor(0.5).double())

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.body.predict(self.body.adapt(support), x.expand(T, *x.shape)).mean(0)

    meta = Meta()
    top = mf.MAML(meta, lr=0.1, steps=1, adapt_params="scale", backend="torch")
    loss = top(support, query).loss
    names = [n for n, _ in meta.named_parameters()]
    analytic = dict(zip(names, gradients(loss, meta), strict=True))
    weight, h = model[0].weight, 1e-6  # type: ignore[index]
    direction = torch.randn_like(weight)
    with torch.no_grad():
        weight.add_(h * direction)
        up = top(support, query).loss
        weight.sub_(2 * h * direction)
        down = top(support, query).loss
    slope = (analytic["body.model.0.weight"] * direction).sum()
    torch.testing.assert_close(slope, (up - down) / (2 * h), rtol=1e-6, atol=1e-10)


def test_differentiating_twice(backend: str) -> None:
    model = mlp()
    loss = mf.MAML(model, steps=1, backend=backend)(*tasks()).loss
    first = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    if backend == "torch":
        assert all(torch.isfinite(g).all() for g in gradients(sum(g.sum() for g in first), model))  # type: ignore[arg-type]
    else:
        with pytest.raises(RuntimeError, match='backend="torch"'):
            gradients(sum(g.sum() for g in first), model)  # type: ignore[arg-type]


def test_nan_data_gives_nan_to_its_own_task_only(backend: str) -> None:
    support, query = tasks()
    support[0][1, 0, 0] = float("nan")
    out = mf.MAML(mlp(), backend=backend)(support, query)
    assert out.task_loss.isnan().tolist() == [False, True, False] and out.loss.isnan()


def test_weights_that_are_all_zero_give_nan(backend: str) -> None:
    support, query = tasks()
    out = mf.MAML(mlp(), backend=backend)((*support, torch.zeros(T, N).double()), query)
    assert out.task_loss.isnan().all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_classes_of_any_integer_type(dtype: torch.dtype, backend: str) -> None:
    (xs, ys), (xq, yq) = tasks()
    maml = mf.MAML(mlp(), backend=backend)
    assert torch.equal(maml((xs, ys.to(dtype)), [xq, yq.to(dtype)]).loss, maml((xs, ys), (xq, yq)).loss)


# ---------------------------------------------------------------------------------------------------- choice of engine


@pytest.fixture
def warned() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def test_what_cannot_be_lowered_runs_on_torch_and_says_so_once(warned: list[warnings.WarningMessage]) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, WAYS)).double()
    maml = mf.MAML(model)
    support, query = tasks()
    for _ in range(2):
        out = maml(support, query)
        maml.predict(maml.adapt((support[0][:1], support[1][:1])), query[0][:1])
    assert len(warned) == 1
    assert "1: LayerNorm" in str(warned[0].message) and warned[0].filename == __file__
    truth = oracle.unroll(model, "cross_entropy", support, query, lr=0.4, steps=5)
    same(gradients(out.loss, model), gradients(truth.loss, model))
    mf.MAML(model, backend="torch")(support, query)
    assert len(warned) == 1


@pytest.mark.parametrize("options", [{"strict": True}, {"backend": "native"}])
def test_strict_raises_naming_layer_and_reason(options: dict[str, Any]) -> None:
    maml = mf.MAML(nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, WAYS)).double(), **options)
    with pytest.raises(RuntimeError, match="1: LayerNorm has no native form"):
        maml(*tasks())
    with pytest.raises(RuntimeError, match="only torch can differentiate"):
        mf.MAML(mlp(), loss=lambda o, y: o.square().mean(), **options)(*tasks())


def test_a_model_that_neither_engine_can_run_is_the_callers_mistake(warned: list[warnings.WarningMessage]) -> None:
    (xs, ys), query = tasks()
    for options in ({}, {"backend": "torch"}, {"strict": True}):
        with pytest.raises(ValueError, match=r"support x has, for each task, 5 examples of shape \[3\]"):
            mf.MAML(mlp(), **options)((xs[..., :3], ys), query)  # type: ignore[arg-type]
    assert not warned


def test_embeddings_take_integers() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(8, WAYS)).double()
    xs, xq = torch.randint(7, (T, N, 2)), torch.randint(7, (T, NQ, 2))
    (_, ys), (_, yq) = tasks()
    out = mf.MAML(model, steps=2, backend="torch")((xs, ys), (xq, yq))
    truth = oracle.unroll(model, "cross_entropy", (xs, ys), (xq, yq), lr=0.4, steps=2)
    same(gradients(out.loss, model), gradients(truth.loss, model))


def test_statistics_never_updated_warn_once(backend: str, warned: list[warnings.WarningMessage]) -> None:
    support, query = tasks()
    maml = mf.MAML(with_norm(), backend=backend).eval()
    for _ in range(2):
        maml(support, query)
        maml.train()(support, query)
        maml.eval()
    assert len(warned) == 1
    assert "1 is in eval mode" in str(warned[0].message)


# ----------------------------------------------------------------------------------------------------- mf.grad, mf.hvp


def test_gradients_and_hessian_vector_products(backend: str) -> None:
    model, (batch, _) = with_norm(), tasks()
    model[3].bias.requires_grad_(False)  # type: ignore[index]
    named = dict(model.named_parameters())
    params = {n: p.detach() + 0.1 * torch.randn(T, *p.shape).double() for n, p in named.items() if n != "0.bias"}
    params["1.weight"] = named["1.weight"].detach()  # shared
    learnt = {n: p for n, p in params.items() if n != "3.bias"}
    fixed = {n: p for n, p in params.items() if n not in learnt}
    v = {n: torch.randn(T, *named[n].shape).double() for n in learnt}
    model_at = copy.deepcopy(model)

    loss, grads = mf.grad(model, params, batch, "cross_entropy", backend=backend)
    products = mf.hvp(model, params, batch, v, "cross_entropy", backend=backend)
    assert list(grads) == list(products) == list(learnt)
    for t in range(T):
        rest = {n: p[t] for n, p in fixed.items()}
        at = {n: (p if p.shape == named[n].shape else p[t]).clone().requires_grad_() for n, p in learnt.items()}
        value = oracle.task_loss(
            "cross_entropy",
            oracle.call(model_at, {**dict(model_at.named_parameters()), **rest, **at}, batch[0][t]),
            batch[1][t],
        )
        slopes = torch.autograd.grad(value, list(at.values()), create_graph=True)
        along = sum((s * v[n][t]).sum() for n, s in zip(at, slopes, strict=True))
        truth = torch.autograd.grad(along, list(at.values()))  # type: ignore[arg-type]
        torch.testing.assert_close(loss[t], value, rtol=1e-12, atol=0)
        same([grads[n][t] for n in at], [s.detach() for s in slopes])
        for n, h in zip(at, truth, strict=True):
            torch.testing.assert_close(products[n][t], h, rtol=1e-9, atol=1e-11)


def test_a_vector_not_given_is_zero_and_a_shared_one_is_everybodys(backend: str) -> None:
    model, (batch, _) = mlp(), tasks()
    params = dict(model.named_parameters())
    shared = {"2.weight": torch.randn(WAYS, 6).double()}
    full = {n: torch.zeros(T, *p.shape).double() for n, p in params.items()}
    full["2.weight"] += shared["2.weight"]
    a = mf.hvp(model, params, batch, shared, "cross_entropy", backend=backend)
    b = mf.hvp(model, params, batch, full, "cross_entropy", backend=backend)
    assert all(torch.equal(a[n], b[n]) for n in params)
    with pytest.raises(ValueError, match=r"v\['0.wait'\]"):
        mf.hvp(model, params, batch, {"0.wait": shared["2.weight"]}, "cross_entropy", backend=backend)


# ---------------------------------------------------------------------------------------------------------- mf.verify


def weighted(batch: Pair) -> tuple[Tensor, ...]:
    return (*batch, torch.rand(batch[0].shape[:-1]).double())


@pytest.mark.parametrize("lr", ["[]", "[steps]", "dict of both"])
@pytest.mark.parametrize("first_order", [False, True])
def test_verify_agrees_with_a_right_engine(lr: str, first_order: bool, backend: str) -> None:
    model = with_norm()
    maml = mf.MAML(model, lr_forms(model)[lr], steps=3, first_order=first_order, backend=backend)
    support, query = tasks((3,))
    report = mf.verify(maml, weighted(support), weighted(query), stepwise=True)
    assert report.ok, str(report)
    report.raise_if_wrong()
    assert {"loss", "0.weight", "3.bias", "xs", "xq", "ws", "wq"} < set(report.errors)
    assert report.engine.startswith(backend)
    assert all(p.grad is None for p in model.parameters())
    assert 0 < report.errors_float32["loss"] < 1e-5


def test_verify_learnt_rates_and_float32(backend: str) -> None:
    model = mlp().float()
    maml = mf.MAML(model, {n: 0.1 for n, _ in model.named_parameters()}, steps=2, learn_lr=True, backend=backend)
    (xs, ys), (xq, yq) = tasks()
    report = mf.verify(maml, (xs.float(), ys), (xq.float(), yq))
    assert report.ok and "lr 0.weight" in report.errors, str(report)


def test_verify_notices_a_wrong_engine(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    engine = ops if backend == "native" else reference
    right = engine.unroll
    monkeypatch.setattr(engine, "unroll", lambda *a, **k: right(*a, **{**k, "first_order": True}))  # type: ignore[arg-type]
    report = mf.verify(mf.MAML(mlp(), steps=2, backend=backend), *tasks())
    assert not report.ok and "WRONG" in str(report) and report.errors["loss"] < 1e-12
    with pytest.raises(RuntimeError, match="DIFFERS"):
        report.raise_if_wrong()


def test_verify_refuses_a_random_model() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, WAYS)).double()
    with pytest.raises(ValueError, match="two answers for one input"):
        mf.verify(mf.MAML(model, backend="torch"), *tasks())


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("learn_lr", [False, True])
def test_meta_gradient_is_what_autograd_gives(backend: str, learn_lr: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    model[0].bias.requires_grad_(False)
    maml = mf.MAML(model, lr=0.1, steps=2, loss="mse", backend=backend, learn_lr=learn_lr)
    support, query = [
        (torch.randn(4, n, 3, dtype=torch.double), torch.randn(4, n, 2, dtype=torch.double)) for n in (5, 6)
    ]
    out, gradients = maml.meta_gradient(support, query)
    wanted = [p for p in maml.parameters() if p.requires_grad]
    expected = maml(support, query)
    assert torch.equal(out.loss, expected.loss) and not out.loss.requires_grad
    for ours, theirs in zip(gradients, torch.autograd.grad(expected.loss, wanted), strict=True):
        assert torch.equal(ours, theirs)
