"""MNIST, CIFAR-10 and CIFAR-100 as they are published, read whole into memory.

    <MNIST>/train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte; .gz or not
    <CIFAR-10>/data_batch_1 … data_batch_5, test_batch, batches.meta            python pickles
    <CIFAR-10>/data_batch_1.bin … data_batch_5.bin, test_batch.bin, batches.meta.txt
    <CIFAR-100>/train, test, meta                                               python pickles
    <CIFAR-100>/train.bin, test.bin, fine_label_names.txt, coarse_label_names.txt

A pickle is read and not run (`jaxface.safe_pickle`). Sizes are checked before anything is allocated.

Methods: mda, law, nclpp, lifelong
"""

import math
import os
import zlib
from typing import Any

import numpy as np

from jaxface import safe_pickle
from jaxface.data.sources.annotated import read_lines, read_text
from jaxface.data.sources.bundled import ArraySource
from jaxface.data.sources.pickled_arrays import FUNCTIONS, PickledArray, build
from jaxface.errors import UserError
from jaxface.paths import name_text, user_path

MAX_FILE = 1 << 30  # bytes; the largest published one has 155 million
MAX_STEPS = 1 << 22  # instructions of a pickle; 50,000 names of files and two labels each need some 300,000
_SIDE = 32
_OPCODES = safe_pickle.OPCODES - {"BINPERSID"}
_ROOTS = {
    "cifar10": ("cifar-10-batches-py", "cifar-10-batches-bin"),
    "cifar100": ("cifar-100-python", "cifar-100-binary"),
}


def read_idx(path: str | os.PathLike, *, argument: str = "path") -> np.ndarray:
    """The bytes of an idx file, gzipped or not.

    Args:
      path: the file.
      argument: what a refusal calls it.

    Returns:
      uint8 of the shape in the file.

    Raises:
      UserError: no such file, or one that is no idx of bytes, or is cut short.
    """
    path = user_path(argument, path)
    data = read_text(argument, path, limit=MAX_FILE)
    reason = "has no head of an idx file of bytes"
    if data[:2] == b"\x1f\x8b":
        data = _unzipped(argument, data, path)
    if data[:3] == b"\0\0\x08" and len(data) >= 4 and 1 <= data[3] <= 4 and len(data) >= 4 + 4 * data[3]:
        start = 4 + 4 * data[3]
        shape = tuple(np.frombuffer(data, ">u4", data[3], 4).tolist())
        if math.prod(shape) == len(data) - start:
            return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
        reason = f"has {len(data) - start} bytes for {' x '.join(map(str, shape))}"
    raise UserError(f"{argument}: needs an idx file; {name_text(path)} {reason}")


def _unzipped(argument: str, data: bytes, path: os.PathLike) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        unpacked = unpacker.decompress(data, MAX_FILE)
    except zlib.error as error:
        raise UserError(f"{argument}: {name_text(path)} is no gzip file: {error}") from error
    if not unpacker.eof:
        too_long = "unpacks to more than" if unpacker.unconsumed_tail else "is cut short, and has not"
        raise UserError(f"{argument}: {name_text(path)} {too_long} {MAX_FILE} bytes")
    return unpacked


def mnist(root: str | os.PathLike, part: str) -> ArraySource:
    """One part of MNIST, or of a set in its form: gray images of 28x28 pixels.

    Args:
      root: the folder of its four files.
      part: train or test.

    Raises:
      UserError: no such files, or files that are none of images and as many labels.
    """
    folder = user_path("root", root)
    prefix = {"train": "train", "test": "t10k"}[part]

    def read(kind: str, axes: int) -> np.ndarray:
        names = [f"{prefix}-{kind}{dot}idx{axes}-ubyte{end}" for dot in "-." for end in ("", ".gz")]
        for name in names:
            if (folder / name).exists():
                array = read_idx(folder / name, argument="root")
                if array.ndim != axes:
                    raise UserError(f"root: {name} needs {axes} axes, it has {array.ndim}")
                return array
        raise UserError(
            f"root: needs a folder with {names[0]} or {names[1]}; {name_text(folder)} has neither"
        )

    images, labels = read("images", 3), read("labels", 1)
    return _source(images[..., None], labels, [str(digit) for digit in range(10)], folder)


def _source(images, labels, names, folder, **groups) -> ArraySource:
    if not len(images):
        raise UserError(f"root: {name_text(folder)} holds no image")
    if len(images) != len(labels):
        raise UserError(f"root: {name_text(folder)} has {len(images)} images and {len(labels)} labels")
    try:
        return ArraySource(images, labels, names, **groups)
    except ValueError as error:
        raise UserError(f"root: {name_text(folder)} has classes beside its {len(names)}: {error}") from error


