"""What a Program means, in plain torch: each node written from its definition, for tests of the lowering.

Pooling is written from the output's shape alone, as a kernel must do it: a Program has no ceil_mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from metafast.model.layers.pairs import PAIRS
from metafast.model.program import ABSENT, Node, Program, shared_values

Named = dict[str, float]


def run(program: Program, tensors: Sequence[Tensor], x: Tensor) -> Tensor:
    """The output [N, *output] for x [N, *example]; ``tensors`` are the values of ``program.parameters``."""
    assert [tuple(t.shape) for t in tensors] == [p.shape for p in program.parameters]
    values = {0: x.reshape(x.shape[0], *program.values[0])}
    shared = shared_values(program.nodes)
    for node in program.nodes:
        inputs = [values[i] for i in node.inputs]
        parameters = [None if i == ABSENT else tensors[i] for i in node.parameters]
        shape = program.values[node.output]
        if node.op in PAIRS:
            inputs = [_wide(v, program.values[i], shape) for v, i in zip(inputs, node.inputs, strict=True)]
        if node.op in ("sparse_map", "matmul"):  # what examples share, each has
            spread = node.output not in shared
            numbered = zip(node.inputs, inputs, strict=True)
            examples = len(x) if spread else 1
            inputs = [v.expand(examples, *v.shape) if i in shared else v for i, v in numbered]
        made = NODES[node.op](node, inputs, parameters, dict(node.attributes), shape)
        values[node.output] = made[0] if node.op in ("sparse_map", "matmul") and not spread else made
        assert values[node.output].shape == (shape if node.output in shared else (x.shape[0], *shape)), node
    return values[program.output].reshape(x.shape[0], *program.output_shape)


def _wide(x: Tensor, own: Sequence[int], shape: Sequence[int]) -> Tensor:
    """x of the form ``own``, with axes of one position where it has none and the form ``shape`` has some."""
    batch = x.shape[: x.ndim - len(own)]
    if len(own) == len(shape):
        return x
    return x.reshape(*batch, own[-1], 1, 1) if len(shape) == 3 else x.reshape(*batch, *(1,) * (len(shape) - 1), own[-1])


def _linear(node: Node, inputs: list[Tensor], parameters: list[Tensor | None], a: Named, shape: object) -> Tensor:
    weight, bias = parameters
    assert weight is not None
    y = torch.einsum("n...i,oi->n...o", inputs[0], weight)
    return y if bias is None else y + bias


def _conv2d(node: Node, inputs: list[Tensor], parameters: list[Tensor | None], a: Named, shape: object) -> Tensor:
    weight, bias = parameters
    assert weight is not None
    weight = weight.reshape(*weight.shape[:2], -1, weight.shape[-1])  # of three axes: of height 1
    padded = F.pad(inputs[0], (int(a["pad_w"]),) * 2 + (int(a["pad_h"]),) * 2)
    windows = _windows(padded, a, weight.shape[2], weight.shape[3], shape[1:])  # type: ignore[index]
    groups = inputs[0].shape[1] // weight.shape[1]
    y = torch.einsum("ngcijhw,gochw->ngoij", windows.unflatten(1, (groups, -1)), weight.unflatten(0, (groups, -1)))
    y = y.flatten(1, 2)
    return y if bias is None else y + bias[:, None, None]


def _conv_transpose2d(
    node: Node, inputs: list[Tensor], parameters: list[Tensor | None], a: Named, shape: Sequence[int]
) -> Tensor:
    """What each input pixel times the kernel adds to the output, which begins behind the padding."""
    weight, bias = parameters
    assert weight is not None
    weight = weight.reshape(*weight.shape[:2], -1, weight.shape[-1])  # of three axes: of height 1
    x = inputs[0]
    groups = shape[0] // weight.shape[1]
    y = x.new_zeros(
        x.shape[0], shape[0], *(int(s + 2 * a[f"pad_{axis}"]) for s, axis in zip(shape[1:], "hw", strict=True))
    )
    rows, columns = (
        _positions(x.shape[2 + i], weight.shape[2 + i], a[f"stride_{axis}"], a[f"dilation_{axis}"])
        for i, axis in enumerate("hw")
    )
    products = torch.einsum("ngcij,gcohw->ngoijhw", x.unflatten(1, (groups, -1)), weight.unflatten(0, (groups, -1)))
    index = rows[:, None, :, None], columns[None, :, None, :]
    y = y.index_put((slice(None), slice(None), *index), products.flatten(1, 2), accumulate=True)
    top, left = int(a["pad_h"]), int(a["pad_w"])
    y = y[:, :, top : top + shape[1], left : left + shape[2]]
    return y if bias is None else y + bias[:, None, None]


def _windows(x: Tensor, a: Named, kernel_h: int, kernel_w: int, out: Sequence[int]) -> Tensor:
    """[N, C, H, W] -> [N, C, H', W', kernel_h, kernel_w]; x begins at the first window and may end before the last."""
    rows = _positions(out[0], kernel_h, a["stride_h"], a.get("dilation_h", 1))
    columns = _positions(out[1], kernel_w, a["stride_w"], a.get("dilation_w", 1))
    return x[:, :, rows[:, None, :, None], columns[None, :, None, :]]


def _positions(out: int, kernel: int, stride: float, dilation: float) -> Tensor:
    return torch.arange(out)[:, None] * int(stride) + torch.arange(kernel) * int(dilation)


def _extended(x: Tensor, a: Named, fill: float, out: Sequence[int]) -> Tensor:
    """x with its padding before it, and after it whatever the last window needs."""
    need = [
        int((out[i] - 1) * a[f"stride_{axis}"] + a.get(f"dilation_{axis}", 1) * (a[f"kernel_{axis}"] - 1) + 1)
        for i, axis in enumerate("hw")
    ]
    top, left = int(a["pad_h"]), int(a["pad_w"])
    bottom, right = (max(need[i] - x.shape[2 + i] - p, 0) for i, p in enumerate((top, left)))
    return F.pad(x, (left, right, top, bottom), value=fill)


def _max_pool2d(node: Node, inputs: list[Tensor], parameters: object, a: Named, shape: Sequence[int]) -> Tensor:
    x = _extended(inputs[0], a, -torch.inf, shape[1:])
    return _windows(x, a, int(a["kernel_h"]), int(a["kernel_w"]), shape[1:]).amax((-2, -1))


def _avg_pool2d(node: Node, inputs: list[Tensor], parameters: object, a: Named, shape: Sequence[int]) -> Tensor:
    """Sum over the window, divided by the number of positions inside the input (and its padding, if that counts)."""
    x = inputs[0]
    kernel = int(a["kernel_h"]), int(a["kernel_w"])
    if a["count_include_pad"]:
        h, w = int(a["pad_h"]), int(a["pad_w"])
        counted = torch.ones(1, 1, x.shape[2] + 2 * h, x.shape[3] + 2 * w, dtype=x.dtype)
        counted = _extended(counted, a | {"pad_h": 0, "pad_w": 0}, 0.0, shape[1:])
    else:
        counted = _extended(torch.ones_like(x[:1, :1]), a, 0.0, shape[1:])
    count = _windows(counted, a, *kernel, shape[1:]).sum((-2, -1))
    return _windows(_extended(x, a, 0.0, shape[1:]), a, *kernel, shape[1:]).sum((-2, -1)) / count


def _adaptive_avg_pool2d(
    node: Node, inputs: list[Tensor], parameters: object, a: Named, shape: Sequence[int]
) -> Tensor:
    x = inputs[0]
    (height, width), (h, w) = x.shape[2:], shape[1:]

    def part(i: int, out: int, size: int) -> slice:  # floor(i size / out) to ceil((i + 1) size / out)
        return slice(i * size // out, -(-(i + 1) * size // out))

    rows = [[x[:, :, part(i, h, height), part(j, w, width)].mean((2, 3)) for j in range(w)] for i in range(h)]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _batch_norm(node: Node, inputs: list[Tensor], parameters: list[Tensor | None], a: Named, shape: object) -> Tensor:
    weight, bias, mean, variance = parameters
    x = inputs[0]
    axes = [0, 2, 3][: x.ndim - 1] if x.ndim == 4 else [0]
    if a["training"]:
        assert mean is None and variance is None
        mean, variance = x.mean(axes), x.var(axes, correction=0)
    assert mean is not None and variance is not None

    def wide(t: Tensor) -> Tensor:
        return t.reshape(1, -1, *[1] * (x.ndim - 2))

    y = (x - wide(mean)) / torch.sqrt(wide(variance) + a["eps"])
    y = y if weight is None else y * wide(weight)
    return y if bias is None else y + wide(bias)


def _normalise(node: Node, inputs: list[Tensor], parameters: list[Tensor | None], a: Named, shape: object) -> Tensor:
    x = inputs[0].movedim(1, -1) if inputs[0].ndim == 4 else inputs[0]  # channels last
    sets = x.unflatten(-1, (int(a["groups"]), -1))
    axes = (1, 2, -1) if x.ndim == 4 else (-1,)
    if a["centred"]:
        sets = sets - sets.mean(axes, keepdim=True)
    y = (sets / torch.sqrt((sets**2).mean(axes, keepdim=True) + a["eps"])).flatten(-2)
    weight, bias = (None if p is None else p.reshape(-1) for p in parameters)
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    return y.movedim(-1, 1) if x.ndim == 4 else y


def _softmax(x: Tensor, of_nothing: bool = False) -> Tensor:
    channel = 1 if x.ndim == 4 else -1
    powers = torch.exp(x)
    total = powers.sum(channel, keepdim=True)
    return powers / torch.where(total == 0, 1, total) if of_nothing else powers / total


def _pointwise(function: Callable[[Tensor, Named], Tensor]) -> Callable[..., Tensor]:
    return lambda node, inputs, parameters, a, shape: function(inputs[0], a)


def _gelu_tanh(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def _sparse(table: Sequence[int], factors: Sequence[float], x: Tensor, shape: Sequence[int]) -> Tensor:
    """Of the last axis of x, the elements of the table, summed."""
    places = torch.tensor(table).reshape(math.prod(shape), -1)
    terms = torch.where(places >= 0, x[..., places.clamp(min=0)], 0)
    if factors:
        terms = terms * torch.tensor(factors, dtype=x.dtype).reshape(places.shape)
    return terms.sum(-1).reshape(*x.shape[:-1], *shape)


def _sparse_map(
    node: Node, inputs: list[Tensor], parameters: list[Tensor | None], a: Named, shape: Sequence[int]
) -> Tensor:
    if parameters:
        assert parameters[0] is not None
        return _sparse(node.table, node.factors, parameters[0].reshape(-1), shape)
    return _sparse(node.table, node.factors, torch.cat([v.flatten(1) for v in inputs], -1), shape)


def _dropout(node: Node, inputs: list[Tensor], parameters: object, a: Named, shape: object) -> Tensor:
    """By torch's generator, ``each`` elements at a time."""
    x = inputs[0]
    return x * F.dropout(torch.ones_like(x.reshape(-1, int(a["each"]))[:, :1]), a["p"]).expand(
        -1, int(a["each"])
    ).reshape(x.shape)


