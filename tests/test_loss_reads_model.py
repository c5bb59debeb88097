"""A loss that reads the model sees the parameters that the inner loop has reached, whatever it reads them by."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metafast as mf
from losses_that_read import (
    DECAY,
    LR,
    NQ,
    STEPS,
    WAYS,
    Decaying,
    N,
    Objective,
    T,
    agrees_with_central_differences,
    central_difference,
    data,
    meta_loss,
    net,
    squares,
    unrolled,
)
from metafast.call import Batch
from metafast.engine import reference
from metafast.judge import Held, Loop


@pytest.mark.parametrize("way", WAYS)
def test_weight_decay_is_that_of_the_adapted_parameters(way: str) -> None:
    model, support, query = net(), data(), data(NQ)
    model[0].bias.no_decay = True  # type: ignore[attr-defined]
    decayed = [0, 2, 3] if way == "what is not marked" else [0, 1, 2, 3]
    loss = WAYS[way](model)
    maml = mf.MAML(model, LR, STEPS, loss=loss, backend="torch")
    agrees_with_central_differences(maml, model, decayed, support, query)
    report = mf.verify(maml, support, query)
    assert report.ok, str(report)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_a_graph_the_loss_still_sees_what_requires_grad(mode: Callable[[], Any]) -> None:
    model, support, query = net(), data(), data(NQ)
    maml = mf.MAML(model, LR, STEPS, loss=WAYS["what requires grad"](model), backend="torch")
    expected = maml(support, query)
    with mode():
        out = maml(support, query)
    assert torch.equal(out.loss, expected.loss) and not out.loss.requires_grad


@pytest.mark.parametrize("anil", [False, True])
@pytest.mark.parametrize("first_order", [False, True])
def test_verify_agrees_where_only_the_head_moves_and_to_first_order(anil: bool, first_order: bool) -> None:
    model, support, query = net(), data(), data(NQ)
    adapt_params = "2.*" if anil else None
    maml = mf.MAML(model, LR, STEPS, loss=Objective(model), first_order=first_order, adapt_params=adapt_params,
                   backend="torch")  # fmt: skip
    report = mf.verify(maml, support, query)
    assert report.ok, str(report)


def test_gradients_and_products_are_taken_where_the_task_is() -> None:
    """d/d theta (mse + c |theta|^2) = d mse / d theta + 2 c theta, and H v + 2 c v."""
    model, batch = net(), data()
    params = {n: torch.randn(T, *p.shape, dtype=torch.float64) for n, p in model.named_parameters()}
    v = {n: torch.randn_like(p) for n, p in params.items()}
    loss, gradients = mf.grad(model, params, batch, Objective(model), backend="torch")
    plain_loss, plain = mf.grad(model, params, batch, "mse", backend="torch")
    penalty = DECAY * torch.stack([squares(p[t] for p in params.values()) for t in range(T)])
    torch.testing.assert_close(loss, plain_loss + penalty, rtol=1e-12, atol=0)
    products = mf.hvp(model, params, batch, v, Objective(model), backend="torch")
    plain_products = mf.hvp(model, params, batch, v, "mse", backend="torch")
    for n, p in params.items():
        torch.testing.assert_close(gradients[n], plain[n] + 2 * DECAY * p, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(products[n], plain_products[n] + 2 * DECAY * v[n], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("way", ["an object", "a bound method", "a partial", "a module that holds the model"])
def test_a_copy_of_the_learner_reads_the_copy_of_the_model(way: str) -> None:
    model, support, query = net(), data(), data(NQ)
    copied = copy.deepcopy(mf.MAML(model, LR, STEPS, loss=WAYS[way](model), backend="torch"))
    with torch.no_grad():
        for p in copied.model.parameters():
            p += 0.1
    agrees_with_central_differences(copied, copied.model, [0, 1, 2, 3], support, query)


# ------------------------------------------------------------------------------------ what a forward pass leaves behind


class Remembering(nn.Module):
    """Keeps a penalty on its activations in every way that a forward pass can."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.kept: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        self.kept["hidden"] = hidden
        self.hidden = hidden
        return self.last(hidden)


