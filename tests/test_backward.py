"""``maml.backward`` leaves in ``.grad`` what a graph and its backward leave there, bit for bit."""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import metafast as mf
from metafast.engine import ops

T, N, Q = 3, 5, 4
Data = tuple[Tensor, ...]


def sets(steps: int | None = None, dtype: torch.dtype = torch.float64) -> tuple[Data, Data]:
    stepwise = () if steps is None else (steps,)
    return tuple(
        (torch.randn(T, *k, n, 4, dtype=dtype), torch.randn(T, *k, n, 2, dtype=dtype))
        for k, n in ((stepwise, N), ((), Q))
    )  # type: ignore[return-value]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def learner(**settings: Any) -> mf.MAML:
    return mf.MAML(network(), **{"lr": 0.1, "steps": 2, "loss": "mse", **settings})


class Idle(nn.Module):
    """With a parameter that forward never reads."""

    def __init__(self) -> None:
        super().__init__()
        self.within, self.idle = network(), nn.Parameter(torch.ones(2).double())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.within(x)
        return out


class Recurrent(nn.Module):
    """What torch runs before a native head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.GRUCell(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


def by_graph(maml: mf.MAML, support: Any, query: Any, *, gradient: Tensor | None = None, **options: Any) -> Any:
    out = maml(support, query, **options)
    out.loss.backward(gradient)
    return out


def same(ours: mf.MAML, graph: mf.MAML) -> None:
    for (name, a), (_, b) in zip(ours.named_parameters(), graph.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None and b.grad is not None:
            assert torch.equal(a.grad, b.grad) and a.grad.stride() == b.grad.stride(), name
            assert a.grad.dtype == a.dtype and not a.grad.requires_grad


def is_the_graphs(maml: mf.MAML, *, calls: int = 3, **options: Any) -> None:
    """After several calls that add up, and once more from gradients of zero."""
    graph = copy.deepcopy(maml)
    steps = maml.steps if options.get("stepwise") else None
    for number in range(calls + 1):
        if number == calls:
            maml.zero_grad(set_to_none=False), graph.zero_grad(set_to_none=False)
        support, query = sets(steps)
        out = maml.backward(support, query, **options)
        expected = by_graph(graph, support, query, **options)
        assert all(map(torch.equal, out, expected)) and not any(value.requires_grad for value in out)
        same(maml, graph)


SETTINGS: dict[str, Callable[[], mf.MAML]] = {
    "plain": learner,
    "no steps": lambda: learner(steps=0),
    "first order": lambda: learner(first_order=True),
    "truncated": lambda: learner(estimator=mf.Truncated(1)),
    "adam": lambda: learner(lr=mf.learner.DEFAULT_LR, rule=mf.Adam(0.05)),
    "learnt rate": lambda: learner(learn_lr=True),
    "learnt settings": lambda: learner(lr=mf.learner.DEFAULT_LR, rule=mf.Adam(0.05, learn=("lr", "betas"))),
    "a rate in a tensor": lambda: learner(lr=torch.tensor(0.1).double()),
    "head alone": lambda: learner(adapt_params="2.*"),
    "idle": lambda: mf.MAML(Idle(), 0.1, 2, "mse"),
    "idle head": lambda: mf.MAML(Idle(), 0.1, 2, "mse", adapt_params="within.2.*"),
    "recurrent": lambda: mf.MAML(Recurrent().double(), 0.1, 2, "mse", adapt_params="head.*"),
    "own loss": lambda: learner(loss=lambda output, target: (output - target).abs().mean(), backend="torch"),
}


@pytest.mark.filterwarnings("ignore:metafast. running on torch")
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_are_those_of_the_graph(name: str, backend: str) -> None:
    maml = SETTINGS[name]()
    maml.backend = backend
    is_the_graphs(maml)


@pytest.mark.parametrize("options", [{"steps": 1}, {"lr": 0.3}, {"stepwise": True}])
def test_arguments_are_those_of_the_graph(options: dict[str, Any]) -> None:
    is_the_graphs(learner(), **options)


def test_gradients_are_those_of_a_plain_loop() -> None:
    """theta' = theta - a dL(theta; S)/d theta, task by task, and the derivative of the mean of L(theta'; Q)."""
    maml = learner(steps=2)
    support, query = sets()
    maml.backward(support, query)
    first, second = copy.deepcopy(maml.model)[0], copy.deepcopy(maml.model)[2]
    theta = [first.weight, first.bias, second.weight, second.bias]

    def loss(p: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        return ((torch.tanh(x @ p[0].T + p[1]) @ p[2].T + p[3] - y) ** 2).mean()

    losses = []
    for t in range(T):
        p: list[Tensor] = theta
        for _ in range(2):
            gradients = torch.autograd.grad(loss(p, support[0][t], support[1][t]), p, create_graph=True)
            p = [a - 0.1 * g for a, g in zip(p, gradients, strict=True)]
        losses.append(loss(p, query[0][t], query[1][t]))
    expected = torch.autograd.grad(torch.stack(losses).mean(), theta)
    for parameter, gradient in zip(maml.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-13)


def started(leaf: Tensor, is_leaf: bool) -> dict[str, Any]:
    """Initial values for a bias: a leaf for all tasks, or what a network makes of it for each."""
    return {"start": {"0.bias": leaf if is_leaf else leaf.square().expand(T, 6)}}


WEIGHTED = ("xs", "ys", "ws", "xq", "yq", "wq")


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("wanted", [*WEIGHTED, "lr", "rate of the learner", "start", "start of a network"])
def test_every_leaf_gets_its_gradient(wanted: str, backend: str) -> None:
    maml = learner(backend=backend)
    graph = copy.deepcopy(maml)
    leaves: list[list[Tensor]] = []
    shift = torch.randn(6).double()
    support, query = sets()
    values = (*support, torch.rand(T, N).double(), *query, torch.rand(T, Q).double())
    data = dict(zip(WEIGHTED, values, strict=True))
    maml.backward(support, query), by_graph(graph, support, query)  # the next call goes the short way if it may
    for each, call in ((maml, mf.MAML.backward), (graph, by_graph)):
        options: Callable[[], dict[str, Any]] = dict
        own = {name: value.clone() for name, value in data.items()}
        if wanted in own:
            leaf = own[wanted].requires_grad_()
        elif wanted.startswith("start"):
            leaf = shift.clone().requires_grad_()
            options = partial(started, leaf, wanted == "start")
        else:
            leaf = torch.tensor(0.2).double().requires_grad_()
            if wanted == "lr":
                options = partial(dict, lr=leaf)
            else:
                each.lr = leaf
        leaves.append([leaf])
        for _ in range(2):
            call(each, [own[n] for n in WEIGHTED[:3]], [own[n] for n in WEIGHTED[3:]], **options())
    (ours,), (theirs,) = leaves
    assert theirs.grad is not None and theirs.grad.any()
    assert ours.grad is not None and torch.equal(ours.grad, theirs.grad)
    same(maml, graph)


def test_the_common_case_has_no_graph_and_goes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    maml = learner(strict=True)
    monkeypatch.delattr(ops, "_apply")
    maml.backward(*sets())
    monkeypatch.delattr(ops, "meta_gradient")
    with torch.no_grad():
        maml.backward(*sets())
    with pytest.raises(AttributeError):
        maml.backward(*sets(), steps=1)


@pytest.mark.parametrize("name", ["plain", "learnt rate"])
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_without_grad_mode_too(name: str, backend: str) -> None:
    maml = SETTINGS[name]()
    maml.backend = backend
    graph = copy.deepcopy(maml)
    for _ in range(2):
        data = sets()
        with torch.no_grad():
            maml.backward(*data)
        by_graph(graph, *data)
        same(maml, graph)


def test_frozen_parameters_get_none() -> None:
    maml = learner()
    maml.model[0].weight.requires_grad_(False)
    is_the_graphs(maml)
    assert maml.model[0].weight.grad is None


def test_gradients_are_added_in_place() -> None:
    maml = learner()
    for _ in range(2):
        maml.backward(*sets())
    before = [p.grad for p in maml.parameters()]
    maml.backward(*sets())
    assert all(p.grad is grad for p, grad in zip(maml.parameters(), before, strict=True))


def test_parameters_of_another_layout_keep_it() -> None:
    maml = learner()
    with torch.no_grad():
        maml.model[0].weight.data = maml.model[0].weight.t().contiguous().t()
    is_the_graphs(maml)


@pytest.mark.parametrize("repeats", [0, 2])
def test_hooks_are_called(repeats: int) -> None:
    maml = learner()
    for _ in range(repeats):
        maml.backward(*sets())
    graph = copy.deepcopy(maml)
    called: list[Tensor] = []
    handles = []
    for each in (maml, graph):
        handles.append(each.model[0].weight.register_hook(lambda g: 3 * g))
        handles.append(each.model[2].bias.register_post_accumulate_grad_hook(called.append))
    data = sets()
    maml.zero_grad()
    maml.backward(*data)
    by_graph(graph, *data)
    same(maml, graph)
    assert [id(p) for p in called] == [id(maml.model[2].bias), id(graph.model[2].bias)]
    for handle in handles:
        handle.remove()
    maml.backward(*data)
    by_graph(graph, *data)
    same(maml, graph)
    assert len(called) == 2


@pytest.mark.parametrize("repeats", [0, 2])
@pytest.mark.parametrize("gradient", [torch.tensor(1.0), torch.tensor(0.3), torch.tensor(3.0).double()])
def test_the_gradient_of_something_for_the_loss(gradient: Tensor, repeats: int) -> None:
    maml = learner()
    for _ in range(repeats):
        maml.backward(*sets())
    maml.zero_grad()
    graph, data = copy.deepcopy(maml), sets()
    maml.backward(*data, gradient=gradient)
    by_graph(graph, *data, gradient=gradient)
    same(maml, graph)


@pytest.mark.parametrize("fit", [mf.optim.Adam, torch.optim.SGD])
def test_grad_scalers(fit: Any) -> None:
    """Scaled, unscaled and clipped as in a loop with a graph; a step with infinite gradients is left out."""
    maml = learner()
    graph = copy.deepcopy(maml)
    pairs = [(m, fit(m.parameters(), lr=0.01), torch.amp.GradScaler("cpu", init_scale=64.0)) for m in (maml, graph)]
    for number in range(4):
        support, query = sets()
        if number == 2:
            query = (query[0], query[1].fill_(torch.inf))
        for each, optimiser, scaler in pairs:
            optimiser.zero_grad()
            if each is maml:
                each.backward(support, query, gradient=scaler.scale(torch.ones(())))
            else:
                scaler.scale(each(support, query).loss).backward()
            scaler.unscale_(optimiser)
            nn.utils.clip_grad_norm_(each.parameters(), 0.5)
            scaler.step(optimiser)
            scaler.update()
    assert pairs[0][2].get_scale() == pairs[1][2].get_scale() == 32.0
    assert all(map(torch.equal, maml.parameters(), graph.parameters()))


def test_bad_arguments_are_refused_and_nothing_is_added() -> None:
    maml = learner()
    (xs, ys), query = sets()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"gradient has shape \[1\]; expected \[\]"):
            maml.backward((xs, ys), query, gradient=torch.ones(1))
        with pytest.raises(TypeError, match=r"^gradient must be a torch.Tensor of floating.* it is 3"):
            maml.backward((xs, ys), query, gradient=3)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"support y has shape \[3, 5, 1\]"):
            maml.backward((xs, ys[..., :1]), query)
        with pytest.raises(ValueError, match=r"start\['5.bias'\]"):
            maml.backward((xs, ys), query, start={"5.bias": torch.zeros(2).double()})
        assert all(p.grad is None for p in maml.parameters())
        maml.backward((xs, ys), query)
        maml.zero_grad()


def test_transforms() -> None:
    maml, (support, query) = learner(), sets()
    with pytest.raises(RuntimeError, match=r"metafast.MAML.backward cannot run under torch.func.grad"):
        torch.func.grad(lambda x: maml.backward((x, support[1]), query).loss)(support[0])
    graph = copy.deepcopy(maml)
    torch.compile(lambda: maml.backward(support, query).loss * 2, backend="eager")()
    by_graph(graph, support, query)
    same(maml, graph)


# ---------------------------------------------------------------------------------------------------- several processes


def _rank(rank: int, folder: str, weights: dict[str, Tensor], data: list[tuple[Data, Data]], answers: Any) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    maml = learner()
    maml.load_state_dict(weights)
    maml.backward(*data[rank])
    for p in maml.parameters():
        distributed.all_reduce(p.grad)
        p.grad /= 2
    averaged = [p.grad.tolist() for p in maml.parameters()]
    maml.zero_grad()
    ddp = DistributedDataParallel(maml)
    refused = hasattr(ddp, "backward")
    ddp(*data[rank]).loss.backward()
    answers.put((averaged, [p.grad.tolist() for p in maml.parameters()], refused))
    distributed.barrier()
    distributed.destroy_process_group()


def test_processes_average_their_gradients(tmp_path: Path) -> None:
    """As the documentation shows, and as DistributedDataParallel does: one gradient, of the tasks of both."""
    maml, data = learner(), [sets(), sets()]
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    weights = {name: value.detach().clone() for name, value in maml.state_dict().items()}
    ranks = [fork.Process(target=_rank, args=(rank, str(tmp_path), weights, data, answers)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    found = [answers.get(timeout=120) for _ in ranks]
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0
    together = [tuple(torch.cat(pair) for pair in zip(a, b, strict=True)) for a, b in zip(*data, strict=True)]
    maml.backward(*together)
    for averaged, by_ddp, has_backward in found:
        for p, ours, theirs in zip(maml.parameters(), averaged, by_ddp, strict=True):
            for each in (ours, theirs):
                torch.testing.assert_close(torch.tensor(each, dtype=p.dtype), p.grad, rtol=1e-12, atol=1e-13)
        assert not has_backward
