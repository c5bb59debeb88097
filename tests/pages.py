"""Pages read as a browser would, and what they show: learners and tasks of every form."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import torch
from torch import Tensor, nn

import metafast as mf
from metafast.report.markup import VOID
from metafast.tasks import Episode, ImageTasks, Tasks, generator
from metafast.training import networks


class Page(HTMLParser):
    """A page, checked while it is read: every element is closed in its turn."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attrs)))
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open, f"<{name}/>"  # only there does HTML have such
        self.elements.append((name, dict(attrs)))

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.elements if found == name]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    @property
    def numbers(self) -> set[float]:
        """Those of the page with all their digits."""
        return {float(element["value"] or "") for element in self.all("data")}


def images(steps: int = 2) -> tuple[mf.MAML, ImageTasks]:
    pixels = torch.randint(0, 256, (6, 4, 3, 16, 16), dtype=torch.uint8, generator=generator(0))
    learner = mf.MAML(networks.conv4(4, 3, 3, 16), lr=0.1, steps=steps)
    return learner, ImageTasks(pixels, ways=3, shots=1, queries=3)


class Words(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(vocabulary, 5), nn.Linear(5, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids).mean(-2))


class Texts(Tasks):
    """Two classes: small ids and large ones."""

    def sample(self, tasks: int, generator: torch.Generator) -> Episode:
        labels = torch.tensor([0, 1]).repeat_interleave(3).expand(tasks, -1).contiguous()

        def draw() -> tuple[Tensor, Tensor]:
            return torch.randint(1, 4, (tasks, 6, 4), generator=generator) + 4 * labels.unsqueeze(-1), labels

        return Episode(draw(), draw())
