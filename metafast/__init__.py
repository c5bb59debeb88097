"""metafast: exact meta-gradients through an inner training loop, in native code."""

from metafast.estimators import Checkpoint, Exact, FirstOrder, Truncated
from metafast.explain import explain
from metafast.functional import grad, hvp
from metafast.learner import MAML
from metafast.rules import SGD, Adam, AdamW, chain, clip_norm, clip_value, proximal, soft_threshold
from metafast.verification import verify

__all__ = [
    "MAML",
    "SGD",
    "Adam",
    "AdamW",
    "Checkpoint",
    "Exact",
    "FirstOrder",
    "Truncated",
    "chain",
    "clip_norm",
    "clip_value",
    "explain",
    "grad",
    "hvp",
    "proximal",
    "soft_threshold",
    "verify",
]
