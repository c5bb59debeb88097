"""Which torch layers, functions and methods have a native form: one small handler each.

A handler receives the :class:`~metafast.model.builder.Builder` and then exactly the arguments of the torch function it
stands for; it appends Nodes and returns the :class:`~metafast.model.builder.Place` of the result. To support another
layer, write one handler in the file of its kind and name the torch functions and methods it stands for in
``@lowers(...)``, and its module in ``lowers_module(...)``. Handlers refuse with a predicate: the name of the layer is
put before it.
"""

from metafast.model.layers import (
    arithmetic,
    attention,
    casts,
    constants,
    convolutions,
    derivatives,
    dropout,
    embeddings,
    gates,
    indexing,
    losses,
    maps,
    masks,
    norms,
    pairs,
    parametrizations,
    pointwise,
    pooling,
    products,
    rearrangement,
    recurrent,
    resampling,
    sequences,
    shapes,
    softmax,
)
from metafast.model.layers.table import FUNCTIONS, METHODS, MODULES, POINTWISE

__all__ = [
    "FUNCTIONS",
    "METHODS",
    "MODULES",
    "POINTWISE",
    "arithmetic",
    "attention",
    "casts",
    "constants",
    "convolutions",
    "derivatives",
    "dropout",
    "embeddings",
    "gates",
    "indexing",
    "losses",
    "maps",
    "masks",
    "norms",
    "pairs",
    "parametrizations",
    "pointwise",
    "pooling",
    "products",
    "rearrangement",
    "recurrent",
    "resampling",
    "sequences",
    "shapes",
    "softmax",
]
