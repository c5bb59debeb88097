"""Ctrl-C and SIGTERM as requests."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interruption:
    """While it lasts, SIGINT and SIGTERM are requests, which the loop grants between two meta-steps.

    An exception in the middle of an optimiser's step would leave half the weights updated. A second SIGINT raises
    KeyboardInterrupt as usual, for who cannot wait. Signals reach the main thread alone: in another they are left as
    they are.
    """

    def __init__(self) -> None:
        self.requested = False
        self._former: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.requested

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for which in (signal.SIGINT, signal.SIGTERM):
                self._former[which] = signal.signal(which, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for which, handler in self._former.items():
            signal.signal(which, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
