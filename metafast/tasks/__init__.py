"""Task distributions: where the tasks of a meta-batch come from.

A distribution gives *episodes*: a support set and a query set for each of T tasks. The episodes of meta-step i are a
function of (seed, i) alone, so a run can stop anywhere and continue without keeping a generator's state.
"""

from metafast.tasks.archive import DataError
from metafast.tasks.augment import Augmented
from metafast.tasks.distribution import Splits, Tasks
from metafast.tasks.episode import TEST, TRAIN, VALIDATION, Episode, generator
from metafast.tasks.family import Curves, RegressionFamily
from metafast.tasks.files import read_idx, read_npz, read_pickle
from metafast.tasks.folder import ImageFolder
from metafast.tasks.images import ImageTasks
from metafast.tasks.omniglot import Omniglot
from metafast.tasks.ratings import Ratings
from metafast.tasks.sampler import TaskSampler
from metafast.tasks.sinusoid import Sinusoids
from metafast.tasks.table import GroupedTable, GroupTasks, Scale
from metafast.tasks.text import Texts, TextTasks
from metafast.tasks.vocabulary import Vocabulary

__all__ = [
    "TEST",
    "TRAIN",
    "VALIDATION",
    "Augmented",
    "Curves",
    "DataError",
    "Episode",
    "GroupTasks",
    "GroupedTable",
    "ImageFolder",
    "ImageTasks",
    "Omniglot",
    "Ratings",
    "RegressionFamily",
    "Scale",
    "Sinusoids",
    "Splits",
    "TaskSampler",
    "Tasks",
    "TextTasks",
    "Texts",
    "Vocabulary",
    "generator",
    "read_idx",
    "read_npz",
    "read_pickle",
]
