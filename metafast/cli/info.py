"""Print versions, the instruction set in use, what was compiled for CUDA, and the devices that work."""

from __future__ import annotations

import argparse
import json

from metafast.training.machine import describe

NAME = "info"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the facts as one JSON object")


def run(args: argparse.Namespace) -> int:
    facts = describe()
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            print(f"{name:<{width}}  {', '.join(map(str, value)) if isinstance(value, list) else value}")
    return 0
