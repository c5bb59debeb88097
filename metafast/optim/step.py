"""The step that the optimisers of this package take instead of torch's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, overload

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import Optimizer, optimizer

try:
    from metafast._native import adam_step, sgd_step
except ImportError:  # installed without the native engine

    def adam_step(groups: list[dict[str, Any]], state: dict[Tensor, Any], threads: int) -> list[Tensor] | None:
        """The parameters that C++ has moved, or None where it could not."""
        return None

    sgd_step = adam_step

__all__ = ["NativeStep", "adam_step", "sgd_step"]

_profiles: Callable[[], bool] = torch.autograd._profiler_enabled  # type: ignore[attr-defined]
#: Dictionaries that stay the same objects.
_HOOKS_OF_ALL = (optimizer._global_optimizer_pre_hooks, optimizer._global_optimizer_post_hooks)


class Step(Protocol):
    """A native step of the parameters in ``groups``; which it has moved, or None where torch has to take the step."""

    def __call__(
        self, groups: list[dict[str, Any]], state: dict[Tensor, Any], threads: int, /
    ) -> list[Tensor] | None: ...


class NativeStep(Optimizer):
    """To stand before an optimiser of torch, whose tensors, state and settings ``_native`` understands.

    torch takes the step itself where C++ cannot: the first one with every parameter, for which it makes the state; for
    tensors on a GPU, of other dtypes or not contiguous; and where a group asks for ``foreach``, ``fused``,
    ``capturable`` or ``differentiable``. What it refuses, such as sparse gradients, it refuses here too.
    """

    _native: ClassVar[Step]

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move every parameter that has a gradient, in place.

        Args:
            closure: computes the loss and the gradients anew, and returns the loss, as this step then does.
        """
        hooks = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks or any(_HOOKS_OF_ALL)
        if closure is not None or hooks or _profiles():
            # With the very arguments of the caller: hooks are handed them.
            return self._observed_step() if closure is None else self._observed_step(closure)
        self._move()
        return None

    #: For torch, which would wrap it in what _observed_step does only where somebody observes.
    step.hooked = True  # type: ignore[attr-defined]

    @Optimizer.profile_hook_step
    def _observed_step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._move()
        return loss

    def _move(self) -> None:
        if not torch.compiler.is_compiling():
            moved = type(self)._native(self.param_groups, self.state, torch.get_num_threads())
            if moved is not None:
                increment_version(moved)  # as torch's own writes do: autograd notices a graph that is out of date
                return
            with torch.set_grad_enabled(self.defaults["differentiable"]):
                inspect.unwrap(super().step)(self)  # without hooks, which were called, and the compiler's import
        else:
            super().step()

    # These three without what torch wraps around them, which imports its compiler: seconds, for any program that has an
    # optimiser.

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Optimise further parameters, with settings of their own."""
        inspect.unwrap(Optimizer.add_param_group)(self, param_group)

    def state_dict(self) -> dict[str, Any]:
        """The state and the groups, as torch's optimiser of this name has them."""
        made: dict[str, Any] = inspect.unwrap(Optimizer.state_dict)(self)
        return made

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` of this optimiser, or of torch's, has returned."""
        inspect.unwrap(Optimizer.load_state_dict)(self, state_dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, or with ``set_to_none=False`` fill them with zeros."""
        if not set_to_none or _profiles() or torch.compiler.is_compiling():
            super().zero_grad(set_to_none)
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
