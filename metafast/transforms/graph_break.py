"""Where the graph of torch.compile ends.

Importing this imports the compiler, which takes seconds, so only the compiler's own tracing does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from metafast.transforms import is_compiling, refuse

_REASON = "metafast runs its inner loop in an engine of its own, which torch.compile cannot trace"
#: Not every release of torch takes a reason.
_SAID = {"reason": _REASON} if "reason" in inspect.signature(torch.compiler.disable).parameters else {}


def _call(name: str, function: Callable[..., Any], args: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    """``function(*args, **keywords)``, uncompiled. What still says that it compiles is torch.export."""
    if is_compiling():
        refuse(name, "torch.export", "an exported program holds no engine; export the adapted model instead")
    return function(*args, **keywords)


call: Callable[..., Any] = torch.compiler.disable(_call, **_SAID)  # type: ignore[no-untyped-call,unused-ignore]
