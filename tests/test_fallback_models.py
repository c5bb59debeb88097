"""Models that only torch can run, and what both engines must do alike: gradients that are not there, the model's own
state, autocast."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import metafast as mf
import oracle
from models import Unused
from models_of_parts import directed
from small import same

Pair = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "metafast: running on torch")
        yield


def tasks(inputs: int = 3, outputs: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Pair, Pair]:
    support, query = ((torch.randn(2, n, inputs), torch.randn(2, n, outputs)) for n in (5, 4))
    return (support[0].to(dtype), support[1].to(dtype)), (query[0].to(dtype), query[1].to(dtype))


def learnt(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def check(model: nn.Module, judge: nn.Module | None = None) -> None:
    """The meta-gradient is that of the plain loop through ``judge``, and ``mf.verify`` finds so too."""
    judge = model if judge is None else judge
    support, query = tasks()
    maml = mf.MAML(model, lr=0.1, steps=2, loss="mse")
    _, found = maml.meta_gradient(support, query)
    with sdpa_kernel(SDPBackend.MATH):
        truth = oracle.unroll(judge, "mse", support, query, lr=0.1, steps=2).loss
        expected = torch.autograd.grad(truth, learnt(judge), materialize_grads=True)
    same(found, expected)
    report = mf.verify(maml, support, query)
    assert report.ok, str(report)


# -------------------------------------------------------------------------- layers without a second derivative in torch


class Sequence(nn.Module):
    """Three tokens of one example, through the layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Linear(1, 4), layer, nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x.unsqueeze(2))
        h = (
            self.layer(h, h, h, need_weights=False)[0]
            if isinstance(self.layer, nn.MultiheadAttention)
            else self.layer(h)
        )
        return torch.tanh(self.head(h.flatten(1)))


def encoder(**settings: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True, **settings)


TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: nn.MultiheadAttention(4, 2, batch_first=True),
    "encoder": encoder,
    "norm first": lambda: encoder(norm_first=True, activation="gelu"),
    "eval": lambda: encoder().eval(),
    "two layers": lambda: nn.TransformerEncoder(encoder(), 2),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str) -> None:
    check(Sequence(TRANSFORMERS[name]()).double())


def test_transformers_predict_as_they_are() -> None:
    """Without gradients torch takes a fast path of its own, which knows nothing of parameters per task."""
    model = Sequence(encoder()).double().eval()
    (xs, _), _ = tasks()
    with torch.no_grad():
        predicted = mf.MAML(model, loss="mse", backend="torch").predict({}, xs)
        torch.testing.assert_close(predicted, torch.stack([model(x) for x in xs]), rtol=1e-10, atol=1e-12)


class Bags(nn.Module):
    """Words that are the digits of x, and their mean embedding."""

    def __init__(self, bag: bool) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(5, 3, mode="mean") if bag else nn.Embedding(5, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        words = x.abs().long() % 5
        h = self.table(words) if isinstance(self.table, nn.EmbeddingBag) else self.table(words).mean(1)
        return torch.tanh(self.head(h))


class Weighed(nn.Module):
    """weight_norm, whose second derivative in torch is wrong, beside g v / |v|."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        self.first = (directed if written else nn.utils.parametrizations.weight_norm)(nn.Linear(3, 4))
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.last(torch.tanh(self.first(x))))


@pytest.mark.parametrize("kind", [Bags, Weighed])
def test_layers_equal_their_definition(kind: Callable[[bool], nn.Module]) -> None:
    model, judge = kind(kind is Bags).double(), kind(kind is not Bags).double()
    judge.load_state_dict(model.state_dict())
    check(model, judge)


# ------------------------------------------------------------------------------------------ models that torch can run


class Physics(nn.Module):
    """u(x) and du/dx, as a physics-informed network returns them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        u = self.body(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return torch.cat([u, slope[:, :1]], 1)


class PhysicsByFunction(Physics):
    def forward(self, x: Tensor) -> Tensor:
        u, slope = self.body(x), torch.func.vmap(torch.func.jacrev(self.body))(x)
        return torch.cat([u, slope[:, 0, :1]], 1)


@pytest.mark.parametrize("kind", [Physics, PhysicsByFunction])
def test_a_model_that_differentiates_in_forward(kind: type[nn.Module]) -> None:
    model = kind().double()
    check(model)
    support, query = tasks()
    maml = mf.MAML(model, lr=0.1, steps=2, loss="mse", backend="torch")
    expected = maml(support, query)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = maml(support, query)
            torch.testing.assert_close(found.logits, expected.logits, rtol=1e-12, atol=0)
            assert not found.loss.requires_grad
            predicted = maml.predict({}, query[0])
        torch.testing.assert_close(predicted, torch.stack([model(x) for x in query[0]]), rtol=1e-12, atol=0)


def test_data_parallel_is_the_module_that_it_holds() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)).double()
    check(nn.DataParallel(model), model)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x, use_reentrant=False))


