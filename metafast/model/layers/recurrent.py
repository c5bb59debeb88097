"""Recurrent layers, step by step: a step is a linear layer of the state, and gates.

All steps' products with the input are one linear layer. Each step's own part of it is taken by a sparse map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from metafast.model.builder import Builder, Place
from metafast.model.layers.arithmetic import affine
from metafast.model.layers.dropout import dropout
from metafast.model.layers.maps import linear
from metafast.model.layers.pairs import pair
from metafast.model.layers.rearrangement import rearranged
from metafast.model.layers.sequences import Packed, chosen_step, sequence
from metafast.model.layers.table import lowers_module

#: (builder, products with the input, weights of the state, state) -> state; the first of a state is its output.
State = tuple[Place, ...]
Step = Callable[[Builder, Place, tuple[Tensor, Tensor | None], State], State]


def _parts(b: Builder, gates: Place, count: int) -> list[Place]:
    return list(rearranged(b, torch.chunk, [gates, count, -1], {}, True, "gate"))


def _rnn(b: Builder, activation: str, x: Place, weights: tuple[Tensor, Tensor | None], state: State) -> State:
    return (b.elementwise(activation, pair(b, "add", x, linear(b, state[0], *weights))),)


def _gru(b: Builder, x: Place, weights: tuple[Tensor, Tensor | None], state: State) -> State:
    (h,) = state
    inputs, states = _parts(b, x, 3), _parts(b, linear(b, h, *weights), 3)
    reset, update = (b.elementwise("sigmoid", pair(b, "add", inputs[i], states[i])) for i in (0, 1))
    new = b.elementwise("tanh", pair(b, "add", inputs[2], pair(b, "multiply", reset, states[2])))
    return (pair(b, "add", new, pair(b, "multiply", update, pair(b, "subtract", h, new))),)


def _lstm(b: Builder, x: Place, weights: tuple[Tensor, Tensor | None], state: State) -> State:
    h, c = state
    gates = _parts(b, pair(b, "add", x, linear(b, h, *weights)), 4)
    take, forget, give = (b.elementwise("sigmoid", gates[i]) for i in (0, 1, 3))
    c = pair(b, "add", pair(b, "multiply", forget, c), pair(b, "multiply", take, b.elementwise("tanh", gates[2])))
    return pair(b, "multiply", give, b.elementwise("tanh", c)), c


def _zeros(b: Builder, like: Place, size: int) -> Place:
    """[N, size] of zeros: a sparse map of no elements."""
    return b.emit("sparse_map", (like,), (size,), table=[-1] * size, says="zeros")


def _joined(b: Builder, places: Sequence[Place], axis: int, function: Callable[..., Tensor]) -> Place:
    joined: Place = rearranged(b, function, [list(places), axis], {}, False, function.__name__)
    return joined


def _direction(
    b: Builder,
    step: Step,
    x: Place,
    weights: Sequence[Tensor | None],
    state: State,
    backwards: bool,
    packed: Packed | None,
) -> tuple[Place, State]:
    """The outputs of a layer in one direction, [N, L, H], and its last state. Of ``packed`` sequences a state goes on
    behind the end, where nobody reads it; and backwards it stays what it is until that is reached."""
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    assert weight_ih is not None and weight_hh is not None
    products = linear(b, x, weight_ih, bias_ih)
    each = list(rearranged(b, torch.unbind, [products, 1], {}, True, "step"))
    waits = rearranged(b, torch.unbind, [packed.mask, 1], {}, True, "mask") if packed and backwards else None
    first, states = state, []
    for t in range(len(each))[:: -1 if backwards else 1]:
        state = step(b, each[t], (weight_hh, bias_hh), state)
        if waits:
            state = tuple(_chosen(b, waits[t], *both) for both in zip(state, first, strict=True))
        states.append(state)
    ways = [[s[i] for s in (states[::-1] if backwards else states)] for i in range(len(state))]
    outputs = _joined(b, ways[0], 1, torch.stack)
    if packed and not backwards:
        stacked = [outputs, *(_joined(b, way, 1, torch.stack) for way in ways[1:])]
        state = tuple(chosen_step(b, way, packed.last) for way in stacked)
    return outputs, state


def _chosen(b: Builder, mask: Place, new: Place, old: Place) -> Place:
    """``new`` where the mask is 1, ``old`` where it is 0."""
    kept = pair(b, "multiply", old, affine(b, mask, -1, 1))
    return pair(b, "add", pair(b, "multiply", new, mask), kept)


def _recurrent(b: Builder, m: nn.RNNBase, input: Any, hx: Any, step: Step, states: int) -> tuple[Any, Any]:
    if m.proj_size:
        b.refuse("is not native with proj_size")
    packed = input if isinstance(input, Packed) else None
    x = sequence(b, input, m.batch_first) if packed is None else packed.steps
    given = _initial(b, m, x, hx, states)
    last: list[State] = []
    for layer in range(m.num_layers):
        outputs = []
        for d in range(1 + m.bidirectional):
            end = f"_l{layer}{'_reverse' * d}"
            names = (f"weight_ih{end}", f"weight_hh{end}", f"bias_ih{end}", f"bias_hh{end}")
            weights = [getattr(m, name) if m.bias or "bias" not in name else None for name in names]
            output, state = _direction(b, step, x, weights, given[len(last)], bool(d), packed)
            outputs.append(output)
            last.append(state)
        x = _joined(b, outputs, 2, torch.cat) if m.bidirectional else outputs[0]
        if layer < m.num_layers - 1:
            x = dropout(b, x, m.dropout, m.training)
    stacked = []
    for i in range(states):
        each = _joined(b, [state[i] for state in last], 1, torch.stack)
        stacked.append(Place(each.value, each.shape, each.memory, axis=1))  # torch has the layers first
    whole = x if m.batch_first else Place(x.value, x.shape, x.memory, axis=1)
    return packed.of(x) if packed else whole, stacked[0] if states == 1 else tuple(stacked)


def _initial(b: Builder, m: nn.RNNBase, x: Place, hx: Any, states: int) -> list[State]:
    """The state of each layer and direction before the first step."""
    count = m.num_layers * (1 + m.bidirectional)
    if hx is None:
        zero = _zeros(b, x, m.hidden_size)
        return [(zero,) * states for _ in range(count)]
    given = hx if isinstance(hx, tuple) else (hx,)
    if len(given) != states or any(not isinstance(h, Place) or h.shape != (count, m.hidden_size) for h in given):
        b.refuse(f"is given a first state other than [{count}, N, {m.hidden_size}]")
    layers = [list(rearranged(b, torch.unbind, [h, 0], {}, True, "state")) for h in given]
    return [tuple(layer[i] for layer in layers) for i in range(count)]


def _cell(b: Builder, m: Any, input: Place, hx: Any, step: Step, states: int) -> Any:
    b.rank(input, (1,), "[N, C]")
    given = hx if isinstance(hx, tuple) else (hx,)
    state = (_zeros(b, input, m.hidden_size),) * states if hx is None else tuple(map(b.place, given))
    if len(state) != states:
        b.refuse(f"is given {len(state)} states; it has {states}")
    products = linear(b, input, m.weight_ih, m.bias_ih)
    new = step(b, products, (m.weight_hh, m.bias_hh), state)
    return new[0] if states == 1 else new


@lowers_module(nn.RNN)
def _of_rnn(b: Builder, m: nn.RNN, x: Place, hx: Any = None) -> Any:
    return _recurrent(b, m, x, hx, partial(_activated, m.nonlinearity), 1)


@lowers_module(nn.RNNCell)
def _of_rnn_cell(b: Builder, m: nn.RNNCell, x: Place, hx: Any = None) -> Any:
    return _cell(b, m, x, hx, partial(_activated, m.nonlinearity), 1)


def _activated(name: str, b: Builder, x: Place, weights: tuple[Tensor, Tensor | None], state: State) -> State:
    return _rnn(b, name, x, weights, state)


lowers_module(nn.GRU)(lambda b, m, x, hx=None: _recurrent(b, m, x, hx, _gru, 1))
lowers_module(nn.LSTM)(lambda b, m, x, hx=None: _recurrent(b, m, x, hx, _lstm, 2))
lowers_module(nn.GRUCell)(lambda b, m, x, hx=None: _cell(b, m, x, hx, _gru, 1))
lowers_module(nn.LSTMCell)(lambda b, m, x, hx=None: _cell(b, m, x, hx, _lstm, 2))
