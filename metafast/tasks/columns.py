"""Columns of CSV and TSV files, plain or compressed by gzip, with messages that name file, line and column."""

from __future__ import annotations

import csv
import difflib
import gzip
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, cast

import numpy as np
import numpy.typing as npt

from metafast.tasks.archive import DataError
from metafast.tasks.groups import listed

#: What an empty cell is also written as.
MISSING = {"", "na", "nan", "n/a", "null", "none"}


@dataclass(frozen=True)
class Columns:
    path: Path
    names: tuple[str, ...]
    lines: list[int]  # of each row in the file, where it ends
    rows: list[list[str]]

    def texts(self, name: str) -> list[str]:
        place = self._place(name)
        return [row[place].strip() for row in self.rows]

    def numbers(self, name: str) -> npt.NDArray[np.float64]:
        """NaN where a cell is empty; DataError for the first that holds anything but a finite number."""
        values = np.empty(len(self.rows))
        for i, text in enumerate(self.texts(name)):
            try:
                values[i] = math.nan if text.lower() in MISSING else float(text)
            except ValueError:
                values[i] = math.inf
            if math.isinf(values[i]):
                raise DataError(
                    f"{self.path}, line {self.lines[i]}: column {name!r} holds {text!r}, which is no finite number; "
                    "leave the column out, or write an empty cell for what is missing"
                )
        return values

    def require(self, *, texts: Sequence[str] = (), numbers: Sequence[str] = ()) -> None:
        """DataError for the first row in which one of these columns is empty."""
        for empty, names in (({""}, texts), (MISSING, numbers)):
            for name in names:
                if gaps := [i for i, text in enumerate(self.texts(name)) if text.lower() in empty]:
                    raise DataError(f"{self.path}, line {self.lines[gaps[0]]}: column {name!r} is empty")

    def _place(self, name: str) -> int:
        if name not in self.names:
            near = difflib.get_close_matches(name, self.names, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{self.path} has no column {name!r}; it has {listed(self.names, most=50)}{hint}")
        return self.names.index(name)


def read(path: str | Path, *, delimiter: str | None = None) -> Columns:
    """A table whose first line names the columns, in UTF-8. The delimiter is a tab for .tsv and .tab, else a comma."""
    path = Path(path)
    stem = path.with_suffix("") if path.suffix == ".gz" else path
    tab = stem.suffix.lower() in (".tsv", ".tab")
    rows, lines = [], []
    try:
        with _opened(path) as file:
            reader = csv.reader(file, delimiter=delimiter or ("\t" if tab else ","), strict=True)
            names = next(reader, [])
            for row in reader:
                if row and row != [""]:
                    rows.append(row)
                    lines.append(reader.line_num)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        after = lines[-1] if lines else 1
        raise DataError(f"{path}, after line {after}: cannot read ({error}); expected a table in UTF-8") from error
    _check(path, names, lines, rows)
    return Columns(path, tuple(name.strip() for name in names), lines, rows)


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        yield cast(TextIO, file)


def _check(path: Path, names: Sequence[str], lines: Sequence[int], rows: Sequence[Sequence[str]]) -> None:
    if not names or not rows:
        raise DataError(f"{path} holds no rows below a line with the names of the columns")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path} has several columns of the name {listed(twice)}")
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(names):
            raise DataError(f"{path}, line {line}: {len(row)} cells where the first line names {len(names)} columns")
