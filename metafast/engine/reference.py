"""The meaning of any module in plain torch: the fallback engine, differentiable any number of times.

The four functions mirror those of :mod:`metafast.engine.ops` and take a :class:`Model` where those take a Program.
Everything is written once on parameters with a leading task axis; only the forward pass knows how the tasks are run:

* one after another, each with its own parameters in the module. This is the rule, and right for any module:
  normalisation uses the task's own batch, random layers draw per task, control flow may follow the data; a loss of the
  user's own that may read the model runs here, before the next task's parameters come in;
* all at once under :func:`torch.vmap`, where :mod:`metafast.engine.batchable` knows every operation that the model runs
  and a task is small. Only the forward pass is vmapped and autograd differentiates what it leaves behind, so no
  derivative is ever taken under vmap: there, second derivatives of normalisation layers are silently wrong.

The model and the loss run inside :mod:`metafast.engine.higher_order`, which writes out what torch itself differentiates
by fused formulas (:mod:`metafast.engine.fused` says when), and computes in the parameters' dtype whatever autocast
says. The model's own state stays as it is: what forward writes into, it writes into copies.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from metafast import losses, transforms
from metafast.call import Batch, Call, InnerLoop, Unrolled, tensors_of
from metafast.engine import batchable, custom_loss, fused
from metafast.engine.higher_order import WrittenOut, in_own_dtype, on_fused_layers, without_checkpoints
from metafast.engine.returned import returned, running
from metafast.engine.swap import SWAPPING as SWAPPING
from metafast.engine.swap import Slot, slots, swapped
from metafast.model.inputs import Inputs
from metafast.model.program import Loss, Parameter, Shape
from metafast.model.several import Several
from metafast.tracking import draws

Function = TypeVar("Function", bound=Callable[..., Any])
R = TypeVar("R")

#: What torch's layers are replaced by, for so many derivatives.
_FORMULAS: dict[int | None, Callable[[], Any]] = {1: nullcontext, 2: on_fused_layers, None: WrittenOut}


@dataclass(frozen=True)
class Model:
    """A module as the functions below see it: what a Program is for the native engine."""

    module: nn.Module
    loss: Loss | Callable[[Tensor, Tensor], Tensor] | None
    parameters: tuple[Parameter, ...]  # all named_parameters(), then all named_buffers() as constants
    out: Shape  # shape of one example's output
    batched: bool  # whether the module may run all tasks at once
    own: tuple[Tensor, ...]  # the module's tensors, in the order of ``parameters``
    places: tuple[Slot, ...]  # where the module registers them
    written: frozenset[str]  # buffers, and the parameters that forward writes into
    differentiates: bool  # forward calls torch.autograd.grad itself
    inputs: Inputs | None = None  # several, which stand in one tensor
    outputs: Several | None = None  # several, which do so behind the module
    targets: Several | None = None  # several, of a loss of the user's own
    has_fused: bool = False  # torch's own formulas, quicker than those written out, will do for two derivatives
    derivatives: int | None = None  # how many are taken of it, where that is known

    @cached_property
    def reading(self) -> bool:
        """Whether the loss may read more than its arguments."""
        return not (isinstance(self.loss, Loss) or custom_loss.sees_only_arguments(self.loss))

    @property
    def at_once(self) -> bool:
        """Whether all tasks run at once."""
        return self.batched and not self.reading

    def packed(self, output: Any) -> Tensor:
        """What the module returned, in one tensor."""
        return output if self.outputs is None else self.outputs.pack(output, tensors_of(output)[0].dtype)

    def value(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of one task by a function of the user's own."""
        loss: Any = self.loss
        outputs = output if self.outputs is None else self.outputs.unpack(output)
        return custom_loss.checked(loss, loss(outputs, target if self.targets is None else self.targets.unpack(target)))

    @cached_property
    def adapted(self) -> tuple[int, ...]:
        return tuple(i for i, p in enumerate(self.parameters) if p.role == "adapted")

    @cached_property
    def learnt(self) -> tuple[int, ...]:
        return tuple(i for i, p in enumerate(self.parameters) if p.role != "constant")


