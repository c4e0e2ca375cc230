"""Faces that a benchmark lists one by one; some of them may be damaged or missing."""

import logging
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxface.checks import AtLeast, check_number
from jaxface.data.sources.images import CorruptImage, Fit, decode_image, fit_square
from jaxface.data.sources.source import Record
from jaxface.errors import UserError
from jaxface.paths import UnreachableError, name_text

_log = logging.getLogger("jaxface.data")


class ListedFaces:
    """Images by the names of their files. What cannot be read is left out of an evaluation, no other image stands in for it.

    A record has `image`, `label` and `weight`, which is 1; an image that cannot be read is black and has weight 0. The first one
    is named in the log, the others are counted in `corrupt`.

    Attributes:
      labels: [N] int32.
      class_names: one per label.
      record_names: [N] names of the files, from `folder`.
      image_shape: (image_size, image_size, 3).
      corrupt: numbers of the images that could not be read, as far as they were asked for.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        names: Sequence[str],
        labels,
        class_names: Sequence[str],
        *,
        image_size: int,
        fit: Fit = "crop",
    ):
        """Keeps the lists; no file is opened.

        Args:
          folder: where the names start.
          names: [N] names of files. labels: [N] integers. class_names: one per label.
          image_size: side of every image, pixels.
          fit: how a rectangle becomes a square.
        """
        check_number("image_size", image_size, AtLeast(1))
        self.folder, self.record_names, self._fit = folder, list(names), fit
        self.labels, self.class_names = np.asarray(labels, np.int32), list(class_names)
        self.image_shape, self.corrupt = (image_size, image_size, 3), set()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        index = int(index)
        try:
            image, weight = self._image(index), self._weight(index)
        except UnreachableError:
            raise
        except (CorruptImage, UserError) as error:
            if not self.corrupt:
                name = name_text(self.record_names[index])
                _log.warning("left out %s and any other image that cannot be used: %s", name, error)
            self.corrupt.add(index)
            image, weight = np.zeros(self.image_shape, np.uint8), 0.0
        return {"image": image, "label": self.labels[index], "weight": np.float32(weight)}

    def _image(self, index: int) -> np.ndarray:
        """[image_size, image_size, 3] uint8; CorruptImage or UserError where there is none."""
        image = decode_image(self.folder / self.record_names[index])
        return fit_square(image, self.image_shape[0], fit=self._fit)

    def _weight(self, index: int) -> float:
        return 1.0


def readable(weights, *, what: str) -> np.ndarray:
    """[N] bool, which images could be read, by their weights; a UserError where none could."""
    good = np.asarray(weights) > 0
    if not good.any():
        raise UserError(f"data: none of the {good.size} images of {what} can be read")
    return good


def check_names(argument: str, names: Sequence[str], source: str) -> None:
    """Raises UserError for a name that leaves its folder; `source` says where it stands."""
    for name in names:
        if pathlib.PurePosixPath(name).is_absolute() or ".." in name.split("/") or "\0" in name:
            raise UserError(f"{argument}: {source} names an image outside of its folder, {name[:80]!r}")
