"""Adapt what was meta-trained to a task of your own, and write weights that an ordinary torch model loads.

The data of the task has the form of the data that the run was trained on: for images a folder with a folder for each
class, for a table a file with the same columns. The weights are written as safetensors, with what `metafast predict`
must know beside them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from metafast.cli import options
from metafast.cli import run as runs
from metafast.experiments.experiment import adapt_one
from metafast.training import adapted

NAME = "adapt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="the folder of a run (its best weights), or a checkpoint file")
    parser.add_argument("--data", type=Path, required=True, metavar="PATH", help="labelled examples of the new task")
    parser.add_argument("--steps", type=options.at_least(0), metavar="N", help="inner steps (default: as tested)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where to write (default: adapted.safetensors beside the checkpoint)"
    )
    runs.add_machine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    device = runs.prepare(args)
    path, stored, kind = runs.load(args.checkpoint)
    learner = stored.build(device, args.backend)
    examples = kind.read_examples(stored.task, args.data)
    steps = args.steps if args.steps is not None else stored.run.get("test_steps") or learner.steps
    with torch.no_grad():
        support = (examples.x[None].to(device), examples.y[None].to(device))
        before, after = (float(learner(support, support, steps=k).loss) for k in (0, steps))
    out = args.out or path.parent / "adapted.safetensors"
    adapted.save(
        out,
        adapted.Adapted(
            stored.network,
            stored.arguments,
            stored.task,
            list(examples.class_names),
            adapt_one(learner, examples, steps),
        ),
    )
    print(f"{len(examples.x)} examples, {steps} inner steps: loss on them {before:.4f} -> {after:.4f}")
    if examples.class_names:
        print(f"classes: {json.dumps(examples.class_names)[1:-1]}")
    print(f"adapted weights: {out}\nto use them: metafast predict {out} --data PATH")
    return 0
