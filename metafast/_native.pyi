"""The compiled engine, as csrc/python/binding.cpp declares it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from torch import Tensor

# number of examples; whether y holds classes; whether each step has its own minibatch
_Set = tuple[int, bool, bool]

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
        nodes: Sequence[
            tuple[str, Sequence[int], int, Sequence[int], Mapping[str, float], Sequence[int], Sequence[float]]
        ],
        loss: str,
        loss_attributes: Mapping[str, float],
        reduction: str,
        loss_sums: bool = False,
        class_weights: Sequence[float] = (),
    ) -> None: ...

class Session:
    """One kind of call, prepared once; to be run by one thread at a time.

    Inputs and outputs are those tensors that there are, in the order in which they were named
    (:mod:`metafast.engine.signature`); the seed of random nodes is on the CPU.
    """

    def __init__(
        self,
        program: Program,
        is_double: bool,
        tasks: int,
        steps: int,
        threads: int,
        estimator: tuple[str, int],  # its name, and its argument if it has one
        rule: Sequence[tuple[str, int]],  # name and flags of each link
        sweep: bool,
        memory: tuple[int, int],  # how it is chosen, and steps between checkpoints
        packing: int,
        sharing: int,
        loss_cotangent: float,
        support: _Set | None,
        query: _Set | None,
        parameters: Sequence[bool],  # whether it differs per task
        hypers: Sequence[
            Sequence[bool]
        ],  # whether values per element differ per step, for each adapted parameter or none
        gradients: Sequence[bool],  # whether per task rather than summed
        inputs: Sequence[tuple[str, int, int]],
        outputs: Sequence[tuple[tuple[str, int, int], Tensor]],  # and what it is like
        empty_like: Callable[[Tensor], Tensor],
        zeros_like: Callable[[Tensor], Tensor],
        # style; index of the device; tasks at a time, 0 for all; whether linear layers and convolutions may use TF32
        device: tuple[int, int, int, bool, bool] | None,
    ) -> None: ...
    @property
    def bytes(self) -> int: ...
    @property
    def tasks_at_once(self) -> int: ...
    @property
    def migrated(self) -> int: ...
    @property
    def constants_bytes(self) -> int: ...
    def upload(self, constants: int, stream: int) -> None: ...
    def run(self, inputs: Sequence[Tensor], workspace: int, stream: int = 0) -> list[Any]: ...

class Contents:
    def __init__(self, dictionaries: Sequence[dict[Any, Any]], tensors: Sequence[Tensor]) -> None: ...
    def hold(self) -> bool: ...

class RepeatedCall:
    """A session's call for other tensors of the same kind. Owns nothing: whoever makes it keeps its arguments alive."""

    def __init__(
        self,
        session: Session,
        metadata: bytes,
        places: Sequence[int],
        own: Sequence[Tensor | None],
        checks: Sequence[tuple[int, int, Callable[[Tensor], None]]],  # which tensor, its number of classes or 0
        contents: Contents,
        is_unchanged: Callable[[], bool],
        threads: Callable[[], int],
        workspace: Callable[[int], Any],
    ) -> None: ...
    def fits(self, tensors: tuple[Any, ...]) -> bool: ...
    def run(self, tensors: tuple[Any, ...]) -> list[Any] | None: ...

def wrap_around(
    threads: int, runs: int, stages: Sequence[float], rest: float
) -> list[list[tuple[int, int, int, int, int]]]: ...
def metadata(tensors: tuple[Tensor | None, ...]) -> bytes | None: ...
def holds_classes(tensor: Tensor, classes: int) -> bool: ...
def rows_add_up(tensor: Tensor, share: float) -> bool: ...

# The parameters that were moved, or None where torch has to take the step: its groups and its state, of each tensor.
def adam_step(groups: list[dict[str, Any]], state: dict[Tensor, Any], threads: int) -> list[Tensor] | None: ...
def sgd_step(groups: list[dict[str, Any]], state: dict[Tensor, Any], threads: int) -> list[Tensor] | None: ...
def device_obstacle(program: Program) -> str: ...
def elementary(name: str, is_double: bool, x: int, y: int, n: int) -> None: ...
def primitives() -> dict[str, bool]: ...
def philox(counter: Sequence[int], key: int) -> list[int]: ...
def build_info() -> _BuildInfo: ...

# Losses by name: settings with their defaults, whether targets may be classes, and numbers.
def losses() -> dict[str, tuple[dict[str, float], bool, bool]]: ...

# Links of rules by name: how many numbers of state and hyper-parameters each has, whether it scales whole gradients.
def links() -> dict[str, tuple[int, int, bool]]: ...
def link_step(name: str, flags: int, k: int, hypers: Sequence[float], element: Sequence[float]) -> list[float]: ...
def link_bars(
    name: str,
    flags: int,
    k: int,
    hypers: Sequence[float],
    element: Sequence[float],
    bars: Sequence[float],
    by_duals: bool,
) -> list[float]: ...
