"""A folder of images, one sub-folder per person (or class)."""

import pathlib

import numpy as np

from jaxface.data.sources.images import SUFFIXES, CorruptImage, Fit, decode_image, fit_square
from jaxface.data.sources.listing import images_by_class, unreadable
from jaxface.data.sources.source import Record
from jaxface.data.sources.standin import StandInSource, any_readable
from jaxface.errors import UserError
from jaxface.paths import name_text, user_path


class FolderSource(StandInSource):
    """Images `root/<person>/<image>` in natural order (s2 before s10), as RGB squares of one size.

    JPEG, PNG, PGM/PPM, BMP and WebP, gray or color; other files (a README), hidden files and folders without
    an image are ignored. A sub-folder that may not be read, or that holds what a run wrote, is left out with a line in the
    log. An image that does not decode is replaced by the next one of the same person; a person none of whose images
    decodes is left out when the folder is opened.

    Attributes:
      labels: [N] int32.
      class_names: names of the sub-folders; bytes that are no UTF-8 as `\\xNN`.
      image_shape: (image_size, image_size, 3).
      paths: file of every record.
    """

    def __init__(self, root: str | pathlib.Path, *, image_size: int, fit: Fit = "pad", strict: bool = False):
        """Opens the folder; decodes one image per person.

        Args:
          root: the folder; where it is an address such as gs://bucket/faces, every image is fetched whenever it is asked for.
          image_size: side of every image, pixels.
          fit: how a rectangle becomes a square, see `images.fit_square`.
          strict: decode every image now, and refuse the folder if one does not, or if a sub-folder may not be read.

        Raises:
          UserError: no such folder, no image in it, one person only, or (`strict`) an image that does not
            decode.
        """
        super().__init__()
        self._size, self._fit = image_size, fit
        self.image_shape = (image_size, image_size, 3)
        root = user_path("root", root)
        try:
            images = images_by_class(root, strict=strict)
        except OSError as error:
            raise UserError(f"root: needs a folder of images by person, {unreadable(error, root)}") from error
        if not images:
            kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
            raise UserError(f"root: no image in {root}; needs {root}/<person>/<image>, one of {kinds}")
        if strict:
            for path in (path for files in images.values() for path in files):
                try:
                    decode_image(path)
                except CorruptImage as error:
                    raise UserError(f"root: {path} cannot be read: {error}") from error
        else:
            images = {
                name: files for name, files in images.items() if any_readable(decode_image, files, name)
            }
        if len(images) < 2:
            raise UserError(
                f"root: needs at least two people, {root} has {len(images)} with a readable image"
            )
        self.class_names = list(images)
        self.paths = [path for files in images.values() for path in files]
        self.labels = np.repeat(
            np.arange(len(images), dtype=np.int32), [len(files) for files in images.values()]
        )

    @property
    def record_names(self) -> list[str]:
        """[N] `<person>/<image>`, wherever the folder is."""
        return [f"{path.parent.name}/{path.name}" for path in self.paths]

    def _read(self, index: int) -> Record:
        image = fit_square(decode_image(self.paths[index]), self._size, fit=self._fit)
        return {"image": image, "label": self.labels[index]}

    def _describe(self, index: int) -> str:
        return name_text(self.paths[index])
