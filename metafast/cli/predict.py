"""Predict with adapted weights: a line of a CSV file for each image of a folder, or for each row of a table.

Conv-4 normalises by the statistics of the images at hand, as in training: predict many of a task together.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

import torch

from metafast.cli import run as runs
from metafast.files import replacing
from metafast.training import adapted

NAME = "predict"
BATCH = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", type=Path, help="a file that `metafast adapt` wrote")
    parser.add_argument("--data", type=Path, required=True, metavar="PATH", help="images or a table without labels")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", default=Path("predictions.csv"), help="CSV to write (default %(default)s)"
    )
    runs.add_machine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    device = runs.prepare(args)
    found = adapted.load(args.weights)
    kind = runs.kind_of(args.weights, found.task)
    model = found.model().to(device)
    inputs = kind.read_inputs(found.task, args.data)
    with torch.no_grad():
        outputs = torch.cat([model(part.to(device)).cpu() for part in torch.split(inputs.x, BATCH)])
    columns: dict[str, list[object]] = {
        "input": list(inputs.names),
        **kind.columns(found.task, outputs, tuple(found.class_names)),
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    with replacing(args.out) as file:
        file.write(text.getvalue().encode())
    lines = text.getvalue().splitlines()
    print("\n".join(lines[:6]) + (f"\n... {len(lines) - 6} more lines" if len(lines) > 6 else ""))
    print(f"{len(inputs.names)} predictions: {args.out}")
    return 0
