"""Texts as rows of whole numbers: a small tokenizer, and the vocabulary that numbers its words."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from metafast.files import replacing
from metafast.tasks.archive import DataError
from metafast.tasks.groups import number

#: Letters, digits and underscores, with apostrophes inside.
WORD = r"\w+(?:['’]\w+)*"
#: Numbers of no word: what fills a text up to its length, and what the vocabulary does not know.
PADDING, UNKNOWN = 0, 1
FORMAT = "metafast-vocabulary"


@dataclass(frozen=True)
class Vocabulary:
    """Words and their numbers, which are 2, 3, ... in this order.

    A text is lower-cased, and its words are what ``pattern`` finds. ``len`` counts padding (0) and unknown (1) too, so
    that it is the number of rows of an embedding.
    """

    words: tuple[str, ...]
    pattern: str = WORD

    @classmethod
    def fit(
        cls, texts: Iterable[str], *, size: int | None = None, min_count: int = 1, pattern: str = WORD
    ) -> Vocabulary:
        """The words that occur at least ``min_count`` times in the texts, the most frequent first, equals by alphabet.

        ``size`` limits ``len`` of the vocabulary, padding and unknown included. None: no limit.
        """
        if size is not None:
            number("size", size, 3)
        number("min_count", min_count)
        split = re.compile(pattern).findall
        counts = Counter(word for text in texts for word in split(text.lower()))
        ordered = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        if not ordered:
            raise DataError(f"no word occurs {min_count} times in the texts: the vocabulary would be empty")
        return cls(tuple(word for _, word in ordered[: size and size - 2]), pattern)

    def __len__(self) -> int:
        return len(self.words) + 2

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: i + 2 for i, word in enumerate(self.words)}

    def tokenize(self, text: str) -> list[str]:
        return re.findall(self.pattern, text.lower())

    def encode(self, texts: Sequence[str], length: int) -> Tensor:
        """int64 [M, length]: the first ``length`` words of each text, and padding behind a shorter one.

        A text without a word is one unknown word, so that no row is padding alone.
        """
        number("length", length)
        rows = []
        for text in texts:
            numbers = [self._numbers.get(word, UNKNOWN) for word in self.tokenize(text)[:length]] or [UNKNOWN]
            rows.append(numbers + [PADDING] * (length - len(numbers)))
        return torch.tensor(rows, dtype=torch.int64).view(len(rows), length)

    def save(self, path: str | Path) -> None:
        """As JSON, whole or not at all."""
        content = {"format": FORMAT, "version": 1, "pattern": self.pattern, "words": self.words}
        with replacing(path) as file:
            file.write(json.dumps(content, ensure_ascii=False, indent=0).encode())

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        try:
            content = json.loads(Path(path).read_bytes())
            kind = content.get("format"), content.get("version")
            words, pattern = tuple(content["words"]), content["pattern"]
            re.compile(pattern)
        except FileNotFoundError:
            raise DataError(f"{path} does not exist") from None
        except (ValueError, AttributeError, TypeError, KeyError, re.error) as error:
            raise DataError(f"{path} is no vocabulary ({error})") from error
        if kind != (FORMAT, 1) or not all(isinstance(word, str) for word in words) or len(set(words)) < len(words):
            raise DataError(f"{path} is no vocabulary of version 1, with words that occur once each")
        return cls(words, pattern)
