"""npz, IDX and pickles of images: what is read, and that nothing in a file is executed."""

from __future__ import annotations

import collections
import gzip
import os
import pickle
import struct

import numpy as np
import pytest

from metafast.tasks import DataError, TaskSampler, generator, read_idx, read_npz, read_pickle
from metafast.tasks.unpickle import load

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3)).astype(np.uint8)
MOVED = PIXELS.transpose(0, 3, 1, 2)
NAMES = ["cat", "cat", "dog", "dog", "eel", "eel"]
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def dump(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


# ---- Pickles -------------------------------------------------------------------------
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_data_and_arrays_come_back(tmp_path, protocol):
    data = {
        "numbers": [1, -(2**70), 2.5, True, None],
        b"bytes": (b"\x00\xff", "text"),
        "ordered": collections.OrderedDict([("b", np.arange(3)), ("a", [])]),
        "scalars": [np.float32(0.1), np.int64(-5), np.bool_(True)],
        "arrays": [
            np.arange(6, dtype=">i4").reshape(2, 3),
            np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            np.zeros((0, 4), np.uint8),
            np.array(["ab", "c"]),
            np.array([b"ab", b"c"]),
            np.float16([1.5]),
            np.array(7),
            PIXELS[::2],
        ],
    }
    if protocol >= 4:  # older ones have no sets of their own
        data[b"bytes"] = ({1, 2}, frozenset({b"x"}))
    read = load(dump(tmp_path / "x.pkl", data, protocol))
    assert read["numbers"] == data["numbers"] and read[b"bytes"] == data[b"bytes"]
    assert list(read["ordered"]) == ["b", "a"] and read["ordered"]["b"].tolist() == [0, 1, 2]
    assert read["scalars"] == [float(np.float32(0.1)), -5, True]
    for one, other in zip(read["arrays"], data["arrays"], strict=True):
        assert type(one) is np.ndarray and one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_pickles_of_python_2(tmp_path):
    # What Python 2's cPickle wrote for {'data': numpy.array([[1, 2]], 'u1'), 'labels': [3L]} at protocol 2.
    content = (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01K\x02"
        b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x02\x01"
        b"\x02tbU\x06labels]\x8a\x01\x03au."
    )
    (tmp_path / "old.pkl").write_bytes(content)
    assert pickle.loads(content, encoding="bytes")[b"data"].tolist() == [[1, 2]]  # numpy itself agrees
    read = load(tmp_path / "old.pkl")
    assert read[b"data"].tolist() == [[1, 2]] and read[b"data"].dtype == np.uint8 and read[b"labels"] == [3]


class Attack:
    """Unpickled by pickle, makes a file."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("nested", [False, True])
def test_a_pickle_that_would_run_a_program_is_refused(tmp_path, protocol, nested):
    attack = Attack(os.system, f"touch {tmp_path}/harmed")
    path = dump(tmp_path / "x.pkl", {"data": [attack], "labels": [0]} if nested else attack, protocol)
    with pytest.raises(DataError, match=r"x\.pkl asks for posix\.system, which is neither .* It|it was not executed"):
        read_pickle(path)
    assert not (tmp_path / "harmed").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "harmed").exists(), "this was no attack"


@pytest.mark.parametrize(
    ("content", "asked"),
    [
        (b"c__builtin__\neval\n(S'1+1'\ntR.", "__builtin__.eval"),
        (b"(S'1+1'\ni__builtin__\neval\n.", "__builtin__.eval"),
        (b"cnumpy.core.multiarray\nset_string_function\n.", "numpy.core.multiarray.set_string_function"),
        (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load"),
        (b"cbuiltins\ngetattr\n.", "builtins.getattr"),
        (b"ccollections\nOrderedDict.__init__.__globals__\n.", "collections.OrderedDict.__init__.__globals__"),
        (b"c_codecs\nencode\n(Vx\nVrot13\ntR.", "the codec 'rot13'"),
        (b"cnumpy\ndtype\n(VO8\ntR.", "a numpy array of 'O8'"),
        (b"cnumpy\ndtype\n(VV8\ntR.", "a numpy array of 'V8'"),
        (b"Pthere\n.", "an object kept elsewhere"),
        (b"cnumpy\nndarray\n.", "for itself"),
        (b"cnumpy\nndarray\n(tR}Vx\nI1\nsb.", "filling _Ndarray"),
    ],
)
def test_whatever_else_a_pickle_asks_for_is_named(tmp_path, content, asked):
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(DataError) as caught:
        load(tmp_path / "x.pkl")
    assert asked in str(caught.value) and "was not executed" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"cnumpy\nndarray\n}V__new__\nI1\nsb.", b"cnumpy\ndtype\n(N}V__setstate__\nI1\nstb."],
    ids=["dict", "slots"],
)
def test_a_pickle_cannot_change_what_reads_it(tmp_path, content):
    (tmp_path / "bad.pkl").write_bytes(content)
    with pytest.raises(DataError):
        load(tmp_path / "bad.pkl")
    assert load(dump(tmp_path / "good.pkl", np.arange(3))).tolist() == [0, 1, 2]


def test_a_pickle_cut_anywhere_is_noticed(tmp_path):
    whole = pickle.dumps({"data": PIXELS[:1], "labels": [np.int64(1)]}, protocol=2)
    for end in range(len(whole)):
        (tmp_path / "x.pkl").write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"x\.pkl is no whole pickle"):
            load(tmp_path / "x.pkl")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        {"image_data": PIXELS, "class_dict": {"cat": [0, 1], "dog": [2, 3], "eel": [4, 5]}},
        {b"image_data": PIXELS, b"class_dict": {b"eel": np.array([5, 4]), b"dog": [2, 3], b"cat": [1, 0]}},
        {"data": PIXELS, "labels": NAMES, "catname2label": {}},
        {b"data": PIXELS, b"labels": [name.encode() for name in NAMES]},
    ],
    ids=["mini-ImageNet", "mini-ImageNet of Python 2", "CIFAR-FS", "CIFAR-FS of Python 2"],
)
def test_layouts_of_few_shot_data_sets(tmp_path, content, compressed):
    path = dump(tmp_path / "x.pkl", content)
    if compressed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    x, y = read_pickle(path)
    np.testing.assert_array_equal(x, MOVED)
    assert y.tolist() == NAMES and x.flags.writeable
    assert TaskSampler(x, y, ways=3, shots=1, queries=1).sample(2, generator(0)).support[0].shape == (2, 3, 3, 4, 5)


def test_the_layout_of_cifar(tmp_path):
    flat = np.random.default_rng(0).integers(0, 256, (4, 3072)).astype(np.uint8)
    x, y = read_pickle(dump(tmp_path / "x", {b"data": flat, b"fine_labels": [3, 1, 3, 0], b"coarse_labels": [0] * 4}))
    assert x.shape == (4, 3, 32, 32) and y.tolist() == [3, 1, 3, 0]
    assert x[2, 1, 5, 7] == flat[2, 1024 + 5 * 32 + 7]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "holds a list; expected a dict of images and labels"),
        ({"x": 1}, "holds 'x'; expected image_data and class_dict, or data and labels"),
        ({"data": PIXELS, "labels": [1]}, r"expected inputs \[M, ...\] and labels \[M\], got \[6, 3, 4, 5\] and \[1\]"),
        ({"data": PIXELS * 1.0, "labels": NAMES}, r"data: expected uint8 .*, got float64 \[6, 4, 5, 3\]"),
        ({"data": MOVED, "labels": NAMES}, r"data: expected uint8 \[M, height, width, channels\], got uint8"),
        (
            {"image_data": PIXELS, "class_dict": {"a": [0, 1]}},
            "class_dict: expected 6 images, each in .*, got 2",
        ),
        ({"image_data": PIXELS, "class_dict": [0]}, "class_dict: expected a dict, got a list"),
    ],
)
def test_unfit_layouts_are_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_pickle(dump(tmp_path / "x.pkl", content))


# ---- npz and IDX ---------------------------------------------------------------------
def test_npz(tmp_path):
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.array(NAMES))
    x, y = read_npz(tmp_path / "a.npz", x="images", y="labels")
    np.testing.assert_array_equal(x, PIXELS)
    assert y.tolist() == NAMES
    np.savez(tmp_path / "objects.npz", x=np.array([Attack(os.system, f"touch {tmp_path}/harmed")]), y=np.array([0]))
    np.save(tmp_path / "one.npy", PIXELS)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-100])
    for name, message in {
        "a": r"a\.npz holds no array 'x', 'y'; it has 'images', 'labels': say x=, y=",
        "objects": r"objects\.npz is no whole \.npz file of numbers \(Object arrays",
        "cut": r"cut\.npz is no whole \.npz",
        "none": r"none\.npz does not exist",
    }.items():
        with pytest.raises(DataError, match=message):
            read_npz(tmp_path / f"{name}.npz")
    with pytest.raises(DataError, match="holds one array"):
        read_npz(tmp_path / "one.npy")
    assert not (tmp_path / "harmed").exists()


@pytest.fixture
def idx(tmp_path):
    """Three images of 2 x 4 pixels as MNIST's files."""
    images = struct.pack(">BBBBIII", 0, 0, 8, 3, 3, 2, 4) + bytes(range(24))
    labels = struct.pack(">BBBBI", 0, 0, 8, 1, 3) + bytes([7, 2, 1])
    (tmp_path / "images").write_bytes(images)
    (tmp_path / "labels.gz").write_bytes(gzip.compress(labels))
    return tmp_path


def test_idx(idx):
    x, y = read_idx(idx / "images", idx / "labels.gz")
    assert x.shape == (3, 1, 2, 4) and x.ravel().tolist() == list(range(24)) and x.flags.writeable
    assert y.tolist() == [7, 2, 1] and y.dtype == np.int64


def test_unfit_idx_files_are_refused(idx):
    whole = (idx / "images").read_bytes()
    for content, message in [
        (whole[:-1], r"images has 39 bytes, which are not those of an array \[3, 2, 4\]: was it cut short\?"),
        (whole[:9], "images has 9 bytes"),
        (b"\x89PNG", "images is no IDX file: it begins with"),
        (b"\x1f\x8b\x08", "images cannot be read"),
    ]:
        (idx / "images").write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_idx(idx / "images", idx / "labels.gz")
    (idx / "images").write_bytes(whole)
    with pytest.raises(DataError, match=r"got \[3\] and \[3, 2, 4\]: are they exchanged\?"):
        read_idx(idx / "labels.gz", idx / "images")
    with pytest.raises(DataError, match="none does not exist"):
        read_idx(idx / "none", idx / "labels.gz")
