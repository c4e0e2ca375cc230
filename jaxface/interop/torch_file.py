"""State dicts of `torch.save` without PyTorch, and without running anything in them.

The file is a zip archive of stored (not compressed) entries `<root>/data.pkl`, a pickle of names, shapes and strides, and
`<root>/data/<key>`, the bytes of one storage each. Of the pickle only the few instructions that a dictionary of tensors
needs are interpreted (`jaxface.safe_pickle`), and the names that they may call are functions of this file.
"""

import math
import pathlib
import struct
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

from jaxface import safe_pickle
from jaxface.errors import UserError
from jaxface.paths import local_path
from jaxface.safe_pickle import Name

_TYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_OPCODES = {
    "PROTO", "FRAME", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "EMPTY_DICT", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "SETITEM",
    "SETITEMS", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
    "BINPERSID",
}  # fmt: skip
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # protocol 2, then the magic number of before 1.6
# What a damaged archive or pickle may surface as.
_DAMAGE = (
    zipfile.BadZipFile, struct.error, ArithmeticError, AttributeError, EOFError,
    LookupError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


class _Refused(Exception):
    """The file is damaged, or holds something else than a state dict."""


def read_torch(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict that `torch.save` wrote (PyTorch 1.6 and later), or of {"model": state dict}.

    Nothing in the file is run, and no memory is taken for a size it claims: a tensor is a view of the bytes that are there.

    Returns:
      name -> array of the type that was saved.

    Raises:
      UserError: no such file; not a state dict of tensors; damaged; or a pickle that needs anything else.
    """
    path = local_path("weights", path)
    try:
        with path.open("rb") as file:
            start = file.read(len(_LEGACY))
        if start == _LEGACY:
            raise _Refused(
                "is in the format of before PyTorch 1.6; save it again: "
                f"torch.save(torch.load('{path.name}', weights_only=True), 'new.pth')"
            )
        with zipfile.ZipFile(path) as archive:
            return _state_dict(archive, path.stat().st_size)
    except _Refused as error:
        raise UserError(f"weights: {path}: {error}") from None
    except safe_pickle.Damaged:
        raise UserError(f"weights: {path} is damaged, or not a state dict that torch.save wrote") from None
    except safe_pickle.Refused as error:
        raise UserError(f"weights: {path}: its pickle {error}") from None
    except OSError as error:
        raise UserError(f"weights: cannot read {path}: {error.strerror or error}") from None
    except _DAMAGE:
        raise UserError(f"weights: {path} is damaged, or not a state dict that torch.save wrote") from None


def _state_dict(archive: zipfile.ZipFile, file_size: int) -> dict[str, np.ndarray]:
    entries = {entry.filename: entry for entry in archive.infolist()}
    roots = [
        name.removesuffix("data.pkl")
        for name in entries
        if name.count("/") == 1 and name.endswith("/data.pkl")
    ]
    if len(roots) != 1:
        raise _Refused(f"needs one data.pkl; got {len(roots)}")
    root, left = roots[0], file_size
    if f"{root}constants.pkl" in entries:
        raise _Refused("is a TorchScript program; save its state_dict() instead")

    def content(name: str) -> bytes:
        nonlocal left
        entry = entries[root + name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise _Refused(f"{name} is compressed, which torch.save never does")
        # Entries that overlap could otherwise ask for many times the bytes that there are.
        left -= entry.file_size
        if left < 0:
            raise _Refused(f"{name} claims {entry.file_size} bytes, more than the file has")
        data = archive.read(entry)
        if len(data) != entry.file_size:
            raise _Refused(f"{name} is truncated")
        return data

    if f"{root}byteorder" in entries and content("byteorder") != b"little":
        raise _Refused("is big-endian; save it again on a little-endian machine")
    storages: dict[str, np.ndarray] = {}

    def storage(identity: Any) -> np.ndarray:
        kind, name, key, _, count = identity
        if kind != "storage" or not isinstance(name, Name) or not isinstance(key, str):
            raise _Refused("names a storage in an unknown way")
        dtype = _TYPES[name.full.removeprefix("torch.")]
        if key not in storages:
            data = content(f"data/{key}")
            if type(count) is not int or count * dtype.itemsize != len(data):
                raise _Refused(f"storage {key} claims {count} elements of {dtype} in {len(data)} bytes")
            storages[key] = np.frombuffer(data, dtype)
        if storages[key].dtype != dtype:
            raise _Refused(f"storage {key} is of two types")
        return storages[key]

    state = safe_pickle.load(
        content("data.pkl"),
        _FUNCTIONS,
        opcodes=_OPCODES,
        purpose="a state dict of tensors",
        build=_set_attributes,
        persistent=storage,
    )
    if not isinstance(state, dict):
        raise _Refused("needs a state dict; save module.state_dict()")
    if state.keys() == {"model"} and isinstance(state["model"], dict) and state["model"]:
        state = state["model"]  # as DeiT and Swin are published
    for name, tensor in state.items():
        if not isinstance(tensor, np.ndarray):
            kind = "a dict" if isinstance(tensor, dict) else type(tensor).__name__
            raise _Refused(f"needs a state dict of tensors alone; {name!r} is {kind}")
    return state


def _set_attributes(target: Any, state: Any) -> None:
    """Those of an OrderedDict are `_metadata`, versions of modules: nothing to keep."""
    if not isinstance(target, dict) or not isinstance(state, dict):
        raise _Refused("its pickle sets attributes of something that is no state dict")


def _ordered_dict(arguments: tuple) -> dict:
    if arguments:
        raise _Refused("its pickle calls OrderedDict in a way that torch.save does not")
    return {}


def _parameter(arguments: tuple) -> np.ndarray:
    if not isinstance(arguments[0], np.ndarray):
        raise _Refused("its pickle makes a parameter in a way that torch.save does not")
    return arguments[0]


def _tensor(arguments: tuple) -> np.ndarray:
    storage, offset, shape, strides = arguments[:4]
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, np.ndarray) or not all(type(n) is int and n >= 0 for n in numbers):
        raise _Refused("describes a tensor in an unknown way")
    count = math.prod(shape)
    last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    # No more elements than the storage has: an expanded tensor would be as large as it claims once it is copied.
    if count > storage.size or (count and last >= storage.size):
        raise _Refused(f"a tensor of shape {shape} goes past its storage of {storage.size} elements")
    if not count:
        return np.zeros(shape, storage.dtype)
    steps = [step * storage.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


_FUNCTIONS = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    **dict.fromkeys(f"torch.{name}" for name in _TYPES),
}
