"""A newcomer's walk: from images, or a table, of their own to an adapted model and predictions, by commands alone."""

from __future__ import annotations

import csv
import json
import math
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from metafast.cli import main
from metafast.run_folder import RunFolder
from metafast.training import adapted, networks

SMALL = "--channels 8 --tasks 4 --meta-steps 30 --validate-every 15 --validation-tasks 20 --test-tasks 20"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METAFAST_CACHE", str(tmp_path / "cache"))


def command(line: str) -> None:
    assert main(line.split()) == 0


def predictions(path: str = "predictions.csv") -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def failing(capsys: pytest.CaptureFixture[str], line: str) -> str:
    capsys.readouterr()
    assert main(line.split()) == 1
    return capsys.readouterr().err.strip()


# ---- Images ----------------------------------------------------------------------------------------------------------
def images(folder: str, classes: int, each: int, seed: int = 0) -> None:
    """Folders of noisy stripes, each class with a direction and a width of its own."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:20, 0:20]
    for place in range(classes):
        angle, width = math.pi * place / classes, 3 + 2 * (place % 3)
        wave = np.sin((rows * math.cos(angle) + columns * math.sin(angle)) * 2 * math.pi / width)
        for number in range(each):
            pixels = np.clip(128 + 90 * wave + generator.normal(0, 20, wave.shape), 0, 255).astype(np.uint8)
            path = Path(folder, f"stripes-{place:02d}", f"{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            image.fromarray(pixels).save(path)


def test_from_a_folder_of_images_to_predictions(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    images("photos", classes=14, each=8)
    command(f"train images --data photos --ways 3 --shots 2 --queries 2 --size 20 {SMALL} --meta-steps 60")
    run = Path("runs/images")
    accuracy = RunFolder(run).read()["results"]["accuracy"]
    assert accuracy["1"]["mean"] - accuracy["1"]["interval"] > 0.5  # chance is a third
    assert "<svg" in (run / "report.html").read_text() or "<img" in (run / "report.html").read_text()

    images("mine", classes=3, each=3, seed=1)
    Path("mine/stripes-02").rename("mine/zebra")
    command("adapt runs/images --data mine")
    shutil.move("mine/zebra/0.png", "unknown.png")
    images("new", classes=2, each=2, seed=2)
    shutil.move("unknown.png", "new/unknown.png")
    command("predict runs/images/adapted.safetensors --data new")
    rows = predictions()
    assert [row["input"] for row in rows] == [
        "stripes-00/0.png", "stripes-00/1.png", "stripes-01/0.png", "stripes-01/1.png", "unknown.png",
    ]  # fmt: skip
    names = ["stripes-00", "stripes-01", "zebra"]
    for row in rows:
        chances = [float(row[f"probability of {name}"]) for name in names]
        assert sum(chances) == pytest.approx(1, abs=1e-5)
        assert row["predicted"] == names[int(np.argmax(chances))]
    assert f"{len(rows)} predictions" in capsys.readouterr().out

    # The file is one that torch loads without metafast.
    from safetensors.torch import load_file

    found = adapted.load("runs/images/adapted.safetensors")
    model = networks.build(found.network, found.arguments)
    model.load_state_dict(load_file("runs/images/adapted.safetensors"))
    assert found.class_names == names

    images("many", classes=4, each=2)
    assert "many has 4 classes; the network tells 2 to 3 apart" in failing(capsys, "adapt runs/images --data many")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("--ways 9 --shots 1 --queries 1", "classes"),
        ("--ways 2 --shots 9", "fewer examples than shots + queries = 14: stripes-00 (4)"),
        ("--ways 2 --shots 1 --minutes 0 --meta-steps 0", "a budget is needed"),
    ],
)
def test_what_is_wrong_with_images_leaves_no_run(
    settings: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    images("photos", classes=6, each=4)
    assert message in failing(capsys, f"train images --data photos {settings}")
    assert not Path("runs").exists()


def test_a_run_is_given_up_only_for_one_that_can_begin(capsys: pytest.CaptureFixture[str]) -> None:
    images("photos", classes=10, each=4)
    size = "--ways 2 --shots 1 --queries 1 --size 16 --channels 2 --tasks 2 --meta-steps 2 --test-tasks 4 --out run"
    command(f"train images --data photos {size} --validation-tasks 4")
    before = Path("run/checkpoint.pt").read_bytes()
    assert "nowhere" in failing(capsys, f"train images --data nowhere {size} --overwrite")
    assert Path("run/checkpoint.pt").read_bytes() == before


# ---- A table ---------------------------------------------------------------------------------------------------------
def table(path: str, groups: int, rows: int, seed: int = 0, target: bool = True) -> None:
    """y = a x + b with a and b of the group, in units far from 1."""
    draw = random.Random(seed)
    lines = ["who,x" + (",y" if target else "")]
    for group in range(groups):
        a, b = draw.uniform(-2, 2), draw.uniform(-1, 1)
        for _ in range(rows):
            x = draw.uniform(-1, 1)
            lines.append(f"g{group},{100 * x}" + (f",{1000 * (a * x + b) + 5000}" if target else ""))
    Path(path).write_text("\n".join(lines) + "\n")


def test_from_a_table_to_predictions(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    table("people.csv", groups=60, rows=12)
    size = "--shots 6 --queries 6 --hidden 20 --steps 3 --lr 0.05 --meta-steps 400 --meta-lr 0.01 --test-tasks 40"
    command(f"train table --data people.csv --group who --target y {size}")
    rmse = RunFolder("runs/table").read()["results"]["rmse"]
    assert rmse["3"]["mean"] + rmse["3"]["interval"] < 0.7 * rmse["0"]["mean"]

    table("one.csv", groups=1, rows=30, seed=5)
    command("adapt runs/table --data one.csv --steps 10")
    command("predict runs/table/adapted.safetensors --data one.csv")
    with open("one.csv") as file:
        true = torch.tensor([float(row["y"]) for row in csv.DictReader(file)])
    said = torch.tensor([float(row["predicted y"]) for row in predictions()])
    assert said.shape == true.shape
    assert (said - true).square().mean() < 0.3 * (true - true.mean()).square().mean()

    Path("lacking.csv").write_text("who,z\na,1\n")
    error = failing(capsys, "predict runs/table/adapted.safetensors --data lacking.csv")
    assert "lacking.csv has no column 'x'" in error


# ---- Files that are not what they should be --------------------------------------------------------------------------
def test_files_of_weights_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    torch_files = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    assert "no weights at nowhere" in failing(capsys, "predict nowhere --data .")
    Path("broken").write_bytes(b"not safetensors at all")
    assert "broken is damaged, or no safetensors file" in failing(capsys, "predict broken --data .")
    torch_files.save_file({"w": torch.zeros(2)}, "bare")
    assert "bare holds weights alone" in failing(capsys, "predict bare --data .")
    about = {"network": "mlp", "arguments": {"sizes": [1, 1]}, "task": {"name": "table"}, "class_names": []}
    torch_files.save_file({"w": torch.zeros(2)}, "other", metadata={adapted.KEY: json.dumps(about)})
    assert "weights do not fit its network" in failing(capsys, "predict other --data .")


# ---- Real images -----------------------------------------------------------------------------------------------------
def test_the_walk_on_icons(real_data: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    with zipfile.ZipFile(real_data("icons") / "icons.zip") as source:
        source.extractall(".")
    command(f"train images --data icons {SMALL} --channels 16 --meta-steps 60")
    accuracy = RunFolder("runs/images").read()["results"]["accuracy"]["1"]
    assert accuracy["mean"] - accuracy["interval"] > 0.3  # chance is 0.2
    for name in ("anchor", "bell", "umbrella"):
        files = sorted(Path("icons", name).iterdir())
        for part, chosen in (("mine", files[:5]), ("new", files[5:10])):
            Path(part, name).mkdir(parents=True)
            for file in chosen:
                shutil.copy(file, Path(part, name))
    command("adapt runs/images --data mine --steps 5")
    command("predict runs/images/adapted.safetensors --data new")
    right = [row["predicted"] == row["input"].split("/")[0] for row in predictions()]
    assert len(right) == 15
    assert sum(right) > 7  # chance is 5
