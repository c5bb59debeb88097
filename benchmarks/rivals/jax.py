"""JAX: jit of the gradient of vmap over tasks; the inner steps unrolled, or scanned where they are many.

On a CPU a convolution is a product with the patches of its input: XLA's own convolutions, whose kernels vmap groups,
take five times as long there. Steps with them are scanned, which compiles in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax import lax
from torch import nn

from benchmarks.rivals import SCANNED, SEGMENTED, Forms, Step, Unable
from benchmarks.updates import ADAM, STATES, corrections, update
from benchmarks.workloads import LEARNT, Problem

jax.config.update("jax_enable_x64", True)  # arrays keep the dtype they come with

#: Above this many inner steps an unrolled program takes minutes to compile.
UNROLLED = 10
#: Steps between two checkpoints, in the form that is tried where there are many: about the root of 2 000.
SEGMENT = 40

Params = list[dict[str, jax.Array]]


def layer(module: nn.Module, device: str) -> Callable[[dict[str, jax.Array], jax.Array], jax.Array]:
    """The torch layer as a function of its parameters and input; images have channels last, as XLA's CPU likes them."""
    if isinstance(module, nn.Linear):
        return lambda p, x: x @ p["weight"].T + p["bias"]
    if isinstance(module, nn.Conv2d):
        return by_patches if device == "cpu" else convolution
    if isinstance(module, nn.BatchNorm2d):
        return lambda p, x: batch_norm(p, x, module.eps)
    if isinstance(module, nn.MaxPool2d):
        return lambda p, x: max_pool(x)
    if isinstance(module, nn.Flatten):
        return lambda p, x: x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    if isinstance(module, nn.ReLU):
        return lambda p, x: jnp.where(x > 0, x, 0)
    if isinstance(module, nn.Tanh):
        return lambda p, x: jnp.tanh(x)
    raise Unable(f"no JAX form of {type(module).__name__} here")


