"""Folders of images: what is read and how, and that every fault is named."""

from __future__ import annotations

import zipfile
from pathlib import Path
from shutil import copy

import numpy as np
import pytest
import torch

from metafast.tasks import DataError, ImageFolder, TaskSampler, generator

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

GREY = np.add.outer(40 * np.arange(5, dtype=np.uint8), 10 * np.arange(4, dtype=np.uint8))
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], -1)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("METAFAST_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Classes cat and dog of three grey images each; the last pixel says which."""
    for c, name in enumerate(("cat", "dog")):
        for e in range(3):
            pixels = GREY.copy()
            pixels[-1, -1] = 10 * c + e
            save(tmp_path / "pets" / name / f"{e}.png", pixels)
    return tmp_path / "pets"


def save(path: Path, pixels: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as file:
        for member in sorted(folder.rglob("*")):
            file.write(member, member.relative_to(folder.parent))
        file.writestr(f"__MACOSX/{folder.name}/cat/._0.png", b"not an image")
    return path


@pytest.mark.parametrize("layout", ["folder", "parent", "zip", "folder of a zip"])
def test_classes_are_folders(pets, layout):
    (pets / "README.md").write_text("no image")
    (pets / ".hidden").mkdir()
    save(pets / ".hidden" / "x.png", GREY)
    places = {"folder": pets, "parent": pets.parent, "zip": zipped(pets), "folder of a zip": pets.parent / "packed"}
    places["folder of a zip"].mkdir()
    copy(places["zip"], places["folder of a zip"])
    data = ImageFolder.load(places[layout])
    assert data.class_names == ("cat", "dog") and data.labels.tolist() == [0, 0, 0, 1, 1, 1] and len(data) == 6
    assert data.images.shape == (6, 1, 5, 4) and data.images.dtype == torch.uint8
    assert data.images[:, 0, -1, -1].tolist() == [0, 1, 2, 10, 11, 12]
    assert [Path(name).name for name in data.files] == ["0.png", "1.png", "2.png"] * 2
    np.testing.assert_array_equal(data.images[4, 0, :-1], GREY[:-1])


def test_order_is_by_class_name(tmp_path):
    # "a-b/..." sorts before "a/..." as a path, and behind it as a class
    for name, value in (("a-b", 1), ("a", 0), ("c", 2)):
        save(tmp_path / name / "x.png", np.full((2, 2), value, np.uint8))
    data = ImageFolder.load(tmp_path)
    assert data.class_names == ("a", "a-b", "c")
    assert data.images[:, 0, 0, 0].tolist() == [0, 1, 2] and data.files == ("a/x.png", "a-b/x.png", "c/x.png")


def test_kinds_of_images_mix(tmp_path):
    save(tmp_path / "a" / "grey.PNG", GREY)
    save(tmp_path / "a" / "colour.bmp", COLOUR)
    save(tmp_path / "b" / "exact.webp", COLOUR, lossless=True)
    save(tmp_path / "b" / "photo.jpeg", np.full((5, 4, 3), (200, 100, 50), np.uint8), quality=95)
    data = ImageFolder.load(tmp_path)
    assert data.files == ("a/colour.bmp", "a/grey.PNG", "b/exact.webp", "b/photo.jpeg")
    colour = torch.from_numpy(COLOUR.transpose(2, 0, 1).copy())
    assert torch.equal(data.images[0], colour) and torch.equal(data.images[2], colour)
    assert torch.equal(data.images[1], torch.from_numpy(GREY).expand(3, 5, 4))
    assert (data.images[3].float() - torch.tensor([200.0, 100.0, 50.0]).view(3, 1, 1)).abs().max() <= 3
    grey = ImageFolder.load(tmp_path, channels=1)
    assert grey.images.shape == (4, 1, 5, 4) and torch.equal(grey.images[1, 0], torch.from_numpy(GREY))
    luma = COLOUR @ np.array([0.299, 0.587, 0.114])  # ITU-R 601-2
    assert np.abs(grey.images[0, 0].numpy() - luma).max() <= 1
    assert ImageFolder.load(tmp_path, channels=3).images.shape == (4, 3, 5, 4)


def test_transparent_is_white_and_sixteen_bits_are_scaled(tmp_path):
    alpha = np.zeros((2, 2, 4), np.uint8)
    alpha[0, 0] = (10, 20, 30, 255)
    save(tmp_path / "a" / "alpha.png", alpha)
    save(tmp_path / "a" / "deep.png", np.array([[0, 257], [65535, 128 * 256]], np.uint16))
    images = ImageFolder.load(tmp_path).images
    assert images[0, :, 0, 0].tolist() == [10, 20, 30] and (images[0].flatten(1)[:, 1:] == 255).all()
    assert images[1, 0].tolist() == [[0, 1], [255, 128]]


def test_photographs_are_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    save(tmp_path / "a" / "x.png", GREY, exif=exif)
    assert torch.equal(ImageFolder.load(tmp_path).images[0, 0], torch.from_numpy(np.rot90(GREY, -1).copy()))


def test_resized_to_one_size(tmp_path):
    save(tmp_path / "a" / "x.png", np.full((9, 7), 80, np.uint8))
    save(tmp_path / "a" / "y.png", np.full((30, 40), 90, np.uint8))
    images = ImageFolder.load(tmp_path, size=6).images
    assert images.shape == (2, 1, 6, 6) and (images[0] == 80).all() and (images[1] == 90).all()
    assert ImageFolder.load(tmp_path, size=(3, 8)).images.shape == (2, 1, 3, 8)
    with pytest.raises(DataError, match=r"a/x\.png is 7 x 9, a/y\.png is 40 x 30 pixels .*; size= resizes"):
        ImageFolder.load(tmp_path)


def test_decoded_once_until_a_file_changes(pets, monkeypatch):
    first = ImageFolder.load(pets)
    with monkeypatch.context() as patch:
        patch.setattr("metafast.tasks.archive.decode", lambda *_: pytest.fail("decoded again"))
        assert torch.equal(ImageFolder.load(pets).images, first.images)
    assert ImageFolder.load(pets, channels=3).images.shape == (6, 3, 5, 4)
    save(pets / "dog" / "2.png", np.zeros((5, 4), np.uint8))
    assert (ImageFolder.load(pets).images[-1] == 0).all()


def test_splits_of_a_folder(tmp_path):
    for c in range(20):
        for e in range(2 + c % 2):
            save(tmp_path / f"c{c:02d}" / f"{e}.png", np.full((1, 2), c, np.uint8))
    data = ImageFolder.load(tmp_path)
    splits = data.splits(ways=2, shots=1, queries=1)
    assert [len(part.class_names) for part in splits] == [13, 3, 4]
    xs = splits.test.sample(50, generator(0)).support[0]
    assert xs.shape == (50, 2, 1, 1, 2) and xs.dtype == torch.float32
    drawn = {f"c{round(value * 255):02d}" for value in xs[..., 0, 0, 0].flatten().tolist()}
    assert drawn == set(splits.test.class_names)
    with pytest.raises(DataError, match=rf"{tmp_path.name}: class with fewer examples .* = 3: c00 \(2\), c02 \(2\)"):
        data.splits(ways=2, shots=1, queries=2)
    with pytest.raises(DataError, match=rf"{tmp_path.name}: 20 classes cannot be split .* at least 7 each"):
        data.splits(ways=7, shots=1, queries=1)
    names = {"train": ["c00", "c01"], "validation": ["c02", "c03"], "test": ["c04"]}
    with pytest.raises(DataError, match=r"ways: expected between 1 and the 1 classes there are \('c04'\), got 2"):
        data.splits(ways=2, shots=1, queries=1, names=names)


# ---- What is refused -----------------------------------------------------------------
@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_all_files_that_cannot_be_read_are_named(pets, damage):
    for name in ("cat/1.png", "dog/0.png"):
        content = (pets / name).read_bytes()
        (pets / name).write_bytes({"truncated": content[:-30], "garbage": b"x" * 50, "empty": b""}[damage])
    with pytest.raises(DataError, match=r"pets: cannot read 2 images:\n  cat/1\.png \(.+\)\n  dog/0\.png \(.+\)$"):
        ImageFolder.load(pets)


def test_a_truncated_jpeg_is_named(pets):
    save(pets / "dog" / "9.jpg", np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8))
    content = (pets / "dog" / "9.jpg").read_bytes()
    (pets / "dog" / "9.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"pets: cannot read image dog/9\.jpg \(.*truncated"):
        ImageFolder.load(pets, size=5)


def test_folders_without_what_is_expected(pets, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "x.txt").write_text("")
    (tmp_path / "a.zip").write_bytes(b"PK no zip")
    for path, message in [
        (tmp_path / "nowhere", r"nowhere does not exist; expected <class>/<image>, of which an image ends in \.bmp"),
        (tmp_path / "empty", "empty is an empty folder; expected <class>/<image>"),
        (tmp_path / "texts", "texts holds no image; expected <class>/<image>"),
        (tmp_path / "a.zip", r"a\.zip is not a whole zip file"),
        (pets / "cat", r"cat: '0\.png', '1\.png', '2\.png' lie in no folder of a class"),
    ]:
        with pytest.raises(DataError, match=message):
            ImageFolder.load(path)


@pytest.mark.parametrize("layout", ["folder", "zip"])
def test_a_class_without_images_is_named(pets, layout):
    (pets / "eel" / "raw").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no image in '[pets/]*eel', which lies among the folders of classes"):
        ImageFolder.load(pets if layout == "folder" else zipped(pets))


@pytest.mark.parametrize(("settings", "message"), [({"size": 0}, "size: "), ({"channels": 2}, "channels: .*got 2")])
def test_unfit_settings(pets, settings, message):
    with pytest.raises(ValueError, match=message):
        ImageFolder.load(pets, **settings)


# ---- Real images ---------------------------------------------------------------------
def nearest_class_mean(tasks: TaskSampler, episodes: int) -> tuple[float, float]:
    """Accuracy with its 95 % interval, of raw pixels."""
    hits = []
    for i in range(0, episodes, 20):
        (xs, _), (xq, yq) = tasks.sample(20, generator(0, i))
        means = xs.flatten(2).view(20, tasks.ways, tasks.shots, -1).mean(2)
        hits.append((torch.cdist(xq.flatten(2), means).argmin(-1) == yq).float().mean(-1))
    values = torch.cat(hits)
    return float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5


@pytest.mark.parametrize(
    ("name", "classes", "images", "shots", "queries", "published", "interval"),
    [("icons", 155, 4547, 1, 10, 0.501, 0.015), ("icons", 155, 4547, 5, 10, 0.710, 0.014),
     ("emoji", 400, 2595, 1, 5, 0.659, 0.019)],
)  # fmt: skip
def test_nearest_class_mean_on_real_images(real_data, name, classes, images, shots, queries, published, interval):
    data = ImageFolder.load(real_data(name))
    assert (len(data.class_names), len(data)) == (classes, images)
    assert data.images.shape[1:] == ((1, 84, 84) if name == "icons" else (3, 84, 84))
    tasks = TaskSampler(data.images, data.labels, ways=5, shots=shots, queries=queries)
    accuracy, own = nearest_class_mean(tasks, 200)
    assert abs(accuracy - published) < 1.5 * (interval**2 + own**2) ** 0.5  # about three standard errors