@pytest.mark.parametrize("read", [lambda m: m.hidden, lambda m: m.kept["hidden"]], ids=["attribute", "in a dict"])
def test_each_task_reads_its_own_activations(read: Callable[[Any], Tensor]) -> None:
    model, support, query = Remembering().double(), data(), data(NQ)
    theta = [p.detach().clone().requires_grad_() for p in model.parameters()]

    def loss(p: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        hidden = torch.tanh(x @ p[0].T + p[1])
        return F.mse_loss(hidden @ p[2].T + p[3], y) + DECAY * hidden.square().mean()

    expected = torch.autograd.grad(unrolled(loss, theta, support, query), theta)

    maml = mf.MAML(model, LR, STEPS, backend="torch",
                   loss=lambda o, y: F.mse_loss(o, y) + DECAY * read(model).square().mean())  # fmt: skip
    found = torch.autograd.grad(maml(support, query).loss, list(model.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)
    assert mf.verify(maml, support, query).ok


def test_a_loss_may_run_the_model_again() -> None:
    model, support, query = net(), data(), data(NQ)
    other = torch.randn(N, 3, dtype=torch.float64)

    def again(output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target) + model(other.to(output.dtype)).square().mean()

    maml = mf.MAML(model, LR, STEPS, loss=again, backend="torch")
    by_hand = [p.detach() for p in model.parameters()]

    def truth(theta0: list[Tensor]) -> Tensor:
        def loss(p: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
            run = lambda x: torch.tanh(x @ p[0].T + p[1]) @ p[2].T + p[3]  # noqa: E731
            return F.mse_loss(run(x), y) + run(other).square().mean()

        return unrolled(loss, theta0, support, query)

    along = [torch.randn_like(p) for p in by_hand]
    found = torch.autograd.grad(maml(support, query).loss, list(model.parameters()))
    slope = sum((g * v).sum().item() for g, v in zip(found, along, strict=True))
    assert slope == pytest.approx(central_difference(truth, by_hand, along), rel=1e-8)
    assert mf.verify(maml, support, query).ok


# ------------------------------------------------------------------------------------------------ what is taken earlier


@pytest.mark.parametrize("adapt_params", [None, "2.*"])
def test_parameters_taken_before_the_loss_runs_are_refused_by_name(adapt_params: str | None) -> None:
    model, (support, query) = net(), (data(), data(NQ))
    taken = list(model.parameters())
    maml = mf.MAML(model, LR, STEPS, loss=lambda o, y: F.mse_loss(o, y) + squares(taken), adapt_params=adapt_params)
    names = "'2.bias', '2.weight'" if adapt_params else "'0.bias', '0.weight', '2.bias', '2.weight'"
    for run in (maml, lambda *sets: mf.verify(maml, *sets), torch.no_grad()(maml)):
        with pytest.raises(ValueError, match=f"loss <lambda> reads {names} from tensors that were taken"):
            run(support, query)
    assert [a is b for a, b in zip(taken, model.parameters(), strict=True)] == [True] * 4


def test_a_distance_from_the_initial_values_has_the_gradient_of_both() -> None:
    model, support, query = net(), data(), data(NQ)
    taken = list(model.parameters())

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target) + DECAY * squares(map(torch.sub, model.parameters(), taken))

    maml = mf.MAML(model, LR, STEPS, loss=loss, backend="torch")
    agrees_with_central_differences(maml, model, [0, 1, 2, 3], support, query, prox=True)


def test_verify_refuses_a_loss_that_knows_parameters_by_identity() -> None:
    model = net()
    known = {id(p) for p in model.parameters()}

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target) + sum(p.square().sum() for p in model.parameters() if id(p) in known)

    maml = mf.MAML(model, LR, STEPS, loss=loss, backend="torch")
    with pytest.raises(ValueError, match=r"others of the same values.*named_parameters"):
        mf.verify(maml, data(), data(NQ))


# ------------------------------------------------------------------------------------------------------ a learnt loss


class Learnt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.7, 1.3], dtype=torch.float64))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return (self.scale * (output - target).square()).mean()


def test_parameters_of_a_loss_are_meta_learnt_and_not_adapted() -> None:
    model, support, query = net(), data(), data(NQ)
    maml = mf.MAML(model, LR, STEPS, loss=Learnt(), backend="torch")
    scale = maml.loss.scale
    assert any(p is scale for p in maml.parameters())
    gradients = dict(zip((n for n, _ in maml.named_parameters()), maml.meta_gradient(support, query)[1], strict=True))

    def value(at: Tensor) -> float:
        with torch.no_grad():
            kept = scale.clone()
            scale.copy_(at)
            loss = maml(support, query).loss.item()
            scale.copy_(kept)
        return loss

    h, along = 1e-5, torch.tensor([1.0, -0.5], dtype=torch.float64)
    slope = (value(scale.detach() + h * along) - value(scale.detach() - h * along)) / (2 * h)
    assert (gradients["loss.scale"] * along).sum().item() == pytest.approx(slope, rel=1e-8)
    assert set(maml.adapt(support)) == {n for n, _ in model.named_parameters()}
    report = mf.verify(maml, support, query)
    assert report.ok and "loss scale" in report.errors, str(report)


