"""The pages in a real browser: no error in its console, light and dark, on a phone."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import metafast as mf
from metafast import report
from metafast.tasks import Sinusoids
from metafast.training import networks
from run_folders import run_folder

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions", "--hide-scrollbars"]
#: Says in the page's title how wide what is in it is, and how wide the window.
MEASURE = "<script>document.title = [document.documentElement.scrollWidth, innerWidth].join()</script>"


def browse(page: Path, profile: Path, *flags: str, width: int = 1000) -> tuple[str, list[str]]:
    """The document as the browser has it, and what it says in its console."""
    done = subprocess.run(
        [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},900", "--enable-logging=stderr",
         "--v=0", "--dump-dom", *flags, page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    learner = mf.MAML(networks.mlp([1, 8, 1]), lr=0.01, steps=1, loss="mse")
    folder = run_folder(tmp_path_factory.mktemp("browser") / "run")
    report.write(folder, report.examples(learner, Sinusoids(), count=2))
    report.compare([folder, run_folder(folder.parent / "other", settings={"seed": 1})], folder.parent / "all.html")
    return folder


@pytest.mark.parametrize("name", ["run/report.html", "all.html"])
def test_the_console_stays_empty_and_a_phone_shows_the_whole_width(folder: Path, tmp_path: Path, name: str) -> None:
    page = folder.parent / name
    document, console = browse(page, tmp_path / "profile")
    assert not console
    assert document.count("<section>") == page.read_text().count("<section>") > 0
    free = tmp_path / "free.html"  # the same page, but that it may be asked
    free.write_text(re.sub(r"<meta http-equiv[^>]*>", "", page.read_text()).replace("</body>", MEASURE + "</body>"))
    document, _ = browse(free, tmp_path / "profile", width=390)
    content, window = map(int, re.search(r"<title>(\d+),(\d+)</title>", document).groups())  # type: ignore[union-attr]
    assert content <= window


def test_the_console_is_heard_and_the_page_runs_no_script(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "with_script.html"
    page.write_text((folder / "report.html").read_text().replace("</body>", MEASURE + "</body>"))
    document, console = browse(page, tmp_path / "profile")
    assert any("Content Security Policy" in line for line in console)
    assert "<title>images" in document


def test_light_and_dark(folder: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    corners = []
    for scheme in (1, 0):
        picture = tmp_path / f"{scheme}.png"
        flags = (f"--screenshot={picture}", f"--blink-settings=preferredColorScheme={scheme}")
        browse(folder / "report.html", tmp_path / "profile", *flags)
        with image.open(picture) as shown:
            colours = shown.convert("L").getcolors() or []
            corners.append(shown.convert("L").getpixel((2, 2)))
        assert len(colours) > 20  # text and lines are there
    assert corners[0] > 200 and corners[1] < 60
