"""Tensors of zeros, and of ones: maps of no element at all. What is not filled yet counts as zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metafast.model.builder import Builder, Place
from metafast.model.layers.casts import unchanged
from metafast.model.layers.rearrangement import rearranged
from metafast.model.layers.table import lowers


@lowers("new_zeros")
def new_zeros(b: Builder, input: Any, *size: Any, dtype: Any = None, device: Any = None) -> Place:
    input = unchanged(b, input, dtype, device)
    made: Place = rearranged(b, Tensor.new_zeros, (input, *size), {}, False, "zeros")
    return made


@lowers(torch.zeros_like)
def zeros_like(b: Builder, input: Any, *, dtype: Any = None, device: Any = None, memory_format: Any = None) -> Place:
    input = unchanged(b, input, dtype, device)
    made: Place = rearranged(b, torch.zeros_like, (input,), {}, False, "zeros")
    return made


@lowers(torch.ones_like)
def ones_like(b: Builder, input: Any, *, dtype: Any = None, device: Any = None, memory_format: Any = None) -> Place:
    return b.elementwise("affine", zeros_like(b, input, dtype=dtype, device=device), {"scale": 0, "shift": 1})


@lowers("new_empty")
def new_empty(b: Builder, input: Any, *size: Any, dtype: Any = None, device: Any = None) -> Place:
    return new_zeros(b, input, *size, dtype=dtype, device=device)


@lowers(torch.empty_like)
def empty_like(b: Builder, input: Any, *, dtype: Any = None, device: Any = None, memory_format: Any = None) -> Place:
    return zeros_like(b, input, dtype=dtype, device=device, memory_format=memory_format)


@lowers(torch.empty, torch.zeros)
def zeros(b: Builder, size: Any, *, dtype: Any = None, device: Any = None) -> Place:
    """Of sizes with N among them: others are made while the model is traced."""
    return new_zeros(b, b.input, size, dtype=torch.get_default_dtype() if dtype is None else dtype, device=device)
