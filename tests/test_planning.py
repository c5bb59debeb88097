"""A plan holds only for what it has looked at, and is found again by whoever needs it."""

from __future__ import annotations

import copy
import ctypes
import gc
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import metafast as mf
from metafast.planning.plan import Planner
from planned import LR, Task, sets


def by_hand(model: nn.Module, support: Task, query: Task) -> list[Tensor]:
    """d/d theta mean_t mse(theta - lr grad mse(theta; S_t); Q_t): plain torch, one task at a time."""
    named = dict(model.named_parameters())
    losses = []
    for t in range(support[0].shape[0]):

        def loss(at: dict[str, Tensor], batch: Task, t: int = t) -> Tensor:
            return (functional_call(model, at, (batch[0][t],)) - batch[1][t]).square().mean()

        gradients = torch.autograd.grad(
            loss(named, support), list(named.values()), create_graph=True, materialize_grads=True
        )
        adapted = {name: p - LR * g for (name, p), g in zip(named.items(), gradients, strict=True)}
        losses.append(loss(adapted, query))
    return list(torch.autograd.grad(torch.stack(losses).mean(), list(named.values()), materialize_grads=True))


def learner(model: nn.Module, backend: str = "native") -> mf.MAML:
    return mf.MAML(model, lr=LR, steps=1, loss="mse", backend=backend)


def is_right(maml: mf.MAML) -> None:
    support, query = sets()
    expected = by_hand(maml.model, support, query)
    for ours in (
        maml.meta_gradient(support, query)[1],
        torch.autograd.grad(maml(support, query).loss, [*maml.model.parameters()], materialize_grads=True),
    ):
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    params = {name: p.detach() for name, p in maml.model.named_parameters()}
    given = functional_call(maml.model, params, (support[0][0],))
    torch.testing.assert_close(maml.predict(params, support[0])[0], given, rtol=1e-12, atol=1e-13)


# ---------------------------------------------------------------------------------- what forward decides by


