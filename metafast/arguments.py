"""What a user may pass, checked before an engine sees it; every message names the argument, its shape and what fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from metafast import estimators, losses
from metafast.call import Batch, each_of, named, tensors_of
from metafast.estimators import Checkpoint, Exact, FirstOrder
from metafast.estimators.estimator import Estimator
from metafast.model.program import Loss, Parameter, Shape
from metafast.tracking.metadata import holds_classes, rows_add_up

AdaptParams = str | Sequence[str] | Callable[[str], bool] | None
BACKENDS = ("auto", "native", "torch")
MEMORY = ("auto", "keep", "recompute")
#: A sum of weights below this share of the sum of their magnitudes is what cancellation left.
CANCELLED = 1e-3


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; it is {value!r}")
    return value


def memory(value: Any) -> str | Checkpoint:
    if isinstance(value, Checkpoint):
        return value
    if not isinstance(value, str) or value not in MEMORY:
        allowed = ", ".join(map(repr, MEMORY))
        raise ValueError(f"memory must be one of {allowed}, or a metafast.Checkpoint(); it is {value!r}")
    return value


def estimator(value: Any, first_order: bool) -> Estimator:
    if value is None:
        return FirstOrder() if first_order else Exact()
    if not isinstance(value, Estimator):
        names = [f"metafast.{n}" for n in estimators.__all__ if issubclass(getattr(estimators, n), Estimator)]
        raise TypeError(f"estimator must be one of {', '.join(names)}, as in metafast.Exact(); it is {value!r}")
    if first_order and not isinstance(value, FirstOrder):
        raise ValueError(f"first_order=True and estimator={value} contradict each other")
    return value


def steps(value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"steps must be a whole number >= 0; it is {value!r} ({type(value).__name__})")
    number = value.__index__()
    if number < 0:
        raise ValueError(f"steps must be >= 0; it is {number}")
    return int(number)


def predicate(adapt_params: AdaptParams) -> Callable[[str], bool]:
    """``adapt_params`` as a function of a parameter's name."""
    if adapt_params is None:
        return lambda name: True
    if callable(adapt_params):
        chosen = adapt_params
        return lambda name: bool(chosen(name))
    patterns = (adapt_params,) if isinstance(adapt_params, str) else adapt_params
    if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
        raise TypeError(
            f"adapt_params must be a glob, a list of names, or a function of a name; it is {adapt_params!r}"
        )
    return lambda name: any(name == p or fnmatchcase(name, p) for p in patterns)


def adapted(adapt_params: AdaptParams, trainable: Mapping[str, bool]) -> None:
    """Check ``adapt_params`` against the model's parameters (name -> requires_grad)."""
    names = ", ".join(trainable) or "none"
    if isinstance(adapt_params, Sequence):
        for pattern in (adapt_params,) if isinstance(adapt_params, str) else adapt_params:
            if not any(predicate(pattern)(name) for name in trainable):
                hint = (
                    f"; did you mean {pattern + '.*'!r}?" if any(n.startswith(pattern + ".") for n in trainable) else ""
                )
                raise ValueError(f"adapt_params: {pattern!r} matches no parameter of the model ({names}){hint}")
    chosen = predicate(adapt_params)
    if not any(grad and chosen(name) for name, grad in trainable.items()):
        raise ValueError(
            f"adapt_params={adapt_params!r} leaves nothing to adapt: of {names}, it must choose one that requires grad"
        )


def tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    kind = type(value)
    it_is = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    raise TypeError(f"{name} must be a torch.Tensor; it is a {it_is}{_remedy(value)}")


def input_(name: str, x: Any) -> Any:
    """One tensor, or a tuple of several."""
    if isinstance(x, tuple) and any(isinstance(part, Tensor) for part in x):
        return tuple([tensor(f"{name}[{i}]", part) for i, part in enumerate(x)])
    return tensor(name, x)


def target(name: str, y: Any) -> Any:
    """One tensor, or several in a tuple or dict, for a loss of the user's own."""
    if isinstance(y, (tuple, dict)) and any(isinstance(part, Tensor) for part in tensors_of(y)):
        for at, part in named(name, y).items():
            tensor(at, part)
        return y
    return tensor(name, y)


def _remedy(value: Any) -> str:
    """How to make a tensor of it."""
    if not isinstance(value, (list, tuple)) and not hasattr(value, "__array__"):
        return ""
    if _shape(value) is None:
        sizes = [str(list(shape)) for item in value if (shape := _shape(item)) is not None]
        found = f" ({', '.join(dict.fromkeys(sizes))})" if sizes else ""
        return (
            f" whose items differ in shape{found}. All tasks, and all examples, must have one shape: pad the smaller "
            "ones, and give the examples that were added weight 0 in (x, y, weights)"
        )
    if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
        return "; use torch.stack"
    return "; use torch.as_tensor"


def _shape(value: Any) -> Shape | None:
    """Of nested lists, arrays and numbers; None where rows differ in length."""
    if isinstance(value, (list, tuple)):
        shapes = {_shape(item) for item in value}
        inner = shapes.pop() if len(shapes) == 1 else () if not value else None
        return None if inner is None else (len(value), *inner)
    if str(getattr(value, "dtype", "")) == "object":  # numpy's way to hold rows of different lengths
        return None
    return tuple(getattr(value, "shape", ()))


