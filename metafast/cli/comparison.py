"""One meta-step of metafast beside the same one written with torch.func: first checked, then timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from metafast.learner import MAML
from metafast.tasks import Episode

#: Largest relative differences of two meta-gradients. In float64 rounding explains no more. In float32 it usually comes
#: to 1e-6, but one that moves an activation across ReLU's kink changes the true gradient by far more.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-2}

Gradient = Callable[[], list[Tensor]]


def torch_func_step(learner: MAML, episode: Episode) -> Gradient:
    """The meta-gradient of K inner SGD steps on mean squared error, as a user of torch.func writes it:
    vmap over tasks of grad inside, and ordinary autograd outside, which is faster than a second grad."""
    model, rate = learner.model, learner.lr
    names, parameters = zip(*model.named_parameters(), strict=True)

    def support_loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(functional_call(model, params, (x,)), y)

    def task_loss(params: dict[str, Tensor], xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        for _ in range(learner.steps):
            gradients = grad(support_loss)(params, xs, ys)
            if learner.first_order:
                gradients = {name: g.detach() for name, g in gradients.items()}
            params = {name: value - rate * gradients[name] for name, value in params.items()}
        return support_loss(params, xq, yq)

    batched = vmap(task_loss, in_dims=(None, 0, 0, 0, 0))

    def step() -> list[Tensor]:
        loss = batched(dict(zip(names, parameters, strict=True)), *episode.support, *episode.query).mean()
        return list(torch.autograd.grad(loss, parameters))

    return step


def metafast_step(learner: MAML, episode: Episode) -> Gradient:
    parameters = list(learner.parameters())

    def step() -> list[Tensor]:
        return list(torch.autograd.grad(learner(*episode).loss, parameters))

    return step


def against_torch_func(learner: MAML, episode: Episode, *, seconds: float = 1.0) -> dict[str, Any]:
    """Print and return the difference of the two gradients, both median times in milliseconds, and their ratio.

    The two are timed in turns, so that a machine that slows down slows both. RuntimeError if they disagree: there is
    nothing to time then.
    """
    differences = {}
    for dtype, tolerance in TOLERANCE.items():
        copy, same = deepcopy(learner).to(dtype), _as(episode, dtype)
        differences[dtype] = difference = _relative(metafast_step(copy, same)(), torch_func_step(copy, same)())
        print(f"meta-gradient against torch.func, {str(dtype)[6:]}: relative difference {difference:.1e}")
        if not difference < tolerance:
            raise RuntimeError(
                f"metafast and torch.func disagree on the meta-gradient: their relative difference in {str(dtype)[6:]} "
                f"is {difference:.1e}, where rounding explains {tolerance:g}"
            )
    ours, theirs = metafast_step(learner, episode), torch_func_step(learner, episode)
    _timed(ours, seconds / 8), _timed(theirs, seconds / 8)
    medians: dict[str, list[float]] = {"metafast": [], "torch.func": []}
    for _ in range(8):
        medians["torch.func"] += _timed(theirs, seconds / 16)
        medians["metafast"] += _timed(ours, seconds / 16)
    metafast, torch_func = (1e3 * statistics.median(medians[name]) for name in ("metafast", "torch.func"))
    ratio = torch_func / metafast
    print(f"one meta-step, medians: metafast {metafast:.3f} ms, torch.func {torch_func:.3f} ms, ratio {ratio:.1f}")
    return {
        "relative_difference": differences[torch.float32],
        "relative_difference_float64": differences[torch.float64],
        "metafast_ms": metafast,
        "torch_func_ms": torch_func,
        "ratio": ratio,
    }


def _as(episode: Episode, dtype: torch.dtype) -> Episode:
    (xs, ys), (xq, yq) = episode
    return Episode((xs.to(dtype), ys.to(dtype)), (xq.to(dtype), yq.to(dtype)))


def _relative(a: list[Tensor], b: list[Tensor]) -> float:
    """|a - b| / |b| of the two gradients as vectors."""
    x, y = (torch.cat([part.flatten() for part in gradient]).double() for gradient in (a, b))
    return float((x - y).norm() / y.norm())


def _timed(step: Gradient, seconds: float) -> list[float]:
    """Seconds of each call, for at least three calls and about ``seconds``."""
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < stop:
        begin = time.perf_counter()
        gradient = step()
        if gradient[0].is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return times
