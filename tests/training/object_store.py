"""An object store of the tests' own behind the address `objects://`: it puts, gets, lists and removes, and nothing else.

It has no folders, no renaming, no appending and no locks; an object appears when its writer is closed.
"""

import io
import posixpath

from etils import epath
from etils.epath.stat_utils import StatResult

SCHEME = "objects://"
OBJECTS: dict[str, bytes] = {}
"""Address -> bytes."""
LOG: list[tuple[str, str]] = []
"""("put" | "get" | "remove", address) in order."""


class _Writer(io.BytesIO):
    def __init__(self, key: str):
        super().__init__()
        self._key = key

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            LOG.append(("put", self._key))
            before_put(self._key)
            OBJECTS[self._key] = content


def before_put(key: str) -> None:
    """Replaced by tests in which the store fails."""


@epath.register_path_cls(SCHEME)
class ObjectPath(epath.Path):
    """`objects://bucket/key`."""

    def __init__(self, *parts):
        text = "/".join(str(part) for part in parts)
        super().__init__(text.replace(SCHEME, "/objects/", 1))

    def __fspath__(self) -> str:
        return SCHEME + "/".join(self.parts[2:])

    __str__ = __fspath__

    def _below(self) -> list[str]:
        prefix = str(self) + "/"
        return sorted(key[len(prefix) :] for key in OBJECTS if key.startswith(prefix))

    def exists(self) -> bool:
        return str(self) in OBJECTS or self.is_dir()

    def is_dir(self) -> bool:
        return bool(self._below())

    def iterdir(self):
        return iter([self / name for name in sorted({key.partition("/")[0] for key in self._below()})])

    def mkdir(self, mode=None, parents=False, exist_ok=False) -> None:
        pass

    def rmtree(self, missing_ok=False) -> None:
        for key in self._below():
            (self / key).unlink()

    def unlink(self, missing_ok=False) -> None:
        LOG.append(("remove", str(self)))
        if OBJECTS.pop(str(self), None) is None and not missing_ok:
            raise FileNotFoundError(2, "No such object", str(self))

    def stat(self) -> StatResult:
        if str(self) not in OBJECTS:
            raise FileNotFoundError(2, "No such object", str(self))
        return StatResult(is_directory=False, length=len(OBJECTS[str(self)]), mtime=0)

    def open(self, mode="r", encoding=None, errors=None, **kwargs):
        if mode in ("w", "wb"):
            writer = _Writer(posixpath.normpath(str(self)).replace(":/", "://", 1))
            return writer if "b" in mode else io.TextIOWrapper(writer, "utf-8")
        assert mode in ("r", "rb"), mode
        LOG.append(("get", str(self)))
        if str(self) not in OBJECTS:
            raise FileNotFoundError(2, "No such object", str(self))
        data = io.BytesIO(OBJECTS[str(self)])
        return data if "b" in mode else io.TextIOWrapper(data, "utf-8")


def clear() -> None:
    """Empties the store."""
    OBJECTS.clear()
    LOG.clear()
