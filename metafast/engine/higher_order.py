"""Every derivative of a model that torch runs: fused layers are replaced, as they are called, by plain operations.

The replacement happens where a call enters torch from Python, so it reaches ``nn`` modules, ``nn.functional``,
``torch.*`` and ``torch.ops.aten.*`` alike, in the calling thread alone, and changes neither the model nor torch.
Which layers need it is a matter of measurement: tests/test_higher_order.py compares the derivatives of torch's layers
with central differences up to the third order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from metafast.engine import formulas, recurrent

Function = Callable[..., Any]

#: torch's second derivative is missing, or (``_weight_norm``) wrong.
_SECOND: dict[str, Function] = {
    "_weight_norm": formulas.weight_norm,
    "cdist": formulas.cdist,
    "ctc_loss": formulas.ctc_loss,
    "embedding_bag": formulas.embedding_bag,
    "hardsigmoid": formulas.hardsigmoid,
    "hardsigmoid_": formulas.hardsigmoid_,
    "multi_margin_loss": formulas.multi_margin_loss,
    "multilabel_margin_loss": formulas.multilabel_margin_loss,
    "pdist": formulas.pdist,
}
#: torch's second derivative is right on some device or by some setting of its own, which a judge can ask for.
_BY_SETTING: dict[str, Function] = {"scaled_dot_product_attention": formulas.scaled_dot_product_attention}
#: torch's third derivative is wrong, or its kind is: one formula for all norms is easier to trust.
_THIRD: dict[str, Function] = {
    "batch_norm": formulas.batch_norm,
    "group_norm": formulas.group_norm,
    "instance_norm": formulas.instance_norm,
    "layer_norm": formulas.layer_norm,
    "logcumsumexp": formulas.logcumsumexp,
    "native_batch_norm": formulas.native_batch_norm,
    "native_layer_norm": formulas.native_layer_norm,
    "rms_norm": formulas.rms_norm,
}
#: Only where cuDNN would run them; on the CPU torch itself puts them together from plain operations.
_RECURRENT: dict[str, Function] = {
    "gru": recurrent.gru,
    "lstm": recurrent.lstm,
    "rnn_relu": recurrent.rnn_relu,
    "rnn_tanh": recurrent.rnn_tanh,
}


def _by_entry(formulas: dict[str, Function]) -> dict[Any, Function]:
    """The same formulas, by everything through which Python reaches the function of that name."""
    places = (torch._C._VariableFunctions, torch._C._nn, torch.Tensor, torch.ops.aten)
    found = {}
    for name, formula in formulas.items():
        for place in places:
            entry = getattr(place, name, None)
            if entry is not None:
                found[entry] = formula
    return found


_TWICE = _by_entry(_SECOND)
_EVERY = _by_entry(_SECOND | _BY_SETTING | _THIRD)
_ON_CUDA = _by_entry(_RECURRENT)
_FUSED = set(_BY_SETTING.values()) | set(_THIRD.values())

_CHECKPOINTS = (
    "metafast cannot differentiate a forward that checkpoints its activations (torch.utils.checkpoint) or packs saved "
    "tensors by hooks of its own; call it without, for the whole graph of a task is kept in any case"
)

#: Functions written in Python whose own calls are looked at in turn.
_PYTHON = ("torch.nn.functional", "torch.functional")


@functools.cache
def _opened(function: FunctionType) -> Function:
    """``function`` without its own test for an active mode, through which it would hand itself back for ever."""
    scope = function.__globals__
    tests = [name for name in scope if name.startswith("has_torch_function")]
    inside = {**scope, **dict.fromkeys(tests, lambda *arguments: False)}
    opened = FunctionType(function.__code__, inside, function.__name__, function.__defaults__, function.__closure__)
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


class WrittenOut(TorchFunctionMode):
    """While it is active, torch's functions have every derivative.

    ``differentiates`` notes whether one was taken by :func:`torch.autograd.grad`, ``replaces_fused`` whether a function
    was replaced that torch itself can differentiate twice.
    """

    def __init__(self, entries: dict[Any, Function] = _EVERY, recurrent: bool = True) -> None:
        super().__init__()
        self._entries, self._recurrent = entries, recurrent
        self.differentiates = False
        self.replaces_fused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = kwargs or {}
        entry = func.overloadpacket if isinstance(func, torch._ops.OpOverload) else func
        formula = self._entries.get(entry)
        if formula is not None:
            self.replaces_fused |= formula in _FUSED
            return formula(*args, **keywords)
        if entry in _ON_CUDA and self._recurrent and _is_padded_on_cuda(args):
            return _ON_CUDA[entry](*args)
        if func is torch.autograd.grad:
            self.differentiates = True
        if type(func) is not FunctionType or func.__globals__.get("__name__") not in _PYTHON:
            return func(*args, **keywords)
        with self:
            return _opened(func)(*args, **keywords)


def _is_padded_on_cuda(args: Any) -> bool:
    """Of a recurrent layer's arguments: packed sequences have their lengths in the place of ``hx``."""
    return isinstance(args[0], Tensor) and args[0].is_cuda and isinstance(args[3], bool)


@contextmanager
def in_own_dtype(device: torch.device) -> Iterator[None]:
    """Autocast off, as the native engine knows none: everything is computed in the dtype of the parameters."""
    if not torch.is_autocast_enabled(device.type):
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def without_checkpoints() -> Iterator[None]:
    """Refuses activation checkpointing: it computes again in backward, when the module holds its own parameters and no
    longer those that forward was given, and would give the gradient of another model.

    Hooks that the caller has set around everything stay.
    """
    with ExitStack() as stack:
        with suppress(RuntimeError):  # from the hooks of a caller
            stack.enter_context(torch.autograd.graph.disable_saved_tensors_hooks(_CHECKPOINTS))
        yield


@contextmanager
def on_fused_layers() -> Iterator[None]:
    """torch's own layers in their quickest form that has a second derivative."""
    with sdpa_kernel(SDPBackend.MATH), WrittenOut(_TWICE):
        yield


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """torch's own layers in the form that has a second derivative, for a judge that takes no third.

    Attention and recurrent layers by torch's own settings; only what torch cannot differentiate twice is replaced.
    """
    with (
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.cudnn.flags(enabled=False),
        WrittenOut(_TWICE, recurrent=False),
    ):
        yield
