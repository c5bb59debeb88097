"""The plainest program that computes a meta-gradient: the judge of every engine, whose arithmetic it shares with none.

One task at a time, nothing batched, fused or cached. At every inner step the model really holds theta_k, as
nn.Parameters that nothing can tell from those an optimiser would have left there; the model and the loss then run as a
user runs them, on torch's own layers but for those without a right second derivative. So no graph leads from one step
to the next, and the chain rule between them is written out (docs/maths.md, equations 5 to 9): with
(theta_{k+1}, s_{k+1}) = U_k(theta_k, s_k, z) for the rule's states s and every other input z (hyper-parameters, data,
theta_0, parameters that are not adapted)::

    lambda_K = dL(theta_K; Q)/d theta_K,  sigma_K = 0,  (lambda, sigma)_k = (dU_k/d(theta, s)_k)^T (lambda, sigma)_{k+1}
    d loss/d theta_0 = lambda_0,  d loss/d z = dL/dz + sum_k (dU_k/dz)^T (lambda, sigma)_{k+1}

Every run has parameters of its own, so that whatever forward writes into them ends with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafast import arguments, losses, transforms
from metafast.call import Batch, each_of, tensors_of
from metafast.engine.higher_order import twice_differentiable
from metafast.engine.reference import call
from metafast.learner import MAML
from metafast.model.program import Loss

Tensors = dict[str, Tensor]


class Held:
    """A learner's own model, and its loss if that is a module, whose tensors can be assigned to and are put back.

    No copies: a loss that is a function finds the model by its name, and that is this one.
    """

    def __init__(self, learner: MAML) -> None:
        roots = {"": learner.model} | ({"loss ": learner.loss} if isinstance(learner.loss, nn.Module) else {})
        modules = {id(module): module for root in roots.values() for module in root.modules()}
        self._modules = list(modules.values())
        # A loss that holds the model names the same tensors once more: the last name given here stays, the model's.
        named = list(reversed(roots.items()))
        names = {id(t): p + n for p, root in named for n, t in (*root.named_parameters(), *root.named_buffers())}
        self.parameters = {names[id(p)]: p for root in roots.values() for p in root.parameters()}
        self.buffers = {names[id(b)]: b for root in roots.values() for b in root.buffers()}
        self._places = [
            (module, attribute, names[id(tensor)])
            for module in self._modules
            for attribute, tensor in (*module._parameters.items(), *module._buffers.items())
            if tensor is not None
        ]

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Assign as a user does: ``module.weight = nn.Parameter(...)``, wherever the tensor is registered."""
        for module, attribute, name in self._places:
            if name in tensors:
                setattr(module, attribute, tensors[name])

    def put_copies(self, tensors: Mapping[str, Tensor]) -> Tensors:
        """Put copies, which forward may write into, of parameters and buffers; the parameters are returned."""
        own = self.parameters
        copies: Tensors = {name: parameter(t, own[name]) for name, t in tensors.items() if name in own}
        self.put(copies | {name: t.clone() for name, t in tensors.items() if name in self.buffers})
        return copies

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Leave every attribute, parameter and buffer of the modules as it was, and the values of the learner's own."""
        kept = [[(d, dict(d)) for d in (vars(module), module._parameters, module._buffers)] for module in self._modules]
        own = [(t, t.data, t.detach().clone()) for t in (*self.parameters.values(), *self.buffers.values())]
        try:
            yield
        finally:
            for dictionaries in kept:
                for dictionary, items in dictionaries:
                    dictionary.clear()
                    dictionary.update(items)
            for tensor, data, value in own:
                if not torch.equal(tensor, value):
                    tensor.data = data.copy_(value)


def parameter(value: Tensor, own: nn.Parameter) -> nn.Parameter:
    """``value`` as a parameter of the model, with what the user may have written on his own."""
    made = nn.Parameter(value.detach().clone(), requires_grad=own.requires_grad)
    vars(made).update(vars(own))
    return made


