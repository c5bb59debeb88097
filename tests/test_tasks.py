"""Task distributions: what they draw, that seeds decide it, and what broken data is told."""

from __future__ import annotations

import math
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from drawings import draw
from metafast.tasks import TRAIN, DataError, ImageTasks, Omniglot, Sinusoids, generator
from metafast.tasks import cache as caching
from metafast.tasks.family import CHUNK
from metafast.tasks.omniglot import load_part, with_rotations

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


# ---- Sinusoids -----------------------------------------------------------------------
def test_waves_are_what_the_paper_says():
    waves = Sinusoids().curves(4000, points=20, generator=generator(0))
    amplitude, phase = waves.parameters["amplitude"], waves.parameters["phase"]
    for values, low, high in ((amplitude, 0.1, 5.0), (phase, 0.0, math.pi), (waves.x, -5.0, 5.0)):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        spread = (high - low) / math.sqrt(12 * values.numel())
        assert abs(values.mean() - (low + high) / 2) < 4 * spread
    torch.testing.assert_close(waves.y, amplitude * torch.sin(waves.x - phase), rtol=0, atol=0)
    torch.testing.assert_close(waves.at(waves.x), waves.y, rtol=0, atol=0)


def test_an_untrained_answer_of_zero_has_the_error_that_integration_gives():
    # E A^2 * E sin^2(x - phi) with x over [-5, 5] and phi over [0, pi]: sin^2 averages to 1/2 over phi.
    expected = (5.0**3 - 0.1**3) / (3 * 4.9) / 2
    y = Sinusoids().curves(20000, points=10, generator=generator(1)).y
    assert (y**2).mean().item() == pytest.approx(expected, rel=0.02)


