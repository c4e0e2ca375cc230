"""A folder of images, one sub-folder per person (or class)."""

import logging
import pathlib
import re
import threading

import numpy as np

from jaxface.data.images import SUFFIXES, CorruptImage, Fit, decode_image, fit_square
from jaxface.data.sources import Record
from jaxface.errors import UserError

_log = logging.getLogger(__name__)


def natural_key(name: str) -> tuple:
    """Sorts s2 before s10: runs of digits compare as numbers. The name itself breaks ties such as 1 and 01."""
    parts = re.split(r"([0-9]+)", name)
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), name


def _images_by_class(root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    found = {}
    for directory in sorted((p for p in root.iterdir() if p.is_dir()), key=lambda p: natural_key(p.name)):
        if directory.name.startswith("."):
            continue
        files = [
            p
            for p in directory.iterdir()
            if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
        ]
        if files:
            found[directory.name] = sorted(files, key=lambda p: natural_key(p.name))
    return found


class FolderSource:
    """Images `root/<person>/<image>` in natural order (s2 before s10), as RGB squares of one size.

    JPEG, PNG, PGM/PPM, BMP and WebP, grey or colour; other files (a README) and hidden files are ignored.

    An image that does not decode never stops a run: in its place stands the next image of the same person that does,
    always the same one, so the label stays true and every record exists. The first is reported in the log, all are
    counted in `corrupt`. A person none of whose images decodes is left out when the folder is opened.

    Attributes:
      labels: [N] int32.
      class_names: names of the sub-folders.
      paths: file of every record.
    """

    def __init__(self, root: str | pathlib.Path, *, image_size: int, fit: Fit = "pad", strict: bool = False):
        """Opens the folder.

        Args:
          root: the folder.
          image_size: side of every image, pixels.
          fit: how a rectangle becomes a square, see `images.fit_square`.
          strict: decode every image now, and refuse the folder if one does not.

        Raises:
          UserError: no such folder, no image in it, one person only, or (`strict`) an image that does not decode.
        """
        self._size, self._fit = image_size, fit
        self._bad: set[int] = set()
        self._lock = threading.Lock()
        root = pathlib.Path(root).expanduser()
        try:
            found = _images_by_class(root)
        except OSError as error:
            raise UserError(f"root: needs a folder of images by person, {root}: {error.strerror}") from error
        if not found:
            raise UserError(f"root: no image under {root}; needs {root}/<person>/<image> with {', '.join(sorted(SUFFIXES))}")
        if strict:
            for path in (path for files in found.values() for path in files):
                try:
                    self._decode(path)
                except CorruptImage as error:
                    raise UserError(f"root: {path} is not an image that can be read: {error}") from error
        else:
            found = {name: files for name, files in found.items() if self._any_readable(name, files)}
        if len(found) < 2:
            raise UserError(f"root: needs at least two people, {root} has {len(found)} with a readable image")
        self.class_names = list(found)
        self.paths = [path for files in found.values() for path in files]
        counts = [len(files) for files in found.values()]
        self.labels = np.repeat(np.arange(len(found), dtype=np.int32), counts)
        self._first = np.repeat(np.cumsum([0, *counts[:-1]]), counts)  # first record of the record's person
        self._count = np.repeat(counts, counts)

    def _any_readable(self, name: str, files: list[pathlib.Path]) -> bool:
        for path in files:
            try:
                self._decode(path)
                return True
            except CorruptImage as error:
                reason = f"{path}: {error}"
        _log.warning("left out %s, none of its %d images can be read (%s)", name, len(files), reason)
        return False

    def _decode(self, path: pathlib.Path) -> np.ndarray:
        return fit_square(decode_image(path), self._size, fit=self._fit)

    @property
    def corrupt(self) -> int:
        """Images that did not decode, among those asked for so far."""
        return len(self._bad)

    def _report(self, index: int, error: CorruptImage) -> None:
        with self._lock:
            if not self._bad:
                _log.warning(
                    "%s cannot be read (%s); another image of the same person stands in, and for further ones too",
                    self.paths[index],
                    error,
                )
            self._bad.add(index)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Record:
        first, count = self._first[index], self._count[index]
        for step in range(count):
            candidate = int(first + (index - first + step) % count)
            if candidate in self._bad:
                continue
            try:
                image = self._decode(self.paths[candidate])
            except CorruptImage as error:
                self._report(candidate, error)
                continue
            return {"image": image, "label": self.labels[index]}
        raise UserError(f"root: no image of {self.class_names[self.labels[index]]} can be read any more")

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state):
        self.__dict__.update(state, _lock=threading.Lock())
