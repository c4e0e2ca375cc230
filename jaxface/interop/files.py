"""Files that are written whole or not at all, and optional packages."""

import contextlib
import os
import pathlib
import tempfile
import types
from collections.abc import Iterator

from jaxface import extras
from jaxface.errors import UserError
from jaxface.paths import local_path


@contextlib.contextmanager
def replacing(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary file beside `path` to write to, which takes its place once the block ends without an exception.

    Raises:
      UserError: the folder cannot be written to.
    """
    path = local_path("out", path)
    temporary = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = pathlib.Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"out: cannot write {path}: {error.strerror or error}") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def optional(name: str) -> types.ModuleType:
    """A module of the extra `interop`, imported when it is needed.

    Raises:
      MissingExtra: it is not installed.
    """
    return extras.optional(name, "interop")
