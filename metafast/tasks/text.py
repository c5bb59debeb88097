"""Few-shot classification of texts."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metafast.tasks import columns
from metafast.tasks.archive import DataError
from metafast.tasks.distribution import Splits
from metafast.tasks.groups import FRACTIONS, Groups, number
from metafast.tasks.sampler import TaskSampler
from metafast.tasks.vocabulary import WORD, Vocabulary


class TextTasks(TaskSampler):
    """A :class:`TaskSampler` whose x is int64 [T, N, length], words as their numbers in ``vocabulary``."""

    vocabulary: Vocabulary


@dataclass(frozen=True)
class Texts:
    """Texts with labels, in memory."""

    texts: Sequence[str]
    labels: Sequence[Hashable]

    @classmethod
    def read(cls, path: str | Path, *, text: str, label: str, delimiter: str | None = None) -> Texts:
        """Two columns of a TSV or CSV file, plain or .gz, whose first line names the columns.

        The delimiter is a tab for .tsv and .tab and a comma for others, unless said otherwise. DataError names file,
        line and column.
        """
        table = columns.read(path, delimiter=delimiter)
        table.require(texts=(text, label))
        return cls(table.texts(text), table.texts(label))

    def __len__(self) -> int:
        return len(self.texts)

    def splits(
        self,
        *,
        ways: int,
        shots: int,
        queries: int,
        length: int | None = None,
        size: int | None = None,
        min_count: int = 1,
        pattern: str = WORD,
        fractions: Sequence[float] = FRACTIONS,
        names: Mapping[str, Iterable[Hashable]] | None = None,
        seed: int = 0,
        skip_small: bool = False,
    ) -> Splits:
        """Train, validation and test tasks (:class:`TextTasks`) that share no class, and one vocabulary.

        Args:
            length: of every row, in words. Longer texts are cut, shorter ones padded. None: the longest text of the
                training classes.
            size, min_count, pattern: of :meth:`Vocabulary.fit`, which sees the texts of the training classes alone.
            fractions, names, seed, skip_small: as of :meth:`TaskSampler.splits`.
        """
        if len(self.texts) != len(self.labels):
            raise DataError(f"expected a label for each text, got {len(self.texts)} texts, {len(self.labels)} labels")
        taken = number("shots", shots) + number("queries", queries)
        parts = Groups.of(self.labels, kind="class", argument="labels").split(
            fractions, names=names, seed=seed, least=number("ways", ways), taken=taken, skip_small=skip_small
        )
        training = [self.texts[i] for i in parts[0].rows.tolist()]
        vocabulary = Vocabulary.fit(training, size=size, min_count=min_count, pattern=pattern)
        rows = vocabulary.encode(self.texts, length or max(len(vocabulary.tokenize(text)) for text in training))
        made = []
        for part in parts:
            tasks = TextTasks._of(rows, part, ways=ways, shots=shots, queries=queries, skip_small=skip_small)
            tasks.vocabulary = vocabulary
            made.append(tasks)
        return Splits(*made)
