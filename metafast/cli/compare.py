"""Put several runs side by side: a table here, and a page with their curves.

Each RUN is the folder of a run. Runs on different tasks are shown in groups. The table has the settings
that differ and the results with 95 % intervals.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from metafast import report

NAME = "compare"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of at least two runs")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("comparison.html"),
        metavar="FILE",
        help="where the page goes, in the place of an earlier one (default %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    print(report.compare(args.runs, args.out))
    print(f"page: {args.out}")
    return 0