def _embedding(
    node: Node, inputs: list[Tensor], parameters: list[Tensor | None], a: Named, shape: Sequence[int]
) -> Tensor:
    table = parameters[0] if parameters else torch.eye(shape[-1], dtype=inputs[0].dtype)
    assert table is not None
    return table[inputs[0].long()].reshape(len(inputs[0]), *shape)


def _matmul(node: Node, inputs: list[Tensor], parameters: object, a: Named, shape: Sequence[int]) -> Tensor:
    batches = int(a["batches"])
    left, right = (v.reshape(len(v), batches, -1, v.shape[-1]) for v in inputs)
    letters = "nbik,nbjk->nbij" if a["transposed_b"] else "nbik,nbkj->nbij"
    y = torch.einsum(letters, left, right)
    return y.reshape(len(y), *shape)


NODES: dict[str, Callable[..., Tensor]] = {
    "linear": _linear,
    "conv2d": _conv2d,
    "conv_transpose2d": _conv_transpose2d,
    "batch_norm": _batch_norm,
    "normalise": _normalise,
    "softmax": lambda node, inputs, parameters, a, shape: _softmax(inputs[0], bool(a.get("of_nothing"))),
    "log_softmax": lambda node, inputs, parameters, a, shape: _softmax(inputs[0]).log(),
    "relu": _pointwise(lambda x, a: torch.where(x > 0, x, 0)),
    "tanh": _pointwise(lambda x, a: 1 - 2 / (torch.exp(2 * x) + 1)),
    "sigmoid": _pointwise(lambda x, a: 1 / (1 + torch.exp(-x))),
    "silu": _pointwise(lambda x, a: x / (1 + torch.exp(-x))),
    "gelu": _pointwise(lambda x, a: x / 2 * (1 + torch.erf(x / 2**0.5))),
    "gelu_tanh": _pointwise(lambda x, a: _gelu_tanh(x)),
    "leaky_relu": _pointwise(lambda x, a: torch.where(x > 0, x, a["slope"] * x)),
    "elu": _pointwise(lambda x, a: torch.where(x > 0, x, a["alpha"] * torch.expm1(x))),
    "softsign": _pointwise(lambda x, a: x / (1 + x.abs())),
    "softplus": _pointwise(
        lambda x, a: torch.where(a["beta"] * x > a["threshold"], x, torch.log1p(torch.exp(a["beta"] * x)) / a["beta"])
    ),
    "abs": _pointwise(lambda x, a: torch.where(x < 0, -x, x)),
    "affine": _pointwise(lambda x, a: a["scale"] * x + a["shift"]),
    "celu": _pointwise(lambda x, a: torch.where(x > 0, x, a["alpha"] * torch.expm1(x / a["alpha"]))),
    "clamp": _pointwise(lambda x, a: x.clamp(a.get("low"), a.get("high"))),
    "cos": _pointwise(lambda x, a: torch.sin(torch.pi / 2 - x)),
    "detach": _pointwise(lambda x, a: x.detach()),
    "exp": _pointwise(lambda x, a: torch.e**x),
    "expm1": _pointwise(lambda x, a: torch.exp(x) - 1),
    "hardswish": _pointwise(lambda x, a: x * ((x + 3) / 6).clamp(0, 1)),
    "hardtanh": _pointwise(lambda x, a: x.clamp(a["low"], a["high"])),
    "log": _pointwise(lambda x, a: torch.log2(x) * math.log(2)),
    "log1p": _pointwise(lambda x, a: torch.log(1 + x)),
    "log_sigmoid": _pointwise(lambda x, a: -torch.log(1 + torch.exp(-x))),
    "mish": _pointwise(lambda x, a: x * torch.tanh(torch.log(1 + torch.exp(x)))),
    "pow": _pointwise(lambda x, a: x ** a["exponent"]),
    "reciprocal": _pointwise(lambda x, a: 1 / x),
    "rsqrt": _pointwise(lambda x, a: x**-0.5),
    "selu": _pointwise(lambda x, a: 1.0507009873554805 * torch.where(x > 0, x, 1.6732632423543772 * torch.expm1(x))),
    "sin": _pointwise(lambda x, a: torch.cos(x - torch.pi / 2)),
    "sqrt": _pointwise(lambda x, a: x**0.5),
    "square": _pointwise(lambda x, a: x * x),
    "threshold": _pointwise(lambda x, a: torch.where(x > a["limit"], x, a["otherwise"])),
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "dropout": _dropout,
    "matmul": _matmul,
    "flatten": lambda node, inputs, parameters, a, shape: inputs[0].reshape(inputs[0].shape[0], -1),
    "sparse_map": _sparse_map,
    "parameter": _sparse_map,
    "embedding": _embedding,
    "add": lambda node, inputs, parameters, a, shape: inputs[0] + inputs[1],
    "at_least": lambda node, inputs, parameters, a, shape: (inputs[0] >= inputs[1]).to(inputs[0].dtype),
    "binary_cross_entropy": lambda node, inputs, parameters, a, shape: (
        -inputs[1] * inputs[0].log().clamp(min=-100) - (1 - inputs[1]) * (1 - inputs[0]).log().clamp(min=-100)
    ),
    "subtract": lambda node, inputs, parameters, a, shape: inputs[0] - inputs[1],
    "multiply": lambda node, inputs, parameters, a, shape: inputs[0] * inputs[1],
    "divide": lambda node, inputs, parameters, a, shape: inputs[0] / inputs[1],
    "keep": lambda node, inputs, parameters, a, shape: torch.where(inputs[1] != 0, inputs[0], 0.0),
    "hide": lambda node, inputs, parameters, a, shape: torch.where(inputs[1] != 0, inputs[0], -math.inf),
    "maximum": lambda node, inputs, parameters, a, shape: torch.maximum(inputs[0], inputs[1]),
    "minimum": lambda node, inputs, parameters, a, shape: torch.minimum(inputs[0], inputs[1]),
}
