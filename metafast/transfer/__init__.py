"""From a network trained before to a new task: its weights by name, a new head, what stays frozen, fine-tuning."""

from metafast.transfer.fine_tuning import fine_tune
from metafast.transfer.surgery import transfer

__all__ = ["fine_tune", "transfer"]
