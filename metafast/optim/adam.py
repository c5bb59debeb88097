"""Adam and AdamW in the outer loop."""

from __future__ import annotations

import torch

from metafast.optim.step import NativeStep, adam_step


class Adam(NativeStep, torch.optim.Adam):
    """``torch.optim.Adam`` with a native step (Kingma and Ba 2015, algorithm 1; ``amsgrad``: Reddi et al. 2018).

    Of d = g + w theta, or -g + w theta with ``maximize``, at step t::

        m <- b1 m + (1 - b1) d,    v <- b2 v + (1 - b2) d^2,    u = v, or with amsgrad the largest v so far
        theta <- theta - lr / (1 - b1^t) * m / (sqrt(u / (1 - b2^t)) + eps)

    Arguments, defaults and errors are those of :class:`torch.optim.Adam`; equal to it but for rounding. Parameters and
    gradients are float32 or float64 tensors of any shape; others go torch's way.
    """

    _native = staticmethod(adam_step)


class AdamW(NativeStep, torch.optim.AdamW):
    """``torch.optim.AdamW`` with a native step (Loshchilov and Hutter 2019, algorithm 2).

    As :class:`Adam` with d = g, after theta <- (1 - lr w) theta.
    """

    _native = staticmethod(adam_step)
