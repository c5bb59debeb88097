"""Say of each layer of a network whether it runs natively, or why not, and what it costs.

The networks and their settings:
  mlp    sizes=[1,40,40,1]  activation=relu
  conv4  channels=64  ways=5  in_channels=1  image_size=28

Examples:
  metafast explain mlp 'sizes=[3,64,64,2]' activation=tanh
  metafast explain conv4 ways=20 channels=32 --examples 100

In Python, metafast.explain(model, shape) does this for any network.
"""

from __future__ import annotations

import argparse
import inspect
import json
from typing import Any

from metafast.cli.options import at_least
from metafast.training import networks

NAME = "explain"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "network", choices=sorted(networks.NETWORKS), help="a network of the few-shot papers, see above"
    )
    parser.add_argument("settings", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the network")
    for name, least, default, text in (
        ("tasks", 1, 1, "tasks per meta-step"),
        ("steps", 0, 1, "inner steps"),
        ("examples", 1, 10, "support examples of a task"),
    ):
        parser.add_argument(
            f"--{name}", type=at_least(least), default=default, metavar="N", help=f"{text} (default {default})"
        )
    parser.add_argument(
        "--loss",
        metavar="NAME",
        help="loss of a task, as metafast.MAML takes it (default: mse for mlp, cross_entropy for conv4)",
    )


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
