"""Weights adapted to one task, in a safetensors file that any torch model loads, with what the model is beside them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from metafast.files import replacing
from metafast.training import networks
from metafast.training.checkpoint import CheckpointError

#: The entry of the file's metadata that describes the model.
KEY = "metafast"


@dataclass(frozen=True)
class Adapted:
    network: str  # a name of metafast.training.networks
    arguments: dict[str, Any]  # its keyword arguments
    task: dict[str, Any]  # what reads its data: that of the checkpoint
    class_names: list[str]  # of the outputs, if they are classes; outputs beyond them have none
    state: dict[str, Tensor]  # the model's state_dict

    def model(self) -> nn.Module:
        """The network with these weights."""
        try:
            model = networks.build(self.network, self.arguments)
            model.load_state_dict(self.state)
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"the file's weights do not fit its network: {error}") from None
        return model


def save(path: str | Path, adapted: Adapted) -> None:
    about = {name: value for name, value in asdict(adapted).items() if name != "state"}
    content = _safetensors().save(adapted.state, metadata={KEY: json.dumps(about)})
    with replacing(path) as file:
        file.write(content)


def load(path: str | Path) -> Adapted:
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}")
    torch_format, opened = _safetensors(), _safe_open()
    try:
        state = torch_format.load_file(path)
        with opened(path, "pt") as file:
            about = json.loads((file.metadata() or {})[KEY])
        return Adapted(**about, state=state)
    except KeyError:
        raise CheckpointError(
            f"{path} holds weights alone; `metafast adapt` writes what is needed beside them"
        ) from None
    except Exception as error:  # safetensors has an error class of its own
        raise CheckpointError(f"{path} is damaged, or no safetensors file: {error}") from None


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise ImportError("adapted weights are safetensors files: pip install safetensors") from None
    return safetensors.torch


def _safe_open() -> Any:
    import safetensors

    return safetensors.safe_open
