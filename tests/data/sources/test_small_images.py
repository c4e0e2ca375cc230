import gzip
import io
import os
import pickle
import struct

import numpy as np
import pytest

from jaxface import data
from jaxface.errors import UserError

RNG = np.random.default_rng(0)
ROWS = RNG.integers(0, 256, (12, 3072), np.uint8)
IMAGES = ROWS.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
LABELS = [i % 10 for i in range(12)]


def python2(value):
    """A pickle as Python 2 and numpy 1 wrote it, protocol 2: names and pixels are its byte strings."""

    def text(raw):
        head = b"U" + struct.pack("<B", len(raw)) if len(raw) < 256 else b"T" + struct.pack("<i", len(raw))
        return head + raw

    def body(value):
        if isinstance(value, dict):
            items = b"".join(text(key.encode()) + body(item) for key, item in value.items())
            return b"}(" + items + b"u"
        if isinstance(value, list):
            return b"](" + b"".join(map(body, value)) + b"e"
        if isinstance(value, str):
            return text(value.encode())
        if isinstance(value, int):
            return b"M" + struct.pack("<H", value)
        shape = b"".join(map(body, value.shape)) + (b"\x86" if value.ndim == 2 else b"\x85")
        kind = (
            b"cnumpy\ndtype\n"
            + text(b"u1")
            + b"K\0K\1\x87R(K\3"
            + text(b"|")
            + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
        )
        new = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + text(b"b") + b"\x87R"
        return new + b"(K\1" + shape + kind + b"\x89" + text(value.tobytes()) + b"tb"

    return b"\x80\2" + body(value) + b"."


def write_cifar10(folder, dump):
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"class {k}" for k in range(10)]
    (folder / "batches.meta").write_bytes(dump({"label_names": names, "num_vis": 3072}))
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        (folder / name).write_bytes(dump({"data": ROWS, "labels": LABELS, "filenames": ["a.png"] * 12}))


def same_images(source, images, labels):
    assert len(source) == len(images) and source.image_shape == images.shape[1:]
    np.testing.assert_array_equal(source.labels, labels)
    for index in (0, len(images) - 1):
        np.testing.assert_array_equal(source[index]["image"], images[index])


def test_python2_pickles_are_what_python_reads():
    read = pickle.loads(python2({"data": ROWS, "labels": LABELS}), encoding="latin1")
    np.testing.assert_array_equal(read["data"], ROWS)
    assert read["labels"] == LABELS


@pytest.mark.parametrize("dump", [python2, *(lambda v, p=p: pickle.dumps(v, p) for p in (2, 4, 5))])
def test_cifar10_pickles(tmp_path, dump):
    write_cifar10(tmp_path / "cifar-10-batches-py", dump)
    split = data.load(data.Cifar10(str(tmp_path)))
    assert split.protocol == "classification" and split.name == "cifar10"
    same_images(split.train, np.tile(IMAGES, (5, 1, 1, 1)), LABELS * 5)
    same_images(split.held_out, IMAGES, LABELS)
    assert split.train.class_names[3] == "class 3"
    same_images(data.load_all(data.Cifar10(str(tmp_path / "cifar-10-batches-py"))), IMAGES, LABELS)


def test_an_array_that_lies_column_by_column(tmp_path):
    write_cifar10(
        tmp_path,
        lambda v: pickle.dumps({k: np.asfortranarray(x) if k == "data" else x for k, x in v.items()}, 2),
    )
    same_images(data.cifar10(tmp_path, "test"), IMAGES, LABELS)


def test_cifar10_binary(tmp_path):
    records = np.concatenate([np.uint8(LABELS)[:, None], ROWS], axis=1).tobytes()
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        (tmp_path / f"{name}.bin").write_bytes(records)
    (tmp_path / "batches.meta.txt").write_text("\n".join(f"class {k}" for k in range(10)) + "\n\n")
    same_images(data.cifar10(tmp_path, "train"), np.tile(IMAGES, (5, 1, 1, 1)), LABELS * 5)
    (tmp_path / "test_batch.bin").write_bytes(records[:-1])
    with pytest.raises(
        UserError, match=r"^root: .*test_batch.bin has 36875 bytes, which is no number of records of 3073$"
    ):
        data.cifar10(tmp_path, "test")