def convolution(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """3x3, padded by one."""
    y = lax.conv_general_dilated(x, p["weight"], (1, 1), "SAME", dimension_numbers=("NHWC", "OIHW", "NHWC"))
    return y + p["bias"]


def by_patches(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """The same as one product."""
    height, width, outputs = x.shape[1], x.shape[2], len(p["weight"])
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(patches, -1) @ p["weight"].transpose(2, 3, 1, 0).reshape(-1, outputs) + p["bias"]


def batch_norm(p: dict[str, jax.Array], x: jax.Array, eps: float) -> jax.Array:
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) * (p["weight"] * lax.rsqrt(variance + eps)) + p["bias"]


def max_pool(x: jax.Array) -> jax.Array:
    """2x2, by comparisons. Not by max, whose compiled gradient compares its result with x computed anew, in other
    roundings, and misses it (0.5 relative error in float64 on these networks); reduce_window is slower."""
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    upper, lower = x[:, 0:height:2, :width], x[:, 1:height:2, :width]
    rows = jnp.where(upper > lower, upper, lower)
    left, right = rows[:, :, 0::2], rows[:, :, 1::2]
    return jnp.where(left > right, left, right)


def losses(name: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    if name == "mse":
        return lambda output, y: ((output - y) ** 2).mean()
    return lambda output, y: -jnp.take_along_axis(jax.nn.log_softmax(output), y[:, None], axis=1).mean()


def evaluate(problem: Problem) -> Callable[[Params, jax.Array, jax.Array], jax.Array]:
    layers = [layer(module, problem.workload.device) for module in problem.model.children()]
    loss = losses(problem.workload.loss)

    def value(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        for function, p in zip(layers, params, strict=True):
            x = function(p, x)
        return loss(x, y)

    return value


def tree(problem: Problem, values: dict[str, torch.Tensor]) -> Params:
    """Tensors by name -> one dict per layer."""
    children = dict(problem.model.named_children())
    return [
        {name: array(values[f"{child}.{name}"]) for name, _ in module.named_parameters()}
        for child, module in children.items()
    ]


def leaves(problem: Problem, params: Params) -> list[jax.Array]:
    """Back to the order of ``problem.parameters``."""
    position = {child: index for index, (child, _) in enumerate(problem.model.named_children())}
    return [params[position[child]][name] for child, name in (key.split(".") for key in problem.parameters)]


def array(tensor: torch.Tensor) -> jax.Array:
    return jnp.asarray(tensor.detach().cpu().numpy())


def place(problem: Problem) -> None:
    """On a GPU: everything there, and float32 products in float32, as for all others."""
    if problem.workload.device == "cpu":
        return
    try:
        gpu = jax.devices("gpu")[0]
    except RuntimeError:
        raise Unable(f"this JAX {jax.__version__} has no GPU") from None
    jax.config.update("jax_default_device", gpu)
    jax.config.update("jax_default_matmul_precision", "highest")


def images_last(x: torch.Tensor) -> jax.Array:
    return array(x.movedim(2, -1).contiguous() if x.dim() == 5 else x)


def step(function: Callable[..., Any], read: Callable[[Any], list[jax.Array]], *arguments: Any) -> Step:
    """Compiled now; every call waits for its result, of which ``read`` makes a list."""
    compiled = jax.jit(function).lower(*arguments).compile()
    return lambda: read(jax.block_until_ready(compiled(*arguments)))


@dataclass(frozen=True)
class Loop:
    """A way to write the inner loop: so many steps of a scan in one body, and, where ``segment`` is not 0, the steps of
    a segment of that length computed again in the reverse sweep."""

    unroll: int = 1
    segment: int = 0

    def __call__(self, inner: Any, carry: Any, corrections: jax.Array) -> Any:
        steps = len(corrections)
        if not self.segment:
            return lax.scan(inner, carry, corrections, unroll=self.unroll)[0]
        segments = corrections.reshape(steps // self.segment, self.segment, -1)
        return lax.scan(jax.checkpoint(lambda carry, part: lax.scan(inner, carry, part)), carry, segments)[0]


def loops(problem: Problem) -> dict[str, Loop]:
    """The forms that are tried, each of which takes a compilation. Ten steps of Adam are no quicker unrolled."""
    w = problem.workload
    by_product = w.device == "cpu" and any(isinstance(module, nn.Conv2d) for module in problem.model.children())
    unrolled = 0 < w.steps <= UNROLLED and w.rule != ADAM and not by_product
    forms = {"unrolled": Loop(w.steps)} if unrolled else {SCANNED: Loop()}
    if w.steps > SEGMENT and w.steps % SEGMENT == 0:
        forms[SEGMENTED] = Loop(segment=SEGMENT)
    return forms


def meta_gradient(problem: Problem) -> Forms:
    place(problem)
    w, value = problem.workload, evaluate(problem)
    stop = lax.stop_gradient if w.first_order else lambda gradients: gradients

    def adapted_loss(loop: Loop, params: Params, rates: Params, xs: Any, ys: Any, xq: Any, yq: Any) -> jax.Array:
        start, structure = jax.tree.flatten(params)
        of_each = jax.tree.leaves(rates) or [w.lr] * len(start)

        def inner(carry: Any, correction: jax.Array) -> tuple[Any, None]:
            params, states = carry
            gradients = stop(jax.grad(value)(structure.unflatten(params), xs, ys))
            each = zip(params, jax.tree.leaves(gradients), states, of_each, strict=True)
            moved = [update(jnp, w.rule, p, g, state, rate, correction) for p, g, state, rate in each]
            return ([p for p, _ in moved], [state for _, state in moved]), None

        states = [(jnp.zeros_like(p),) * STATES[w.rule] for p in start]
        adapted, _ = loop(inner, (start, states), jnp.array(corrections(w.rule, w.steps), start[0].dtype))
        return value(structure.unflatten(adapted), xq, yq)

    learnt = w.rates == LEARNT
    parameters = tree(problem, dict(problem.parameters))
    rates = tree(problem, problem.rates) if problem.rates else []
    data = [images_last(problem.support.x), array(problem.support.y)]
    data += [images_last(problem.query.x), array(problem.query.y)]

    def read(gradients: tuple[Params, ...]) -> list[jax.Array]:
        return [leaf for group in gradients for leaf in leaves(problem, group)]

    def form(loop: Loop) -> Step:
        batched = jax.vmap(partial(adapted_loss, loop), in_axes=(None, None, 0, 0, 0, 0))
        gradient = jax.grad(lambda *shared_and_data: batched(*shared_and_data).mean(), (0, 1) if learnt else (0,))
        return step(gradient, read, parameters, rates, *data)

    return {name: form(loop) for name, loop in loops(problem).items()}


def hessian_vector(problem: Problem) -> Forms:
    place(problem)
    value = evaluate(problem)

    def product(params: Params, vectors: Params, x: jax.Array, y: jax.Array) -> Params:
        result: Params = jax.jvp(lambda p: jax.grad(value)(p, x, y), (params,), (vectors,))[1]
        return result

    trees = tree(problem, problem.per_task), tree(problem, problem.vectors)
    read = partial(leaves, problem)
    return {"": step(jax.vmap(product), read, *trees, images_last(problem.support.x), array(problem.support.y))}
