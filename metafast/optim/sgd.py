"""Gradient descent in the outer loop."""

from __future__ import annotations

import torch

from metafast.optim.step import NativeStep, sgd_step


class SGD(NativeStep, torch.optim.SGD):
    """``torch.optim.SGD`` with a native step: plain, or with momentum (Sutskever et al. 2013), dampening, weight decay.

    Of d = g + w theta, or -g + w theta with ``maximize``::

        b <- mu b + (1 - tau) d    (b = d at the first step)
        theta <- theta - lr b,    with nesterov  theta - lr (d + mu b),    without momentum  theta - lr d

    Arguments, defaults and errors are those of :class:`torch.optim.SGD`; equal to it but for rounding. Parameters and
    gradients are float32 or float64 tensors of any shape; others go torch's way.
    """

    _native = staticmethod(sgd_step)
