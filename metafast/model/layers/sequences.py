"""Sequences of several lengths, which torch packs.

A packed sequence is native as a padded one with a mask. A length chooses a row of the identity, of which both the mask
and the last step are linear maps. Behind the end of a sequence numbers must be finite: they are multiplied by zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch.nn.utils import rnn

from metafast.model.builder import Builder, Place, described
from metafast.model.layers.arithmetic import affine, shifted
from metafast.model.layers.embeddings import chosen
from metafast.model.layers.pairs import pair
from metafast.model.layers.products import product, viewed
from metafast.model.layers.table import lowers


@dataclass(frozen=True, eq=False)
class Packed:
    """A PackedSequence, by what it was made from."""

    type_in_torch = rnn.PackedSequence
    steps: Place  # [N, L, C]; behind the end of a sequence anything finite
    lengths: Place  # [N]
    last: Place  # [N, L]: 1 at the last step of each sequence, else 0
    mask: Place  # [N, L, 1]: 1 up to there

    def __repr__(self) -> str:
        return "a packed sequence"

    def of(self, steps: Place) -> Packed:
        """Other steps of sequences of the same lengths."""
        return Packed(steps, self.lengths, self.last, self.mask)


@lowers(rnn.pack_padded_sequence)
def pack(b: Builder, input: Any, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True) -> Packed:
    if enforce_sorted:
        b.refuse("is native with enforce_sorted=False; else torch looks whether the sequences are sorted")
    steps = sequence(b, input, batch_first)
    if not isinstance(lengths, Place) or lengths.shape or lengths.shared:
        b.refuse(f"takes {described(lengths)} for the lengths; native are integers [N] that the model is given")
    count = steps.shape[0]
    last = chosen(b, shifted(b, lengths, -1) if lengths.integers else lengths, count)
    table = [step if step >= first else -1 for first in range(count) for step in range(count)]
    mask = b.emit("sparse_map", (last,), (count, 1), table=table, says="mask")
    return Packed(steps, lengths, last, mask)


def sequence(b: Builder, input: Any, batch_first: bool) -> Place:
    """[N, L, C] of what torch has in this order."""
    if not isinstance(input, Place) or input.shared or len(input.shape) != 2 or input.axis != (not batch_first):
        b.refuse(f"is native for sequences {'[N, L, C]' if batch_first else '[L, N, C]'} with the axis N of examples")
    place = b.first(input)
    b.read(place)
    return place


@lowers(rnn.pad_packed_sequence)
def pad(
    b: Builder, sequence: Any, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None
) -> tuple[Place, Place]:
    if not isinstance(sequence, Packed):
        b.refuse(f"takes {described(sequence)}; native is a packed sequence")
    count = sequence.steps.shape[0]
    if total_length not in (None, count) or (total_length is None and padding_value != 0):
        b.refuse(f"is native with total_length={count}, which is that of the sequences before they were packed")
    padded = masked(b, sequence.steps, sequence.mask)
    if padding_value != 0:
        padded = pair(b, "add", padded, affine(b, sequence.mask, -padding_value, padding_value))
    whole = Place(padded.value, padded.shape, axis=int(not batch_first), ragged=total_length is None)
    return whole, sequence.lengths


def masked(b: Builder, steps: Place, mask: Place) -> Place:
    return pair(b, "multiply", steps, mask)


def chosen_step(b: Builder, steps: Place, choice: Place) -> Place:
    """Of each example [L, ...] the step at which ``choice`` [L] is 1 and not 0."""
    rest = steps.shape[1:]
    flat = viewed(steps, (steps.shape[0], math.prod(rest)))
    return viewed(product(b, viewed(choice, (1, *choice.shape)), flat), rest)
