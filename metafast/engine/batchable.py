"""Which models may run all tasks at once on the torch engine, under :func:`torch.vmap`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from metafast.tracking import draws

#: Operations whose batched forward pass, differentiated twice, is tested against one task at a time. Not here on
#: purpose: normalisation, randomness, anything that reads a value back to Python, and convolution (per-task weights
#: turn into a grouped convolution, which is slower than one task after another).
BATCHABLE = frozenset(
    f"aten::{name}"
    for name in """
    abs add addmm bmm cat clone cos detach div elu exp expand gelu leaky_relu leaky_relu_ log mean mm mul neg
    permute pow relu relu_ select sigmoid silu silu_ sin slice softplus split sqrt squeeze sub sum t tanh
    transpose unsqueeze view _unsafe_view _softmax _log_softmax
    """.split()
)

#: Elements of the largest tensor that one task makes; beyond it, tasks together no longer fit a cache.
LARGE = 1 << 15


class Operations(draws.Mode):  # type: ignore[no-untyped-call]
    """Notes the name of every operation that runs, and the elements of the largest tensor that one makes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._schema.name)
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and func._schema.returns[0].alias_info is None:  # a view, of a weight too, is free
            self.largest = max(self.largest, made.numel())
        return made

    @property
    def batchable(self) -> bool:
        """Whether all tasks may run at once, to advantage."""
        return self.names <= BATCHABLE and self.largest <= LARGE
