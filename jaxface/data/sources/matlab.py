"""Lists in MATLAB's files, which come from outside: their size is known before anything is allocated."""

import io
import pathlib
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from jaxface.data.sources.annotated import read_text
from jaxface.errors import UserError
from jaxface.extras import optional
from jaxface.paths import name_text

MAX_UNPACKED = 1 << 28  # bytes of a file, unpacked; the published lists have some million


def read_mat(name: str, path: pathlib.Path, variables: Sequence[str]) -> dict[str, np.ndarray]:
    """Some variables of a MATLAB 5 file, as scipy gives them.

    Args:
      name: of the argument, for messages.
      path: the `.mat`.
      variables: what it has to hold.

    Raises:
      UserError: no such file, no MATLAB 5 file, one that unpacks to more than `MAX_UNPACKED` bytes, or a variable that it lacks.
    """
    loadmat = optional("scipy.io", "detection").loadmat
    data = read_text(name, path, limit=MAX_UNPACKED)
    _check(name, data, path)
    try:
        table = loadmat(io.BytesIO(data), variable_names=tuple(variables))
        return {variable: table[variable] for variable in variables}
    except Exception as error:  # a reader fed with garbage raises nearly anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise UserError(
            f"{name}: needs a file with {', '.join(variables)}, {name_text(path)} is none: {reason}"
        ) from error


def _check(name: str, data: bytes, path: pathlib.Path) -> None:
    """Refuses what is no MATLAB 5 file, or unpacks to more than `MAX_UNPACKED` bytes."""
    if len(data) < 136 or data[126:128] != b"IM":
        raise UserError(f"{name}: needs a MATLAB 5 file, {name_text(path)} is none")
    at, left = 128, MAX_UNPACKED
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<II", data, at)
        if kind == 15:  # compressed
            unpacker, rest = zlib.decompressobj(), data[at + 8 : at + 8 + length]
            while rest and left > 0 and not unpacker.eof:
                left -= len(unpacker.decompress(rest, 1 << 20))
                rest = unpacker.unconsumed_tail
        if left <= 0:
            raise UserError(
                f"{name}: needs a list of at most {MAX_UNPACKED} bytes, {name_text(path)} unpacks to more"
            )
        at += 8 + length