def test_a_checkpoint_would_recompute_another_model_and_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Checkpointed raised .*checkpoints its activations"):
        mf.MAML(Checkpointed().double(), loss="mse", backend="torch")(*tasks())


def test_hooks_around_the_call_are_the_callers_affair() -> None:
    model, (support, query) = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)).double(), tasks()
    maml = mf.MAML(model, loss="mse", backend="torch")
    _, expected = maml.meta_gradient(support, query)
    with torch.autograd.graph.save_on_cpu():
        _, found = maml.meta_gradient(support, query)
    same(found, expected)


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail = nn.Linear(3, 4), nn.Sequential(nn.Tanh(), nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.stem(x))


def test_an_error_names_the_layer_that_failed() -> None:
    message = r"^layer 'tail.1': Linear raised RuntimeError: mat1 and mat2 .*; support x has, for each task, 5 examples"
    with pytest.raises(ValueError, match=message):
        mf.MAML(Broken().double(), loss="mse", backend="torch")(*tasks())


# ------------------------------------------------------------------------------------------------ parameters never used


def test_a_parameter_that_is_never_used_has_no_gradient(backend: str) -> None:
    model, (support, query) = Unused().double(), tasks()
    maml = mf.MAML(model, lr=0.1, loss="mse", backend=backend)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.5)
    for _ in range(3):  # the third call goes a shorter way
        before = copy.deepcopy(model.state_dict())
        optimizer.zero_grad()
        (2 * maml(support, query).loss).backward()
        optimizer.step()
        assert model.unused.weight.grad is None and model.used.weight.grad is not None
        assert torch.equal(model.unused.weight, before["unused.weight"])
        assert not torch.equal(model.used.weight, before["used.weight"])


def test_where_a_tensor_is_promised_it_is_zero(backend: str) -> None:
    model, (support, query) = Unused().double(), tasks()
    named = dict(model.named_parameters())
    _, gradients = mf.MAML(model, lr=0.1, loss="mse", backend=backend).meta_gradient(support, query)
    by_name = dict(zip(named, gradients, strict=True))
    assert torch.equal(by_name["unused.weight"], torch.zeros(2, 2).double())
    params = {n: p.detach().clone().requires_grad_() for n, p in named.items()}
    _, slopes = mf.grad(model, params, support, "mse", backend=backend)
    assert torch.equal(slopes["unused.bias"], torch.zeros(2, 2).double())
    sum(g.square().sum() for g in slopes.values()).backward()  # type: ignore[union-attr]
    assert params["unused.weight"].grad is None and params["used.weight"].grad is not None


def test_a_rate_of_its_own_has_a_gradient_if_the_parameter_does(backend: str) -> None:
    model, (support, query) = Unused().double(), tasks()
    lr = {n: torch.full_like(p, 0.1).requires_grad_() for n, p in model.named_parameters()}
    mf.MAML(model, lr=lr, loss="mse", backend=backend)(support, query).loss.backward()
    assert {n: rate.grad is None for n, rate in lr.items()} == {n: n.startswith("unused") for n in lr}


def test_an_adapted_parameter_that_the_model_never_uses_is_still_an_output(backend: str) -> None:
    """theta_K = theta_0, whose derivative is one for every task."""
    model, (support, _) = Unused().double(), tasks()
    adapted = mf.MAML(model, lr=0.1, loss="mse", backend=backend).adapt(support)
    (adapted["unused.weight"].sum() + adapted["used.bias"].sum()).backward()
    assert torch.equal(model.unused.weight.grad, torch.full((2, 2), 2.0).double())
    assert model.unused.bias.grad is None and model.used.bias.grad is not None


# --------------------------------------------------------------------------------------------------- the model's state


