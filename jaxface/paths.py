"""Paths that users give: one reading of them for every part that opens or writes a file."""

import os
import pathlib
import re

from jaxface.errors import UserError

# A `pathlib.Path` has one slash left of the two. One letter before the colon is a drive.
_URL = re.compile(r"://|^[A-Za-z][A-Za-z0-9+.-]+:/")
_SURROGATE = re.compile("[\ud800-\udfff]")


def local_path(name: str, text: str | os.PathLike) -> pathlib.Path:
    """The path that a user gave, with `~` and `~user` expanded.

    Args:
      name: of the argument, for messages.
      text: a path of this machine, absolute or from the current folder.

    Raises:
      UserError: the empty path, an address such as `gs://bucket/run`, or the home of a user who does not exist.
    """
    text = os.fspath(text)
    if not text.strip():
        raise UserError(f"{name}: needs a path, got an empty one; '.' is the current folder")
    if _URL.search(text):
        raise UserError(
            f"{name}: needs a path of this machine, got {text!r}; copy or mount what is elsewhere"
        )
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{name}: no such user's home, got {text!r}") from None


def name_text(path: str | os.PathLike) -> str:
    r"""The name of a file as text for labels, tables and logs: bytes of it that are no UTF-8 become `\xNN`.

    Python carries such bytes as lone surrogates, which no terminal, font or text file takes.
    """
    return _SURROGATE.sub(lambda byte: f"\\x{ord(byte[0]) & 0xFF:02x}", os.fspath(path))


def run_path(name: str, text: str | os.PathLike) -> pathlib.Path:
    """`local_path` for the work directory of a run, whose checkpoints are written by a library that takes UTF-8 only.

    Raises:
      UserError: as `local_path`, or a path with other bytes, from its root on.
    """
    path = local_path(name, text)
    whole = str(path.absolute())
    if name_text(whole) != whole:
        raise UserError(f"{name}: needs a path in UTF-8, got {name_text(whole)}")
    return path
