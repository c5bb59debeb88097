"""metafast: exact meta-gradients through an inner training loop, in native code."""

from metafast import estimators, optim, rules
from metafast.estimators import *  # noqa: F403
from metafast.explain import explain
from metafast.functional import grad, hvp
from metafast.learner import MAML
from metafast.rules import *  # noqa: F403
from metafast.training import Metric, evaluate, meta_learning, meta_train
from metafast.transfer import baselines, fine_tune, transfer
from metafast.verification import verify

__all__ = ["MAML", "Metric", "baselines", "evaluate", "explain", "fine_tune", "grad", "hvp", "meta_learning"]
__all__ += ["meta_train", "optim", "transfer", "verify"]
__all__ += estimators.__all__
__all__ += rules.__all__
