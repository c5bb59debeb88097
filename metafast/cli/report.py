"""Write the report of a run again: one page, report.html, with its results, examples and curves.

Every run leaves one. It is written again from what lies in the run's folder, while the run goes on too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from metafast import report

NAME = "report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the folder of a run")


def run(args: argparse.Namespace) -> int:
    print(f"report: {report.write(args.run_folder)}")
    return 0