def _without_autocast(function: Function) -> Function:
    """For functions of (model, parameters, ...)."""

    @functools.wraps(function)
    def run(program: Model, first: Call | Sequence[Tensor], *rest: Any, **settings: Any) -> Any:
        parameters = first.parameters if isinstance(first, Call) else first
        with in_own_dtype(parameters[0].device):
            return function(program, first, *rest, **settings)

    return cast(Function, run)


def describe(
    module: nn.Module,
    loss: Loss | Callable[[Tensor, Tensor], Tensor] | None,
    adapted: Callable[[str], bool],
    x: Tensor,
    name: str = "x",
    inputs: Inputs | None = None,
) -> Model:
    """Run ``module`` once on one task's examples ``x`` [N, *example] to learn its output's shape and its operations.

    It runs on numbers, as its control flow may follow them. What it draws at random comes from a generator of its own
    (:mod:`metafast.tracking.draws`): those of the process, which other threads use, are left alone.

    Raises:
        ValueError, TypeError: the module cannot take ``x``, which the error calls ``name``, or its dtype; or it does
            not return tensors [N, *output], or several for a loss that takes one.
    """
    roles = {
        n: ("adapted" if adapted(n) else "meta") if p.requires_grad else "constant"
        for n, p in module.named_parameters()
    }
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    parameters = tuple(Parameter(n, tuple(p.shape), roles.get(n, "constant")) for n, p in own.items())  # type: ignore[arg-type]
    with SWAPPING:
        places = tuple(slots([module], list(own.values())))
    kind = f"of shape {list(x.shape[1:])}, {x.dtype}" if inputs is None else f"in {len(inputs.parts)} tensors: {inputs}"
    given = f"{name} has, for each task, {x.shape[0]} examples {kind}"
    drawn: list[str] = []
    with _recording(), in_own_dtype(x.device):
        (x,) = _plain([x.detach()])
        copies = [p.detach().clone().requires_grad_(p.requires_grad) for p in own.values()]
        operations, written_out = batchable.Operations(), WrittenOut()
        try:
            with swapped(places, copies), draws.private(drawn.append), operations, written_out, without_checkpoints():
                output = call(module, x, inputs)
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
            raised = f"{running(module, error)} raised {type(error).__name__}: {error}; {given}"
            if x.is_floating_point():
                raise ValueError(raised) from error
            if isinstance(error, IndexError):
                raise IndexError(raised) from error
            dtype = next((p.dtype for p in own.values()), torch.get_default_dtype())
            fits = f"{name} has dtype {x.dtype}; expected {dtype}, or what the model reads"
            raise TypeError(f"{fits}: {raised}") from error
    outputs = returned(module, output, loss, x.shape[0], given)
    into = {n for (n, p), copy in zip(own.items(), copies, strict=True) if _written(copy, p)}
    model = Model(
        module,
        loss,
        parameters,
        out=tuple(output.shape[1:]) if outputs is None else (sum(outputs.rows.sizes),),
        batched=not drawn and operations.batchable,
        own=tuple(own.values()),
        places=places,
        written=frozenset(into | (own.keys() - roles.keys())),
        differentiates=written_out.differentiates,
        inputs=inputs,
        outputs=outputs,
        has_fused=written_out.replaces_fused and not drawn and not written_out.differentiates,
    )
    return replace(model, batched=model.batched and _vmaps(model, list(own.values()), x, model.packed(output).detach()))


def observed(model: Model, run: Callable[[Tensor], R], x: Tensor, note: Callable[[str], Any]) -> R:
    """``run(x)``, where the module holds copies of its own tensors and random numbers come from a generator apart;
    ``note(name)`` hears of those."""
    with _recording(), in_own_dtype(x.device):
        x = x.detach().clone()
        copies = [p.detach().clone().requires_grad_(p.requires_grad) for p in model.own]
        with (
            swapped(model.places, copies),
            draws.private(note),
            WrittenOut(),
            without_checkpoints(),
            transforms.as_written(model.module),
        ):
            return run(x)


