"""What a law is: a function of one :class:`Case`, and the rows, backends and dtypes that it speaks about.

It raises AssertionError where it is broken. The laws themselves are in laws.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from judge import Case
from row import Row


@dataclass(frozen=True)
class Law:
    check: Callable[[Case], None]
    applies: Callable[[Row], bool]
    backends: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]

    @property
    def name(self) -> str:
        return self.check.__name__

    def cases(self, rows: list[Row], device: str) -> Iterator[Case]:
        for row in filter(self.applies, rows):
            for backend in self.backends:
                if row.native or backend == "torch":
                    yield from (Case(row, dtype, device, backend) for dtype in self.dtypes)


BOTH, NATIVE = ("native", "torch"), ("native",)
FLOAT64, EITHER = (torch.float64,), (torch.float64, torch.float32)


def joining(laws: list[Law]) -> Callable[..., Callable[[Callable[[Case], None]], Callable[[Case], None]]]:
    """The decorator ``@law`` with which a function joins the list."""

    def law(
        applies: Callable[[Row], bool] = lambda row: True,
        backends: tuple[str, ...] = NATIVE,
        dtypes: tuple[torch.dtype, ...] = FLOAT64,
    ) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
        def register(check: Callable[[Case], None]) -> Callable[[Case], None]:
            laws.append(Law(check, applies, backends, dtypes))
            return check

        return register

    return law