def batch(name: str, value: Any) -> Batch:
    """``(x, y)`` or ``(x, y, weights)`` as a Batch; only its form is checked here."""
    if not isinstance(value, (tuple, list)) or len(value) not in (2, 3):
        got = f"{len(value)} items" if isinstance(value, (tuple, list)) else type(value).__name__
        raise TypeError(f"{name} must be a tuple (x, y) or (x, y, weights); it is {got}")
    x, y, *rest = value
    w = rest[0] if rest else None
    if not (isinstance(x, Tensor) and isinstance(y, Tensor) and (w is None or isinstance(w, Tensor))):
        input_(f"{name} x", x)
        target(f"{name} y", y)
        if w is not None:
            tensor(f"{name} weights", w)
    return Batch(x, y, w)


_AXES = {False: "tasks, examples", True: "tasks, steps, examples"}


def axes(name: str, x: Tensor | tuple[Tensor, ...], stepwise: bool = False) -> None:
    """x has its leading axes, and none of them is empty; several tensors have the same."""
    lead = "T, K, N" if stepwise else "T, N"
    count = 3 if stepwise else 2
    if isinstance(x, tuple):
        for i, part in enumerate(x):
            axes(f"{name}[{i}]", part, stepwise)
            if part.shape[:count] != x[0].shape[:count]:
                raise ValueError(
                    f"{name}[{i}] has shape {list(part.shape)}; expected [{lead}, ...] with [{lead}] = "
                    f"{list(x[0].shape[:count])} as {name}[0] has"
                )
        return
    if x.ndim < count:
        raise ValueError(f"{name} has shape {list(x.shape)}; expected [{lead}, ...]: {_AXES[stepwise]}, ...")
    if 0 in (x.shape[0], x.shape[count - 1]):
        empty = "no tasks (T=0)" if x.shape[0] == 0 else "no examples (N=0)"
        raise ValueError(f"{name} has shape {list(x.shape)}: {empty}; expected [{lead}, ...] with T >= 1 and N >= 1")


def first_of(tensor: Any, stepwise: bool = False) -> Any:
    """What the first task has of x, y or weights, [N, ...]; where there is no step that could have any, zeros."""
    if isinstance(tensor, (tuple, list, dict)):
        return each_of(tensor, lambda part: first_of(part, stepwise))
    if not stepwise:
        return tensor[0]
    return tensor[0, 0] if tensor.shape[1] else tensor.new_zeros(tensor.shape[2:])


def examples(
    name: str, batch: Batch, loss: Loss | None, out: Shape, dtype: torch.dtype, device: torch.device, stepwise: bool
) -> None:
    """Targets and weights fit x and the model's output: everything but the values."""
    x, w = tensors_of(batch.x)[0], batch.w
    y: Any = batch.y
    lead = tuple(x.shape[: 3 if stepwise else 2])
    axes_ = "[T, K, N" if stepwise else "[T, N"
    if y is not None:
        if isinstance(y, Tensor):
            same_device(f"{name} y", y, device)
        else:
            inputs(f"{name} y", y, dtype, device)
        _targets(f"{name} y", y, lead, axes_, loss, out, dtype)
    if w is not None:
        same_device(f"{name} weights", w, device)
        if loss is None:
            raise ValueError(
                f"{name} has weights, which need a named loss; a function's value per example is not known"
            )
        if tuple(w.shape) != lead:
            raise ValueError(f"{name} weights have shape {list(w.shape)}; expected {axes_}] = {list(lead)}")
        if w.dtype != dtype:
            raise TypeError(f"{name} weights have dtype {w.dtype}; expected {dtype}, that of the model's parameters")


def lead(name: str, y: Any, lead: Shape) -> None:
    """Targets have the leading axes of x."""
    axes_ = "[T, K, N" if len(lead) == 3 else "[T, N"
    for at, part in named(name, y).items():
        if tuple(part.shape[: len(lead)]) != lead:
            raise ValueError(
                f"{at} has shape {list(part.shape)}; expected {axes_}, ...] with {axes_}] = {list(lead)} as x has"
            )


