"""Say of each layer of a network whether it runs natively, or why not, and what it costs.

metafast explain mlp sizes=[1,40,40,1]
metafast explain conv4 ways=20 channels=32 --examples 100
"""

from __future__ import annotations

import argparse
import inspect
import json
from typing import Any

from metafast import networks
from metafast.cli.options import at_least

NAME = "explain"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("network", choices=sorted(networks.NETWORKS), help="a network of the few-shot papers")
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="its arguments, values in JSON")
    parser.add_argument("--tasks", type=at_least(1), default=1, help="tasks per meta-step (default %(default)s)")
    parser.add_argument("--steps", type=at_least(0), default=1, help="inner steps (default %(default)s)")
    parser.add_argument(
        "--examples", type=at_least(1), default=10, help="support examples of a task (default %(default)s)"
    )
    parser.add_argument("--loss", default=None, help="task loss (default: mse for mlp, cross_entropy for conv4)")


def run(args: argparse.Namespace) -> int:
    from metafast.explain import explain

    settings = {"sizes": [1, 40, 40, 1]} if args.network == "mlp" else {}
    settings |= dict(_setting(text) for text in args.settings)
    model = networks.build(args.network, settings)
    if args.network == "mlp":
        shape: tuple[int, ...] = (args.tasks, args.examples, settings["sizes"][0])
    else:
        bound = inspect.signature(networks.conv4).bind(**settings)
        bound.apply_defaults()
        side = bound.arguments["image_size"]
        shape = (args.tasks, args.examples, bound.arguments["in_channels"], side, side)
    loss = args.loss or ("mse" if args.network == "mlp" else "cross_entropy")
    print(f"{args.network} on {list(shape)}")
    print(explain(model, shape, loss=loss, steps=args.steps))
    return 0


def _setting(text: str) -> tuple[str, Any]:
    name, found, value = text.partition("=")
    if not found:
        raise ValueError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
