"""Several tensors in a tuple, a list or a dict, which stand in one tensor for the engines: what a model returns, and
the targets of a loss function of the user's own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.immutable_collections import immutable_dict

from metafast.call import tensors_of
from metafast.model.builder import Builder, Place, described
from metafast.model.inputs import Inputs
from metafast.model.layers.rearrangement import rearranged


@dataclass(frozen=True)
class Several:
    """One tensor, or several in tuples, lists and dicts within each other.

    Attributes:
        form: None for a tensor; else what holds others, its keys if it has any, and their forms.
        rows: what the tensors of one example are like, and how they stand one behind the other.
    """

    form: Hashable
    rows: Inputs

    @classmethod
    def of(cls, x: Any, lead: int) -> Several:
        """Of tensors behind ``lead`` axes."""
        return cls(_form(x), Inputs(tuple([(tuple(t.shape[lead:]), t.dtype) for t in tensors_of(x)])))

    @property
    def one(self) -> bool:
        """Whether it is a tensor by itself."""
        return self.form is None

    def alike(self, x: Any) -> bool:
        """Whether x are as many tensors in the same containers."""
        return _form(x) == self.form

    def pack(self, x: Any, dtype: torch.dtype) -> Tensor:
        """[..., total] of tensors [..., *shape]."""
        return self.rows.pack(tensors_of(x), dtype)

    def unpack(self, x: Any) -> Any:
        """What stands in x [..., total], or in what takes its place while a loss is traced; more may stand behind."""
        return self.built(self.rows.unpack(x))

    def built(self, tensors: Iterator[Any]) -> Any:
        return _built(self.form, tensors)

    def __str__(self) -> str:
        return str(self.rows) if self.one else f"{len(self.rows.parts)} tensors: {self.rows}"


def _form(x: Any) -> Hashable:
    if isinstance(x, dict):
        return dict, tuple(x), tuple(map(_form, x.values()))
    if isinstance(x, (tuple, list)):
        kind = list if isinstance(x, list) else type(x) if hasattr(x, "_make") else tuple
        return kind, None, tuple(map(_form, x))
    return None


def _built(form: Any, tensors: Iterator[Any]) -> Any:
    if form is None:
        return next(tensors)
    kind, keys, forms = form
    made = [_built(each, tensors) for each in forms]
    if kind is dict:
        return dict(zip(keys, made, strict=True))
    return kind._make(made) if hasattr(kind, "_make") else kind(made)


def strange(x: Any) -> str:
    """Which container in x is no tuple, list or dict of something: a class of the user's own, which may have more than
    its items. Empty if there is none."""
    if not isinstance(x, (tuple, list, dict)):
        return ""
    if not x:
        return f"an empty {type(x).__name__}"
    if isinstance(x, dict) and type(x) not in (dict, OrderedDict, immutable_dict):
        return f"a {type(x).__name__}"
    return next(filter(None, map(strange, x.values() if isinstance(x, dict) else x)), "")


def in_one(b: Builder, outputs: Any, *behind: Place) -> Place:
    """[N, total] of what a model returns, with rows ``behind`` it."""
    found: tuple[Any, ...] = tensors_of(outputs)
    for each in found:
        if not isinstance(each, Place):
            among = "" if each is outputs else f", among {len(found)} outputs"
            b.refuse(f"returns {described(each)}{among}; native are tensors computed from the input")
    places = [b.output(place) for place in found]
    kinds = [(place.shape, b.dtype) for place in places]
    b.outputs = Several(_form(outputs), Inputs(tuple(kinds)))
    rows = [*(_row(b, place) for place in places), *behind]
    return rearranged(b, torch.cat, [rows, 1], {}, False, "outputs") if len(rows) > 1 else rows[0]


def _row(b: Builder, place: Place) -> Place:
    if not place.shape:
        return Place(place.value, (1,), [])
    return rearranged(b, torch.flatten, [place, 1], {}, True, "flatten") if len(place.shape) > 1 else place