class _Step(NamedTuple):
    """What a step leaves, and what it found besides the parameters that the model held; each tensor [1, *shape]."""

    theta: list[Tensor]
    state: list[list[list[Tensor]]]
    theta_before: list[Tensor]
    start: list[Tensor]
    states_before: list[Tensor]


def _flat(states: list[list[list[Tensor]]]) -> list[Tensor]:
    return [s for link in states for each in link for s in each]


class Loop:
    """(theta_{k+1}, s_{k+1}) = U(theta_k, s_k, dL(theta_k; S_t)/d theta),   loss = mean_t L(theta_K; Q_t).

    ``state`` are all parameters and buffers of ``held``, in the dtype of the data.
    """

    def __init__(self, learner: MAML, held: Held, state: Tensors, steps: int, stepwise: bool) -> None:
        self.learner, self.held, self.state = learner, held, state
        self.steps, self.stepwise, self.rule = steps, stepwise, learner.rule
        self.estimator = learner.estimator
        self.named, self.function = losses.resolve(learner.loss, learner.reduction)
        chosen = arguments.predicate(learner.adapt_params)
        own = dict(learner.model.named_parameters())
        self.initial = {name: p for name, p in own.items() if p.requires_grad and chosen(name)}

    @twice_differentiable()
    def loss_and_gradients(self, support: Batch, query: Batch, leaves: Tensors) -> tuple[Tensor, Tensors]:
        """The meta-loss and its gradient for each of ``leaves``: parameters by name, learning rates and data."""
        tasks = tensors_of(support.x)[0].shape[0]
        losses_ = []
        total = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}

        def backward(of: list[Tensor], held: Tensors, cotangents: list[Tensor] | None) -> Tensors:
            """Add to the gradients of the leaves, some of which the model held; those of theta are returned."""
            at = {name: held.get(name, leaf) for name, leaf in leaves.items()}
            made = torch.autograd.grad(of, list(at.values()), cotangents, allow_unused=True, materialize_grads=True)
            by_name = dict(zip(at, made, strict=True))
            for name in at.keys() - self.initial.keys():
                total[name] += by_name[name] / tasks
            return {name: by_name[name] for name in self.initial}

        for t in range(tasks):
            thetas: list[Tensors] = [{name: p.detach() for name, p in self.initial.items()}]
            states = [self.rule.begin([p[None] for p in thetas[0].values()])]
            for k in range(self.steps):
                _, step = self._step(support, t, k, thetas[k], states[k], thetas[0])
                thetas.append({name: v[0].detach() for name, v in zip(self.initial, step.theta, strict=True)})
                states.append([[[s.detach() for s in each] for each in link] for link in step.state])
            held, loss = self._loss(thetas[-1], query, t)
            adjoint = backward([loss], held, None)
            of_states = [torch.zeros_like(s) for s in _flat(states[-1])]
            of_start = {name: torch.zeros_like(p) for name, p in self.initial.items()}
            for k in reversed([k for k in range(self.steps) if self.estimator.sweeps(k, self.steps)]):
                held, step = self._step(support, t, k, thetas[k], states[k], thetas[0])
                outputs = [*step.theta, *_flat(step.state)]
                cotangents = [*(a[None] for a in adjoint.values()), *of_states]
                inputs = [*step.theta_before, *step.start, *step.states_before]
                made = torch.autograd.grad(
                    outputs, inputs, cotangents, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                through_gradients = backward(outputs, held, cotangents)
                count = len(self.initial)
                adjoint = {n: through_gradients[n] + part[0] for n, part in zip(self.initial, made, strict=False)}
                for name, part in zip(of_start, made[count:], strict=False):
                    of_start[name] += part[0]
                of_states = list(made[2 * count :])
            for name, gradient in adjoint.items():
                total[name] += (gradient + of_start[name]) / tasks
            losses_.append(loss.detach())
        return torch.stack(losses_).mean(), total

    def _step(
        self, support: Batch, t: int, k: int, theta: Tensors, states: list[list[list[Tensor]]], start: Tensors
    ) -> tuple[Tensors, _Step]:
        """The parameters that the model held, and what step k makes of them, of states, theta_0 and the leaves."""
        held, loss = self._loss(theta, support, t, k if self.stepwise else None)
        gradients = torch.autograd.grad(
            loss, [held[name] for name in theta], create_graph=True, allow_unused=True, materialize_grads=True
        )
        if not self.estimator.second_order(k, self.steps):
            gradients = tuple(g.detach() for g in gradients)
        before = [[[s.detach().requires_grad_() for s in each] for each in link] for link in states]
        # Not what the model held: forward may have written into that.
        here, origin = ([p.detach()[None].clone().requires_grad_() for p in of.values()] for of in (theta, start))
        names = list(theta)
        moved, after = self.rule.step(
            k,
            here,
            [g[None] for g in gradients],
            origin,
            before,
            lambda name, a: self._hyper(name, names[a], k),
        )
        return held, _Step(moved, after, here, origin, _flat(before))

    def _hyper(self, name: str, parameter: str, k: int) -> Tensor:
        """A hyper-parameter at step k for one parameter; the learner's are all tensors here."""
        given: Any = self.learner.hyper(name)
        value: Tensor = given[parameter] if isinstance(given, Mapping) else given
        by_name = isinstance(given, Mapping)
        varies = self.rule.per_step if by_name else value.ndim == 1
        return value[min(k, len(value) - 1)] if varies else value

    def _loss(self, theta: Tensors, batch: Batch, t: int, k: int | None = None) -> tuple[Tensors, Tensor]:
        """The parameters that the model holds while it and the loss run, equal to theta, and L at them."""
        x, y, w = (b if b is None else each_of(b, lambda of: of[t] if k is None else of[t, k]) for b in batch)
        assert x is not None and y is not None
        held = self.held.put_copies({**self.state, **theta})
        with transforms.as_written(self.learner.model):
            output = call(self.learner.model, x)
            if self.named is None:
                return held, self.function(output, y)
        each, mass = _per_example(self.named, output, y)
        w = torch.ones_like(each) if w is None else w
        divisors: dict[str, Any] = {"weighted_mean": (w * mass).sum(), "mean": mass.sum(), "sum": 1}
        return held, (w * each).sum() / divisors[self.named.reduction]


def _per_example(loss: Loss, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The losses [N] of outputs [N, *output] by torch's own functions, but for one that they cannot derive twice, and
    one that they cannot derive by its target; and what each counts in the divisor of a mean."""
    known = losses.NAMED[loss.kind]
    settings: dict[str, Any] = {name: type(known.settings[name])(value) for name, value in loss.attributes}
    if loss.class_weights:
        settings["weight"] = output.new_tensor(loss.class_weights)
    if "pos_weight" in settings:
        settings["pos_weight"] = output.new_tensor(settings["pos_weight"])
    if loss.kind == "multi_margin":
        excess = (settings["margin"] - output.gather(1, target[:, None]) + output).clamp(min=0) ** settings["p"]
        each: Tensor = (excess * (F.one_hot(target, output.shape[1]) == 0)).sum(1) / output.shape[1]
    elif loss.kind == "soft_margin":
        each = F.softplus(-target * output)
    else:
        each = known.function(output, target, reduction="none", **settings)
    each = each.reshape(len(output), -1)
    mass = torch.ones_like(each)
    if loss.ignored is not None and not target.is_floating_point():
        # The loss of a class with logarithms of -1 is its weight, or 0 if it is ignored.
        weight = {"weight": settings["weight"]} if loss.class_weights else {}
        unit = F.nll_loss(-torch.ones_like(output), target, reduction="none", ignore_index=loss.ignored, **weight)
        mass = unit.reshape(len(output), -1)
    return (each.sum(1), mass.sum(1)) if loss.elements == "sum" else (each.mean(1), mass.mean(1))