def _written(copy: Tensor, own: Tensor) -> bool:
    """Whether forward wrote into ``copy``, through ``copy.data`` even, which has a version of its own."""
    return copy._version > 0 or copy.shape != own.shape or not torch.equal(copy, own)


def call(module: nn.Module, x: Any, inputs: Inputs | None = None) -> Any:
    """``module(x)``, as the module is written, or ``module(*x)`` for several tensors, perhaps in one, as ``inputs``
    says. A DataParallel runs as the module that it holds."""
    while isinstance(module, nn.DataParallel):
        module = module.module
    with transforms.as_written(module):
        return module(*(tensors_of(x) if inputs is None else inputs.unpack(x)))


@_without_autocast
def _vmaps(model: Model, tensors: Sequence[Tensor], x: Tensor, output: Tensor) -> bool:
    """Whether two tasks at once give what one gives. Code that hides its operations from torch ends here."""
    twice = [t if p.role == "constant" else torch.stack([t, t]) for t, p in zip(tensors, model.parameters, strict=True)]
    with torch.no_grad(), draws.private():
        try:
            both = _outputs(model, twice, torch.stack([x, x]))
        except (RuntimeError, ValueError, TypeError, NotImplementedError):
            return False
    return torch.allclose(both, output.expand_as(both), rtol=1e-3, atol=1e-5, equal_nan=True)


def _run(model: Model, values: Sequence[Tensor], x: Tensor) -> Tensor:
    """One task's output; what forward writes into, a norm's statistics for instance, are copies."""
    copied = [v.clone() if p.name in model.written else v for p, v in zip(model.parameters, values, strict=True)]
    with swapped(model.places, copied), _FORMULAS[model.derivatives](), without_checkpoints():
        return model.packed(call(model.module, x, model.inputs))


def _by_task(model: Model, parameters: Sequence[Tensor], tasks: int) -> list[tuple[Tensor, ...]]:
    """Every task's own parameters."""
    own = _own(model, parameters)
    # unbind, not indexing: its derivative is one stack instead of a zero-filled tensor per task
    columns = [p.unbind(0) if o else (p,) * tasks for p, o in zip(parameters, own, strict=True)]
    return list(zip(*columns, strict=True))


def _own(model: Model, parameters: Sequence[Tensor]) -> list[bool]:
    """Which parameters each task has a value of its own for."""
    return [p.ndim > len(spec.shape) for p, spec in zip(parameters, model.parameters, strict=True)]


