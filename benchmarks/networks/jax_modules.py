"""The networks and losses of :mod:`benchmarks.networks` in JAX: functions of parameters by torch's names, and of x.

Convolutions are products with the patches of their input, and images have channels last: so they are fastest on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from torch.nn import functional as F

from benchmarks.networks.modules import policy_gradient
from benchmarks.rivals.jax import batch_norm, losses, max_pool

Params = dict[str, jax.Array]


def part(p: Params, name: str) -> Params:
    """The parameters of a module inside."""
    return {key[len(name) + 1 :]: value for key, value in p.items() if key.startswith(name + ".")}


def linear(p: Params, x: jax.Array) -> jax.Array:
    product = x @ p["weight"].T
    return product + p["bias"] if "bias" in p else product


def convolution(p: Params, x: jax.Array) -> jax.Array:
    """Of stride one, padded to the same size."""
    outputs, _, size, _ = p["weight"].shape
    height, width, pad = x.shape[1], x.shape[2], size // 2
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    patches = [padded[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    y = jnp.concatenate(patches, -1) @ p["weight"].transpose(2, 3, 1, 0).reshape(-1, outputs)
    return y + p["bias"] if "bias" in p else y


def channels_last(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, 1, -1)


def layer_norm(p: Params, x: jax.Array) -> jax.Array:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + 1e-5) * p["weight"] + p["bias"]


def instance_norm(p: Params, x: jax.Array) -> jax.Array:
    mean, variance = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
    return (x - mean) * lax.rsqrt(variance + 1e-5) * p["weight"] + p["bias"]


def average_pool(x: jax.Array) -> jax.Array:
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def fast_weights(p: Params, x: jax.Array) -> jax.Array:
    h = x * lax.rsqrt((x * x).mean(-1, keepdims=True) + jnp.finfo(x.dtype).eps) * p["norm.weight"]
    gate, up = linear(part(p, "gate"), h), linear(part(p, "up"), h)
    return x + linear(part(p, "down"), jax.nn.silu(gate) * up)


def leaky(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, 0.1 * x)


def normalised_convolution(p: Params, x: jax.Array, at: int) -> jax.Array:
    return batch_norm(part(p, str(at + 1)), convolution(part(p, str(at)), x), 1e-5)


def resnet12(p: Params, x: jax.Array) -> jax.Array:
    x = channels_last(x)
    for block in (part(p, f"body.{number}") for number in range(4)):
        body, h = part(block, "body"), x
        for at in (0, 3, 6):
            h = normalised_convolution(body, h, at)
            h = leaky(h) if at < 6 else h
        x = max_pool(leaky(h + normalised_convolution(part(block, "shortcut"), x, 0)))
    return linear(part(p, "head"), x.mean((1, 2)))


def siren(p: Params, x: jax.Array) -> jax.Array:
    for number in range(4):
        x = jnp.sin(30 * linear(part(p, f"layers.{number}"), x))
    return linear(part(p, "out"), x)


def latent_siren(p: Params, x: jax.Array) -> jax.Array:
    shifts = jnp.split(linear(part(p, "shifts"), p["latent"]), 4)
    for number, shift in enumerate(shifts):
        x = jnp.sin(30 * (linear(part(p, f"layers.{number}"), x) + shift / 30))
    return linear(part(p, "out"), x)


def transformer(p: Params, ids: jax.Array) -> jax.Array:
    x = p["embedding.weight"][ids]
    n, length, width = x.shape
    for block in (part(p, f"blocks.{number}") for number in range(2)):
        projected = linear(part(block, "project"), layer_norm(part(block, "first"), x))
        q, k, v = (t.reshape(n, length, 4, width // 4).transpose(0, 2, 1, 3) for t in jnp.split(projected, 3, axis=-1))
        weights = jax.nn.softmax(q @ k.transpose(0, 1, 3, 2) / (width // 4) ** 0.5)
        x = x + linear(part(block, "join"), (weights @ v).transpose(0, 2, 1, 3).reshape(n, length, width))
        hidden = linear(part(block, "body.0"), layer_norm(part(block, "second"), x))
        x = x + linear(part(block, "body.2"), jax.nn.gelu(hidden, approximate=False))
    return linear(part(p, "head"), x.mean(1))


def convnet3(p: Params, x: jax.Array) -> jax.Array:
    x = channels_last(x)
    for at in (0, 4, 8):
        x = instance_norm(part(p, str(at + 1)), convolution(part(p, str(at)), x))
        x = average_pool(jnp.where(x > 0, x, 0))
    return linear(part(p, "13"), x.transpose(0, 3, 1, 2).reshape(len(x), -1))


def gaussian_policy(p: Params, x: jax.Array) -> jax.Array:
    for at in (0, 2):
        x = jnp.tanh(linear(part(p, f"body.{at}"), x))
    mean = linear(part(p, "body.4"), x)
    return jnp.concatenate([mean, jnp.broadcast_to(p["log_std"], mean.shape)], 1)


def surrogate(output: jax.Array, target: jax.Array) -> jax.Array:
    mean, log_std = output[:, :2], output[:, 2:]
    z = (target[:, :2] - mean) * jnp.exp(-log_std)
    return -((-0.5 * z * z - log_std).sum(1) * target[:, 2]).mean()


NETWORKS: dict[str, Callable[[Params, jax.Array], jax.Array]] = {
    "fast-weights": fast_weights,
    "resnet12": resnet12,
    "siren": siren,
    "latent-siren": latent_siren,
    "transformer": transformer,
    "distillation": convnet3,
    "policy-gradient": gaussian_policy,
}
#: By the function of torch.
LOSSES: dict[Any, Callable[[jax.Array, jax.Array], jax.Array]] = {
    F.cross_entropy: losses("cross_entropy"),
    F.mse_loss: losses("mse"),
    policy_gradient: surrogate,
}
