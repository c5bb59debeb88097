"""Optimisers of the outer loop: those of ``torch.optim``, whose step is one native call for all tensors.

``metafast.optim.Adam`` stands for ``torch.optim.Adam`` wherever that may stand: the same arguments and defaults,
parameter groups, schedulers, hooks and closures, and a state_dict that either loads from the other. What differs is
what a step costs: torch's operations on a small network's few tensors take longer than its meta-gradient.

The rules ``metafast.SGD``, ``metafast.Adam`` and ``metafast.AdamW`` are others: they move parameters within the inner
loop, and are differentiated.
"""

from metafast.optim.adam import Adam, AdamW
from metafast.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW"]
