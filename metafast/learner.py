"""The learner a training loop holds: MAML and its relatives as one :class:`torch.nn.Module`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from metafast import arguments, transforms
from metafast.batch import Batch, Rates
from metafast.plan import Plan, Planner, one_kind
from metafast.program import Parameter
from metafast.reference import SWAPPING
from metafast.rules import SGD, LearningRate, LearntRates, learnt, rates

if TYPE_CHECKING:
    from metafast.repeat import Repeat

#: The signature's default, by which a rate given twice is told from one given by the rule alone.
DEFAULT_LR = 0.4
#: What errors call a learner.
THIS = "metafast.MAML"


class Output(NamedTuple):
    """What one meta-step computes; all but ``support_loss`` differentiable."""

    loss: Tensor  # [] mean of task_loss
    task_loss: Tensor  # [T] query loss after adaptation
    logits: Tensor  # [T, Nq, *output] the adapted models' outputs on the query set
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
        model: any module from [N, *example] to one tensor [N, *output]; what ``torch.compile(module)`` returns stands
            for the module. ``requires_grad=False`` parameters are neither adapted nor meta-learnt. BatchNorm in
            training mode uses the statistics of the task's own batch and leaves its buffers alone; in eval mode it
            uses the buffers.
        lr: inner step size; its forms are those of :class:`metafast.SGD`.
        steps: inner steps K >= 0.
        loss: ``"cross_entropy"``, ``"mse"``, ``"bce_with_logits"``, ``"huber"``, ``"multi_margin"``; the torch.nn
            module or functional of one; or any function (output, target) -> mean, which runs on torch. It may read the
            model (weight decay, activations): while it runs, ``model.parameters()`` are the task's theta_k. Parameters
            of a loss that is a module are meta-learnt, not adapted. A copy of the learner keeps a function as it is,
            reading the model that it was written for; a module or an object that holds the model is copied with it.
        first_order: take each inner gradient for a constant (FOMAML). The learning rate keeps its gradient; that of
            support data is zero.
        rule: how parameters move; None means SGD with ``lr``.
        learn_lr: register the learning rate as parameters of the learner (Meta-SGD, Li et al. 2017, when it is a dict).
        adapt_params: what the inner loop moves: a glob over parameter names, a list of them, or a function of the
            name. The rest is meta-learnt only (ANIL, Raghu et al. 2020).
        memory: keep the activations of every inner step for the reverse sweep (``"keep"``), compute them again
            (``"recompute"``), or choose by size (``"auto"``). The results are the same; torch always keeps.
        backend: ``"auto"`` runs natively, or on torch with one warning that names the layer and the reason;
            ``"native"`` raises instead; ``"torch"`` asks for plain torch.
        strict: raise RuntimeError where ``backend="auto"`` would warn.
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
        lr: LearningRate = DEFAULT_LR,
        steps: int = 5,
        loss: Any = "cross_entropy",
        first_order: bool = False,
        rule: SGD | None = None,
        learn_lr: bool = False,
        adapt_params: arguments.AdaptParams = None,
        memory: str = "auto",
        backend: str = "auto",
        strict: bool = False,
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
        self.first_order = bool(first_order)
        self.adapt_params = adapt_params
        self.memory = arguments.choice("memory", memory, arguments.MEMORY)
        self.backend = backend
        self.strict = strict
        self.reduction = reduction
        if rule is not None and not isinstance(rule, SGD):
            raise TypeError(f"rule must be a metafast rule such as metafast.SGD(); it is a {type(rule).__name__}")
        if rule is not None and rule.lr is not None and not (isinstance(lr, float) and lr == DEFAULT_LR):
            raise ValueError("lr is given twice: to the learner and to its rule")
        self.per_step = rule is not None and rule.per_step
        self.learn_lr = bool(learn_lr)
        self._set_lr(lr if rule is None or rule.lr is None else rule.lr)

    def _set_lr(self, lr: Any) -> None:
        """Check ``lr`` against the model and keep it: registered when it is learnt, as it is when not."""
        adapts = arguments.predicate(self.adapt_params)
        with SWAPPING:
            named = dict(self.model.named_parameters())
        dtype, device = one_kind(named)
        moved = [Parameter(n, tuple(p.shape), "adapted") for n, p in named.items() if p.requires_grad and adapts(n)]
        rates(lr, self.per_step, self.steps, self.steps, moved, list(named), dtype, device)
        if not self.learn_lr:
            self.__dict__["lr"] = lr  # not by setattr, which would register a Parameter of the user's own
        elif isinstance(lr, Mapping):
            self.add_module("lr", LearntRates(lr, dtype, device))
        else:
            self.register_parameter("lr", learnt(lr, dtype, device))

    @transforms.entry(THIS)
    def forward(
        self, support: Any, query: Any, steps: int | None = None, lr: LearningRate | None = None, stepwise: bool = False
    ) -> Output:
        """One meta-step.

        Args:
            support: ``(xs, ys)`` or ``(xs, ys, weights)``: xs [T, N, *example]; ys [T, N] integer classes, or
                [T, N, *output] of the parameters' dtype, exactly the output's shape; weights [T, N], whose
                part in the task's loss ``reduction`` says (any values; all zero gives NaN where their sum divides).
            query: the same for the query set, with its own number of examples.
            steps, lr: take the place of the learner's for this call.
            stepwise: the support set holds another minibatch for each step: its tensors have an axis of ``steps``
                after T.
        """
        as_set = steps is None and lr is None and not stepwise
        repeat: Repeat | None = self.__dict__.get("_repeat")
        if as_set and repeat is not None and (outputs := repeat.unrolled(self, support, query)) is not None:
            return Output(*outputs)
        plan, given, settings = self._unrolling(support, query, steps, lr, stepwise)
        result = plan.engine.unroll(*given, **settings)
        if as_set and result.again is not None:
            node, call = result.again
            self._remember(plan, call, given, node)
        return Output(result.loss, result.task_loss, result.logits, result.support_loss)

    @transforms.entry(f"{THIS}.meta_gradient", differentiable="that of the learner itself is")
    def meta_gradient(
        self, support: Any, query: Any, steps: int | None = None, lr: LearningRate | None = None, stepwise: bool = False
    ) -> tuple[Output, tuple[Tensor, ...]]:
        """The outputs of :meth:`forward`, detached, and the gradient of its loss for each of the learner's parameters
        that require one, in the order of ``parameters()``; zeros for one that the model never uses.

        The same bits as ``torch.autograd.grad(maml(support, query).loss, parameters)`` without building a graph, which
        for a small network takes as long as the meta-step itself. For training loops that hand gradients to an
        optimiser and need no other cotangent. The arguments are those of :meth:`forward`.
        """
        as_set = steps is None and lr is None and not stepwise
        repeat: Repeat | None = self.__dict__.get("_repeat")
        if as_set and repeat is not None and (written := repeat.gradient(self, support, query)) is not None:
            support_loss, task_loss, loss, logits, *made = written
            return Output(loss, task_loss, logits, support_loss), tuple(made)
        plan, given, settings = self._unrolling(support, query, steps, lr, stepwise)
        if not plan.native or self.learn_lr:
            out = self.forward(support, query, steps, lr, stepwise)
            wanted = [p for p in self.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(out.loss, wanted, materialize_grads=True)
            return Output(*(value.detach() for value in out)), gradients
        result = plan.engine.meta_gradient(*given, **settings)
        if as_set:
            self._remember(plan, result.call, given)
        out = Output(result.loss, result.task_loss, result.logits, result.support_loss)
        return out, tuple(result.gradients.parameters)

    @transforms.entry(f"{THIS}.adapt")
    def adapt(
        self, support: Any, steps: int | None = None, lr: LearningRate | None = None, stepwise: bool = False
    ) -> dict[str, Tensor]:
        """Run the inner loop alone: name -> theta_K [T, *shape] of every parameter it moves, differentiable.

        The arguments are those of :meth:`forward`.
        """
        count = self.steps if steps is None else arguments.steps(steps)
        plan, train = self._prepare(arguments.batch("support", support), count, stepwise)
        result = plan.engine.unroll(
            plan.program,
            plan.tensors,
            self._rates(plan, count, lr),
            train,
            None,
            steps=count,
            first_order=self.first_order,
            memory=self.memory,
            stepwise=stepwise,
            want_adapted=True,
        )
        return {p.name: value for p, value in zip(plan.adapted, result.adapted, strict=True)}

    @transforms.entry(f"{THIS}.predict")
    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """The model's outputs [T, N, *output] at ``params`` for x [T, N, *example]; differentiable.

        Args:
            params: name -> [T, *shape], or [*shape] shared by all tasks, as from :meth:`adapt`; a parameter that is
                not named keeps the model's own value.
            x: inputs of every task.
        """
        arguments.axes("x", arguments.tensor("x", x))
        plan = self._plans().plan("x", x)
        arguments.inputs("x", x, plan.dtype, plan.device)
        plan.check_norms("x", x, 1)
        given = plan.parameters("params", params, x.shape[0])
        result: Tensor = plan.engine.predict(plan.program, plan.replaced(given), x)
        return result

    def _plans(self) -> Planner:
        """The planner of the learner as it is now, should the user have assigned to it."""
        settings = (self._modules["model"], self.loss, self.adapt_params, self.backend, self.strict, self.reduction)
        planner: Planner | None = self.__dict__.get("_planner")
        if planner is None or planner.settings != settings:
            planner = self.__dict__["_planner"] = Planner(*settings)  # type: ignore[arg-type]
        return planner

    def _remember(self, plan: Plan, call: Any, given: tuple[Any, ...], node: Any = None) -> None:
        """What a call with these arguments of :meth:`_unrolling` came to, for the next one."""
        from metafast.repeat import Repeat  # which needs the native engine

        support, query = given[-2:]
        if Repeat.possible(self, call, support, query):
            self._repeat = Repeat(self, plan, call, support, query, node)

    def _unrolling(
        self, support: Any, query: Any, steps: int | None, lr: LearningRate | None, stepwise: bool
    ) -> tuple[Plan, tuple[Any, ...], dict[str, Any]]:
        """The plan, and the arguments of its engine's ``unroll``, all checked."""
        count = self.steps if steps is None else arguments.steps(steps)
        train, test = arguments.batch("support", support), arguments.batch("query", query)
        plan, train = self._prepare(train, count, stepwise)
        test = plan.check("query", test, like=train.x)
        settings = {"steps": count, "first_order": self.first_order, "memory": self.memory, "stepwise": stepwise}
        return plan, (plan.program, plan.tensors, self._rates(plan, count, lr), train, test), settings

    def _prepare(self, train: Batch, steps: int, stepwise: bool) -> tuple[Plan, Batch]:
        arguments.axes("support x", train.x, stepwise)
        if stepwise and train.x.shape[1] != steps:
            raise ValueError(
                f"support x has shape {list(train.x.shape)}; expected [T, K, N, ...] with K = steps = {steps}, "
                "as stepwise=True asks"
            )
        plan = self._plans().plan("support x", train.x, stepwise)
        return plan, plan.check("support", train, stepwise)

    def _rates(self, plan: Plan, steps: int, override: LearningRate | None) -> Rates:
        if override is None:
            registered = self._parameters.get("lr")
            lr = registered if registered is not None else self._modules.get("lr", self.__dict__.get("lr"))
            if isinstance(lr, LearntRates):
                lr = lr.as_dict()
            declared = None
        else:
            lr, declared = override, steps
        if type(lr) is float:  # the common case: one table per value and number of steps
            key = (lr, steps)
            found = plan.rates.get(key)
            if found is None:
                found = rates(lr, self.per_step, steps, declared, plan.adapted, plan.names, plan.dtype, plan.device)
                if len(plan.rates) < 64:  # a schedule of ever-new rates must not fill the memory
                    plan.rates[key] = found
            return found
        return rates(lr, self.per_step, steps, declared, plan.adapted, plan.names, plan.dtype, plan.device)

    def __prepare_scriptable__(self) -> None:
        """Asked for by torch.jit.script."""
        transforms.refuse(THIS, "torch.jit.script", "TorchScript holds no engine; script the adapted model instead")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_planner": None, "_repeat": None}  # both can be made again, and never travel

    def __setstate__(self, state: dict[str, Any]) -> None:
        known = {"reduction": "weighted_mean", **state}  # which a learner of an earlier version lacks
        super().__setstate__(known)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        lr = "learnt" if self.learn_lr else self.__dict__.get("lr")
        shown = lr if isinstance(lr, (float, int, str)) else type(lr).__name__
        order = ", first_order=True" if self.first_order else ""
        reduction = f", reduction={self.reduction!r}" if self.reduction != "weighted_mean" else ""
        return f"lr={shown}, steps={self.steps}, loss={self.loss!r}{reduction}{order}"
