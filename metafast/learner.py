"""The learner a training loop holds: MAML and its relatives as one :class:`torch.nn.Module`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from metafast import arguments, transforms
from metafast.call import Batch, Call, Hyper, InnerLoop, each_of, tensors_of
from metafast.engine.reference import SWAPPING
from metafast.estimators import Checkpoint, Exact, FirstOrder
from metafast.estimators.estimator import Estimator
from metafast.model.program import Parameter
from metafast.planning import accumulation
from metafast.planning.plan import Plan, Planner
from metafast.planning.reading import kinds_of
from metafast.rules import SGD
from metafast.rules.hypers import Frame, LearntValues, hyper, hypers, learnt
from metafast.rules.rule import HyperValue, Rule

if TYPE_CHECKING:
    from metafast.planning.repeat import Repeat

#: The signature's default. It is told by identity from a rate that the user gives.
DEFAULT_LR = 0.4
PLAIN = SGD()
#: What errors call a learner.
THIS = "metafast.MAML"


class Output(NamedTuple):
    """What one meta-step computes; all but ``support_loss`` differentiable."""

    loss: Tensor  # [] mean of task_loss
    task_loss: Tensor  # [T] query loss after adaptation
    logits: Any  # [T, Nq, *output] the adapted models' outputs on the query set; in the model's containers if several
    support_loss: Tensor  # [T, K] before each step


class MAML(nn.Module):
    """Model-agnostic meta-learning (Finn et al. 2017): gradients through the inner loop, for all tasks in one call.

    For every task t with support set S_t and query set Q_t, from theta_0 = the model's parameters::

        theta_{k+1} = theta_k - a_k * dL(theta_k; S_t)/d theta,    k = 0 .. K-1        (eq. 1, K times)
        loss        = mean_t L(theta_K; Q_t)

    ``loss.backward()`` gives the exact derivative, second-order terms included, for the model's parameters, the
    learning rates and every floating input. A parameter that the model never uses gets no gradient, as in a plain step
    of torch. Differentiable once; ``backend="torch"`` any number of times.

    Everything is computed in the dtype of the model's parameters, under autocast too. What the model's forward writes
    into its own parameters and buffers ends with the call: the model is left as it is.

    Args:
        model: any module from [N, *example], or several such tensors, to one tensor [N, *output], or to several in a
            tuple, list or dict for a loss that is a function; what
            ``torch.compile(module)`` returns stands for the module. ``requires_grad=False`` parameters are neither
            adapted nor meta-learnt. BatchNorm in training mode uses the statistics of the task's own batch and leaves
            its buffers alone; in eval mode it uses the buffers.
        lr: inner step size; its forms are those of :class:`metafast.SGD`.
        steps: inner steps K >= 0.
        loss: a name that :mod:`metafast.losses` lists, such as ``"cross_entropy"`` or ``"mse"``; the torch.nn module
            or functional of one; or any function (output, target) -> mean, which runs natively if it is made of what
            does, on torch otherwise. It may read the model (weight decay, activations): while it runs,
            ``model.parameters()`` are the task's theta_k. Parameters of a loss that is a module are meta-learnt, not
            adapted. A copy of the learner keeps a function as it is, reading the model that it was written for; a
            module or an object that holds the model is copied with it.
        first_order: take each inner gradient for a constant (FOMAML). The learning rate keeps its gradient; that of
            support data is zero.
        rule: how parameters move: :func:`metafast.SGD`, :func:`metafast.Adam` or another that :mod:`metafast.rules`
            lists, or a :func:`metafast.chain` of several; None means SGD with ``lr``. Hyper-parameters that the rule's
            ``learn`` names are parameters of the learner under their own names.
        learn_lr: register the learning rate as parameters of the learner (Meta-SGD, Li et al. 2017, when it is a dict).
        adapt_params: what the inner loop moves: a glob over parameter names, a list of them, or a function of the
            name. The rest is meta-learnt only (ANIL, Raghu et al. 2020). Layers before the first that is moved run once
            per task and set instead of at every step.
        memory: keep the activations of every inner step for the reverse sweep (``"keep"``), compute them again
            (``"recompute"``), or choose by size (``"auto"``); :class:`metafast.Checkpoint` keeps parameters of some
            steps only. The results are the same; torch always keeps.
        backend: ``"auto"`` runs natively, or on torch with one warning that names the layer and the reason;
            ``"native"`` raises instead; ``"torch"`` asks for plain torch. Layers without native form before the first
            that the inner loop moves are run by torch, once, and the inner loop natively.
        strict: raise RuntimeError where ``backend="auto"`` would warn.
        estimator: which derivative is taken: :class:`metafast.Exact` (None), :class:`metafast.FirstOrder`, as
            ``first_order=True`` says too, or another that :mod:`metafast.estimators` lists.
        reduction: what the loss of a task is of the losses l of its N examples and their weights w, 1 where none are
            given: ``"weighted_mean"``, sum(w l) / sum(w); ``"mean"``, sum(w l) / N; or ``"sum"``, sum(w l). Weights of
            both signs, whose sum may be near zero, and weights that are zero and want a gradient, as in learning to
            reweight, need one of the latter two. A loss that is a function of your own keeps its own mean.

    Raises:
        TypeError, ValueError: an argument that does not fit, named with its shape and what was expected; a loss that
            reads parameters of the model only as tensors that were taken from it earlier.
        RuntimeError: the native engine was demanded for a model that it cannot run.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: HyperValue = DEFAULT_LR,
        steps: int = 5,
        loss: Any = "cross_entropy",
        first_order: bool = False,
        rule: Rule | None = None,
        learn_lr: bool = False,
        adapt_params: arguments.AdaptParams = None,
        memory: str | Checkpoint = "auto",
        backend: str = "auto",
        strict: bool = False,
        estimator: Estimator | None = None,
        reduction: str = "weighted_mean",
    ) -> None:
        super().__init__()
        model = transforms.original(model)
        self._repeat: Repeat | None = None
        self._planner = Planner(model, loss, adapt_params, backend, strict, reduction)  # checks all but strict
        with SWAPPING:  # or another thread's learner may have put plain tensors in the place of its parameters
            trainable = {n: p.requires_grad for n, p in model.named_parameters()}
        arguments.adapted(adapt_params, trainable)
        self.model = model
        self.loss = loss
        self.steps = arguments.steps(steps)
        self.estimator = arguments.estimator(estimator, first_order)
        self.adapt_params = adapt_params
        self.memory = arguments.memory(memory)
        self.backend = backend
        self.strict = strict
        self.reduction = reduction
        if rule is not None and not isinstance(rule, Rule):
            raise TypeError(f"rule must be a metafast rule such as metafast.SGD(); it is a {type(rule).__name__}")
        if rule is not None and not rule.optimises:
            raise ValueError(f"rule has no optimiser: it is {rule}; put it in a metafast.chain with metafast.SGD()")
        self.rule = PLAIN if rule is None else rule
        if self.rule.lr is not None and lr is not DEFAULT_LR:
            raise ValueError("lr is given twice: to the learner and to its rule")
        self.learn_lr = bool(learn_lr) or "lr" in self.rule.learn
        if self.rule.lr is not None:
            lr = self.rule.lr
        elif lr is DEFAULT_LR and self.rule.default_lr is not None:
            lr = self.rule.default_lr
        self._set_hypers(lr)

    def _set_hypers(self, lr: Any) -> None:
        """Check the rule's hyper-parameters against the model and keep those that are learnt, and lr."""
        adapts = arguments.predicate(self.adapt_params)
        with SWAPPING:
            named = dict(self.model.named_parameters())
        dtype, device = arguments.one_kind(named)
        moved = [Parameter(n, tuple(p.shape), "adapted") for n, p in named.items() if p.requires_grad and adapts(n)]
        fit = Frame(self.steps, self.steps, moved, list(named), dtype, device)
        for name, given in self.rule.hypers.items():
            value = lr if name == "lr" else given
            hyper(name, value, self.rule.per_step, fit)
            if not (self.learn_lr if name == "lr" else name in self.rule.learn):
                if name == "lr":  # not by setattr, which would register a Parameter of the user's own
                    self.__dict__["lr"] = lr if isinstance(lr, (Tensor, Mapping)) else float(lr)
            elif isinstance(value, Mapping):
                self.add_module(name, LearntValues(value, dtype, device))
            else:
                self.register_parameter(name, learnt(value, dtype, device))  # type: ignore[arg-type]

    def hyper(self, name: str) -> Any:
        """The value of a hyper-parameter of the rule as it is now; a dict of tensors where it is learnt as one."""
        registered = self._parameters.get(name)
        if registered is not None:
            return registered
        module = self._modules.get(name)
        if isinstance(module, LearntValues):
            return module.as_dict()
        return self.__dict__["lr"] if name == "lr" else self.rule.hypers[name]

    @property
    def first_order(self) -> bool:
        """Whether inner gradients are taken for constants; may be assigned."""
        return isinstance(self.estimator, FirstOrder)

    @first_order.setter
    def first_order(self, value: bool) -> None:
        self.estimator = FirstOrder() if value else Exact()

    @transforms.entry(THIS)
    def forward(
        self,
        support: Any,
        query: Any,
        steps: int | None = None,
        lr: HyperValue | None = None,
        stepwise: bool = False,
        start: Mapping[str, Tensor] | None = None,
    ) -> Output:
        """One meta-step.

        Args:
            support: ``(xs, ys)`` or ``(xs, ys, weights)``: xs [T, N, *example], integers too where the model reads
                such; or a tuple of tensors [T, N, ...], with which the model is called as ``model(*xs)``, each of the
                parameters' dtype, integers or a mask of truth values. ys [T, N] integer classes, or [T, N, *output] of
                the parameters' dtype, exactly the output's shape, or what a loss that is a function takes,
                a tuple or dict of tensors [T, N, ...] too; weights [T, N], whose part in the task's loss ``reduction``
                says (any values; all zero gives NaN where their sum divides).
            query: the same for the query set, with its own number of examples.
            steps, lr: take the place of the learner's for this call.
            stepwise: the support set holds another minibatch for each step: its tensors have an axis of ``steps``
                after T.
            start: initial parameters in the place of the model's, name -> [*shape] or [T, *shape], differentiable: from
                a network that makes them, for instance. A parameter that is not named starts at the model's own value.
        """
        as_set = steps is None and lr is None and start is None and not stepwise
        repeat: Repeat | None = self.__dict__.get("_repeat")
        if as_set and repeat is not None and (outputs := repeat.unrolled(self, support, query)) is not None:
            return _output(repeat, Output(*outputs))
        return self._unrolled(*self._unrolling(support, query, steps, lr, stepwise, start), as_set)

    @transforms.entry(f"{THIS}.meta_gradient", differentiable="that of the learner itself is")
    def meta_gradient(
        self,
        support: Any,
        query: Any,
        steps: int | None = None,
        lr: HyperValue | None = None,
        stepwise: bool = False,
        start: Mapping[str, Tensor] | None = None,
    ) -> tuple[Output, tuple[Tensor, ...]]:
        """The outputs of :meth:`forward`, detached, and the gradient of its loss for each of the learner's parameters
        that require one, in the order of ``parameters()``; zeros for one that the model never uses. Where ``start``
        names a parameter, its gradient is that of the tensor given there, [*shape] or [T, *shape].

        The same bits as ``torch.autograd.grad(maml(support, query).loss, parameters)`` without building a graph, which
        for a small network takes as long as the meta-step itself. For training loops that hand gradients to an
        optimiser and need no other cotangent. The arguments are those of :meth:`forward`.
        """
        as_set = steps is None and lr is None and start is None and not stepwise
        repeat: Repeat | None = self.__dict__.get("_repeat")
        if as_set and repeat is not None and (written := repeat.gradient(self, support, query)) is not None:
            support_loss, task_loss, loss, logits, *made = written
            return _output(repeat, Output(loss, task_loss, logits, support_loss)), tuple(made)
        plan, call, loop = self._unrolling(support, query, steps, lr, stepwise, start)
        if plan.looped is None or self.learn_lr or self.rule.learn:
            given = {name: value.detach().requires_grad_() for name, value in (start or {}).items()}
            with torch.enable_grad():
                out = self.forward(support, query, steps, lr, stepwise, given)
            own = {f"model.{name}": value for name, value in given.items()}
            wanted = [own.get(name, p) for name, p in self.named_parameters() if p.requires_grad]
            gradients = torch.autograd.grad(out.loss, wanted, materialize_grads=True)
            return each_of(out, Tensor.detach), gradients
        result = plan.engine.meta_gradient(plan.program, call, loop)
        if as_set and result.run is not None:  # one native call, which can be repeated
            self._remember(plan, result.run, call)
        return _output(plan, result), tuple(result.gradients.parameters)

    @transforms.entry(f"{THIS}.backward", differentiable="that of the learner itself is")
    def backward(
        self,
        support: Any,
        query: Any,
        steps: int | None = None,
        lr: HyperValue | None = None,
        stepwise: bool = False,
        start: Mapping[str, Tensor] | None = None,
        *,
        gradient: Tensor | None = None,
    ) -> Output:
        """What ``out = maml(support, query); out.loss.backward(gradient)`` does, with the same bits: it adds to
        ``.grad`` of every leaf that requires one, and returns the outputs, detached. Under ``torch.no_grad()`` too.

        Where parameters of the model alone want gradients, and have no hooks, it is one native call without a graph,
        which for a small network takes as long as the meta-step itself; elsewhere it is those two calls.

        ``DistributedDataParallel`` has no such method, and ``ddp.module.backward`` adds up this process's gradients
        alone: average them by ``torch.distributed`` before the optimiser steps, or call ``ddp(support,
        query).loss.backward()``.

        Args:
            gradient: that of something for the loss, [], by which all gradients are scaled; None means 1. With a
                GradScaler, ``scaler.scale(torch.ones(()))``.
            support, query, steps, lr, stepwise, start: those of :meth:`forward`.
        """
        scale = accumulation.cotangent(gradient)
        as_set = steps is None and lr is None and start is None and not stepwise
        repeat: Repeat | None = self.__dict__.get("_repeat")
        if as_set and repeat is not None and (written := repeat.accumulated(self, support, query, scale)) is not None:
            support_loss, task_loss, loss, logits = written
            return _output(repeat, Output(loss, task_loss, logits, support_loss))
        with torch.enable_grad():
            plan, call, loop = self._unrolling(support, query, steps, lr, stepwise, start)
            others = call.leaves()[len(call.parameters) :]
            whole = start is None and plan.native and plan.composed is None
            if whole and not accumulation.any_requires_grad(others) and accumulation.is_plain(plan.receivers):
                result = plan.engine.meta_gradient(plan.program, call, loop)
                if as_set and result.run is not None:
                    self._remember(plan, result.run, call)
                accumulation.accumulate(plan.receivers, result.gradients.parameters, scale)
                return _output(plan, result)
            out = self._unrolled(plan, call, loop, as_set)
            torch.autograd.backward(out.loss, scale)
            detached: Output = each_of(out, Tensor.detach)
            return detached

    @transforms.entry(f"{THIS}.adapt")
    def adapt(
        self,
        support: Any,
        steps: int | None = None,
        lr: HyperValue | None = None,
        stepwise: bool = False,
        start: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Run the inner loop alone: name -> theta_K [T, *shape] of every parameter it moves, differentiable.

        The arguments are those of :meth:`forward`.
        """
        loop = self._loop(steps, stepwise)
        plan, train = self._prepare(arguments.batch("support", support), None, loop)
        call = Call(_start(plan, start, train), self._hypers(plan, loop, lr), train, None)
        result = plan.engine.unroll(plan.program, call, loop, want_adapted=True)
        return {p.name: value for p, value in zip(plan.adapted, result.adapted, strict=True)}

    @transforms.entry(f"{THIS}.predict")
    def predict(self, params: Mapping[str, Tensor], x: Tensor | tuple[Tensor, ...]) -> Any:
        """The model's outputs [T, N, *output] at ``params`` for x [T, N, *example], or a tuple of such; differentiable.

        Args:
            params: name -> [T, *shape], or [*shape] shared by all tasks, as from :meth:`adapt`; a parameter that is
                not named keeps the model's own value.
            x: inputs of every task.
        """
        arguments.axes("x", arguments.input_("x", x))
        plan = self._plans().plan("x", x)
        plan.reading.check("x", x)
        first = tensors_of(x)[0]
        plan.check_norms("x", first, 1)
        given = plan.parameters("params", params, first.shape[0])
        plan.refuse_constants("params", given)
        result: Tensor = plan.engine.predict(plan.program, plan.replaced(given), plan.reading.taken("x", x))
        return result if plan.outputs is None else plan.outputs.unpack(result)

    def _plans(self) -> Planner:
        """The planner of the learner as it is now, should the user have assigned to it."""
        settings = (self._modules["model"], self.loss, self.adapt_params, self.backend, self.strict, self.reduction)
        planner: Planner | None = self.__dict__.get("_planner")
        if planner is None or planner.settings != settings:
            planner = self.__dict__["_planner"] = Planner(*settings)  # type: ignore[arg-type]
        return planner

    def _remember(self, plan: Plan, run: Any, call: Call, node: Any = None) -> None:
        """What a call with these tensors came to, for the next one."""
        from metafast.planning.repeat import Repeat  # which needs the native engine

        self._repeat = Repeat.of(self, plan, run, call, node) or self._repeat

    def _unrolled(self, plan: Plan, call: Call, loop: InnerLoop, as_set: bool) -> Output:
        """The outputs of a call, which is remembered for the next one if its settings are ``as_set``."""
        result = plan.engine.unroll(plan.program, call, loop)
        if as_set and result.again is not None:
            node, run = result.again
            self._remember(plan, run, call, node)
        return _output(plan, result)

    def _unrolling(
        self,
        support: Any,
        query: Any,
        steps: int | None,
        lr: HyperValue | None,
        stepwise: bool,
        start: Mapping[str, Tensor] | None,
    ) -> tuple[Plan, Call, InnerLoop]:
        """The plan, and the arguments of its engine's ``unroll``, all checked."""
        loop = self._loop(steps, stepwise)
        train, test = arguments.batch("support", support), arguments.batch("query", query)
        plan, train = self._prepare(train, test, loop)
        test = plan.check("query", test, like=train.x)
        return plan, Call(_start(plan, start, train), self._hypers(plan, loop, lr), train, test), loop

    def _loop(self, steps: int | None, stepwise: bool) -> InnerLoop:
        count = self.steps if steps is None else arguments.steps(steps)
        return InnerLoop(count, self.rule, self.estimator, self.memory, stepwise)

    def _prepare(self, train: Batch, test: Batch | None, loop: InnerLoop) -> tuple[Plan, Batch]:
        arguments.axes("support x", train.x, loop.stepwise)
        shape = tensors_of(train.x)[0].shape
        if loop.stepwise and shape[1] != loop.steps:
            raise ValueError(
                f"support x has shape {list(shape)}; expected [T, K, N, ...] with K = steps = {loop.steps}, "
                "as stepwise=True asks"
            )
        plans = self._plans()
        targets = () if plans.loss else kinds_of(train, test, loop.stepwise)
        plan = plans.plan("support x", train.x, loop.stepwise, targets)
        return plan, plan.check("support", train, loop.stepwise)

    def _hypers(self, plan: Plan, loop: InnerLoop, lr: HyperValue | None) -> tuple[Hyper, ...]:
        """Values of the rule's hyper-parameters, ``lr`` in the place of the learner's if it is given."""
        rule, declared = loop.rule, None if lr is None else loop.steps
        values = {name: self.hyper(name) if name != "lr" or lr is None else lr for name in rule.hypers}
        fit = Frame(loop.steps, declared, plan.adapted, plan.names, plan.dtype, plan.device)
        if not all(type(value) is float for value in values.values()):
            return hypers(rule.order, values.__getitem__, rule.per_step, fit)
        key = (*values.values(), rule.spec, loop.steps)  # the common case: one table per value and number of steps
        found = plan.hypers.get(key)
        if found is None:
            found = hypers(rule.order, values.__getitem__, rule.per_step, fit)
            if len(plan.hypers) < 64:  # a schedule of ever-new rates must not fill the memory
                plan.hypers[key] = found
        return found

    def __prepare_scriptable__(self) -> None:
        """Asked for by torch.jit.script."""
        transforms.refuse(THIS, "torch.jit.script", "TorchScript holds no engine; script the adapted model instead")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_planner": None, "_repeat": None}  # both can be made again, and never travel

    def __setstate__(self, state: dict[str, Any]) -> None:
        known = {"reduction": "weighted_mean", "rule": PLAIN, "estimator": Exact(), **state}  # which older ones lack
        super().__setstate__(known)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        lr = "learnt" if self.learn_lr else self.__dict__.get("lr")
        shown = lr if isinstance(lr, (float, int, str)) else type(lr).__name__
        usual = {Exact(): "", FirstOrder(): ", first_order=True"}
        order = usual.get(self.estimator, f", estimator={self.estimator}")
        rule = "" if self.rule.spec == PLAIN.spec else f", rule={self.rule}"
        reduction = f", reduction={self.reduction!r}" if self.reduction != "weighted_mean" else ""
        return f"lr={shown}, steps={self.steps}, loss={self.loss!r}{rule}{reduction}{order}"


def _output(of: Plan | Repeat, made: Any) -> Output:
    logits = made.logits if of.outputs is None else of.outputs.unpack(made.logits)
    return Output(made.loss, made.task_loss, logits, made.support_loss)


def _start(plan: Plan, start: Mapping[str, Tensor] | None, train: Batch) -> Sequence[Tensor]:
    """The initial parameters: the model's own, but for those that ``start`` names."""
    if start is None:
        return plan.tensors
    given = plan.parameters("start", start, train.x.shape[0])
    plan.refuse_constants("start", given)
    return plan.replaced(given)
