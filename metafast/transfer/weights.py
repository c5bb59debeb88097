"""Weights of a network trained before: read from a file that executes nothing, and fitted to a module by name."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metafast.transfer.names import some

Weights = Mapping[str, Any] | str | Path


def read(path: str | Path) -> Mapping[str, Any]:
    """The state_dict in a file: safetensors by its suffix, else what ``torch.save`` wrote, read with
    ``weights_only=True``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds more than tensors.
        ImportError: safetensors is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: there is no file {path}")
    return _safetensors(path) if path.suffix == ".safetensors" else _torch(path)


def _torch(path: Path) -> Mapping[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"weights: {path} is damaged, or holds more than tensors; expected what torch.save(module.state_dict(), "
            "path) writes, which executes nothing. If you trust it: torch.load(path, weights_only=False).state_dict()"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"weights: {path} is damaged or no file of torch.save ({error})") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"weights: {path} holds a {type(state).__name__}; expected a state_dict, name -> tensor")
    return state


def _safetensors(path: Path) -> Mapping[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"weights: {path} needs safetensors: pip install 'metafast[transfer]'") from error
    try:
        return load_file(path)  # type: ignore[no-any-return,unused-ignore]
    except SafetensorError as error:
        raise ValueError(f"weights: {path} is damaged or no safetensors file ({error})") from error


def load(module: nn.Module, weights: Weights, replaced: str | None = None) -> None:
    """Copy ``weights``, a state_dict or the path of one, into ``module``; but for what belongs to its submodule
    ``replaced``, which may be absent, of another shape or called otherwise.

    Raises ValueError where anything else is missing, left over or of another shape, with names and shapes.
    """
    given = _checked(read(weights) if isinstance(weights, (str, Path)) else weights)

    def kept(name: str) -> bool:
        return replaced is None or not name.startswith(f"{replaced}.")

    own = {name: value for name, value in module.state_dict().items() if kept(name)}
    given = {name: value for name, value in given.items() if kept(name)}
    wrong = _prefix(own, given) or _misfits(own, given)
    if wrong:
        raise ValueError(f"weights do not fit {type(module).__name__}: {wrong}")
    module.load_state_dict(given, strict=False)


def _checked(state: Any) -> Mapping[str, Any]:
    """A state_dict, and not a checkpoint that holds one."""
    if not isinstance(state, Mapping):
        raise TypeError(f"weights must be a state_dict or the path of a file with one; it is a {type(state).__name__}")
    inside = [
        key
        for key, value in state.items()
        if isinstance(value, Mapping) and value and all(isinstance(item, Tensor) for item in value.values())
    ]
    if inside:
        raise ValueError(
            f"weights hold {some([repr(key) for key in state])}, of which {inside[0]!r} is a state_dict; "
            f"pass that: weights[{inside[0]!r}]"
        )
    return state


def _misfits(own: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """In words, what of a state_dict does not fit that of a module; empty if all does."""
    missing = [name for name in own if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in own]
    both = [name for name in own if name in given and _shape(own[name]) != _shape(given[name])]

    def beside(name: str, names: list[str]) -> str:
        close = get_close_matches(name, names, n=1)
        return f" (nearest: {close[0]!r})" if close else ""

    lines = [
        (f"{len(missing)} missing: ", [f"{name!r} {_shape(own[name])}{beside(name, unexpected)}" for name in missing]),
        (
            f"{len(unexpected)} unexpected: ",
            [f"{name!r} {_shape(given[name])}{beside(name, missing)}" for name in unexpected],
        ),
        (
            f"{len(both)} of another shape: ",
            [f"{name!r} {_shape(given[name])} where {_shape(own[name])} is expected" for name in both],
        ),
    ]
    return "; ".join(head + some(items) for head, items in lines if items)


def _shape(value: Any) -> Any:
    return list(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _prefix(own: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """In words, the prefix by which all names differ, as those of a network in nn.DataParallel do; or empty."""
    first = next(iter(given), "").partition(".")[0] + "."
    if all(name.startswith(first) for name in given) and {name.removeprefix(first) for name in given} == own.keys():
        return (
            f"all names begin with {first!r}, and fit without it: "
            f"torch.nn.modules.utils.consume_prefix_in_state_dict_if_present(weights, {first!r})"
        )
    return ""
