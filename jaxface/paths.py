"""Paths that users give: one reading of them for every part that opens or writes a file.

A path is one of this machine (`pathlib.Path`), or the address of a place elsewhere, such as `gs://bucket/run`, which
`etils.epath` opens. What reads or writes both calls `user_path`, and asks `is_remote` where the two differ; what needs a file
of this machine calls `local_path`.
"""

import contextlib
import errno
import importlib.util
import os
import pathlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jaxface.errors import UserError

if TYPE_CHECKING:
    from etils import epath

    Path = pathlib.Path | epath.Path

# A `pathlib.Path` has one slash left of the two. One letter before the colon is a drive.
_URL = re.compile(r"://|^[A-Za-z][A-Za-z0-9+.-]+:/")
_SURROGATE = re.compile("[\ud800-\udfff]")
# What etils needs to open an address, unless TensorFlow is there.
_LIBRARIES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}


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


def user_path(name: str, text: "str | os.PathLike") -> "Path":
    """`local_path`, or an address that `etils.epath` opens: gs://, s3://, az://, hf://, and what a program registers with it.

    Args:
      name: of the argument, for messages.
      text: a path of this machine or an address.

    Returns:
      A `pathlib.Path`, or an `epath.Path` for an address.

    Raises:
      UserError: as `local_path`; an address that nothing opens, or whose library is not installed.
    """
    text = os.fspath(text)
    scheme, separator, _ = text.partition("://")
    if not separator:
        return local_path(name, text)
    if importlib.util.find_spec("etils") is None:
        raise UserError(f"{name}: {text!r} needs the package etils: pip install 'etils[epath]'")
    from etils import epath

    try:
        path = epath.Path(text)
    except KeyError:
        raise UserError(
            f"{name}: needs a path of this machine or an address from gs://, s3://, az:// or hf://, got {text!r}"
        ) from None
    library = _LIBRARIES.get(scheme)
    opened_by_etils = type(path).__module__.startswith("etils.")
    if opened_by_etils and not any(map(importlib.util.find_spec, (library, "tensorflow"))):
        raise UserError(f"{name}: needs a path of this machine, or the package {library} for {text!r}")
    return path


def is_remote(path: os.PathLike) -> bool:
    """Whether a result of `user_path` is an address: nothing is renamed or appended to there, and a file appears when whole."""
    return "://" in os.fspath(path)


def absolute(path: "Path") -> "Path":
    """A result of `user_path` from its root on; an address is that already."""
    return path if is_remote(path) else path.absolute()


def file_size(path: "Path") -> int:
    """Bytes of a file; raises OSError where there is none."""
    return path.stat().length if is_remote(path) else path.stat().st_size


class UnreachableError(UserError):
    """What is elsewhere cannot be reached, which says nothing of what is there."""


@contextlib.contextmanager
def reaching(path: os.PathLike) -> Iterator[None]:
    """What is read inside may be elsewhere: whatever a library raises that cannot reach it becomes one line.

    Raises:
      UnreachableError: anything but a missing file, where `path` is an address. Local errors pass as they are.
    """
    try:
        yield
    except (UserError, FileNotFoundError, NotADirectoryError):
        raise
    except Exception as error:
        if not is_remote(path):
            raise
        raise UnreachableError(f"{path} cannot be reached: {reason_of(error)}") from error


@contextlib.contextmanager
def as_os_error() -> Iterator[None]:
    """What a library raises that reads or writes elsewhere, under its own names, becomes an OSError."""
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as error:
        raise OSError(errno.EIO, reason_of(error)) from error


def reason_of(error: BaseException) -> str:
    """The first line of what an exception says, in the system's words where it is the system's."""
    words = error.strerror if isinstance(error, OSError) else None
    return words or (str(error).strip().splitlines() or [type(error).__name__])[0]


def name_text(path: str | os.PathLike) -> str:
    r"""The name of a file as text for labels, tables and logs: bytes of it that are no UTF-8 become `\xNN`.

    Python carries such bytes as lone surrogates, which no terminal, font or text file takes.
    """
    return _SURROGATE.sub(lambda byte: f"\\x{ord(byte[0]) & 0xFF:02x}", os.fspath(path))


def last_name(name: str, text: str | os.PathLike) -> str:
    """The name of a file or folder that a user gave, as text; also of a folder that is given as `.`.

    Args and exceptions are those of `user_path`.
    """
    path = user_path(name, text)
    return name_text(path.name if is_remote(path) else path.resolve().name)


def run_path(name: str, text: str | os.PathLike) -> "Path":
    """`user_path` for the work directory of a run, whose checkpoints are written by a library that takes UTF-8 only.

    Raises:
      UserError: as `user_path`, or a path with other bytes, from its root on.
    """
    path = user_path(name, text)
    whole = str(absolute(path))
    if name_text(whole) != whole:
        raise UserError(f"{name}: needs a path in UTF-8, got {name_text(whole)}")
    return path