def cifar10(root: str | os.PathLike, part: str) -> ArraySource:
    """One part of CIFAR-10, as python pickles or binary.

    Args:
      root: the folder of its files, or the one that it lies in.
      part: train or test.

    Returns:
      color images of 32x32 pixels, those of data_batch_1 first.

    Raises:
      UserError: no such files, a pickle that holds anything but arrays, numbers and strings, or other arrays.
    """
    folder, binary = _layout("cifar10", root, "data_batch_1")
    batches = [f"data_batch_{number}" for number in range(1, 6)] if part == "train" else ["test_batch"]
    if binary:
        rows = [_records(folder / f"{name}.bin", 1) for name in batches]
        images, labels = np.concatenate([r[:, 1:] for r in rows]), np.concatenate([r[:, 0] for r in rows])
        names = _names(folder / "batches.meta.txt")
    else:
        pickles = [_unpickled(folder / name) for name in batches]
        images, labels = (
            np.concatenate([_numbers(pickle, key, folder) for pickle in pickles])
            for key in ("data", "labels")
        )
        names = _strings(_unpickled(folder / "batches.meta"), "label_names", folder)
    return _source(_planes(images, folder), labels, names, folder)


def cifar100(root: str | os.PathLike, part: str) -> ArraySource:
    """One part of CIFAR-100, as python pickles or binary; `groups` are the 20 superclasses.

    Arguments and exceptions are those of `cifar10`.
    """
    folder, binary = _layout("cifar100", root, "train")
    if binary:
        rows = _records(folder / f"{part}.bin", 2)
        images, coarse, fine = rows[:, 2:], rows[:, 0], rows[:, 1]
        names, groups = (_names(folder / f"{kind}_label_names.txt") for kind in ("fine", "coarse"))
    else:
        pickle, meta = _unpickled(folder / part), _unpickled(folder / "meta")
        images, coarse, fine = (
            _numbers(pickle, key, folder) for key in ("data", "coarse_labels", "fine_labels")
        )
        names, groups = (_strings(meta, f"{kind}_label_names", folder) for kind in ("fine", "coarse"))
    return _source(_planes(images, folder), fine, names, folder, groups=coarse, group_names=groups)


def _layout(name: str, root: str | os.PathLike, first: str) -> tuple[Any, bool]:
    """(folder of the files, whether they are binary)."""
    root = user_path("root", root)
    for folder in (root, *(root / inner for inner in _ROOTS[name])):
        for binary in (False, True):
            if (folder / (f"{first}.bin" if binary else first)).is_file():
                return folder, binary
    raise UserError(f"root: needs a folder with {first} or {first}.bin; {name_text(root)} has neither")


def _planes(rows: np.ndarray, folder: os.PathLike) -> np.ndarray:
    """[N, 3 · 32 · 32], channel by channel, to [N, 32, 32, 3]."""
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 3 * _SIDE**2:
        raise UserError(
            f"root: needs uint8 images of {3 * _SIDE**2} bytes, those of {name_text(folder)} are {rows.dtype} {rows.shape}"
        )
    return np.ascontiguousarray(rows.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1))


def _records(path: Any, labels: int) -> np.ndarray:
    """[N, labels + 3072] bytes of a binary file."""
    data = np.frombuffer(read_text("root", path, limit=MAX_FILE), np.uint8)
    length = labels + 3 * _SIDE**2
    if not len(data) or len(data) % length:
        raise UserError(
            f"root: {name_text(path)} has {len(data)} bytes, which is no number of records of {length}"
        )
    return data.reshape(-1, length)


def _names(path: Any) -> list[str]:
    return [line for _, line in read_lines("root", path)]


def _unpickled(path: Any) -> dict[str, Any]:
    try:
        value = safe_pickle.load(
            read_text("root", path, limit=MAX_FILE),
            FUNCTIONS,
            opcodes=_OPCODES,
            purpose="a set of images",
            build=build,
            max_steps=MAX_STEPS,
        )
    except safe_pickle.Refused as error:
        raise UserError(f"root: {name_text(path)} cannot be used: its pickle {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"root: {name_text(path)} needs a pickled dict, it holds a {type(value).__name__}")
    return value


def _field(pickle: dict[str, Any], key: str, folder: os.PathLike) -> Any:
    if key not in pickle:
        raise UserError(
            f"root: a pickle in {name_text(folder)} has no {key!r}, it has {', '.join(sorted(pickle))[:80]}"
        )
    return pickle[key]


def _numbers(pickle: dict[str, Any], key: str, folder: os.PathLike) -> np.ndarray:
    value = _field(pickle, key, folder)
    if isinstance(value, PickledArray):
        return value.array()
    if isinstance(value, list) and all(type(number) is int and abs(number) < 1 << 31 for number in value):
        return np.array(value, np.int64)
    raise UserError(f"root: {key!r} in a pickle of {name_text(folder)} needs numbers")


def _strings(pickle: dict[str, Any], key: str, folder: os.PathLike) -> list[str]:
    value = _field(pickle, key, folder)
    if isinstance(value, list) and all(isinstance(name, str | bytes) for name in value):
        return [name.decode("latin-1") if isinstance(name, bytes) else name for name in value]
    raise UserError(f"root: {key!r} in a pickle of {name_text(folder)} needs names")