class Heads(nn.Module):
    """Two heads, one of which is used."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.body = nn.Linear(3, 5)
        self.a, self.b = nn.Linear(5, 2), nn.Linear(5, 2)
        self.double()
        for name, value in attributes.items():
            setattr(self, name, value)

    def choose(self) -> Any:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return (self.b if self.choose() else self.a)(torch.tanh(self.body(x)))


@dataclass
class Options:
    second: bool = False
    inner: list[bool] = field(default_factory=lambda: [False])


class Slotted:
    __slots__ = ("second",)

    def __init__(self) -> None:
        self.second = False


class Namespace:
    second = False
    chosen: ClassVar = {"head": 0}


SECOND = False
CHOSEN = {"head": [0]}
settings = types.ModuleType("settings_of_a_user")
settings.second = False  # type: ignore[attr-defined]


def helper() -> bool:
    return False


def heads(choose: Callable[[Any], Any], **attributes: Any) -> Heads:
    own = types.FunctionType(choose.__code__, globals(), "choose", choose.__defaults__, choose.__closure__)  # type: ignore[attr-defined]
    made: Heads = type("Chosen", (Heads,), {"choose": own})(**copy.deepcopy(attributes))
    return made


def with_closure() -> tuple[Heads, Callable[[], None]]:
    second, kept = False, {"head": 0}

    def change() -> None:
        nonlocal second
        second = True

    return heads(lambda self: second or kept["head"]), change


def with_default(kept: dict[str, int] | None = None) -> tuple[Heads, Callable[[], Any]]:
    kept = {"head": 0}

    def choose(self: Any, kept: dict[str, int] = kept) -> int:
        return kept["head"]

    return heads(choose), lambda: kept.update(head=1)


def with_decorator() -> tuple[Heads, Callable[[], Any]]:
    kept = [0]

    def decorated(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def wrapper(self: Any) -> Any:
            return kept[0] or function(self)

        return wrapper

    return heads(decorated(lambda self: 0)), lambda: kept.__setitem__(0, 1)


def of(choose: Callable[[Any], Any], change: Callable[[Any], Any], **attributes: Any) -> Callable[[], Any]:
    """A model, and what is to be done to it."""

    def made() -> tuple[Heads, Callable[[], Any]]:
        model = heads(choose, **attributes)
        return model, lambda: change(model)

    return made


def set_global(name: str, value: Any) -> None:
    globals()[name] = value


def second_method(self: Any) -> bool:
    return True


KINDS: dict[str, Callable[[], tuple[Heads, Callable[[], Any]]]] = {
    "dict": of(lambda s: s.cfg["head"] == "b", lambda m: m.cfg.update(head="b"), cfg={"head": "a"}),
    "list": of(lambda s: s.opts[0], lambda m: m.opts.__setitem__(0, True), opts=[False]),
    "length of a list": of(lambda s: len(s.opts), lambda m: m.opts.append(1), opts=[]),
    "dict in list in tuple": of(
        lambda s: s.opts[0][0]["head"], lambda m: m.opts[0][0].update(head=1), opts=([{"head": 0}],)
    ),
    "set": of(lambda s: "b" in s.used, lambda m: m.used.add("b"), used={"a"}),
    "bytearray": of(lambda s: s.flags[0], lambda m: m.flags.__setitem__(0, 1), flags=bytearray(2)),
    "array": of(lambda s: s.flags[0] > 0, lambda m: m.flags.fill(1), flags=np.zeros(2)),
    "namespace": of(
        lambda s: s.ns.second, lambda m: setattr(m.ns, "second", True), ns=types.SimpleNamespace(second=False)
    ),
    "dataclass": of(lambda s: s.options.second, lambda m: setattr(m.options, "second", True), options=Options()),
    "list in a dataclass": of(
        lambda s: s.options.inner[0], lambda m: m.options.inner.__setitem__(0, True), options=Options()
    ),
    "slots": of(lambda s: s.options.second, lambda m: setattr(m.options, "second", True), options=Slotted()),
    "keywords of a partial": of(
        lambda s: s.get(), lambda m: m.get.keywords.update(second=1), get=partial(lambda second: second, second=0)
    ),
    "getattr": of(lambda s: getattr(s, "".join(["c", "fg"]))["head"], lambda m: m.cfg.update(head=1), cfg={"head": 0}),
    "C": of(lambda s: s.number.value, lambda m: setattr(m.number, "value", 1), number=ctypes.c_int(0)),
    "tensor": of(lambda s: bool(s.flag), lambda m: m.flag.fill_(1), flag=torch.zeros(())),
    "global": of(lambda s: SECOND, lambda m: set_global("SECOND", True)),
    "global dict": of(lambda s: CHOSEN["head"][0], lambda m: CHOSEN["head"].__setitem__(0, 1)),
    "module": of(lambda s: settings.second, lambda m: setattr(settings, "second", True)),  # type: ignore[attr-defined]
    "class as namespace": of(lambda s: Namespace.second, lambda m: setattr(Namespace, "second", True)),
    "dict of a class": of(lambda s: Namespace.chosen["head"], lambda m: Namespace.chosen.update(head=1)),
    "function": of(lambda s: helper(), lambda m: set_global("helper", lambda: True)),
    "code of a function": of(lambda s: helper(), lambda m: setattr(helper, "__code__", (lambda: True).__code__)),
    "method": of(lambda s: False, lambda m: setattr(type(m), "choose", second_method)),
    "forward": of(lambda s: False, lambda m: setattr(type(m), "forward", lambda s, x: s.b(s.body(x)))),
    "code of a method": of(lambda s: False, lambda m: setattr(type(m).choose, "__code__", second_method.__code__)),
    "class": of(lambda s: False, lambda m: setattr(m, "__class__", type(heads(lambda s: True)))),
    "attribute of the class": of(lambda s: s.second, lambda m: setattr(type(m), "second", True)),
    "closure": with_closure,
    "default": with_default,
    "decorator": with_decorator,
}
Heads.second = False  # type: ignore[attr-defined]


@pytest.fixture
def as_before() -> Any:
    before = {name: globals()[name] for name in ("SECOND", "helper")}, helper.__code__
    yield
    globals().update(before[0])
    helper.__code__ = before[1]
    CHOSEN["head"][0] = 0
    settings.second = Namespace.second = False  # type: ignore[attr-defined]
    Namespace.chosen["head"] = 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_forward_decides_by_counts(kind: str, backend: str, as_before: None) -> None:
    model, change = KINDS[kind]()
    maml = learner(model, backend)
    first = maml.meta_gradient(*sets())[1]
    is_right(maml)
    change()
    gc.collect()  # what a plan holds on to stays
    is_right(maml)
    used = [float(g.abs().sum()) > 0 for g in maml.meta_gradient(*sets())[1]]
    assert used != [float(g.abs().sum()) > 0 for g in first], "nothing has changed"


def test_products_see_it_too() -> None:
    model = heads(lambda s: s.cfg["head"], cfg={"head": 0})
    params = {name: p.detach() for name, p in model.named_parameters()}
    (x, y), _ = sets()

    def product() -> dict[str, Tensor]:
        return mf.hvp(model, params, (x, y), params, "mse", strict=True)

    for head in (0, 1, 0):
        model.cfg["head"] = head
        for _ in range(2):
            assert bool(product()["b.weight"].abs().sum()) == bool(head)


def test_a_loss_that_is_changed_counts() -> None:
    torch.manual_seed(0)
    model, loss = nn.Linear(3, 2).double(), nn.CrossEntropyLoss()
    x, y = torch.randn(2, 4, 3).double(), torch.randint(2, (2, 4))
    maml = mf.MAML(model, LR, 1, loss, strict=True)
    params = dict(model.named_parameters())
    plain = [maml.meta_gradient((x, y), (x, y))[0].loss for _ in range(2)]
    mf.hvp(model, params, (x, y), params, loss)
    loss.label_smoothing = 0.5
    again = mf.MAML(model, LR, 1, nn.CrossEntropyLoss(label_smoothing=0.5), strict=True)
    assert torch.equal(maml.meta_gradient((x, y), (x, y))[0].loss, again.meta_gradient((x, y), (x, y))[0].loss)
    assert not torch.equal(plain[0], maml((x, y), (x, y)).loss)
    ours = mf.hvp(model, params, (x, y), params, loss)
    new = mf.hvp(model, params, (x, y), params, nn.CrossEntropyLoss(label_smoothing=0.5))
    assert all(torch.equal(ours[name], new[name]) for name in new)


# ---------------------------------------------------------------------------------- found again


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The plans that were made."""
    found: list[Any] = []
    make = Planner._make

    def noted(self: Planner, *arguments: Any) -> Any:
        found.append(make(self, *arguments))
        return found[-1]

    monkeypatch.setattr(Planner, "_make", noted)
    return found


