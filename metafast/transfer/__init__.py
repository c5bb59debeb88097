"""From a network trained before to a new task: its weights by name, a new head, what stays frozen, fine-tuning; and
how that compares with meta-learning."""

from metafast.transfer.baselines import baselines
from metafast.transfer.comparison import Comparison
from metafast.transfer.fine_tuning import fine_tune
from metafast.transfer.surgery import transfer

__all__ = ["Comparison", "baselines", "fine_tune", "transfer"]
