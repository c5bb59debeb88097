"""torch's transforms of functions, and learners: the same numbers, or a refusal that names the transform.

What is compiled is compared bit for bit with what is not; derivatives are compared with float64 torch.autograd.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, functionalize, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import metafast as mf
from metafast import transforms
from metafast.tracking.snapshot import HOOKS

BOTH = pytest.mark.parametrize("backend", ["native", "torch"])
Model = Callable[[], nn.Module]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def learner(backend: str, model: nn.Module | None = None, **more: Any) -> mf.MAML:
    torch.manual_seed(0)
    return mf.MAML(model or network(), lr=0.1, steps=2, loss="mse", backend=backend, **more)


def data(seed: int) -> tuple[Tensor, Tensor]:
    of = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(3, 5, n, generator=of, dtype=torch.float64) for n in (2, 1))
    return x, y


S, Q = data(1), data(2)


def meta_gradient(of: mf.MAML) -> list[Tensor]:
    return list(torch.autograd.grad(of(S, Q).loss, list(of.parameters())))


def agree(a: Any, b: Any, tolerance: float = 1e-12) -> None:
    for x, y in zip(a, b, strict=True):
        assert (x - y).norm() <= tolerance * y.norm()


# ---- torch.compile -------------------------------------------------------------------
@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def training_step(of: mf.MAML) -> Callable[..., Tensor]:
    """The step of a training loop, some of which the compiler can trace: what goes in and what comes out."""

    def step(x: Tensor, y: Tensor, query: Any) -> Tensor:
        out = of((2 * x, y), query)
        loss = out.loss + out.task_loss.square().sum()
        loss.backward()
        return loss.detach()

    return step


@BOTH
@pytest.mark.filterwarnings("error:.*Dynamo does not know")  # when it traces what is ours
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_a_compiled_step_gives_the_same(backend: str, compiler: str) -> None:
    plain, compiled = learner(backend), learner(backend)
    step, fast = training_step(plain), torch.compile(training_step(compiled), backend=compiler)
    for _ in range(3):  # the first plans, the next repeat it
        assert torch.equal(fast(*S, Q), step(*S, Q))
    agree([p.grad for p in compiled.parameters()], [p.grad for p in plain.parameters()])


@BOTH
def test_a_compiled_learner_gives_the_same_bits(backend: str) -> None:
    of = learner(backend)
    compiled = torch.compile(of, backend="aot_eager")
    for got, wanted in zip(compiled(S, Q), of(S, Q), strict=True):
        assert torch.equal(got, wanted)
    gradients = torch.autograd.grad(compiled(S, Q).loss, list(of.parameters()))
    assert all(map(torch.equal, gradients, meta_gradient(of)))


CALLS: dict[str, Callable[[mf.MAML], Any]] = {
    "meta_gradient": lambda of: of.meta_gradient(S, Q)[1],
    "adapt": lambda of: tuple(of.adapt(S).values()),
    "predict": lambda of: (of.predict({}, S[0]),),
    "grad": lambda of: mf.grad(of.model, named(of), S, backend=of.backend)[1].values(),
    "hvp": lambda of: mf.hvp(of.model, named(of), S, named(of), backend=of.backend).values(),
}


def named(of: mf.MAML) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in of.model.named_parameters()}


@BOTH
@pytest.mark.parametrize("call", CALLS)
def test_every_other_call_compiles_too(backend: str, call: str) -> None:
    of = learner(backend)
    compiled = torch.compile(lambda of: [2 * t for t in CALLS[call](of)], backend="eager")
    for _ in range(2):
        assert all(map(torch.equal, compiled(of), [2 * t for t in CALLS[call](of)]))


@BOTH
def test_the_graph_breaks_once_and_the_reason_is_given(backend: str) -> None:
    from torch._dynamo.testing import CompileCounter

    of = learner(backend)
    counter = CompileCounter()
    torch.compile(lambda x, y: of((x.sin(), y), Q).loss.cos(), backend=counter)(*S)
    assert (counter.frame_count, counter.op_count) == (2, 2)  # before the learner, and after it
    whole = torch.compile(lambda x, y: of((x, y), Q).loss, backend="eager", fullgraph=True)
    reason = "an engine of its own, which torch.compile cannot trace"
    with pytest.raises(torch._dynamo.exc.Unsupported, match=reason if torch.__version__ >= "2.8" else ""):
        whole(*S)


def test_the_compiler_is_not_imported_by_those_who_do_not_use_it() -> None:
    code = """
