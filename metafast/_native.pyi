"""The compiled engine, as csrc/binding.cpp declares it. An address of 0 means that there is no such array."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

# x, y, w, dx, dy, dw (addresses); number of examples; whether y holds classes; whether each step has its own minibatch
_Set = tuple[int, int, int, int, int, int, int, bool, bool]
# address; stride in elements from one task (or inner step) to the next, 0 if they share the array
_Strided = tuple[int, int]

class _BuildInfo(TypedDict):
    version: str
    isa: str
    isas: list[str]
    cuda: bool
    cuda_archs: str
    compiler: str

class Program:
    def __init__(
        self,
        values: Sequence[Sequence[int]],
        parameters: Sequence[tuple[Sequence[int], str]],
        steps: Sequence[tuple[str, Sequence[int], int, Sequence[int], Mapping[str, float]]],
        loss: str,
        loss_attributes: Mapping[str, float],
    ) -> None: ...

def call(
    program: Program,
    is_double: bool,
    tasks: int,
    steps: int,
    threads: int,
    first_order: bool,
    sweep: bool,
    memory: int,
    hessian_vector: bool,
    support: _Set | None,
    query: _Set | None,
    parameters: Sequence[_Strided],
    vectors: Sequence[_Strided],
    rate_table: int,
    elementwise: Sequence[_Strided],
    rate_table_gradient: int,
    elementwise_gradient: Sequence[int],
    loss_cotangent_all: float,
    loss_cotangent: int,
    logits_cotangent: int,
    adapted_cotangent: Sequence[int],
    support_loss: int,
    task_loss: int,
    loss: int,
    logits: int,
    adapted: Sequence[int],
    gradients: Sequence[tuple[int, bool]],
    workspace: int,
    workspace_bytes: int,
    # style; device; stream; tasks at a time; constants (address and bytes)
    device: tuple[int, int, int, int, int, int] | None = None,
) -> Any: ...
def device_obstacle(program: Program) -> str: ...
def elementary(name: str, is_double: bool, x: int, y: int, n: int) -> None: ...
def build_info() -> _BuildInfo: ...
