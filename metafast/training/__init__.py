"""Meta-training with its checkpoints, evaluation and networks."""

from metafast.training.evaluation import Estimate, Evaluation, evaluate
from metafast.training.history import History
from metafast.training.meta_learning import meta_learning
from metafast.training.meta_train import meta_train
from metafast.training.metrics import Metric
from metafast.training.trainer import Every, TrainingState

__all__ = [
    "Estimate",
    "Evaluation",
    "Every",
    "History",
    "Metric",
    "TrainingState",
    "evaluate",
    "meta_learning",
    "meta_train",
]