def _outputs(model: Model, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    """The model's outputs [T, N, *output] for x [T, N, *example]."""
    if model.differentiates and not torch.is_grad_enabled():
        with _recording():
            return _outputs(model, _plain(parameters), *_plain([x])).detach()
    if model.at_once:
        axes = [0 if own else None for own in _own(model, parameters)]
        return torch.vmap(lambda values, x: _run(model, values, x), in_dims=(axes, 0))(list(parameters), x)
    each = _by_task(model, parameters, x.shape[0])
    return torch.stack([_run(model, values, x_t) for values, x_t in zip(each, x.unbind(0), strict=True)])


def _outputs_and_losses(model: Model, parameters: Sequence[Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
    """The outputs and the task losses [T] of a batch with targets."""
    assert batch.y is not None
    if model.differentiates and not torch.is_grad_enabled():
        with _recording():
            output, loss = _outputs_and_losses(model, _plain(parameters), Batch(*_plain(batch)))
        return output.detach(), loss.detach()
    if model.reading:
        return _outputs_and_read(model, parameters, batch.x, batch.y)
    output = _outputs(model, parameters, batch.x)
    return output, _losses(model, output, batch.y, batch.w)


def _outputs_and_read(model: Model, parameters: Sequence[Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The same with a loss that may read the model: it runs while the model holds the task's parameters."""
    loss: Any = model.loss
    names = [p.name for p in model.parameters]
    made = []
    with SWAPPING:
        places = slots([model.module, loss], model.own) if isinstance(loss, nn.Module) else model.places
    for values, x_t, y_t in zip(_by_task(model, parameters, x.shape[0]), x.unbind(0), y.unbind(0), strict=True):
        with transforms.leaves():
            held = [
                custom_loss.stand_in(v.clone() if name in model.written else v, own)
                for name, v, own in zip(names, values, model.own, strict=True)
            ]
        with swapped(places, held), WrittenOut(), without_checkpoints(), transforms.as_written(model.module):
            output = model.packed(call(model.module, x_t, model.inputs))
            custom_loss.mark(held, model.own)
            value = model.value(output, y_t)
        custom_loss.refuse_captured(loss, value, output, list(zip(names, model.own, held, strict=True)))
        made.append((output, value))
    outputs, values = zip(*made, strict=True)
    return torch.stack(outputs), torch.stack(values)


def _losses(model: Model, output: Tensor, y: Tensor, w: Tensor | None) -> Tensor:
    """Task losses [T]."""
    if not isinstance(model.loss, Loss):
        if model.loss is None or w is not None:
            raise ValueError("weights need a loss known by name, whose value per example is defined")
        with WrittenOut():
            return torch.stack([model.value(o, y_t) for o, y_t in zip(output.unbind(0), y.unbind(0), strict=True)])
    outputs, targets = output.flatten(0, 1), y.flatten(0, 1)
    each = losses.per_example(model.loss, outputs, targets).view(output.shape[:2])
    masses = losses.masses(model.loss, outputs, targets)
    return losses.reduced(model.loss, each, w, None if masses is None else masses.view(output.shape[:2]))


def _gradients(losses: Tensor, parameters: Sequence[Tensor], create_graph: bool) -> tuple[Tensor, ...]:
    """Per-task gradients [T, *shape]; tasks share nothing, so the gradient of the sum holds every task's own."""
    if not parameters or not losses.requires_grad:
        return tuple(torch.zeros_like(p) for p in parameters)
    return torch.autograd.grad(losses.sum(), parameters, create_graph=create_graph, materialize_grads=True)


@contextmanager
def _recording() -> Iterator[None]:
    """Inner gradients need autograd even where the caller has switched it off."""
    with torch.inference_mode(False), torch.enable_grad(), transforms.leaves():
        yield


def _per_task(parameter: Tensor, spec: Parameter, tasks: int) -> Tensor:
    """``parameter`` as [T, *shape], a value that inner gradients can be taken with respect to."""
    value = parameter if parameter.ndim > len(spec.shape) else parameter.expand(tasks, *spec.shape)
    return value if value.requires_grad else value.detach().requires_grad_()


def _plain(tensors: Sequence[Tensor | None]) -> list[Any]:
    """Tensors made under inference_mode cannot be saved for a derivative; their copies can."""
    return [t.clone() if t is not None and t.is_inference() else t for t in tensors]


def _hypers(call: Call, loop: InnerLoop, k: int, dims: Sequence[int], swept: bool) -> Callable[[str, int], Tensor]:
    """The rule's hyper-parameters at step k: of their name and an adapted parameter's number."""
    by_name = dict(zip(loop.rule.order, call.hypers, strict=True))

    def hyper(name: str, a: int) -> Tensor:
        value = by_name[name].at(k, a, dims[a])
        return value if swept else value.detach()

    return hyper


@_without_autocast
def unroll(program: Model, call: Call, loop: InnerLoop, *, want_adapted: bool = False) -> Unrolled:
    """K steps of the rule, then the query loss: the meaning of one meta-step."""

    def run(model: Model) -> fused.Run:
        return lambda call: _unroll(model, call, loop, want_adapted)

    if not program.has_fused or program.reading:
        return run(program)(call)
    return fused.unroll(run(replace(program, derivatives=2)), run(program), call)


def _unroll(program: Model, call: Call, loop: InnerLoop, want_adapted: bool) -> Unrolled:
    """:func:`unroll` in plain torch.

    Where gradients of the support loss are constants (first order, and before a truncated sweep begins), they have no
    graph. ``loop.memory`` has no effect here: autograd stores the whole graph.
    """
    tracked = torch.is_grad_enabled()
    support, query = call.support, call.query
    assert support is not None
    tasks, steps = support.x.shape[0], loop.steps
    sweeps, second_order = loop.estimator.sweeps, loop.estimator.second_order
    adapted, dims = program.adapted, [len(program.parameters[i].shape) for i in program.adapted]
    history = []
    with _recording():
        values, support = _plain(call.parameters), Batch(*_plain(support))
        start = [_per_task(values[i], program.parameters[i], tasks) for i in adapted]
        states = loop.rule.begin(start)
        for k in range(steps):
            swept = tracked and sweeps(k, steps)
            begins = swept and k > 0 and not sweeps(k - 1, steps)
            x, y, w = (None if t is None else t[:, k] if loop.stepwise else t for t in support)
            for a, i in enumerate(adapted):
                values[i] = _per_task(values[i] if swept else values[i].detach(), program.parameters[i], tasks)
                if begins:  # the sweep ends here, and hands on to the initial parameters
                    values[i] = values[i].detach() + (start[a] - start[a].detach())
            _, loss = _outputs_and_losses(program, values, Batch(x, y, w))  # type: ignore[arg-type]
            thetas = [values[i] for i in adapted]
            gradients = _gradients(loss, thetas, create_graph=swept and second_order(k, steps))
            history.append(loss.detach())
            moved, states = loop.rule.step(k, thetas, gradients, start, states, _hypers(call, loop, k, dims, swept))
            if not swept:
                states = [[[s.detach() for s in each] for each in link] for link in states]
            for i, value in zip(adapted, moved, strict=True):
                values[i] = value
    if not tracked:
        for i in adapted:
            values[i] = values[i].detach()
    if history:
        support_loss = torch.stack(history, 1)
    else:
        support_loss = support.x.new_zeros((tasks, 0), dtype=call.parameters[0].dtype)
    made = None
    if want_adapted:
        made = tuple(values[i].expand(tasks, *program.parameters[i].shape) for i in adapted)
    if query is None:
        return Unrolled(None, None, None, support_loss, made)
    if query.y is None:
        return Unrolled(None, None, _outputs(program, values, query.x), support_loss, made)
    logits, task_loss = _outputs_and_losses(program, values, query)
    return Unrolled(task_loss.mean(), task_loss, logits, support_loss, made)


def _loss_and_gradients(
    program: Model, parameters: Sequence[Tensor], batch: Batch, create_graph: bool
) -> tuple[Tensor, tuple[Tensor, ...], list[Tensor]]:
    values, batch = _plain(parameters), Batch(*_plain(batch))
    for i in program.learnt:
        values[i] = _per_task(values[i], program.parameters[i], batch.x.shape[0])
    at = [values[i] for i in program.learnt]
    _, loss = _outputs_and_losses(program, values, batch)
    return loss, _gradients(loss, at, create_graph), at


@_without_autocast
def gradient(program: Model, parameters: Sequence[Tensor], batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Task losses [T] and their gradients [T, *shape] with respect to ``program.learnt``."""
    tracked = torch.is_grad_enabled()
    with _recording():
        loss, gradients, _ = _loss_and_gradients(program, parameters, batch, create_graph=tracked)
    return (loss, gradients) if tracked else (loss.detach(), tuple(g.detach() for g in gradients))


@_without_autocast
def hvp(
    program: Model, parameters: Sequence[Tensor], batch: Batch, vectors: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], None]:
    """H_t v_t [T, *shape] over ``program.learnt``, as the gradient of g_t . v_t; not differentiable. No native call."""
    with _recording():
        _, gradients, at = _loss_and_gradients(program, parameters, batch, create_graph=True)
        dot = sum((g * v.detach()).sum() for g, v in zip(gradients, vectors, strict=True))
        return tuple(h.detach() for h in _gradients(torch.as_tensor(dot), at, create_graph=False)), None


@_without_autocast
def predict(program: Model, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    """The model's outputs [T, N, *output] for x [T, N, *example]."""
    return _outputs(program, parameters, x)
