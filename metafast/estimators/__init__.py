"""Which derivative of the unrolled inner loop a learner takes, one file each; and what is kept of its steps."""

from metafast.estimators.annealed import Annealed
from metafast.estimators.checkpoint import Checkpoint
from metafast.estimators.exact import Exact
from metafast.estimators.first_order import FirstOrder
from metafast.estimators.truncated import Truncated

__all__ = [
    "Annealed",
    "Checkpoint",
    "Exact",
    "FirstOrder",
    "Truncated",
]
