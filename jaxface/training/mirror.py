"""A folder elsewhere, such as `gs://bucket/run`, behind a folder of this machine: what is written here goes there.

Object stores know no renaming, no locks and no appending; an object appears when it is whole. So nothing is asked of them but
to put, get, list and remove.
"""

import os
import pathlib
import shutil
import tempfile

from jaxface.paths import as_os_error, is_remote


class Mirror:
    """A folder to work in, `local`, and the folder that it stands for; one and the same where that is on this machine.

    The methods do nothing then. Elsewhere `local` is temporary, and empty at first; what fails there raises OSError.

    Args:
      folder: result of `jaxface.paths.user_path`.
    """

    def __init__(self, folder):
        self.folder = folder
        self.remote = is_remote(folder)
        self._temporary = tempfile.TemporaryDirectory(prefix="jaxface-") if self.remote else None
        self.local = pathlib.Path(self._temporary.name) if self.remote else pathlib.Path(folder).absolute()
        self._sent: dict[pathlib.Path, tuple[int, int]] = {}  # what is there: size and time of change here

    def pull(self, name: str) -> None:
        """Brings a file, or a folder with all in it, unless it is here; nothing where there is none."""
        if self.remote and not (self.local / name).exists():
            with as_os_error():
                _get(self.folder / name, self.local / name)

    def push(self, name: str, *, last: str | None = None) -> None:
        """Puts a file, or a folder with all in it; what has not changed since it was put is left out.

        Args:
          name: relative to the folder.
          last: file in it that is put after all others, so that where it is, all are.
        """
        if not self.remote or not (self.local / name).exists():
            return
        path = self.local / name
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        if last is not None:
            files.sort(key=lambda file: file == path / last)
        for file in files:
            status = file.stat()
            mark = status.st_size, status.st_mtime_ns
            if self._sent.get(file) != mark:
                target = self.folder / file.relative_to(self.local).as_posix()
                with as_os_error():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _copy(file, target)
                self._sent[file] = mark

    def remove(self, name: str, *, first: str | None = None) -> None:
        """Removes a file or a folder there, not here; `first` is the file of it that goes before the others."""
        if not self.remote:
            return
        target = self.folder / name
        with as_os_error():
            if first is not None:
                (target / first).unlink(missing_ok=True)
            if target.is_dir():
                target.rmtree(missing_ok=True)
            else:
                target.unlink(missing_ok=True)
        path = self.local / name
        self._sent = {
            file: mark for file, mark in self._sent.items() if path != file and path not in file.parents
        }

    def close(self) -> None:
        """Removes the temporary folder."""
        if self._temporary is not None:
            self._temporary.cleanup()


def _get(source, target: pathlib.Path) -> None:
    if source.is_dir():
        for entry in source.iterdir():
            _get(entry, target / entry.name)
    elif source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        _copy(source, partial)
        os.replace(partial, target)


def _copy(source, target) -> None:
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, 1 << 24)
