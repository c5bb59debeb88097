"""What a run leaves for people to look at: a page of its own, and one of several runs side by side."""

from metafast.report.comparison import compare
from metafast.report.example import CurveExample, Example, ImagesExample, TableExample, TextExample, examples
from metafast.report.writing import leave, write

__all__ = [
    "CurveExample",
    "Example",
    "ImagesExample",
    "TableExample",
    "TextExample",
    "compare",
    "examples",
    "leave",
    "write",
]