def test_cifar100_in_both_forms(tmp_path):
    fine, coarse = [7 * (i % 3) for i in range(12)], [i % 3 for i in range(12)]
    names = {"fine": [f"f{k}" for k in range(100)], "coarse": [f"c{k}" for k in range(20)]}
    pickled, binary = tmp_path / "cifar-100-python", tmp_path / "cifar-100-binary"
    for folder in (pickled, binary):
        folder.mkdir()
    (pickled / "meta").write_bytes(python2({f"{k}_label_names": v for k, v in names.items()}))
    records = np.concatenate([np.uint8(coarse)[:, None], np.uint8(fine)[:, None], ROWS], axis=1)
    for part in ("train", "test"):
        (pickled / part).write_bytes(python2({"data": ROWS, "fine_labels": fine, "coarse_labels": coarse}))
        (binary / f"{part}.bin").write_bytes(records.tobytes())
    for kind, values in names.items():
        (binary / f"{kind}_label_names.txt").write_text("\n".join(values))
    for folder in (pickled, binary):
        source = data.cifar100(folder, "train")
        same_images(source, IMAGES, fine)
        assert source.groups.tolist() == coarse and source.group_names == names["coarse"]
    noisy = data.load(data.Cifar100(str(binary), noise=data.LabelNoise(rate=0.05))).train
    assert noisy.groups.tolist() == coarse and noisy.true_labels.tolist() == fine


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            {"data": Evil(), "labels": LABELS},
            r"its pickle names 'posix.system', which a set of images does not need",
        ),
        ({"data": ROWS, "labels": {"a": 1}}, "'labels' in a pickle of .* needs numbers"),
        ({"data": ROWS[:, :7], "labels": LABELS}, r"needs uint8 images of 3072 bytes"),
        ({"data": ROWS.astype("<u2"), "labels": LABELS}, r"needs uint8 images of 3072 bytes"),
        ({"data": ROWS, "labels": LABELS[:-1]}, "has 12 images and 11 labels"),
        ({"data": ROWS, "labels": [10] * 12}, "has classes beside its 10"),
        ({"labels": LABELS}, "has no 'data', it has labels"),
        ([ROWS], "needs a pickled dict, it holds a list"),
        ({"data": ROWS.astype(object), "labels": LABELS}, "its pickle holds an array of type 'O8'"),
    ],
)
def test_other_pickles_are_refused_in_one_line(tmp_path, value, words):
    write_cifar10(tmp_path, pickle.dumps)
    (tmp_path / "test_batch").write_bytes(pickle.dumps(value, 2))
    with pytest.raises(UserError, match=f"^root: .*{words}") as refused:
        data.cifar10(tmp_path, "test")
    assert "\n" not in str(refused.value)


def test_a_pickle_that_is_cut_short_is_refused(tmp_path):
    write_cifar10(tmp_path, python2)
    whole = (tmp_path / "test_batch").read_bytes()
    (tmp_path / "test_batch").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"^root: .*test_batch cannot be used: its pickle is cut short"):
        data.cifar10(tmp_path, "test")
    with pytest.raises(
        UserError,
        match=r"^root: needs a folder with data_batch_1 or data_batch_1\.bin; .*nothing has neither",
    ):
        data.cifar10(tmp_path / "nothing", "test")


def idx(array):
    return (
        struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    )


@pytest.mark.parametrize(("dash", "zipped"), [("-", False), (".", True)])
def test_mnist(tmp_path, dash, zipped):
    images, labels = RNG.integers(0, 256, (20, 28, 28), np.uint8), np.uint8(np.arange(20) % 10)
    for prefix in ("train", "t10k"):
        for kind, array in (("images", images), ("labels", labels)):
            raw = idx(array)
            name = f"{prefix}-{kind}{dash}idx{array.ndim}-ubyte{'.gz' if zipped else ''}"
            (tmp_path / name).write_bytes(gzip.compress(raw) if zipped else raw)
    split = data.load(data.Mnist(str(tmp_path)))
    same_images(split.train, images[..., None], labels)
    same_images(split.held_out, images[..., None], labels)
    noisy = data.load(data.Mnist(str(tmp_path), noise=data.LabelNoise("asymmetric", 0.0))).train
    assert noisy.labels.tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"text", "has no head of an idx file of bytes"),
        (idx(np.zeros((3, 4), np.uint8))[:-1], "has 11 bytes for 3 x 4"),
        (struct.pack(">HBB", 0, 8, 3) + b"\xff" * 12, "has 0 bytes for 4294967295 x"),
        (struct.pack(">HBB", 0, 13, 1) + bytes(4), "has no head of an idx file of bytes"),
        (gzip.compress(bytes(100), mtime=0)[:-9], "is cut short, and has not"),
        (b"\x1f\x8b" + bytes(9), "is no gzip file"),
    ],
    ids=["text", "short", "huge", "floats", "cut", "no_gzip"],
)
def test_other_idx_files_are_refused(tmp_path, content, words):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match=f"^path: .*{words}"):
        data.read_idx(tmp_path / "x")


def test_a_gzip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxface.data.sources.small_images.MAX_FILE", 1000)
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb") as file:
        file.write(bytes(100_000))
    (tmp_path / "x").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="unpacks to more than 1000 bytes"):
        data.read_idx(tmp_path / "x")