class Remembers(nn.Module):
    """Leaves things behind in forward, as many models do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 5).double(), nn.Linear(5, 2).double()
        self.n, self.history, self.counts = 0, [], {"calls": 0}  # type: ignore[var-annotated]

    def forward(self, x: Tensor) -> Tensor:
        self.features = torch.tanh(self.body(x))
        self.n += 1
        self.history.append(self.n)
        self.counts["calls"] += 1
        result: Tensor = self.head(self.features)
        return result


def test_what_forward_assigns_makes_no_new_plan(made: list[Any]) -> None:
    model = Remembers()
    maml = learner(model, "torch")
    support, query = sets()
    for calls in range(1, 4):
        maml(support, query)
        assert model.n == calls * 2 * (1 + 1)  # two tasks, a step and the query: nothing for planning
        assert model.history == [*range(1, model.n + 1)] and model.counts == {"calls": model.n}
        assert isinstance(model.features, Tensor) and model.features.shape == (4, 5)
    assert len(made) == 1
    is_right(maml)
    model.head = nn.Linear(5, 2).double()
    is_right(maml)
    assert len(made) == 2


def test_planning_leaves_the_model_as_it_is() -> None:
    model, x = Remembers(), sets()[0][0]
    with pytest.raises(RuntimeError, match="changes attributes of its modules in forward"):
        mf.MAML(model, LR, 1, "mse", strict=True)._plans().plan("x", x)
    assert (model.n, model.history, model.counts) == (0, [], {"calls": 0}) and not hasattr(model, "features")


def test_a_list_that_forward_fills_is_not_native() -> None:
    model = heads(lambda s: s.seen.append(1), seen=[])
    with pytest.raises(RuntimeError, match="changes attributes of its modules in forward"):
        mf.MAML(model, LR, 1, "mse", strict=True)(*sets())
    assert model.seen == []


CALLS = 0


def count_call(self: Any) -> bool:
    global CALLS
    CALLS += 1
    return False


def test_a_global_variable_that_forward_changes_is_not_native() -> None:
    with pytest.raises(RuntimeError, match="changes global variables in forward"):
        mf.MAML(heads(count_call), LR, 1, "mse", strict=True)(*sets())


CACHE: dict[str, bool] = {}


def test_a_cache_filled_at_first_use_is_native(made: list[Any]) -> None:
    maml = learner(heads(lambda s: CACHE.setdefault("second", False)))
    for _ in range(3):
        is_right(maml)
    assert len(made) == 1


def test_many_structures_in_turn(made: list[Any], backend: str) -> None:
    model = heads(lambda s: s.head % 2, head=0)
    maml = learner(model, backend)
    for _ in range(3):
        for head in range(12):
            model.head = head
            is_right(maml)
    assert len(made) == 12


@pytest.mark.parametrize(("loss", "backend"), [("mse", "native"), ("mse", "torch"), (nn.functional.l1_loss, "torch")])
def test_a_new_learner_finds_the_plans_of_others(made: list[Any], backend: str, loss: Any) -> None:
    model, data = heads(lambda s: False), sets()
    settings = {"loss": loss, "backend": backend}
    first = mf.MAML(model, LR, 1, **settings).meta_gradient(*data)[1]
    for _ in range(3):
        again = mf.MAML(model, LR, 1, **settings)
        assert all(map(torch.equal, again.meta_gradient(*data)[1], first))
    assert len(made) == 1
    model.choose = lambda: True
    is_right(learner(model, backend))
    assert len(made) >= 2


def test_other_settings_find_other_plans(backend: str) -> None:
    model, data = heads(lambda s: False), sets()
    is_right(learner(model, backend))
    for settings in ({"loss": "huber"}, {"adapt_params": "a.*"}, {"adapt_params": ["body.*"]}):
        settings = {"loss": "mse", "lr": LR, "steps": 1, "backend": backend, **settings}  # type: ignore[dict-item]
        shared = mf.MAML(model, **settings).meta_gradient(*data)[1]  # type: ignore[arg-type]
        alone = mf.MAML(copy.deepcopy(model), **settings).meta_gradient(*data)[1]  # type: ignore[arg-type]
        assert all(map(torch.equal, shared, alone))
    is_right(learner(model, backend))


@pytest.mark.parametrize("closing", [False, True], ids=["loss by name", "loss that holds the model"])
def test_models_go_when_nobody_has_them(backend: str, closing: bool) -> None:
    model = heads(lambda s: s.cfg["head"], cfg={"head": 0})
    alive = weakref.ref(model)

    def loss(output: Tensor, target: Tensor, model: nn.Module = model) -> Tensor:
        return (output - target).square().mean()

    maml = mf.MAML(model, LR, 1, loss if closing else "mse", backend="torch" if closing else backend)
    maml.meta_gradient(*sets())
    del model, maml, loss
    gc.collect()
    assert alive() is None


def test_verify_leaves_no_parameters_behind(backend: str) -> None:
    """Those that it puts into the model will never be there again, and neither are their plans needed."""
    maml, data = learner(heads(lambda s: False), backend), sets()

    def alive() -> int:
        gc.collect()
        return sum(type(thing) is nn.Parameter for thing in gc.get_objects())

    maml.meta_gradient(*data)
    before = alive()
    assert mf.verify(maml, *data).ok
    assert alive() == before
    assert mf.verify(maml, *data).ok


COLLECTIONS = 0


def test_code_that_is_not_the_models_does_not_count(made: list[Any]) -> None:
    """Python's garbage collector runs callbacks and finalizers in the middle of any code."""

    def callback(phase: str, info: Any) -> None:
        global COLLECTIONS
        COLLECTIONS += 1

    gc.callbacks.append(callback)
    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    try:
        maml = learner(heads(lambda s: False))
        for _ in range(3):
            maml.meta_gradient(*sets())
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(callback)
    assert COLLECTIONS and len(made) == 1
