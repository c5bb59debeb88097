"""A loss that reads the model sees the parameters that the inner loop has reached, whatever it reads them by."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metafast as mf
from metafast.call import Batch
from metafast.engine import custom_loss, reference
from metafast.judge import Held, Loop

T, N, NQ, LR, STEPS, DECAY = 3, 5, 4, 0.2, 3, 0.1


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def data(n: int = N) -> tuple[Tensor, Tensor]:
    return torch.randn(T, n, 3, dtype=torch.float64), torch.randn(T, n, 2, dtype=torch.float64)


def squares(parameters: Iterable[Tensor]) -> Tensor:
    return torch.stack([p.square().sum() for p in parameters]).sum()


class Decaying(nn.Module):
    """A module that holds the model, or parameters of it."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held = held

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target) + DECAY * squares(self.held.parameters())


class Objective:
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target) + DECAY * squares(self.model.parameters())

    def bound(self, output: Tensor, target: Tensor) -> Tensor:
        return self(output, target)


def with_model(output: Tensor, target: Tensor, model: nn.Module) -> Tensor:
    return F.mse_loss(output, target) + DECAY * squares(model.parameters())


def decay_over(choose: Callable[[nn.Module], Iterable[Tensor]]) -> Callable[[nn.Module], Any]:
    return lambda model: lambda o, y: F.mse_loss(o, y) + DECAY * squares(choose(model))


#: how the weight decay of all parameters is written
WAYS: dict[str, Callable[[nn.Sequential], Any]] = {
    "parameters()": decay_over(lambda m: m.parameters()),
    "named_parameters()": decay_over(lambda m: dict(m.named_parameters()).values()),
    "what requires grad": decay_over(lambda m: [p for p in m.parameters() if p.requires_grad]),
    "what is an nn.Parameter": decay_over(lambda m: [p for p in m.parameters() if isinstance(p, nn.Parameter)]),
    "what is not marked": decay_over(lambda m: [p for p in m.parameters() if not getattr(p, "no_decay", False)]),
    "attributes": decay_over(lambda m: [m[0].weight, m[0].bias, m[2].weight, m[2].bias]),
    "one vector": decay_over(lambda m: [nn.utils.parameters_to_vector(m.parameters())]),
    "a partial": lambda m: functools.partial(with_model, model=m),
    "an object": Objective,
    "a bound method": lambda m: Objective(m).bound,
    "a module that holds the model": Decaying,
    "a module that holds its parameters": lambda m: Decaying(nn.ParameterList(m.parameters())),
}


