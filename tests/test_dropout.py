"""Dropout in training mode, natively: exact for the masks that are drawn, and drawn as torch draws."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import masks
import metafast as mf
from forms import of
from judge import assert_close, assert_same_bits
from masks import Pair, Tensors, philox
from metafast import _native
from metafast.engine import device, native

L, C = nn.Linear, nn.Conv2d
SEED = 11
STEPS = 3


def vectors() -> nn.Sequential:
    return nn.Sequential(L(3, 9), nn.Tanh(), nn.Dropout(0.3), L(9, 6), nn.Dropout(0.5), nn.Tanh(), L(6, 2))


def first_and_last() -> nn.Sequential:
    return nn.Sequential(nn.Dropout(0.2), L(3, 5), nn.ReLU(), nn.Dropout(0.4), nn.Tanh(), L(5, 2), nn.Dropout(0.1))


def images() -> nn.Sequential:
    body = C(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout2d(0.4), nn.Tanh(), nn.Dropout(0.3)
    return nn.Sequential(nn.Dropout2d(0.2), *body, nn.Flatten(), L(27, 2))


def sequences() -> nn.Sequential:
    return nn.Sequential(L(2, 5), nn.Dropout1d(0.3), nn.Tanh(), nn.Dropout(0.3), L(5, 2))


def paths() -> nn.Sequential:
    body = C(2, 3, 3), masks.DropPath(0.4), nn.Tanh(), nn.Flatten(), L(27, 2)
    return nn.Sequential(*body, nn.Tanh(), masks.DropPath(0.3), L(2, 2))


MODELS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...], tuple[int, ...]]] = {
    "vectors": (vectors, (3,), (2,)),
    "first and last": (first_and_last, (3,), (2,)),
    "images": (images, (2, 5, 5), (2,)),
    "sequences": (sequences, (4, 2), (4, 2)),
    "stochastic depth": (paths, (2, 5, 5), (2,)),
}


class Problem:
    """A model and data of three tasks, all of them leaves."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64) -> None:
        build, x, y = MODELS[name]
        torch.manual_seed(3)
        self.model = build().to(dtype)
        (xs, ys), (xq, yq) = ((torch.randn(3, n, *x), torch.randn(3, n, *y)) for n in (5, 4))
        self.support = xs.to(dtype).requires_grad_(), ys.to(dtype)
        self.query = xq.to(dtype).requires_grad_(), yq.to(dtype)
        self.lr = torch.tensor(0.3, dtype=dtype, requires_grad=True)
        self.leaves = {"xs": self.support[0], "xq": self.query[0], "lr": self.lr, **dict(self.model.named_parameters())}

    def gradients(self, loss: Tensor, **options: Any) -> Tensors:
        return dict(zip(self.leaves, torch.autograd.grad(loss, list(self.leaves.values()), **options), strict=True))

    def natively(self, weights: Tensor | None = None, **settings: Any) -> Tensors:
        """Outputs and the gradients of the loss, or by a sweep in backward that of the tasks' losses times weights."""
        maml = mf.MAML(self.model, steps=STEPS, loss="mse", strict=True, **settings)
        torch.manual_seed(SEED)
        out = maml(self.support, self.query, lr=self.lr)
        found = {"loss": out.loss, "task_loss": out.task_loss, "support_loss": out.support_loss}
        return found | self.gradients(out.loss if weights is None else out.task_loss @ weights)

    def by_loop(self, weights: Tensor | None = None) -> Tensors:
        out = masks.unroll(self.model, seed_of(SEED), self.support, self.query, self.lr, STEPS)
        found = self.gradients(out["loss"] if weights is None else out["task_loss"] @ weights)
        return {name: value.detach() for name, value in out.items()} | found


def seed_of(manual: int) -> int:
    """What a call draws from torch's generator after ``manual_seed``."""
    generator = torch.Generator().manual_seed(manual)
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator))


# ------------------------------------------------------------------------------------------------------- the generator

