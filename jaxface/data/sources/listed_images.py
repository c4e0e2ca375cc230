"""Images that a list or a folder names with their classes; some of them may be damaged or missing.

Methods: apvit, law, mda, nclpp
"""

import logging
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxface.data.sources.images import CorruptImage, Fit, decode_image, fit_square
from jaxface.data.sources.listed_faces import ListedFaces
from jaxface.data.sources.listing import images_by_class, unreadable
from jaxface.data.sources.source import Record
from jaxface.data.sources.standin import StandInSource
from jaxface.errors import UserError
from jaxface.paths import name_text

_GRAY_SIDE = 48  # of images whose pixels stand in a list, FER2013's
_log = logging.getLogger("jaxface.data")


class Listed(NamedTuple):
    """One part of a set as its lists have it.

    Attributes:
      folder: where names start.
      names: [N] names of files, or of rows where pixels stand in the list.
      labels: [N] integers.
      class_names: one per label.
      boxes: [N, 4] (x, y, width, height) in pixels of what is cut out, or None.
      pixels: [N] gray pixels as text, or None.
      skipped: lines that said nothing.
    """

    folder: pathlib.Path
    names: list[str]
    labels: list[int]
    class_names: Sequence[str]
    boxes: np.ndarray | None = None
    pixels: list[str] | None = None
    skipped: int = 0

    def image(self, index: int, size: int, fit: Fit) -> np.ndarray:
        """[size, size, 3] uint8; CorruptImage where there is none."""
        if self.pixels is not None:
            image = _gray(self.pixels[index])
        else:
            image = decode_image(self.folder / self.names[index])
        if self.boxes is not None:
            x, y, width, height = self.boxes[index].astype(int)
            image = image[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
            if 0 in image.shape:
                raise CorruptImage("its face lies outside of it")
        return fit_square(image, size, fit=fit)


class ListedImages(StandInSource):
    """What a list names, to learn from: in the place of an image that cannot be read stands another of its class.

    Attributes:
      labels: [N] int32. class_names: one per label. record_names: [N] names of files.
      image_shape: (image_size, image_size, 3).
      skipped: lines of the list that said nothing.
    """

    def __init__(self, listed: Listed, *, image_size: int, fit: Fit = "pad"):
        super().__init__()
        self._listed, self._fit = listed, fit
        self.labels, self.class_names = np.asarray(listed.labels, np.int32), list(listed.class_names)
        self.image_shape, self.record_names = (image_size, image_size, 3), listed.names
        self.skipped = listed.skipped

    def _read(self, index: int) -> Record:
        image = self._listed.image(index, self.image_shape[0], self._fit)
        return {"image": image, "label": self.labels[index]}

    def _describe(self, index: int) -> str:
        return name_text(self.record_names[index])


class ListedTest(ListedFaces):
    """What a list names, to evaluate on: an image that cannot be read is black, has weight 0 and is counted in `corrupt`."""

    def __init__(self, listed: Listed, *, image_size: int, fit: Fit = "pad"):
        super().__init__(
            listed.folder, listed.names, listed.labels, listed.class_names, image_size=image_size, fit=fit
        )
        self._listed, self.skipped = listed, listed.skipped

    def _image(self, index: int) -> np.ndarray:
        return self._listed.image(index, self.image_shape[0], self._fit)


def class_folders(root: pathlib.Path, part: str, *, instead: str = "") -> Listed:
    """Images by class as ImageNet has them: train/<class>/<image>, and val/ (or valid, validation, test) with the same classes.

    Args:
      root: the folder. part: "train" or "test". instead: what could be there too, for a refusal.

    Raises:
      UserError: no such folder or no image in it, or a class to test that has no folder in train.
    """
    places = ("train",) if part == "train" else ("val", "valid", "validation", "test")
    folder = next((root / name for name in places if (root / name).is_dir()), None)
    if folder is None:
        raise UserError(f"root: needs {instead}folders train and val; {name_text(root)} has no {places[0]}")
    try:
        images = images_by_class(folder)
        classes = list(images) if part == "train" else list(images_by_class(root / "train"))
    except OSError as error:
        raise UserError(f"root: needs folders by class, {unreadable(error, root)}") from error
    if unknown := sorted(set(images) - set(classes)):
        raise UserError(
            f"root: {name_text(folder)} has classes without a folder in train: {', '.join(unknown)}"
        )
    need_some(images, "folders of images", folder)
    listed = [
        (path.relative_to(folder).as_posix(), classes.index(name))
        for name, files in images.items()
        for path in files
    ]
    names, labels = zip(*listed, strict=True)
    return Listed(folder, list(names), list(labels), classes)


def _gray(text: str) -> np.ndarray:
    """The pixels of FER2013, "70 80 82 …", as [48, 48, 3] uint8."""
    cells = text.split()
    if len(cells) != _GRAY_SIDE**2 or not all(cell.isdecimal() and len(cell) < 4 for cell in cells):
        raise CorruptImage(f"needs {_GRAY_SIDE**2} pixels as numbers, got {len(cells)} words")
    values = np.array(cells, np.int64)
    if values.max() > 255:
        raise CorruptImage("a pixel above 255")
    return np.repeat(values.astype(np.uint8).reshape(_GRAY_SIDE, _GRAY_SIDE, 1), 3, axis=2)


def need_some(found: Sequence, what: str, path: pathlib.Path) -> None:
    """Raises UserError where a file or folder gave nothing."""
    if not found:
        raise UserError(f"root: no {what} in {name_text(path)}")


def told(listed: Listed, path: pathlib.Path) -> Listed:
    """The list; the log says how many lines said nothing."""
    if listed.skipped:
        _log.warning("left out %d lines of %s, which say nothing", listed.skipped, name_text(path))
    return listed
