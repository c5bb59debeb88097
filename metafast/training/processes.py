"""The tasks of a meta-batch shared by several processes of torch.distributed, or done by one.

The loss is a mean over tasks, so with T_r of the T tasks on rank r

    d loss / d theta = sum_r (T_r / T) d loss_r / d theta,

which one sum over all ranks of one flat vector gives, whatever the T_r. The losses travel in the same vector, and a
flag by which a rank asks for a pause; so all ranks see the same numbers, and decide alike.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors as flatten
from torch._utils import _unflatten_dense_tensors as unflatten

from metafast.learner import MAML
from metafast.training import sources

Found = TypeVar("Found")


class Taken(NamedTuple):
    """What a meta-step found, the same on every rank."""

    support_loss: Tensor  # [T, K], or of several processes the mean before the first step, [1, 1]
    loss: Tensor  # []
    gradients: Sequence[Tensor]
    asked: bool  # for a pause, by any rank


class Alone:
    """One process."""

    rank, size = 0, 1

    def gradient(self, learner: MAML, episode: sources.Pair, asked: Callable[[], bool]) -> Taken:
        out, gradients = learner.meta_gradient(*episode)
        return Taken(out.support_loss, out.loss, gradients, asked())

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Of each flag, whether any process raises it."""
        return flags

    def agree(self, learner: nn.Module) -> None:
        """Begin with the weights of rank 0."""

    def from_first(self, find: Callable[[], Found]) -> Found:
        """What ``find`` returns or raises on rank 0, on all ranks: others need not see its files."""
        return find()


class Together(Alone):
    """One of several processes."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size, self.device = dist.get_rank(), dist.get_world_size(), device

    def gradient(self, learner: MAML, episode: sources.Pair, asked: Callable[[], bool]) -> Taken:
        support, query = episode
        tasks = sources.count(episode)
        if tasks < self.size:
            raise ValueError(f"a meta-batch of {tasks} tasks is too small for {self.size} processes: one task each")
        own = slice(tasks * self.rank // self.size, tasks * (self.rank + 1) // self.size)
        out, gradients = learner.meta_gradient(tuple(t[own] for t in support), tuple(t[own] for t in query))
        facts = torch.stack([out.support_loss[:, :1].mean(), out.loss, out.loss.new_zeros(())])
        flat = flatten([*gradients, facts]) * ((own.stop - own.start) / tasks)  # type: ignore[no-untyped-call]
        flat[-1] = float(asked())
        dist.all_reduce(flat)
        *summed, facts = unflatten(flat, [*gradients, facts])  # type: ignore[no-untyped-call]
        return Taken(facts[0].view(1, 1), facts[1], summed, bool(facts[2] > 0))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        raised = torch.tensor([float(flag) for flag in flags], device=self.device)
        dist.all_reduce(raised)
        return tuple(bool(value > 0) for value in raised)

    def agree(self, learner: nn.Module) -> None:
        with torch.no_grad():
            for tensor in learner.state_dict().values():
                dist.broadcast(tensor, src=0)

    def from_first(self, find: Callable[[], Found]) -> Found:
        told: list[Any] = [None, None]  # what was found, or the error
        if self.rank == 0:
            try:
                told[0] = find()
            except Exception as error:
                told[1] = error
        dist.broadcast_object_list(told, src=0, device=self.device)
        if told[1] is not None:
            raise told[1]
        return told[0]  # type: ignore[no-any-return]


def processes(device: torch.device) -> Alone:
    """Those that this one is part of: of torch.distributed if it is running, or if torchrun's environment says so."""
    if not dist.is_available():
        return Alone()
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)  # not at the end of a training: another may follow
    return Together(device) if dist.is_initialized() and dist.get_world_size() > 1 else Alone()


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
