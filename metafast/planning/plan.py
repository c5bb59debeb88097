"""Which engine runs a model, and with what: decided once per structure, found again in a few microseconds.

A :class:`Planner` belongs to one model, one loss and one choice of adapted parameters. Its :class:`Plan` for a kind of
example holds for as long as the model stays as it was (:class:`metafast.tracking.snapshot.Snapshot`): whatever a user
changes between two calls is noticed by the next one. A plan is shared with other planners of the same model and
settings (:mod:`metafast.planning.shared`). One that depends on what cannot be watched serves one call.

Planning leaves the model and every random generator of the process as they are. Where the model is native, nothing is
computed; where it is not, its forward runs once on one task's examples.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metafast import arguments, losses, transforms
from metafast.call import Batch, Hyper, named, tensors_of
from metafast.engine import reference
from metafast.engine.static import Composed
from metafast.model import lowering, traced_loss
from metafast.model.builder import called
from metafast.model.inputs import Inputs
from metafast.model.program import Node, Parameter, Program, Shape
from metafast.model.several import Several
from metafast.planning import engines, shared
from metafast.planning.accumulation import Receivers
from metafast.planning.reading import Reading, may_look_at, read_together
from metafast.planning.warned import CANCELLING, PADDED, UNTRAINED, untrained_norm, warn_once
from metafast.tracking.metadata import metadata
from metafast.tracking.reads import Reads, Undone
from metafast.tracking.snapshot import Snapshot

if TYPE_CHECKING:
    from metafast.planning.repeat import RepeatedHvp


Kinds = tuple[Several, ...]


@dataclass(eq=False)
class Plan:
    """What a call needs: the engine, what it runs, and the model's tensors."""

    engine: Any  # metafast.engine.ops or metafast.engine.reference, or a static.Composed of them
    program: Any  # Program, or reference.Model
    loss: Any  # program.Loss, or None for a function of the user's own
    out: Shape  # of one example
    dtype: torch.dtype
    device: torch.device
    reading: Reading
    tensors: tuple[Tensor, ...]  # the model's own, for program.parameters
    names: tuple[str, ...]  # of the model's parameters
    adapted: tuple[Parameter, ...]
    example: Shape
    key: Hashable  # example shape, dtype and device of x
    snapshot: Snapshot  # the model as it was when this was decided
    why: str  # this is not the native engine
    accepted: set[Hashable] = field(default_factory=set)  # shapes and dtypes that passed every check
    hypers: dict[Hashable, tuple[Hyper, ...]] = field(default_factory=dict)  # of constant hyper-parameters
    warned: set[str] = field(default_factory=set)  # what its planner has warned about

    @property
    def native(self) -> bool:
        """Whether the whole model has a native form."""
        return isinstance(self.program, Program)

    @property
    def outputs(self) -> Several | None:
        """What the model returns, where that is several tensors or has a loss behind it."""
        return self.program.outputs  # type: ignore[no-any-return]

    @property
    def composed(self) -> Composed | None:
        """Where the model is cut: what runs its static prefix, and the rest."""
        return self.engine if isinstance(self.engine, Composed) else None

    @property
    def looped(self) -> Program | None:
        """What the native engine runs in the inner loop, be it behind a prefix that torch runs."""
        if self.native:
            return self.program  # type: ignore[no-any-return]
        return self.composed.rest.program if self.composed is not None and self.composed.by_torch else None

    @property
    def words(self) -> str:
        """Which engine runs the inner loop, for reports."""
        if self.composed is None or self.looped is None or self.native:
            return "native" if self.native else f"torch ({self.why})"
        return f"native behind {self.composed.where}; torch runs what is before, because of {self.why}"

    def replaced(self, given: dict[str, Tensor]) -> list[Tensor]:
        """The model's tensors, with ``given`` in the place of those it names."""
        own = zip(self.program.parameters, self.tensors, strict=True)
        return [given.get(p.name, tensor) for p, tensor in own]

    @cached_property
    def known(self) -> dict[str, Parameter]:
        """The model's parameters, by name: those a dict of parameters may hold."""
        return {p.name: p for p in self.program.parameters if p.name in self.names}

    @cached_property
    def learnt(self) -> dict[str, Parameter]:
        """Those that receive a gradient, by name, in the order in which an engine returns them."""
        return {p.name: p for p in (self.program.parameters[i] for i in self.program.learnt)}

    def parameters(
        self, name: str, given: Any, tasks: int, within: Mapping[str, Parameter] | None = None
    ) -> dict[str, Tensor]:
        """A dict of parameters, all ``within`` those of the model or fewer; checked like :meth:`check`."""
        known = self.known if within is None else within
        key: Hashable = None
        if type(given) is dict and all(isinstance(value, Tensor) for value in given.values()):
            key = (name, tasks, tuple(known), tuple(given), metadata(tuple(given.values())))
            if key in self.accepted:
                return dict(given)
        checked = arguments.parameters(name, given, known, tasks, self.dtype, self.device)
        if key is not None:
            self.accepted.add(key)
        return checked

    @cached_property
    def receivers(self) -> Receivers:
        """Where a native plan's gradients go; none for a parameter that the model never uses."""
        learnt = enumerate(self.program.learnt)
        return [(place, self.tensors[i]) for place, i in learnt if i not in self.program.unused]

    def refuse_constants(self, name: str, given: Mapping[str, Tensor]) -> None:
        """The native engine has no gradient for what the model holds constant; torch has."""
        if self.looped is None or not torch.is_grad_enabled():
            return
        constants = {p.name for p in self.looped.parameters if p.role == "constant"}
        for key, value in given.items():
            if value.requires_grad and key in constants:
                raise ValueError(
                    f"{name}[{key!r}] requires grad, but the model's own does not, and the native engine would take it "
                    "for a constant. Call requires_grad_() on the model's parameter, which adapt_params can keep out "
                    "of the inner loop; or detach the tensor; or use backend='torch'"
                )

    def check(self, name: str, batch: Batch, stepwise: bool = False, like: Tensor | None = None) -> Batch:
        """Every check of a batch; shapes and dtypes seen before are not looked at again, labels always are.

        A query set must have the tasks and the kind of example of ``like``, the support set's x.
        """
        x, y, w = batch
        first, *others = tensors_of(x)
        several = isinstance(x, tuple), None if y is None or isinstance(y, Tensor) else (*named("", y),)
        key = (name, stepwise, several, metadata((first, *others, *tensors_of(y), w, like)))
        if key not in self.accepted:
            arguments.axes(f"{name} x", x, stepwise)
            alike = self.reading.inputs is not None or first.shape[2:] == self.example
            if like is not None and (first.shape[0] != like.shape[0] or not alike):
                raise ValueError(
                    f"{name} x has shape {list(first.shape)}, support x {list(like.shape)}; expected the same number "
                    "of tasks T and the same shape of one example"
                )
            self.reading.check(f"{name} x", x, stepwise)
            self.check_norms(f"{name} x", first, 2 if stepwise else 1)
            arguments.examples(name, batch, self.loss, self.out, self.dtype, self.device, stepwise)
            self.accepted.add(key)
        if self.reading.converts:
            batch = self.reading.batch(name, batch)
        if y is not None and self.loss is not None and not y.is_floating_point():
            if y.dtype != torch.int64:
                batch = batch._replace(y=y.long())
            if may_look_at(y):  # where not, a label out of range gives its task NaN
                arguments.labels(f"{name} y", y, self.out[0], self.loss.ignored)
        if w is not None and may_look_at(w):
            self.check_weights(f"{name} weights", w)
        return batch

    def check_weights(self, name: str, w: Tensor) -> None:
        """Warn once about weights that do not do what is likely meant by them."""
        if self.loss.reduction == "weighted_mean" and arguments.cancels(w):
            warn_once(self.warned, CANCELLING.format(name))
        if self.batch_norm and arguments.pads(w):
            warn_once(self.warned, PADDED.format(name, self.batch_norm))

    @cached_property
    def batch_norm(self) -> str:
        """A batch norm that uses the statistics of its batch, in words; empty if there is none."""
        if self.native:
            found = [node.where for node in self.program.nodes if _uses_batch_statistics(node)]
        else:
            modules = self.program.module.named_modules()
            norms = [(name, m) for name, m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
            found = [name for name, m in norms if m.training or m.running_mean is None]
        return f"batch norm {found[0]!r}" if found and found[0] else "batch norm" * bool(found)

    def check_norms(self, name: str, x: Tensor, axis: int) -> None:
        """One example, N = x.shape[axis], has no variance: torch refuses to train a norm on it, and so do we."""
        program = self.looped
        if x.shape[axis] != 1 or program is None:
            return
        for node in program.nodes:
            if _uses_batch_statistics(node) and math.prod(program.values[node.output][1:]) == 1:
                raise ValueError(
                    f"{name} has shape {list(x.shape)}: N=1, but {called(node.where)} (batch norm) in training mode "
                    "needs more than 1 value per channel; expected N >= 2"
                )


class Planner:
    def __init__(
        self,
        model: nn.Module,
        loss: Any,
        adapt_params: arguments.AdaptParams = None,
        backend: str = "auto",
        strict: bool = False,
        reduction: str = "weighted_mean",
        unrolls: bool = True,
    ) -> None:
        """``unrolls``: there is an inner loop, and what it does not move may run once."""
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module; it is a {type(model).__name__}")
        transforms.refuse_scripted(model)
        self.settings = (model, loss, adapt_params, backend, strict, reduction)
        self.model = model
        self.backend = arguments.choice("backend", backend, arguments.BACKENDS)
        self.strict = strict
        self.unrolls = unrolls
        self.adapt_params = adapt_params
        self.adapts = arguments.predicate(adapt_params)
        self.loss, self.function = losses.resolve(loss, reduction)
        self.plans: list[Plan] = []  # the latest first
        self.product: RepeatedHvp | None = None  # the latest Hessian-vector product
        self.warned: set[str] = set()

    def refresh(self) -> None:
        """A loss that is an object may have been changed."""
        _, loss, *_, reduction = self.settings
        if type(loss) is str:
            return
        known, function = losses.resolve(loss, reduction)
        if known != self.loss:
            self.plans, self.product = [], None
            self.loss, self.function = known, function

    def plan(self, name: str, x: Any, stepwise: bool = False, targets: Kinds = ()) -> Plan:
        """The plan for ``x`` [T, N, *example], or [T, K, N, *example], or a tuple of such; ``name`` is what errors call
        it. A loss of the user's own wants ``targets`` of :func:`metafast.planning.reading.kinds_of`; without them, the
        model alone is run."""
        kinds = [(t.shape[3 if stepwise else 2 :], t.dtype, t.device) for t in tensors_of(x)]
        key: Hashable = tuple(kinds) if isinstance(x, tuple) else kinds[0]
        if self.loss is not None or (self.backend == "torch" and all(kind.one for kind in targets)):
            targets = ()
        key = (key, targets) if targets else key
        with reference.SWAPPING:
            self.refresh()
            for plan in self.plans:
                if plan.key == key and plan.snapshot.is_unchanged():
                    if plan is not self.plans[0]:  # the next call is likely to want the same
                        shared.keep(self.plans, plan)
                    return plan
            everybodys = shared.plans(self.model, self._sharing())
            for plan in everybodys:
                if plan.key == key and plan.snapshot.is_unchanged():
                    shared.keep(everybodys, plan)
                    return self._own(plan)
            made = self._make(name, arguments.first_of(x, stepwise), key, targets)
            if not made.snapshot.blind:
                if not targets:  # else the plan belongs to a loss
                    shared.keep(everybodys, self._anybodys(made))
                shared.keep(self.plans, made)
            return made

    def _sharing(self) -> Hashable:
        """What two planners of one model have in common if they make the same plans."""
        _, loss, _, backend, strict, _ = self.settings  # the reduction is part of the Loss
        why = "" if self.loss else losses.why_not_native(loss)
        chosen = None
        if self.adapt_params is not None:
            chosen = tuple(name for name, _ in self.model.named_parameters() if self.adapts(name))
        return self.loss, why, chosen, backend, strict, self.unrolls

    def _anybodys(self, plan: Plan) -> Plan:
        """``plan`` without the model and the loss, which are not to be kept alive by those that share it."""
        if plan.native:
            return plan
        return self._of(plan, None, None)

    @staticmethod
    def _of(plan: Plan, model: nn.Module | None, loss: Any) -> Plan:
        """A plan that is not wholly native, with this model and loss in it."""
        engine = plan.engine if plan.composed is None else plan.composed.of(model, loss)
        return replace(plan, engine=engine, program=replace(plan.program, module=model, loss=loss))

    def _own(self, plan: Plan) -> Plan:
        """The plan of another planner as one of this one's, which warns again."""
        plan = replace(plan, warned=self.warned)
        if not plan.native:
            if self.backend != "torch" and plan.looped is None:
                self._warn_of_torch(plan.why)
            plan = self._of(plan, self.model, self.loss or self.function)
        shared.keep(self.plans, plan)
        return plan

    def _warn_of_torch(self, why: str) -> None:
        self._warn(f"running on torch, slower than natively, because of {why}; backend='torch' silences this")

    def _make(self, name: str, x: Any, key: Hashable, targets: Kinds) -> Plan:
        named = dict(self.model.named_parameters())
        arguments.adapted(self.adapt_params, {n: p.requires_grad for n, p in named.items()})
        dtype, device = arguments.one_kind(named)
        arguments.inputs(name, x, dtype, device)
        inputs = Inputs.of(x, 1)
        given, x = (x.dtype, x) if inputs is None else (dtype, inputs.pack(x, dtype))
        if (layer := untrained_norm(self.model)) is not None:
            self._warn(UNTRAINED.format(layer))
        engine: Any
        program: Any
        why = "backend='torch'"
        reads, undone = Reads(self.model), Undone(self.model)
        if self.backend == "torch":
            engine, program, reads = self._by_torch(name, x, dtype, undone, inputs, targets)
        else:
            try:
                engine, program = self._native(x, dtype, device, reads, inputs, targets)
            except lowering.Unsupported as unsupported:
                why = str(unsupported)
                # what torch cannot run is another error
                engine, program, reads = self._by_torch(name, x, dtype, undone, inputs, targets)
                self._check_choice(engine, why, unsupported)
        native, example = isinstance(program, Program), tuple(x.shape[1:])
        reading = Reading(program if native else None, dtype, device, example, given, inputs)
        if native and targets:
            reading = replace(reading, targets=targets[0], label=sum(program.outputs.rows.sizes))
        elif not native:
            reading = replace(reading, targets=program.targets)
        tensors = named | dict(self.model.named_buffers())
        return Plan(
            engine,
            program,
            self.loss,
            tuple(program.output_shape if native else program.out),
            dtype,
            device,
            reading,
            tensors=tuple(tensors[p.name] for p in program.parameters),
            names=tuple(named),
            adapted=tuple(program.parameters[i] for i in program.adapted),
            why=why,
            example=example,
            key=key,
            snapshot=Snapshot(
                self.model, named.values(), reads, undone.assigned, undone.written, versions=engine is not reference
            ),
            warned=self.warned,
        )

    def _check_choice(self, engine: Any, why: str, unsupported: lowering.Unsupported) -> None:
        """Say that torch runs the inner loop, or raise where that was ruled out."""
        if isinstance(engine, Composed) and engine.by_torch:
            return
        if self.strict or self.backend == "native":
            asked = "strict=True" if self.strict else "backend='native'"
            raise RuntimeError(f"{asked}, but the native engine cannot be used, because of {why}") from unsupported
        self._warn_of_torch(why)

    def _by_torch(
        self, name: str, x: Tensor, dtype: torch.dtype, undone: Undone, inputs: Inputs | None, targets: Kinds
    ) -> tuple[Any, reference.Model, Reads]:
        """What runs a model that is not native as a whole, and what that depends on."""
        program, reads = self._describe(name, x, undone, inputs)
        if targets and not targets[0].one:
            program = replace(program, targets=targets[0])
        if self.unrolls:
            on_torch = self.backend == "torch" or self.loss is None
            found = engines.composed(self.model, program, self.adapts, x, dtype, on_torch)
            if found is not None:
                return found[0], program, found[1]
        return reference, program, reads

    def _describe(self, name: str, x: Tensor, undone: Undone, inputs: Inputs | None) -> tuple[reference.Model, Reads]:
        """What torch runs, and what its code reads. The model is left as it was."""
        reads = Reads(self.model, versions=False)
        with undone, reads.recording():
            program = reference.describe(self.model, self.loss or self.function, self.adapts, x, name, inputs)
        reads.watch.keep_unchanged()
        # One task after another if tasks leave something behind in the model: under vmap, that would be of all at once.
        return (replace(program, batched=False) if undone.changes else program), reads

    def _native(
        self,
        x: Tensor,
        dtype: torch.dtype,
        device: torch.device,
        reads: Reads,
        inputs: Inputs | None,
        targets: Kinds,
    ) -> tuple[Any, Program]:
        """The native engine and what it runs; raises Unsupported. ``reads`` notes what that depends on."""
        engines.check_kind(device)
        example, given, loss, head = tuple(x.shape[1:]), x.dtype, self.loss, None
        if len(targets) > 1:
            kinds = " and ".join(str(kind) for kind in targets)
            raise lowering.Unsupported("loss", f"targets are {kinds} in the two sets; native are those of one kind")
        if targets:  # which stand behind the inputs
            inputs, loss = read_together(inputs, example, given, targets[0]), traced_loss.LAST
            example, given, head = (sum(inputs.sizes),), dtype, traced_loss.Head(self.function, targets[0])
        program = lowering.lower(
            self.model,
            example,
            adapted=self.adapts,
            loss=loss,
            dtype=dtype,
            given=given,
            inputs=inputs,
            head=head,
            reads=reads,
        )
        return engines.native(program, x, self.unrolls and not targets), program

    def _warn(self, message: str) -> None:
        warn_once(self.warned, message)


def _uses_batch_statistics(node: Node) -> bool:
    return node.op == "batch_norm" and bool(dict(node.attributes)["training"])


def planner(model: nn.Module, loss: Any, backend: str, strict: bool, reduction: str) -> Planner:
    """The planner of a bare model; those of the last few are kept."""
    if type(loss) is str:
        return _planner(model, loss, backend, strict, reduction)
    losses.resolve(loss, reduction)  # what the cache cannot hash raises here, by name
    found = _planner(model, loss, backend, strict, reduction)
    found.refresh()
    return found


@lru_cache(maxsize=8)
def _planner(model: nn.Module, loss: Any, backend: str, strict: bool, reduction: str) -> Planner:
    return Planner(model, loss, None, backend, strict, reduction, unrolls=False)
