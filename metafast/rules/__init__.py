"""How parameters move in the inner loop: one file for each family of rules, and how they are chained."""

from metafast.rules.adagrad import Adagrad
from metafast.rules.adam import Adam, AdamW
from metafast.rules.chaining import chain
from metafast.rules.clip import clip_norm, clip_value
from metafast.rules.penalty import proximal, soft_threshold
from metafast.rules.sgd import SGD

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "chain",
    "clip_norm",
    "clip_value",
    "proximal",
    "soft_threshold",
]