def test_sinusoid_stream_starts_anywhere():
    tasks = Sinusoids(shots=3, queries=4)
    stream = tasks.stream(5, seed=7)
    whole = [next(stream) for _ in range(CHUNK + 3)]
    (xs, ys), (xq, yq) = whole[0]
    assert (xs.shape, ys.shape, xq.shape, yq.shape) == ((5, 3, 1), (5, 3, 1), (5, 4, 1), (5, 4, 1))
    for start in (0, 1, CHUNK - 1, CHUNK, CHUNK + 2):
        again = next(tasks.stream(5, seed=7, start=start))
        for one, other in zip(whole[start], again, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(whole[0].support[0], whole[CHUNK].support[0])
    assert not torch.equal(whole[0].support[0], next(tasks.stream(5, seed=8)).support[0])


# ---- Images --------------------------------------------------------------------------
def numbered(classes: int, examples: int) -> torch.Tensor:
    """Images whose two pixels say which class and example they are."""
    c, e = torch.meshgrid(torch.arange(classes), torch.arange(examples), indexing="ij")
    return torch.stack([c, e], -1).to(torch.uint8).view(classes, examples, 1, 1, 2)


@pytest.mark.parametrize(("ways", "shots", "queries"), [(1, 1, 1), (5, 1, 3), (7, 2, 4), (9, 3, 3)])
def test_episodes_hold_distinct_classes_and_examples(ways, shots, queries):
    tasks = ImageTasks(numbered(9, 6), ways=ways, shots=shots, queries=queries)
    (xs, ys), (xq, yq) = tasks.sample(50, generator(3))
    assert xs.shape == (50, ways * shots, 1, 1, 2) and xs.dtype == torch.float32
    assert xq.shape == (50, ways * queries, 1, 1, 2)
    assert ys.dtype == yq.dtype == torch.int64
    for t in range(50):
        examples: dict[int, list[tuple[int, int]]] = {}
        for x, y in ((xs[t], ys[t]), (xq[t], yq[t])):
            for image, label in zip((x.flatten(1) * 255).round().int().tolist(), y.tolist(), strict=True):
                examples.setdefault(label, []).append(tuple(image))
        assert sorted(examples) == list(range(ways))
        assert all(len({c for c, _ in drawn}) == 1 for drawn in examples.values())  # a label is one class
        assert len({drawn[0][0] for drawn in examples.values()}) == ways  # and another one than other labels
        assert all(len(set(drawn)) == shots + queries for drawn in examples.values())  # no image twice
        assert ys[t].bincount().tolist() == [shots] * ways and yq[t].bincount().tolist() == [queries] * ways


def test_classes_and_examples_are_drawn_evenly():
    tasks = ImageTasks(numbered(10, 5), ways=3, shots=1, queries=1)
    classes, rows = tasks.groups.draw(20000, 3, 2, generator(4))
    examples = rows % 5
    for drawn, count in ((classes, 10), (examples, 5)):
        for position in range(drawn.shape[-1]):
            counts = drawn[..., position].flatten().bincount(minlength=count).double()
            expected = counts.sum() / count
            chi_squared = ((counts - expected) ** 2 / expected).sum()
            assert chi_squared < 40  # its probability with at most 9 degrees of freedom is below 1e-5


def test_image_stream_starts_anywhere():
    tasks = ImageTasks(numbered(9, 6), ways=5, shots=1, queries=2)
    stream = tasks.stream(4, seed=1)
    third = [next(stream) for _ in range(3)][2]
    again = next(tasks.stream(4, seed=1, start=2))
    assert all(torch.equal(a, b) for x, y in zip(third, again, strict=True) for a, b in zip(x, y, strict=True))
    fresh = tasks.sample(4, generator(1, TRAIN, 2))
    assert torch.equal(third.support[0], fresh.support[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ways": 10}, "ways: expected between 1 and the 9 classes there are .*, got 10"),
        ({"ways": 0}, "ways"),
        ({"shots": 0}, "shots: expected a whole number of at least 1, got 0"),
        ({"queries": 6}, r"class with fewer examples than shots \+ queries = 7: 0 \(6\), 1 \(6\)"),
    ],
)
def test_impossible_episodes_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ImageTasks(numbered(9, 6), **{"ways": 5, "shots": 1, "queries": 1} | settings)


def test_images_of_another_type_are_refused():
    with pytest.raises(ValueError, match=r"images: expected uint8 .*, got torch.float32 \[2, 3, 1, 4, 4\]"):
        ImageTasks(torch.zeros(2, 3, 1, 4, 4), ways=1, shots=1, queries=1)


# ---- Omniglot ------------------------------------------------------------------------
@pytest.fixture
def drawings(tmp_path, monkeypatch, tmp_path_factory):
    draw(tmp_path)
    monkeypatch.setenv("METAFAST_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_the_four_rotations_are_four_classes():
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    turned = with_rotations(images)
    assert turned.shape == (8, 3, 1, 4, 4)
    for character in range(2):
        for turns in range(4):
            expected = np.rot90(images[character].numpy(), turns, axes=(1, 2))
            np.testing.assert_array_equal(turned[4 * character + turns, :, 0].numpy(), expected)


@pytest.mark.parametrize("layout", ["root", "below", "zip"])
def test_omniglot_is_found_and_prepared(drawings, tmp_path, layout):
    root = tmp_path
    if layout == "below":
        (tmp_path / "omniglot-py").mkdir()
        for part in ("images_background", "images_evaluation"):
            (tmp_path / part).rename(tmp_path / "omniglot-py" / part)
    if layout == "zip":
        zip_up(tmp_path)
    data = Omniglot.load(root, subset=True)
    # Three alphabets of two characters each; the last alphabet is held out, and evaluation has one of its own.
    assert data.train.shape == (4 * 4, 4, 1, 28, 28)
    assert data.validation.shape == (2 * 4, 4, 1, 28, 28)
    assert data.test.shape == (2 * 4, 4, 1, 28, 28)
    assert data.train.dtype == torch.uint8
    # Drawing: a black bar in the upper quarter of white paper. Prepared: ink is bright, paper dark.
    upright = data.train[0, 0, 0].float() / 255
    assert upright[:6].mean() > 0.9 and upright[8:].mean() < 0.01
    on_the_left = data.train[1, 0, 0].float() / 255  # turned by 90 degrees, counter-clockwise
    assert on_the_left[:, :6].mean() > 0.9 and on_the_left[:, 8:].mean() < 0.01


def test_validation_and_training_share_no_alphabet(drawings, tmp_path):
    background = load_part(tmp_path, "images_background", subset=True)
    data = Omniglot.load(tmp_path, subset=True)
    held = [i for i, alphabet in enumerate(background.alphabets) if alphabet == "Gamma"]
    assert torch.equal(data.validation, with_rotations(background.images[held]))


def test_characters_missing_from_the_original_are_noticed(drawings, tmp_path):
    with pytest.raises(DataError, match=r"holds 6 characters, but Omniglot's images_background has 964.*github"):
        Omniglot.load(tmp_path)


def test_decoded_once(drawings, tmp_path, monkeypatch):
    first = Omniglot.load(tmp_path, subset=True)
    monkeypatch.setattr("metafast.tasks.archive.decode", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(Omniglot.load(tmp_path, subset=True).train, first.train)


def test_a_changed_drawing_is_seen(drawings, tmp_path):
    Omniglot.load(tmp_path, subset=True)
    path = min((tmp_path / "images_background" / "Alpha").rglob("*.png"))
    Image.new("1", (105, 105), 0).save(path)
    os.utime(path, ns=(1, 1))
    assert (Omniglot.load(tmp_path, subset=True).train[0, 0] == 255).all()


@pytest.mark.parametrize("damage", ["truncate", "garbage", "empty", "flip"])
def test_a_damaged_cache_is_made_again(drawings, tmp_path, damage):
    good = Omniglot.load(tmp_path, subset=True)
    files = list(caching.directory().glob("*.npz"))
    assert len(files) == 2
    for file in files:
        content = bytearray(file.read_bytes())
        if damage == "flip":
            content[len(content) // 2] ^= 1
        file.write_bytes(
            {"truncate": content[: len(content) // 2], "garbage": b"x" * 99, "empty": b""}.get(damage, content)
        )
    assert torch.equal(Omniglot.load(tmp_path, subset=True).train, good.train)
    assert not list(caching.directory().glob(".*")), "files left aside"


def test_works_without_a_cache(drawings, tmp_path, monkeypatch):
    blocked = tmp_path / "a file, not a folder"
    blocked.write_text("")
    monkeypatch.setenv("METAFAST_CACHE", str(blocked))
    assert Omniglot.load(tmp_path, subset=True).train.shape[0] == 16


def test_a_cached_object_is_not_unpickled(tmp_path, monkeypatch):
    monkeypatch.setenv("METAFAST_CACHE", str(tmp_path))
    np.savez(tmp_path / "x.npz", a=np.array([print], dtype=object))
    made = {"a": np.arange(3)}
    assert (caching.remembered("x", lambda: made)["a"] == made["a"]).all()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(
        DataError, match=r"data folder .*nowhere does not exist\. .*images_background\.zip.*github\.com"
    ):
        Omniglot.load(tmp_path / "nowhere")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is not a folder"):
        Omniglot.load(tmp_path / "file")


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"is empty.*github\.com"):
        Omniglot.load(tmp_path)


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "images_background").mkdir()
    with pytest.raises(DataError, match=r"neither images_background/ \(with images in it\) nor images_background\.zip"):
        Omniglot.load(tmp_path)


def test_a_half_unpacked_folder_is_noticed(drawings, tmp_path):
    next((tmp_path / "images_evaluation").rglob("*.png")).unlink()
    with pytest.raises(DataError, match="has 3 drawings where others have 4: is it complete"):
        Omniglot.load(tmp_path, subset=True)


def test_a_zip_cut_short_is_noticed(drawings, tmp_path):
    zip_up(tmp_path)
    path = tmp_path / "images_evaluation.zip"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"images_evaluation\.zip is not a whole zip file.*cut short"):
        Omniglot.load(tmp_path, subset=True)


def test_a_zip_with_a_damaged_image_is_noticed(drawings, tmp_path):
    zip_up(tmp_path)
    path = tmp_path / "images_background.zip"
    content = bytearray(path.read_bytes())
    content[content.index(b"IHDR") + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"images_background\.zip: cannot read image .*\.png"):
        Omniglot.load(tmp_path, subset=True)


def test_a_file_that_is_no_image_is_named(drawings, tmp_path):
    path = next((tmp_path / "images_background").rglob("*.png"))
    path.write_bytes(b"not an image")
    with pytest.raises(DataError, match=f"cannot read image .*{path.name}"):
        Omniglot.load(tmp_path, subset=True)


def test_the_parts_must_not_share_an_alphabet(drawings, tmp_path):
    (tmp_path / "images_evaluation" / "Omega").rename(tmp_path / "images_evaluation" / "Alpha")
    with pytest.raises(DataError, match="share alphabets"):
        Omniglot.load(tmp_path, subset=True)


def zip_up(root: Path) -> None:
    """Replace the folders by zip files as the original's, with what macOS likes to add."""
    for part in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(root / f"{part}.zip", "w", zipfile.ZIP_STORED) as archive:
            for path in sorted((root / part).rglob("*.png")):
                archive.write(path, path.relative_to(root))
                archive.writestr(f"__MACOSX/{path.relative_to(root).parent}/._{path.name}", b"")
                path.unlink()


def test_the_real_omniglot(real_data):
    data = Omniglot.load(real_data("omniglot"))
    assert data.train.shape == (4 * 878, 20, 1, 28, 28)
    assert data.validation.shape == (4 * 86, 20, 1, 28, 28)
    assert data.test.shape == (4 * 659, 20, 1, 28, 28)
    ink = data.train[::4].float().mean() / 255
    assert 0.03 < ink < 0.15  # thin strokes, bright on dark
