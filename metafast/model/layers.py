"""Which torch layers, functions and methods have a native form: one small handler each.

A handler receives the :class:`~metafast.model.builder.Builder` and then exactly the arguments of the torch function it
stands for; it appends Nodes and returns the :class:`~metafast.model.builder.Place` of the result. To support another
layer, write one handler, name the torch functions and methods it stands for in ``@lowers(...)`` and its module in
``MODULES``. Handlers refuse with a predicate: the name of the layer is put before it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafast.model.builder import BATCH, Builder, Place, batched, described

Handler = Callable[..., Any]
H = TypeVar("H", bound=Handler)
FUNCTIONS: dict[Any, Handler] = {}
METHODS: dict[str, Handler] = {}
#: Names of the primitives that are functions of one element.
POINTWISE: set[str] = set()


def lowers(*names: Any) -> Callable[[H], H]:
    """Register a handler for torch functions and, given as strings, for methods of Tensor."""

    def register(handler: H) -> H:
        for name in names:
            table: dict[Any, Handler] = METHODS if isinstance(name, str) else FUNCTIONS
            table[name] = handler
        return handler

    return register


# ---- pointwise -------------------------------------------------------------------------------------------------------


def _pointwise(op: str, *names: Any, in_place: tuple[Any, ...] = ()) -> Handler:
    def handler(b: Builder, input: Place, inplace: bool = False) -> Place:
        return b.emit(op, (input,), getattr(input, "shape", ()), overwrite=inplace)

    POINTWISE.add(op)
    lowers(*names)(handler)
    lowers(*in_place)(partial(handler, inplace=True))
    return handler


relu = _pointwise("relu", F.relu, torch.relu, "relu", in_place=(torch.relu_, "relu_"))
tanh = _pointwise("tanh", torch.tanh, "tanh", in_place=(torch.tanh_, "tanh_"))
sigmoid = _pointwise("sigmoid", torch.sigmoid, "sigmoid", in_place=(torch.sigmoid_, "sigmoid_"))
silu = _pointwise("silu", F.silu)
softsign = _pointwise("softsign", F.softsign)
POINTWISE |= {"gelu", "gelu_tanh", "leaky_relu", "elu", "softplus"}  # with settings


@lowers(F.gelu)
def gelu(b: Builder, input: Place, approximate: str = "none") -> Place:
    return b.emit("gelu_tanh" if approximate == "tanh" else "gelu", (input,), input.shape)


@lowers(F.leaky_relu)
def leaky_relu(b: Builder, input: Place, negative_slope: float = 0.01, inplace: bool = False) -> Place:
    return b.emit("leaky_relu", (input,), input.shape, attributes={"slope": negative_slope}, overwrite=inplace)


@lowers(F.elu)
def elu(b: Builder, input: Place, alpha: float = 1.0, inplace: bool = False) -> Place:
    return b.emit("elu", (input,), input.shape, attributes={"alpha": alpha}, overwrite=inplace)


@lowers(F.softplus)
def softplus(b: Builder, input: Place, beta: float = 1.0, threshold: float = 20.0) -> Place:
    return b.emit("softplus", (input,), input.shape, attributes={"beta": beta, "threshold": threshold})


# ---- bilinear --------------------------------------------------------------------------------------------------------


@lowers(F.linear)
def linear(b: Builder, input: Place, weight: Tensor, bias: Tensor | None = None) -> Place:
    b.rank(input, (1, 2), "[N, I] or [N, L, I]")
    shape = b.shape(F.linear, input, weight, bias)
    if len(shape) != len(input.shape):
        b.refuse("has a weight of one dimension; native are two, [O, I]")
    return b.emit("linear", (input,), shape, (weight, bias))


def _pair(b: Builder, size: Any) -> tuple[int, int]:
    sizes = tuple(size) if isinstance(size, (tuple, list)) else (size,)
    if len(sizes) not in (1, 2) or not all(isinstance(s, int) for s in sizes):
        b.refuse(f"has the setting {size!r}; native are one or two whole numbers")
    return sizes[0], sizes[-1]


@lowers(F.conv2d)
def conv2d(
    b: Builder,
    input: Place,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Place:
    b.rank(input, (3,), "[N, C, H, W]")
    if groups != 1:
        b.refuse(f"is not native with groups={groups}")
    dilations, pads = _pair(b, dilation), padding
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilations, weight.shape[2:], strict=True)]
        if any(p % 2 for p in total):
            b.refuse(f"is not native with padding='same' and kernel {list(weight.shape[2:])}: its sides differ")
        pads = [p // 2 for p in total]
    shape = b.shape(F.conv2d, input, weight, bias, stride, padding, dilation)
    settings = _window(b, stride=stride, pad=pads, dilation=dilations)
    return b.emit("conv2d", (input,), shape, (weight, bias), settings)


def _window(b: Builder, **sizes: Any) -> dict[str, float]:
    return {f"{name}_{axis}": s for name, size in sizes.items() for axis, s in zip("hw", _pair(b, size), strict=True)}


# ---- reductions ------------------------------------------------------------------------------------------------------


@lowers(F.batch_norm)
def batch_norm(
    b: Builder,
    input: Place,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Place:
    b.rank(input, (1, 3), "[N, C] or [N, C, H, W]")
    if not training and (running_mean is None or running_var is None):
        b.refuse("is in eval mode without running statistics, which has no native form")
    statistics = (None, None) if training else (running_mean, running_var)
    if any(t is not None and t.shape != input.shape[:1] for t in (weight, bias, *statistics)):
        b.refuse(f"has a weight, bias or statistics that do not fit the input {batched(input.shape)}")
    if any(t is not None and t.requires_grad for t in statistics):
        b.refuse("is not native with running statistics that require a gradient")
    return b.emit("batch_norm", (input,), input.shape, (weight, bias, *statistics), {"eps": eps, "training": training})


@lowers(F.max_pool2d, torch.max_pool2d)
def max_pool2d(
    b: Builder,
    input: Place,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Place:
    b.rank(input, (3,), "[N, C, H, W]")
    if return_indices:
        b.refuse("is not native with return_indices=True")
    stride = stride or kernel_size
    shape = b.shape(torch.max_pool2d, input, kernel_size, stride, padding, dilation, ceil_mode)
    settings = _window(b, kernel=kernel_size, stride=stride, pad=padding, dilation=dilation)
    return b.emit("max_pool2d", (input,), shape, attributes=settings)


@lowers(F.avg_pool2d)
def avg_pool2d(
    b: Builder,
    input: Place,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Place:
    b.rank(input, (3,), "[N, C, H, W]")
    if divisor_override is not None:
        b.refuse("is not native with divisor_override")
    stride = stride or kernel_size
    shape = b.shape(F.avg_pool2d, input, kernel_size, stride, padding, ceil_mode)
    settings = _window(b, kernel=kernel_size, stride=stride, pad=padding)
    return b.emit("avg_pool2d", (input,), shape, attributes=settings | {"count_include_pad": count_include_pad})


@lowers(F.adaptive_avg_pool2d)
def adaptive_avg_pool2d(b: Builder, input: Place, output_size: Any) -> Place:
    b.rank(input, (3,), "[N, C, H, W]")
    shape = b.shape(F.adaptive_avg_pool2d, input, output_size)
    return clone(b, input) if shape == input.shape else b.emit("adaptive_avg_pool2d", (input,), shape)


@lowers(torch.mean, "mean")
def mean(b: Builder, input: Place, dim: Any = None, keepdim: bool = False, *, dtype: Literal[None] = None) -> Place:
    b.read(input)
    axes = sorted(b.axis(input, a) for a in (dim if isinstance(dim, (tuple, list)) else (dim or 0,)))
    if len(input.shape) != 3 or axes != [2, 3] or dtype is not None:
        over = "all axes" if dim is None else f"axis {dim}"
        b.refuse(f"is native over the axes H, W of [N, C, H, W], not over {over} of {batched(input.shape)}")
    pooled = b.emit("adaptive_avg_pool2d", (input,), (input.shape[0], 1, 1))
    return pooled if keepdim else _flat(b, pooled)


# ---- shapes ----------------------------------------------------------------------------------------------------------


def _flat(b: Builder, input: Place) -> Place:
    """[N, *shape] -> [N, prod(shape)], sharing memory."""
    if len(input.shape) == 1:
        return input
    output = b.emit("flatten", (input,), (math.prod(input.shape),))
    return Place(output.value, output.shape, input.memory)


@lowers(torch.flatten, "flatten")
def flatten(b: Builder, input: Place, start_dim: int = 0, end_dim: int = -1) -> Place:
    b.read(input)
    start, end = b.axis(input, start_dim), b.axis(input, end_dim)
    if start == end:
        return input
    if (start, end) != (1, len(input.shape)):
        b.refuse(
            f"is native to [N, -1] (all axes but that of the examples), not from axis {start_dim} to {end_dim} of "
            f"{batched(input.shape)}"
        )
    return _flat(b, input)


@lowers(torch.reshape, "reshape", "view")
def reshape(b: Builder, input: Place, *shape: Any) -> Place:
    b.read(input)
    wanted = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else list(shape)
    elements = math.prod(input.shape)
    # One axis may be -1. It is the batch exactly if the others hold one example; else the batch must stand first.
    unknown = [i for i, size in enumerate(wanted) if isinstance(size, int) and size == -1]
    sizes = [size for size in wanted if size is not BATCH and size != -1]
    if all(isinstance(size, int) for size in sizes) and len(unknown) <= 1 and wanted:
        known = math.prod(sizes)
        if wanted[0] is BATCH and BATCH not in wanted[1:]:
            if unknown and known and elements % known == 0:
                wanted[unknown[0]] = elements // known
        elif unknown == [0] and BATCH not in wanted and known == elements:
            wanted[0] = BATCH
        target = tuple(wanted[1:])
        if wanted[0] is BATCH and target == input.shape:
            return input
        if wanted[0] is BATCH and target == (elements,):
            return _flat(b, input)
    text = ", ".join(map(str, shape))
    return b.refuse(f"is native to [N, -1] for any number N of examples, not from {batched(input.shape)} to ({text})")


@lowers("size")
def size(b: Builder, input: Any, dim: int | None = None) -> Any:
    sizes = (BATCH, *input.shape) if isinstance(input, Place) else tuple(input.shape)
    return sizes if dim is None else sizes[dim if isinstance(input, Tensor) else b.axis(input, dim)]


@lowers("dim", "ndimension")
def dim(b: Builder, input: Any) -> int:
    return len(size(b, input))


@lowers(getattr)
def attribute(b: Builder, input: Any, name: str) -> Any:
    if name not in ("shape", "ndim") or not isinstance(input, (Place, Tensor)):
        b.refuse(f"reads the attribute {name!r} of {described(input)}, which has no native form")
    return size(b, input) if name == "shape" else dim(b, input)


@lowers(len)
def length(b: Builder, input: Any) -> Any:
    return len(input) if isinstance(input, tuple) else size(b, input, 0)


@lowers(operator.getitem)
def getitem(b: Builder, input: Any, item: Any) -> Any:
    if not isinstance(input, (tuple, list)):
        b.refuse(f"takes a part of {described(input)}, which has no native form")
    return input[item]


def _arithmetic(function: Callable[[Any, Any], Any], words: str, *names: Any) -> Handler:
    """Of sizes only; ``words`` say what it does with its operands."""

    def handler(b: Builder, a: Any, c: Any) -> Any:
        if not (isinstance(a, int) and isinstance(c, int)):
            b.refuse(f"{words.format(described(a), described(c))}, which has no native form")
        return function(a, c)

    return lowers(*names)(handler)


_arithmetic(operator.mul, "multiplies {0} by {1}", operator.mul, operator.imul)
_arithmetic(operator.floordiv, "divides {0} by {1}", operator.floordiv, operator.ifloordiv)
_arithmetic(operator.sub, "subtracts {1} from {0}", operator.sub, operator.isub)
add_sizes = _arithmetic(operator.add, "adds {1} to {0}")


# ---- sums, copies and layers that vanish -----------------------------------------------------------------------------


@lowers(torch.add, "add")
def add(b: Builder, input: Place, other: Place, *, alpha: float = 1, overwrite: bool = False) -> Place:
    if not (isinstance(input, Place) and isinstance(other, Place)):
        b.refuse(f"adds {described(other)} to {described(input)}, which has no native form")
    if alpha != 1:
        b.refuse(f"is not native with alpha={alpha}")
    if input.shape != other.shape:
        b.refuse(f"broadcasts {batched(input.shape)} with {batched(other.shape)}, which is not native")
    return b.emit("add", (input, other), input.shape, overwrite=overwrite)


lowers("add_")(partial(add, overwrite=True))


@lowers(operator.add)
def plus(b: Builder, left: Any, right: Any) -> Any:
    if isinstance(left, int) and left == 0 and isinstance(right, Place):  # where sum([...]) begins
        return clone(b, right)
    return add_sizes(b, left, right) if isinstance(left, int) else add(b, left, right)


@lowers(operator.iadd)
def increase(b: Builder, left: Any, right: Any) -> Any:
    return add_sizes(b, left, right) if isinstance(left, int) else add(b, left, right, overwrite=True)


@lowers(torch.clone, "clone")
def clone(b: Builder, input: Place) -> Place:
    return Place(b.read(input), input.shape)


@lowers("contiguous")
def contiguous(b: Builder, input: Place) -> Place:
    return Place(b.read(input), input.shape, input.memory)  # torch copies or not: sharing forbids what would tell


@lowers(torch.dropout, F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
def dropout(b: Builder, input: Place, p: float = 0.5, training: bool = True, inplace: bool = False) -> Place:
    b.read(input)
    if training and p != 0:
        b.refuse(f"is random in training mode (p={p}); after eval() it is native")
    return input


# ---- modules ---------------------------------------------------------------------------------------------------------

ModuleHandler = Callable[[Builder, Any, Place], Place]


def _conv2d(b: Builder, m: nn.Conv2d, x: Place) -> Place:
    if m.padding_mode != "zeros":
        b.refuse(f"is not native with padding_mode={m.padding_mode!r}")
    return conv2d(b, x, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)


def _batch_norm(axes: str, ranks: tuple[int, ...]) -> ModuleHandler:
    def handler(b: Builder, m: nn.BatchNorm2d, x: Place) -> Place:
        b.rank(x, ranks, axes)
        training = m.training or (m.running_mean is None and m.running_var is None)
        return batch_norm(b, x, m.running_mean, m.running_var, m.weight, m.bias, training, eps=m.eps)

    return handler


def _dropout(b: Builder, m: nn.Dropout, x: Place) -> Place:
    return dropout(b, x, m.p, m.training)


MODULES: dict[type[nn.Module], ModuleHandler] = {
    nn.Linear: lambda b, m, x: linear(b, x, m.weight, m.bias),
    nn.Conv2d: _conv2d,
    nn.BatchNorm1d: _batch_norm("[N, C]", (1,)),
    nn.BatchNorm2d: _batch_norm("[N, C, H, W]", (3,)),
    nn.ReLU: lambda b, m, x: relu(b, x, m.inplace),
    nn.LeakyReLU: lambda b, m, x: leaky_relu(b, x, m.negative_slope, m.inplace),
    nn.ELU: lambda b, m, x: elu(b, x, m.alpha, m.inplace),
    nn.SiLU: lambda b, m, x: silu(b, x, m.inplace),
    nn.GELU: lambda b, m, x: gelu(b, x, m.approximate),
    nn.Tanh: lambda b, m, x: tanh(b, x),
    nn.Sigmoid: lambda b, m, x: sigmoid(b, x),
    nn.Softsign: lambda b, m, x: softsign(b, x),
    nn.Softplus: lambda b, m, x: softplus(b, x, m.beta, m.threshold),
    nn.MaxPool2d: lambda b, m, x: max_pool2d(
        b, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices
    ),
    nn.AvgPool2d: lambda b, m, x: avg_pool2d(
        b, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    ),
    nn.AdaptiveAvgPool2d: lambda b, m, x: adaptive_avg_pool2d(b, x, m.output_size),
    nn.Flatten: lambda b, m, x: flatten(b, x, m.start_dim, m.end_dim),
    nn.Identity: lambda b, m, x: x,
    nn.Dropout: _dropout,
    nn.Dropout1d: _dropout,
    nn.Dropout2d: _dropout,
    nn.Dropout3d: _dropout,
}