def test_a_loss_module_with_buffers_is_verified_in_both_precisions() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    maml = mf.MAML(model, LR, STEPS, loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])), backend="torch")
    batches = [(data(n)[0].float(), torch.randint(3, (T, n))) for n in (N, NQ)]
    assert mf.verify(maml, *batches).ok


# ------------------------------------------------------------------------------------------------------------ the judge


def test_the_judge_notices_an_engine_whose_loss_sees_the_initial_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    model, support, query = net(), data(), data(NQ)
    maml = mf.MAML(model, LR, STEPS, loss=Objective(model), backend="torch")

    def initial(program: reference.Model, parameters: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        output = reference._outputs(program, parameters, batch.x)
        return output, reference._losses(program, output, batch.y, None)  # type: ignore[arg-type]

    monkeypatch.setattr(reference, "_outputs_and_losses", initial)
    report = mf.verify(maml, support, query)
    assert not report.ok and report.errors["0.weight"] > 0.01


@pytest.mark.parametrize("norm", [False, True])
def test_the_judge_leaves_no_trace(norm: bool) -> None:
    model: nn.Sequential = net()
    if norm:
        model.insert(1, nn.BatchNorm1d(4).double())
    model[0].register_buffer("extra", torch.ones(2))
    model.append(Seeing())
    model(torch.randn(N, 3, dtype=torch.float64))
    loss = Decaying(model)
    maml = mf.MAML(model, LR, STEPS, loss=loss, backend="torch")
    before = [(dict(m._parameters), dict(m._buffers), set(vars(m))) for m in maml.modules()]
    values = copy.deepcopy(maml.state_dict())
    maml(data(), data(NQ))
    assert mf.verify(maml, data(), data(NQ)).ok
    assert model[-1].saw == torch.float64, "not what the judge did last, in float32"
    for (parameters, buffers, names), module in zip(before, maml.modules(), strict=True):
        assert set(vars(module)) == names
        assert all(module._parameters[n] is p for n, p in parameters.items())
        assert all(module._buffers[n] is b for n, b in buffers.items())
    assert all(torch.equal(value, values[n]) for n, value in maml.state_dict().items())


class Seeing(nn.Module):
    saw: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.saw = x.dtype
        return x


def test_verify_says_that_a_loss_holds_tensors_of_one_precision() -> None:
    model, centre = net().float(), torch.randn(N, 3)
    maml = mf.MAML(model, LR, STEPS, loss=lambda o, y: F.mse_loss(o, y) + model(centre).mean(), backend="torch")
    batches = [tuple(t.float() for t in data(n)) for n in (N, NQ)]
    with pytest.raises(ValueError, match=r"loss cannot run in torch.float64.*to\(output.dtype\)"):
        mf.verify(maml, *batches)


def test_the_judge_holds_real_parameters() -> None:
    """Nothing that a loss can ask tells them from those of plain training."""
    model = net()
    asked: list[tuple[bool, ...]] = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        asked.extend((type(p) is nn.Parameter, p.is_leaf, p.requires_grad) for p in model.parameters())
        return F.mse_loss(output, target) + DECAY * squares(model.parameters())

    maml = mf.MAML(model, torch.tensor(LR, dtype=torch.float64), STEPS, loss=loss, backend="torch")  # type: ignore[arg-type]
    support, query = Batch(*data(), None), Batch(*data(NQ), None)
    held = Held(maml)
    leaves = dict(model.named_parameters())
    with held.restored():
        value, gradients = Loop(maml, held, {}, STEPS, stepwise=False).loss_and_gradients(support, query, leaves)
    assert asked and all(map(all, asked))
    at = [p.detach() for p in model.parameters()]
    assert value.item() == pytest.approx(meta_loss(at, support, query, [0, 1, 2, 3]).item(), rel=1e-12)
    along = [torch.randn_like(p) for p in at]
    slope = central_difference(lambda theta: meta_loss(theta, support, query, [0, 1, 2, 3]), at, along)
    found = sum((g * v).sum().item() for g, v in zip(gradients.values(), along, strict=True))
    assert found == pytest.approx(slope, rel=1e-8)