import sys, torch, metafast as mf
assert "torch._dynamo" not in sys.modules
for backend in ("native", "torch"):
    learner = mf.MAML(torch.nn.Linear(1, 1), loss="mse", backend=backend)
    task = torch.ones(1, 1, 1), torch.ones(1, 1, 1)
    for _ in range(2):
        learner(task, task).loss.backward()
        learner.meta_gradient(task, task)
assert "torch._dynamo" not in sys.modules
"""
    path = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code], check=True, env=path)


# ---- A compiled model ----------------------------------------------------------------
@BOTH
def test_a_compiled_model_stands_for_what_it_was_made_from(backend: str) -> None:
    plain, model = learner(backend), network()
    model.load_state_dict(plain.model.state_dict())
    of = learner(backend, torch.compile(model, backend="aot_eager"))
    assert list(of.state_dict()) == list(plain.state_dict())
    assert list(of.adapt(S)) == list(plain.adapt(S))
    assert all(p is q for p, q in zip(of.parameters(), model.parameters(), strict=True))
    agree(meta_gradient(of), meta_gradient(plain))


def in_place() -> nn.Module:
    model = network()
    model.compile(backend="aot_eager")
    return model


def in_part() -> nn.Module:
    model = network()
    return nn.Sequential(*(torch.compile(layer, backend="aot_eager") for layer in model))


def part_in_place() -> nn.Module:
    model = network()
    model[0].compile(backend="aot_eager")
    return model


@BOTH
@pytest.mark.parametrize("made", [in_place, in_part, part_in_place])
def test_compiled_parts_run_as_they_are_written(backend: str, made: Model) -> None:
    plain, of = learner(backend), learner(backend, made())
    for p, q in zip(of.parameters(), plain.parameters(), strict=True):
        p.data.copy_(q.data)
    of.model(S[0][0])  # there is compiled code now
    agree(meta_gradient(of), meta_gradient(plain))
    assert mf.verify(of, S, Q).ok


def test_compiled_code_is_not_run_for_it_has_no_second_derivative() -> None:
    model = in_part()
    parameters = dict(model.named_parameters())

    def twice(call: Callable[..., Tensor]) -> list[Tensor]:
        """Gradient of the squared norm of the gradient."""
        loss = call(model, parameters, (S[0][0],)).square().sum()
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        norm = torch.stack([g.square().sum() for g in gradients]).sum()
        return list(torch.autograd.grad(norm, list(parameters.values())))

    with transforms.as_written(model):
        found = twice(functional_call)
    with pytest.raises(RuntimeError, match="double backward"):
        twice(functional_call)
    with torch.compiler.set_stance("force_eager"):
        agree(found, twice(functional_call))


@BOTH
def test_gradients_at_parameters_that_a_compiled_model_names(backend: str) -> None:
    model = network()
    compiled = torch.compile(model, backend="aot_eager")
    loss, found = mf.grad(compiled, dict(compiled.named_parameters()), S, backend=backend)
    wanted, gradients = mf.grad(model, dict(model.named_parameters()), S, backend=backend)
    assert list(found) == [f"_orig_mod.{name}" for name in gradients]
    agree([loss, *found.values()], [wanted, *gradients.values()])


def test_explain_sees_through_the_compiler() -> None:
    explained = mf.explain(torch.compile(network(), backend="eager"), S[0])
    assert explained.native
    assert (explained.model, [row.layer for row in explained.rows]) == ("Sequential", ["0", "1", "2"])


def test_hooks_of_the_compiled_model_still_run() -> None:
    compiled = torch.compile(network(), backend="eager")
    before = learner("torch", compiled)(S, Q).loss
    compiled.register_forward_hook(lambda module, x, out: 2 * out)
    assert any(getattr(compiled, hooks) for hooks in HOOKS)
    assert not torch.allclose(learner("torch", compiled)(S, Q).loss, before)


# ---- torch.func ----------------------------------------------------------------------
def scaled(of: mf.MAML) -> dict[str, Tensor]:
    return {name: 1.5 * p.detach() for name, p in of.named_parameters()}


def loss_at(of: mf.MAML) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda parameters: functional_call(of, parameters, (S, Q)).loss


#: Functions of one tensor or dict of tensors, and where to differentiate them.
DIFFERENTIABLE: dict[str, Callable[[mf.MAML], tuple[Callable[[Any], Tensor], Any]]] = {
    "parameters": lambda of: (loss_at(of), scaled(of)),
    "learning rate": lambda of: (lambda lr: of(S, Q, lr=lr).loss, torch.tensor(0.2).double()),
    "support": lambda of: (lambda x: of((x, S[1]), Q).loss, S[0]),
    "query": lambda of: (lambda x: of(S, (x, Q[1])).task_loss.square().sum(), Q[0]),
    "adapted": lambda of: (lambda x: sum(p.square().sum() for p in of.adapt((x, S[1])).values()), S[0]),
    "predictions": lambda of: (lambda x: of.predict({}, x).square().sum(), S[0]),
    "metafast.grad": lambda of: (
        lambda p: sum(g.square().sum() for g in mf.grad(of.model, p, S, backend="torch")[1].values()),
        {name: 1.5 * p for name, p in named(of).items()},
    ),
}


def by_autograd(function: Callable[[Any], Tensor], at: Any) -> list[Tensor]:
    leaves = {n: t.clone().requires_grad_() for n, t in (at if isinstance(at, dict) else {"": at}).items()}
    value = function(leaves if isinstance(at, dict) else leaves[""])
    return list(torch.autograd.grad(value, list(leaves.values()), materialize_grads=True))


def values(found: Any) -> list[Tensor]:
    return list(found.values()) if isinstance(found, dict) else [found]


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("what", DIFFERENTIABLE)
def test_func_grad_differentiates_the_torch_engine(what: str, first_order: bool) -> None:
    function, at = DIFFERENTIABLE[what](learner("torch", first_order=first_order))
    expected = by_autograd(function, at)
    agree(values(grad(function)(at)), expected)
    out, pull_back = vjp(function, at)
    agree(values(pull_back(torch.ones_like(out))[0]), expected)
    agree(values(jacrev(function)(at)), expected)


def test_func_grad_differentiates_the_torch_engine_twice() -> None:
    """Of the meta-gradient along a direction, against central differences."""
    of = learner("torch")
    at, direction = scaled(of), {name: torch.rand_like(p) for name, p in of.named_parameters()}

    def slope(parameters: dict[str, Tensor]) -> Tensor:
        gradients = grad(loss_at(of))(parameters)
        return torch.stack([(g * direction[name]).sum() for name, g in gradients.items()]).sum()

    h = 1e-5
    up, down = (grad(loss_at(of))({n: p + s * h * direction[n] for n, p in at.items()}) for s in (1, -1))
    expected = [(up[name] - down[name]) / (2 * h) for name in at]
    agree(values(grad(slope)(at)), expected, 1e-9)


def test_func_grad_through_batch_statistics() -> None:
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    of = learner("torch", model)
    state = {name: buffer.clone() for name, buffer in model.named_buffers()}
    function, at = DIFFERENTIABLE["parameters"](of)
    agree(values(grad(function)(at)), by_autograd(function, at))
    assert all(torch.equal(buffer, state[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("what", [w for w in DIFFERENTIABLE if w != "metafast.grad"])
def test_func_grad_of_the_native_engine_is_refused_and_leaves_it_whole(what: str) -> None:
    of = learner("native")
    before = meta_gradient(of)
    function, at = DIFFERENTIABLE[what](of)
    for transform in (grad, jacrev):
        with pytest.raises(RuntimeError, match=r"native engine cannot run under torch\.func\.grad, vjp or jacrev: "):
            transform(function)(at)
    assert all(map(torch.equal, meta_gradient(of), before))


def test_a_first_call_that_is_refused_leaves_nothing_behind() -> None:
    of = learner("native")
    with pytest.raises(RuntimeError, match=r"torch\.func\.grad"):
        grad(loss_at(of))(scaled(of))
    agree(meta_gradient(of), meta_gradient(learner("torch")))


@BOTH
@pytest.mark.parametrize("call", ["meta_gradient", "hvp"])
def test_func_grad_of_what_carries_no_graph_is_refused(backend: str, call: str) -> None:
    of = learner(backend)
    with pytest.raises(RuntimeError, match=rf"{call} cannot run under torch\.func\.grad: .* not differentiable"):
        grad(lambda z: z * sum(t.sum() for t in CALLS[call](of)))(torch.tensor(1.0).double())


@BOTH
@pytest.mark.parametrize("call", [*CALLS, "forward"])
def test_vmap_is_refused(backend: str, call: str) -> None:
    """It once took inner gradients for zero."""
    of = learner(backend)
    run = CALLS.get(call, lambda of: of(S, Q))
    with pytest.raises(RuntimeError, match=r"cannot run under torch\.func\.vmap .* it has a task axis of its own"):
        vmap(lambda z: z * next(iter(run(of))))(torch.ones(2).double())


@BOTH
@pytest.mark.parametrize(
    ("transform", "name"),
    [
        pytest.param(lambda f, x: jvp(f, (x,), (x,)), "jvp", id="jvp"),
        pytest.param(lambda f, x: jacfwd(f)(x), "vmap", id="jacfwd"),
        pytest.param(lambda f, x: hessian(f)(x), "vmap", id="hessian"),
        pytest.param(lambda f, x: functionalize(f)(x), "functionalize", id="functionalize"),
    ],
)
def test_what_neither_engine_can_be_is_refused(backend: str, transform: Any, name: str) -> None:
    of = learner(backend)
    with pytest.raises(RuntimeError, match=rf"metafast\.MAML cannot run under torch\.func\.{name}\b"):
        transform(lambda x: of((x, S[1]), Q).loss, S[0])


# ---- torch.jit and torch.export ------------------------------------------------------
@BOTH
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
def test_making_a_program_of_a_learner_is_refused(backend: str) -> None:
    of = learner(backend)
    before = meta_gradient(of)
    for made, name in (
        (lambda: torch.jit.script(of), "jit.script"),
        (lambda: torch.jit.script(nn.Sequential(of)), "jit.script"),
        (lambda: torch.jit.trace(of, (S, Q)), "jit.trace"),
        (lambda: torch.export.export(of, (S, Q), strict=False), "export"),
    ):
        with pytest.raises(RuntimeError, match=rf"metafast\.MAML cannot run under torch\.{name}: "):
            made()
    assert all(map(torch.equal, meta_gradient(of), before))


def traced() -> nn.Module:
    return torch.jit.trace(network(), S[0][0])


@BOTH
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
@pytest.mark.parametrize("made", [lambda: torch.jit.script(network()), traced], ids=["script", "trace"])
def test_a_model_made_by_torch_jit_is_refused(backend: str, made: Model) -> None:
    with pytest.raises(TypeError, match=r"^model is made by torch\.jit .* pass the nn\.Module that it was made from"):
        learner(backend, made())
    with pytest.raises(TypeError, match=r"^model\.0 is made by torch\.jit "):
        learner(backend, nn.Sequential(made(), nn.Linear(1, 1).double()))
    model = made()
    with pytest.raises(TypeError, match=r"^model is made by torch\.jit "):
        mf.grad(model, dict(model.named_parameters()), S, backend=backend)
    with pytest.raises(TypeError, match=r"^model is made by torch\.jit "):
        mf.explain(model, S[0])