#: kat_vectors of Random123: counter, key, words.
KNOWN = [
    ([0] * 4, 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([2**32 - 1] * 4, 2**64 - 1, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        0x299F31D0A4093822,
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_the_generator_is_the_published_one(counter: list[int], key: int, words: list[int]) -> None:
    assert philox(counter, key) == words
    assert _native.philox(counter, key) == words


# ------------------------------------------------------------------------------------------------ exact for given masks


@pytest.mark.parametrize("memory", ["keep", "recompute", mf.Checkpoint(2)], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_all_is_what_the_loop_with_these_masks_gives(name: str, memory: Any) -> None:
    problem = Problem(name)
    assert_close(problem.natively(memory=memory), problem.by_loop())


@pytest.mark.parametrize("name", MODELS)
def test_a_sweep_in_backward_finds_the_same_masks(name: str) -> None:
    problem, weights = Problem(name), torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    assert_close(problem.natively(weights), problem.by_loop(weights))


def test_a_second_sweep_finds_the_same_masks() -> None:
    problem = Problem("vectors")
    out = mf.MAML(problem.model, steps=STEPS, loss="mse")(problem.support, problem.query, lr=problem.lr)
    once = problem.gradients(out.loss, retain_graph=True)
    mf.MAML(problem.model, steps=STEPS, loss="mse")(problem.support, problem.query)
    assert_close(problem.gradients(out.loss), once)


@pytest.mark.parametrize("style", ["persistent", "batched"])
@pytest.mark.parametrize("name", MODELS)
def test_on_a_gpu_the_masks_are_the_same(name: str, style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("metafast._emulated", reason="built without METAFAST_EMULATE=1")
    problem = Problem(name)
    expected = problem.by_loop()
    with device.emulated(style):
        assert_close(problem.natively(), expected)
        monkeypatch.setenv("METAFAST_CUDA_TASKS", "2")
        assert_close(problem.natively(memory="recompute"), expected)


@pytest.mark.parametrize("name", MODELS)
def test_neither_memory_nor_threads_change_a_bit(name: str, monkeypatch: pytest.MonkeyPatch, threads: Any) -> None:
    problem = Problem(name, torch.float32)
    expected = problem.natively(memory="keep")
    for memory in ("recompute", mf.Checkpoint(2)):
        assert_same_bits(problem.natively(memory=memory), expected)
    monkeypatch.setattr(native, "sharing", "always")
    for count in (2, 5):
        threads(count)
        assert_same_bits(problem.natively(), expected)


@pytest.mark.parametrize("rule", [mf.Adam(0.1), mf.SGD(0.1, momentum=0.9)], ids=["adam", "momentum"])
def test_rules_replay_the_masks(rule: Any) -> None:
    problem = Problem("vectors")
    found = {}
    for memory in ("keep", "recompute", mf.Checkpoint(2)):
        maml = mf.MAML(problem.model, steps=STEPS, loss="mse", rule=rule, memory=memory)
        torch.manual_seed(SEED)
        out = maml(problem.support, problem.query)
        leaves = dict(problem.model.named_parameters())
        found[str(memory)] = dict(zip(leaves, torch.autograd.grad(out.loss, list(leaves.values())), strict=True))
    first, *others = found.values()
    for other in others:
        assert_same_bits(other, first)


def test_the_gradient_of_a_gradient_has_the_masks_of_that() -> None:
    """mf.grad, differentiated: central differences of the gradient for one seed."""
    problem = Problem("vectors")
    params = {name: p.detach().requires_grad_() for name, p in problem.model.named_parameters()}

    def gradient(params: Tensors) -> Tensor:
        torch.manual_seed(SEED)
        found = mf.grad(problem.model, params, problem.support, loss="mse")
        found = found[1] if isinstance(found, tuple) else found
        return sum((g * torch.arange(1.0, 1 + g.numel()).view_as(g).double().cos()).sum() for g in found.values())  # type: ignore[return-value]

    value = gradient(params)
    exact = torch.autograd.grad(value, list(params.values()))
    direction = {name: torch.randn_like(p) for name, p in params.items()}
    step = 1e-5
    with torch.no_grad():
        high, low = (gradient({n: p + s * direction[n] for n, p in params.items()}) for s in (step, -step))
    along = sum((g * d).sum() for g, d in zip(exact, direction.values(), strict=True))
    torch.testing.assert_close((high - low) / (2 * step), along, rtol=1e-7, atol=1e-9)


# -------------------------------------------------------------------------------------------------- how masks are drawn


def passed(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer in training mode makes of x [T, N, ...]: natively, for the second factor is a parameter."""

    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.one = layer, nn.Parameter(torch.ones((), dtype=x.dtype))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x * self.one)  # type: ignore[no-any-return]

    maml = mf.MAML(Once(), loss="mse", strict=True)
    return maml.predict(dict(maml.model.named_parameters()), x).detach()


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "dropout": (nn.Dropout(0.4), (4, 6)),
    "dropout of an image": (nn.Dropout(0.4), (3, 4, 6)),
    "dropout in place": (nn.Dropout(0.4, inplace=True), (4, 6)),
    "torch.dropout": (of(lambda m, x: torch.dropout(x, 0.4, True))(), (4, 6)),
    "1d": (nn.Dropout1d(0.4), (4, 6)),
    "1d of vectors": (nn.Dropout1d(0.4), (6,)),
    "2d": (nn.Dropout2d(0.4), (4, 2, 3)),
    "2d of sequences": (nn.Dropout2d(0.4), (4, 6)),
    "2d of vectors": (nn.Dropout2d(0.4), (6,)),
    "3d": (nn.Dropout3d(0.4), (4, 2, 2, 3)),
    "3d of images": (nn.Dropout3d(0.4), (4, 2, 3)),
}


@pytest.mark.filterwarnings("ignore:dropout[23]d")
@pytest.mark.parametrize("name", LAYERS)
def test_what_is_dropped_together_is_what_torch_drops_together(name: str) -> None:
    """By which elements have the same fate in fifty draws of each."""
    layer, shape = LAYERS[name]
    examples, draws = 3, 50
    torch.manual_seed(SEED)
    ours = passed(layer, torch.ones(draws, examples, *shape)).flatten(1)
    theirs = torch.stack([layer(torch.ones(examples, *shape)) for _ in range(draws)]).flatten(1)

    def together(found: Tensor) -> Tensor:
        return (found[:, :, None] == found[:, None]).all(0)

    assert torch.equal(together(ours), together(theirs))
    assert {*ours.unique().tolist()} == {*theirs.unique().tolist()} == {0.0, float(torch.tensor(1.0) / 0.6)}


def test_alpha_dropout_has_the_values_of_torchs() -> None:
    """One where an element is dropped; where it is kept, a multiple and a summand of it that two elements tell."""
    x = torch.randn(2, 3, 400, dtype=torch.float64)
    torch.manual_seed(SEED)
    kept = passed(nn.Dropout(0.3), x) != 0
    torch.manual_seed(SEED)
    ours = passed(nn.AlphaDropout(0.3), x)
    theirs = F.alpha_dropout(x, 0.3, True)
    dropped = theirs.flatten().mode().values
    (first, second), (f, s) = (t[theirs != dropped][:2] for t in (x, theirs))
    slope = (f - s) / (first - second)
    torch.testing.assert_close(ours, torch.where(kept, slope * (x - first) + f, dropped), rtol=1e-9, atol=1e-9)


def test_dropout_of_recurrent_layers_stands_between_them() -> None:
    both = nn.GRU(2, 3, num_layers=2, dropout=0.5, batch_first=True)
    one, two = nn.GRU(2, 3, batch_first=True), nn.GRU(3, 3, batch_first=True)
    for layer, number in ((one, 0), (two, 1)):
        layer.load_state_dict({f"{n[:-1]}0": p for n, p in both.state_dict().items() if n.endswith(str(number))})
    whole = of(lambda m, x: m.rnn(x)[0], rnn=lambda: both)()
    parts = of(
        lambda m, x: m.two(m.drop(m.one(x)[0]))[0], one=lambda: one, drop=lambda: nn.Dropout(0.5), two=lambda: two
    )()
    x, found = torch.randn(2, 3, 4, 2), []
    for model in (whole, parts):
        torch.manual_seed(SEED)
        found.append(mf.MAML(model, loss="mse", strict=True).predict(dict(model.named_parameters()), x))
    assert torch.equal(*found)


def bits(seed: int, task: int, step: int, number: int, count: int) -> Tensor:
    """Whether each draw of a native call is kept, as plus and minus one."""
    given = masks.Given(0.5, False, number)
    given.seed, given.task, given.step = seed, task, step
    return given.mask(count) * 2.0 - 1


def test_so_many_are_kept_and_nothing_goes_with_anything() -> None:
    """The share of kept elements within four standard errors; correlations between seeds, tasks, steps, nodes and
    neighbours of that of independent draws."""
    count = 4000
    for p in (0.1, 0.5, 0.83):
        kept = (passed(nn.Dropout(p), torch.ones(2, 10, count // 20)) > 0).double().mean()
        assert abs(float(kept) - (1 - p)) < 4 * math.sqrt(p * (1 - p) / count)
    first = bits(5, 0, 0, 0, count)
    others = [bits(6, 0, 0, 0, count), bits(5, 1, 0, 0, count), bits(5, 0, 1, 0, count), bits(5, 0, 0, 1, count)]
    others += [first.roll(shift) for shift in (1, 2, 3, 4)]
    for other in others:
        assert abs(float((first * other).mean())) < 4 / math.sqrt(count)


def test_the_mean_of_many_draws_is_the_expectation() -> None:
    """One inner step and a query of one example with two features that may be dropped: all sixteen cases, weighted."""
    p, draws = 0.3, 40_000
    model = nn.Sequential(nn.Dropout(p), L(2, 1)).double()
    x, xq, y, yq = (torch.randn(1, n, dtype=torch.float64) for n in (2, 2, 1, 1))
    leaves, lr = list(model.parameters()), 0.2
    weight, bias = leaves
    expected = [torch.zeros((), dtype=torch.float64), *map(torch.zeros_like, leaves)]
    for case in itertools.product((0, 1), repeat=4):
        share = math.prod(1 - p if kept else p for kept in case)
        m = torch.tensor(case).double() / (1 - p)
        g = torch.autograd.grad(((x * m[:2]) @ weight.T + bias - y).square().mean(), leaves, create_graph=True)
        loss = ((xq * m[2:]) @ (weight - lr * g[0]).T + bias - lr * g[1] - yq).square().mean()
        for total, value in zip(expected, (loss, *torch.autograd.grad(loss, leaves)), strict=True):
            total += share * value.detach()

    maml = mf.MAML(model, lr=lr, steps=1, loss="mse", strict=True)
    torch.manual_seed(SEED)
    parts = []
    for _ in range(40):
        tasks = draws // 40
        out = maml((x.expand(tasks, 1, 2), y.expand(tasks, 1, 1)), (xq.expand(tasks, 1, 2), yq.expand(tasks, 1, 1)))
        parts.append(torch.cat([v.reshape(-1) for v in (out.loss.detach(), *torch.autograd.grad(out.loss, leaves))]))
    found = torch.stack(parts)
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - torch.cat([v.reshape(-1) for v in expected])).abs() < 4 * error).all()
    assert (error < 0.02).all()


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False)])
def test_nothing_is_drawn_where_nothing_is_dropped(p: float, training: bool) -> None:
    plain = nn.Sequential(L(3, 5), nn.Tanh(), L(5, 2))
    model = nn.Sequential(plain[0], nn.Dropout(p), *plain[1:]).train(training)
    support, query = ((torch.randn(2, n, 3), torch.randn(2, n, 2)) for n in (5, 4))
    before = torch.get_rng_state()
    losses = [mf.MAML(m, steps=2, loss="mse", strict=True)(support, query).loss for m in (model, plain)]
    assert torch.equal(*losses) and torch.equal(torch.get_rng_state(), before)


def test_all_is_dropped_with_certainty() -> None:
    assert torch.equal(passed(nn.Dropout(1.0), torch.randn(2, 3, 4)), torch.zeros(2, 3, 4))


def test_nan_is_dropped_no_more_than_torch_does() -> None:
    """A factor of zero makes no number of it."""
    x = torch.ones(2, 3, 8)
    x[0, 1] = torch.nan
    x[1, 2] = torch.inf
    found = passed(nn.Dropout(0.5), x)
    assert found[0, 1].isnan().all() and found[0, [0, 2]].isfinite().all()
    assert (found[1, 2].isnan() | found[1, 2].isposinf()).all() and found[1, 2].isnan().any()
    assert passed(nn.Dropout(1.0), x)[0, 1].isnan().all() and F.dropout(x[0, 1], 1.0).isnan().all()


# --------------------------------------------------------------------------------------------------- torch's generator


def batch(n: int) -> Pair:
    return torch.randn(2, n, 3), torch.randn(2, n, 2)


def asked(maml: mf.MAML, support: Pair, query: Pair) -> list[Callable[[], Tensor]]:
    """Every way to ask a learner for something random."""
    params = dict(maml.model.named_parameters())
    stacked = {name: p.detach().expand(2, *p.shape) for name, p in params.items()}
    return [
        lambda: maml(support, query).loss,
        lambda: maml.meta_gradient(support, query)[0].loss,
        lambda: maml.backward(support, query).loss,
        lambda: maml.predict(params, query[0]).sum(),
        lambda: sum((p.sum() for p in maml.adapt(support).values()), torch.zeros(())),
        lambda: mf.hvp(maml.model, stacked, support, stacked, loss="mse")["0.weight"].sum(),
    ]  # fmt: skip


@pytest.mark.parametrize("way", range(6))
def test_manual_seed_repeats_a_run_and_calls_differ(way: int) -> None:
    maml = mf.MAML(vectors(), steps=2, loss="mse", strict=True)
    ask = asked(maml, batch(5), batch(4))[way]

    def run(context: Any = contextlib.nullcontext) -> list[float]:
        torch.manual_seed(SEED)
        with context():
            found = [float(ask().detach()) for _ in range(4)]
        generator = torch.Generator().manual_seed(SEED)
        for _ in range(4):  # one number a call, and no other
            torch.empty((), dtype=torch.int64).random_(generator=generator)
        assert torch.equal(torch.get_rng_state(), generator.get_state())
        return found

    first = run()
    assert len({*first}) == 4
    assert run() == first  # by the short way of repeated calls
    assert run(torch.no_grad) == pytest.approx(first, rel=1e-5)


def test_the_short_way_draws_no_more_where_it_is_left() -> None:
    maml = mf.MAML(vectors(), steps=2, loss="mse", strict=True)
    support, query = batch(5), batch(4)
    maml.meta_gradient(support, query)
    torch.manual_seed(SEED)
    expected = maml.meta_gradient(support, query)[0].loss
    torch.set_num_threads(2)
    try:
        torch.manual_seed(SEED)
        assert torch.equal(maml.meta_gradient(support, query)[0].loss, expected)
        assert torch.equal(torch.get_rng_state(), _after_one_draw())
    finally:
        torch.set_num_threads(1)


def _after_one_draw() -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    torch.empty((), dtype=torch.int64).random_(generator=generator)
    return generator.get_state()


def test_what_draws_is_not_static() -> None:
    model = nn.Sequential(L(3, 50), nn.Dropout(0.5), L(50, 50), nn.Tanh(), L(50, 2))
    maml = mf.MAML(model, steps=5, loss="mse", adapt_params="4.*", strict=True)
    found = maml._plans().plan("x", torch.randn(2, 3, 3)).composed
    assert found is not None and found.where == "layer '0'"
    prefix, rest = found.prefix.program, found.rest.program
    assert rest.random and not prefix.random and rest.nodes[0].op == "dropout"


def test_verify_still_refuses() -> None:
    with pytest.raises(ValueError, match="two answers for one input"):
        mf.verify(mf.MAML(vectors(), loss="mse"), batch(5), batch(4))


def test_parameters_are_not_dropped_natively() -> None:
    model = of(lambda m, x: x * F.dropout(m.own, 0.5), own=lambda: nn.Parameter(torch.ones(3)))
    with pytest.raises(RuntimeError, match="drops parameters"):
        mf.MAML(model(), loss="mse", strict=True)(batch(5), batch(4))
