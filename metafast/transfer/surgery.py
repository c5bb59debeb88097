"""A network trained before, made ready for a new task: its weights loaded, a new head, parts frozen."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from metafast import transforms
from metafast.transfer import weights as files
from metafast.transfer.names import chosen, nearest

Head = int | nn.Module | tuple[str, nn.Module]
Globs = str | Sequence[str]


def transfer(
    base: nn.Module,
    *,
    head: Head | None = None,
    freeze: Globs | None = None,
    unfreeze: Globs | None = None,
    weights: files.Weights | None = None,
) -> nn.Module:
    """A copy of ``base`` for a new task, of the same class and with the same names: ``weights`` loaded, ``head`` in the
    place of the old one, ``freeze`` without gradients.

    The result is an ordinary module. As the model of a :class:`metafast.MAML` it is adapted and meta-learnt but for
    what is frozen, and what stands before the adapted part runs once per task and set; ``adapt_params="head.*"`` (by
    the head's own name) adapts the head alone, ANIL (Raghu et al. 2020). :func:`metafast.explain` says where it is cut.

    A frozen parameter has ``requires_grad=False``. A submodule all of whose parameters are frozen stays in eval mode,
    with all that is in it, whatever ``train()`` says: its BatchNorm uses and keeps the running statistics of ``base``,
    its dropout passes. Copies and pickles of the result do the same.

    Args:
        base: any module; it is left as it is. Parameters that do not require grad stay frozen.
        head: a number of classes C, for an ``nn.Linear`` [C, in_features] in the place of the last linear layer, which
            is the last ``nn.Linear`` in ``base.named_modules()``; a module, which takes the same place; or
            ``(name, module)`` for the place of a submodule. None keeps the old head.
        freeze, unfreeze: globs over parameter names, such as ``"features.*"``; ``unfreeze`` has the last word. The
            parameters of a new head are none of those meant: ``freeze="*"`` freezes all but the head.
        weights: a state_dict of ``base``, or a file with one, in safetensors (by its suffix) or of ``torch.save``. What
            it holds for a head that is replaced is not looked at; all else must fit by name and shape.

    Raises:
        ValueError: a glob that matches nothing, a head without a place, or weights that do not fit; with the nearest
            names.
        FileNotFoundError, ImportError: no such file; safetensors is not installed.
        TypeError: an argument of another kind.
    """
    base = transforms.original(base)
    if not isinstance(base, nn.Module):
        raise TypeError(f"base must be a torch.nn.Module; it is a {type(base).__name__}")
    network = copy.deepcopy(base)
    place = None if head is None else _place(network, head)
    if weights is not None:
        files.load(network, weights, place)
    if place is not None:
        network.set_submodule(place, _made(network.get_submodule(place), head, place))
    names = {name: p for name, p in network.named_parameters() if place is None or not name.startswith(f"{place}.")}
    frozen, trained = chosen("freeze", freeze, names), chosen("unfreeze", unfreeze, names)
    for name, parameter in names.items():
        if name in frozen | trained:
            parameter.requires_grad_(name in trained)
    _keep_frozen_in_eval_mode(network)
    return network


def head_of(network: nn.Module) -> str:
    """The name of the last linear layer. Raises ValueError if there is none."""
    # torch's own subclass is the output projection of attention, which has no input of its own
    linear: list[str] = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)
    ]
    if not linear or not linear[-1]:
        kinds = ", ".join(f"{name!r} ({type(module).__name__})" for name, module in network.named_children())
        raise ValueError(
            f"head: {type(network).__name__} has no submodule that is an nn.Linear, whose place a new head would take; "
            f"pass (name, module). It consists of {kinds or 'no submodules'}"
        )
    return linear[-1]


def _place(network: nn.Module, head: Any) -> str:
    """The name of the submodule that a new head replaces."""
    if not isinstance(head, tuple):
        if isinstance(head, nn.Module) or (isinstance(head, int) and not isinstance(head, bool) and head > 0):
            return head_of(network)
        raise TypeError(f"head must be a number of classes > 0, a module or (name, module); it is {head!r}")
    if len(head) != 2 or not isinstance(head[0], str) or not isinstance(head[1], nn.Module):
        raise TypeError(f"head must be (name, module); it is {head!r}")
    names = [name for name, _ in network.named_modules() if name]
    if head[0] not in names:
        raise ValueError(f"head: {type(network).__name__} has no submodule {head[0]!r}; {nearest(head[0], names)}")
    return str(head[0])


def _made(old: nn.Module, head: Any, place: str) -> nn.Module:
    new: int | nn.Module = head[1] if isinstance(head, tuple) else head
    if isinstance(new, int):
        assert isinstance(old, nn.Linear)
        like = {"dtype": old.weight.dtype, "device": old.weight.device}
        return nn.Linear(old.in_features, new, bias=old.bias is not None, **like)
    if isinstance(old, nn.Linear) and isinstance(new, nn.Linear) and old.in_features != new.in_features:
        raise ValueError(
            f"head: the new layer takes {new.in_features} features; {place!r} takes {old.in_features}, "
            f"nn.Linear({old.in_features}, {new.out_features})"
        )
    return copy.deepcopy(new)


class _StaysInEvalMode:
    """The ``train`` of a frozen submodule, as an attribute of its own.

    An object that holds the submodule and no closure, so that it is copied and pickled with it.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, mode: bool = True) -> nn.Module:
        return type(self.module).train(self.module, False)


def _keep_frozen_in_eval_mode(network: nn.Module) -> None:
    """Give every largest submodule whose parameters are all frozen a ``train`` that stays in eval mode; and take it
    from those that were frozen earlier and no longer are."""
    for module in network.modules():
        if isinstance(module.__dict__.get("train"), _StaysInEvalMode):
            del module.__dict__["train"]
            module.train(network.training)
    waiting = [network]
    while waiting:
        module = waiting.pop()
        parameters = [*module.parameters()]
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.__dict__["train"] = _StaysInEvalMode(module)
            module.train()
        else:
            waiting += module.children()
