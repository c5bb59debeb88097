"""metafast: exact meta-gradients through an inner training loop, in native code."""

from metafast.explain import explain
from metafast.functional import grad, hvp
from metafast.learner import MAML
from metafast.rules import SGD
from metafast.verification import verify

__all__ = ["MAML", "SGD", "explain", "grad", "hvp", "verify"]
