"""The experiments of the command line: each a dataclass of settings that knows its data and its network.

A further one is a file with a subclass of :class:`metafast.experiments.experiment.Experiment`, and a line here.
"""

from metafast.experiments.experiment import Experiment
from metafast.experiments.images import Images
from metafast.experiments.omniglot import Characters
from metafast.experiments.sinusoid import Sinusoid
from metafast.experiments.table import Table

EXPERIMENTS: dict[str, type[Experiment]] = {each.NAME: each for each in (Sinusoid, Characters, Images, Table)}