def meta_loss(theta0: list[Tensor], support: Any, query: Any, decayed: list[int], prox: bool = False) -> Tensor:
    """By hand, without a module: two layers, and DECAY times the squares of the ``decayed`` parameters (of their
    distance to theta_0 with ``prox``)."""

    def loss(p: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        output = torch.tanh(x @ p[0].T + p[1]) @ p[2].T + p[3]
        return F.mse_loss(output, y) + DECAY * squares(p[i] - theta0[i] if prox else p[i] for i in decayed)

    total = torch.zeros((), dtype=torch.float64)
    for t in range(T):
        theta = [p if p.requires_grad else p.clone().requires_grad_() for p in theta0]
        for _ in range(STEPS):
            slopes = torch.autograd.grad(loss(theta, support[0][t], support[1][t]), theta, create_graph=True)
            theta = [p - LR * g for p, g in zip(theta, slopes, strict=True)]
        total = total + loss(theta, query[0][t], query[1][t]) / T
    return total


def central_difference(f: Callable[[list[Tensor]], Tensor], at: list[Tensor], along: list[Tensor]) -> float:
    h = 1e-5
    up, down = ([p.detach() + s * h * v for p, v in zip(at, along, strict=True)] for s in (1, -1))
    return float((f(up) - f(down)).detach()) / (2 * h)


def agrees_with_central_differences(
    maml: mf.MAML, model: nn.Module, decayed: list[int], support: Any, query: Any, prox: bool = False
) -> None:
    parameters = list(model.parameters())
    loss = maml(support, query).loss
    by_hand = [p.detach() for p in parameters]
    assert loss.item() == pytest.approx(meta_loss(by_hand, support, query, decayed, prox).item(), rel=1e-12)
    gradients = torch.autograd.grad(loss, parameters)
    for i, gradient in enumerate(gradients):
        along = [torch.randn_like(p) if j == i else torch.zeros_like(p) for j, p in enumerate(parameters)]
        slope = central_difference(lambda at: meta_loss(at, support, query, decayed, prox), by_hand, along)
        assert (gradient * along[i]).sum().item() == pytest.approx(slope, rel=1e-7, abs=1e-9)


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
        torch.testing.assert_close(gradients[n], plain[n] + 2 * DECAY * p, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(products[n], plain_products[n] + 2 * DECAY * v[n], rtol=1e-10, atol=1e-12)


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

    total = []
    for t in range(T):
        at = theta
        for _ in range(STEPS):
            slopes = torch.autograd.grad(loss(at, support[0][t], support[1][t]), at, create_graph=True)
            at = [p - LR * g for p, g in zip(at, slopes, strict=True)]
        total.append(loss(at, query[0][t], query[1][t]))
    expected = torch.autograd.grad(torch.stack(total).mean(), theta)

    maml = mf.MAML(model, LR, STEPS, backend="torch",
                   loss=lambda o, y: F.mse_loss(o, y) + DECAY * read(model).square().mean())  # fmt: skip
    found = torch.autograd.grad(maml(support, query).loss, list(model.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)
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

        total = torch.zeros((), dtype=torch.float64)
        for t in range(T):
            theta = [p.clone().requires_grad_() for p in theta0]
            for _ in range(STEPS):
                slopes = torch.autograd.grad(loss(theta, support[0][t], support[1][t]), theta, create_graph=True)
                theta = [p - LR * g for p, g in zip(theta, slopes, strict=True)]
            total = total + loss(theta, query[0][t], query[1][t]) / T
        return total

    along = [torch.randn_like(p) for p in by_hand]
    found = torch.autograd.grad(maml(support, query).loss, list(model.parameters()))
    slope = sum((g * v).sum().item() for g, v in zip(found, along, strict=True))
    assert slope == pytest.approx(central_difference(truth, by_hand, along), rel=1e-7)
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
    assert (gradients["loss.scale"] * along).sum().item() == pytest.approx(slope, rel=1e-7)
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
    assert found == pytest.approx(slope, rel=1e-7)


# --------------------------------------------------------------------------------------------- what is registered twice


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = self.a
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))


def test_a_module_with_two_names() -> None:
    model, support, query = Shared().double(), data(), data(NQ)
    own = list(model.parameters())
    maml = mf.MAML(model, LR, STEPS, loss="mse", backend="torch")
    found = torch.autograd.grad(maml(support, query).loss, own)
    native = torch.autograd.grad(mf.MAML(model, LR, STEPS, loss="mse", backend="native")(support, query).loss, own)
    for a, b in zip(found, native, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)
    assert all(a is b for a, b in zip(own, model.parameters(), strict=True))
    assert mf.verify(maml, support, query).ok


# ---------------------------------------------------------------------------------- what may run for all tasks at once

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
    from test_loss_reads_model import MODEL as model

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
        (functools.partial(F.l1_loss, reduction="none"), r"a tensor of shape \[5, 2\]"),
        (lambda o, y, model=MODEL: 0.0, "a float"),
    ],
)
def test_a_loss_returns_one_number(loss: Any, got: str) -> None:
    with pytest.raises(ValueError, match=f"must return one number.*it returned {got}"):
        mf.MAML(net(), LR, STEPS, loss=loss, backend="torch")(data(), data(NQ))