class Statistics(nn.Module):
    """Subtracts a running mean that is kept as a parameter, and counts in a buffer."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.layer, self.way = nn.Linear(3, 2), way
        self.mean = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "weight":
            with torch.no_grad():
                self.layer.weight.clamp_(-0.3, 0.3)
        h = self.layer(x)
        target = self.mean.data if self.way == "data" else self.mean
        with torch.no_grad():
            target.mul_(0.9).add_(0.1 * h.mean(0))
            self.count.add_(1)
        return torch.tanh(h - self.mean)


@pytest.mark.parametrize("way", ["in place", "data", "weight"])
@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_what_forward_writes_into_is_left_alone(way: str, engine: str) -> None:
    model, (support, query) = Statistics(way).double(), tasks()
    (xs, ys), (xq, yq) = support, query
    for some, other in (((xs, ys), (xq, yq)), ((xs[:1], ys[:1]), (xq[:1], yq[:1]))):
        before = copy.deepcopy(model.state_dict())
        maml = mf.MAML(model, lr=0.1, steps=2, loss="mse", backend=engine)
        first = maml(some, other).loss
        first.backward()
        assert torch.equal(first, maml(some, other).loss)
        maml.predict(maml.adapt(some), other[0])
        mf.grad(model, dict(model.named_parameters()), some, "mse", backend=engine)
        assert mf.verify(maml, some, other).ok
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ------------------------------------------------------------------------------------------------ losses that read them


def compiled() -> nn.Module:
    model = nn.Sequential(torch.compile(nn.Linear(3, 4), backend="aot_eager"), nn.Tanh(), nn.Linear(4, 2)).double()
    model(torch.randn(2, 3).double())  # there is compiled code now
    return model


READ: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: Sequence(encoder()),
    "weight_norm": lambda: Weighed(False),
    "differentiates": Physics,
    "writes into a parameter": lambda: Statistics("weight"),
    "writes into a constant": lambda: Statistics("in place"),
    "DataParallel": lambda: nn.DataParallel(nn.Linear(3, 2)),
    "compiled": compiled,
}


@pytest.mark.parametrize("name", READ)
def test_a_loss_may_read_each_of_them(name: str) -> None:
    """And run it once more, at the task's own parameters."""
    model, (support, query) = READ[name]().double(), tasks()
    before = copy.deepcopy(model.state_dict())

    def loss(output: Tensor, target: Tensor) -> Tensor:
        decay = sum(p.square().sum() for p in model.parameters() if p.requires_grad)
        value = (output - target).square().mean() + 0.1 * decay
        if name == "writes into a parameter":  # of which torch has no derivative after another run
            return value
        return value + model(support[0][0].to(output.dtype)).square().mean()

    maml = mf.MAML(model, lr=0.1, steps=2, loss=loss)
    report = mf.verify(maml, support, query)
    assert report.ok, str(report)
    expected = maml(support, query).loss
    with torch.no_grad():
        torch.testing.assert_close(maml(support, query).loss, expected, rtol=1e-12, atol=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_loss_that_reads_a_checkpointed_model_is_refused() -> None:
    model, head = nn.Linear(3, 2).double(), nn.Linear(2, 2).double()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (checkpoint(head, output, use_reentrant=False) - target).square().mean() + model.weight.square().mean()

    with pytest.raises(RuntimeError, match="checkpoints its activations"):
        mf.MAML(model, lr=0.1, loss=loss)(*tasks())


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
    model, (support, query) = Shared().double(), tasks()
    own = list(model.parameters())
    maml, native = (mf.MAML(model, 0.2, 3, loss="mse", backend=backend) for backend in ("torch", "native"))
    found, expected = (torch.autograd.grad(one(support, query).loss, own) for one in (maml, native))
    same(found, expected)
    assert all(a is b for a, b in zip(own, model.parameters(), strict=True))
    assert mf.verify(maml, support, query).ok


# ----------------------------------------------------------------------------------------------------------- autocast


def test_under_autocast_everything_is_in_the_dtype_of_the_parameters(backend: str) -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    support, query = tasks(dtype=torch.float32)
    params = dict(model.named_parameters())

    def everything() -> list[Tensor]:
        maml = mf.MAML(model, lr=0.1, steps=2, loss="mse", backend=backend)
        adapted, v = maml.adapt(support), {n: torch.ones_like(p) for n, p in params.items()}
        loss, slopes = mf.grad(model, params, support, "mse", backend=backend)
        products = mf.hvp(model, params, support, v, "mse", backend=backend)
        predicted = maml.predict(adapted, query[0])
        return [*maml(support, query), *adapted.values(), predicted, loss, *slopes.values(), *products.values()]

    expected = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = everything()
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)