def _targets(name: str, y: Any, lead_: Shape, axes_: str, loss: Loss | None, out: Shape, dtype: torch.dtype) -> None:
    lead(name, y, lead_)
    if loss is None:
        return  # a function of the user's own says itself what its targets are
    if not isinstance(y, Tensor):
        raise TypeError(
            f"{name} is {len(tensors_of(y))} tensors; loss {loss.kind!r} expects one. If they are those of the tasks, "
            "use torch.stack; several targets are for a loss that is a function (outputs, targets)"
        )
    shape = tuple(y.shape)
    classes = losses.NAMED[loss.kind].classes
    if classes and not out:
        raise ValueError(f"loss {loss.kind!r} needs outputs [N, C]; the model returns [N]")
    if classes and not y.is_floating_point():
        if y.dtype == torch.bool or y.is_complex():
            raise TypeError(f"{name} has dtype {y.dtype}; expected integer classes")
        if shape != lead_ + out[1:]:
            raise ValueError(f"{name} has shape {list(shape)}; expected integer classes {list(lead_ + out[1:])}")
        return
    if not losses.NAMED[loss.kind].numbers:
        raise TypeError(f"{name} has dtype {y.dtype}; loss {loss.kind!r} expects integer classes {list(lead_)}")
    if classes and shape != lead_ + out:
        raise TypeError(
            f"{name} has dtype {y.dtype} and shape {list(shape)}; expected integer classes {list(lead_)}, "
            f"or probabilities {list(lead_ + out)}"
        )
    if classes and loss.ignored is not None and loss.ignored >= 0:
        raise TypeError(f"{name} has dtype {y.dtype}; expected integer classes: the loss ignores class {loss.ignored}")
    if y.dtype != dtype:
        raise TypeError(
            f"{name} has dtype {y.dtype}; loss {loss.kind!r} expects {dtype}, that of the model's parameters"
        )
    if shape != lead_ + out:
        raise ValueError(f"{name} has shape {list(shape)}; expected exactly the output's shape {list(lead_ + out)}")


def labels(name: str, y: Tensor, classes: int, ignored: int | None = None) -> None:
    """Class indices lie in 0 .. classes - 1, but for those that are ignored. Only on the CPU, where looking costs
    nothing but microseconds."""
    if holds_classes(y, classes) or not y.numel():
        return
    if ignored is not None and (y := y[y != ignored]).numel() == 0:
        return
    low, high = torch.aminmax(y)
    if low.item() < 0 or high.item() >= classes:
        wrong = low.item() if low.item() < 0 else high.item()
        raise ValueError(
            f"{name} holds label {wrong}; expected classes 0 to {classes - 1}, as the model returns {classes}"
        )


def cancels(weights: Tensor) -> bool:
    """Whether the weights [..., N] of some task sum to next to nothing; all zero is not that."""
    if rows_add_up(weights, CANCELLED):
        return False
    w = weights.detach().double()
    return bool((w.sum(-1).abs() < CANCELLED * w.abs().sum(-1)).any())


def pads(weights: Tensor) -> bool:
    """Whether some of a task's weights [..., N] are zero, and not all of them."""
    zero = weights.detach() == 0
    return bool((zero.any(-1) & ~zero.all(-1)).any())


def parameter(name: str, value: Tensor) -> Parameter:
    """A parameter that the inner loop moves, as what checks of the learning rate need to know of it."""
    return Parameter(name, tuple(value.shape), "adapted")


def same_device(name: str, value: Tensor, device: torch.device) -> None:
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}; the model's parameters are on {device}")


def inputs(name: str, x: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Device and dtype of x. Integers pass here: some models embed them; among several tensors, truth values too."""
    if not isinstance(x, Tensor):
        for at, part in named(name, x).items():
            if part.dtype == torch.bool:
                same_device(at, part, device)
            else:
                inputs(at, part, dtype, device)
        return
    same_device(name, x, device)
    if (x.is_floating_point() or x.is_complex()) and x.dtype != dtype:
        raise TypeError(f"{name} has dtype {x.dtype}; expected {dtype}, that of the model's parameters")
    if x.dtype == torch.bool:
        raise TypeError(f"{name} has dtype {x.dtype}; expected {dtype}, that of the model's parameters")


def parameters(
    name: str, given: Any, known: Mapping[str, Parameter], tasks: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """A dict of parameters, each [*shape] (shared by all tasks) or [T, *shape]."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{name} must be a dict from parameter name to tensor; it is a {type(given).__name__}")
    for key, value in given.items():
        where = f"{name}[{key!r}]"
        if key not in known:
            raise ValueError(f"{where}: the model has no such parameter; it has {', '.join(known)}")
        shape, own = known[key].shape, tuple(tensor(where, value).shape)
        if own not in (shape, (tasks, *shape)):
            raise ValueError(
                f"{where} has shape {list(own)}; expected {list(shape)} or [T, *shape] = {[tasks, *shape]}"
            )
        if value.dtype != dtype:
            raise TypeError(f"{where} has dtype {value.dtype}; expected {dtype}, that of the model's parameters")
        same_device(where, value, device)
    return dict(given)


def one_kind(named: Mapping[str, Tensor]) -> tuple[torch.dtype, torch.device]:
    """The one dtype and device of a model's parameters."""
    kinds: dict[tuple[torch.dtype, torch.device], str] = {}
    for name, parameter in named.items():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"model parameter {name!r} is not initialised yet; run the lazy module once first")
        if parameter.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"model parameter {name!r} has dtype {parameter.dtype}; expected torch.float32 or torch.float64"
            )
        kinds.setdefault((parameter.dtype, parameter.device), name)
    if len(kinds) > 1:
        found = "; ".join(f"{name!r} is {dtype} on {device}" for (dtype, device), name in kinds.items())
        raise ValueError(f"model parameters must share one dtype and one device: {found}")
    return next(iter(kinds))
