"""Paths that users give: one reading of them for every part that opens or writes a file."""

import os
import pathlib
import re

from jaxface.errors import UserError

# A `pathlib.Path` has one slash left of the two. One letter before the colon is a drive.
_URL = re.compile(r"://|^[A-Za-z][A-Za-z0-9+.-]+:/")


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
