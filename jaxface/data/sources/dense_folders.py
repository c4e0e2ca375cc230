"""Images with a class or a depth for every pixel, in two folders.

Methods: intern
"""

import pathlib
from typing import Literal

import numpy as np
from PIL import Image

from jaxface.data.sources.depth import decode_depth, fit_depth
from jaxface.data.sources.images import MAX_SIDE, CorruptImage, decode_image, fit_square
from jaxface.data.sources.listing import contents, natural_key
from jaxface.data.sources.source import Record
from jaxface.errors import UserError
from jaxface.paths import local_path

IGNORED = 255
"""Of pixels without a class, and of what squares are padded with."""
_MILLIMETERS = 1000.0


class DenseFolders:
    """<root>/<part>/images/<name>.jpg or .png beside <root>/<part>/labels/<name>.png, as squares.

    Labels of pixels are PNGs of class numbers, gray or with a palette, 255 where none counts (PASCAL VOC's `SegmentationClass`);
    those of depth are PNGs of 16 bits, millimeters, 0 where nothing was measured. The middle square of an image is scaled;
    classes go to the nearest pixel, depths are averaged over what was measured.

    Args:
      root: the folder. part: of it, such as train.
      labels: pixels or depth.
      image_size: side, pixels.

    Raises:
      UserError: no such folder, no pair in it, or an image without labels.
    """

    def __init__(self, root: str, part: str, labels: Literal["pixels", "depth"], *, image_size: int):
        if labels not in ("pixels", "depth"):
            raise UserError(f"labels: needs pixels or depth, got {labels!r}")
        folder = local_path("root", root) / part
        try:
            images = sorted(contents(folder / "images").files, key=lambda path: natural_key(path.name))
            known = {path.stem: path for path in contents(folder / "labels").files}
        except OSError as error:
            raise UserError(f"root: cannot read {error.filename or folder}: {error.strerror}") from None
        if missing := [path.name for path in images if path.stem not in known]:
            raise UserError(
                f"root: {folder / 'labels'} has none for {missing[0]} and {len(missing) - 1} more"
            )
        if not images:
            raise UserError(f"root: {folder / 'images'} holds no image")
        self._pairs = [(path, known[path.stem]) for path in images]
        self._kind, self._size = labels, image_size
        self.record_names = [path.stem for path in images]
        self.labels = np.zeros(len(images), np.int32)
        self.class_names = (labels,)
        self.image_shape = (image_size, image_size, 3)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Record:
        image, labels = self._pairs[index]
        try:
            pixels = decode_image(image)
            dense = self._dense(labels)
        except CorruptImage as error:
            raise UserError(f"root: {image.name} cannot be read: {error}") from None
        record = {"image": fit_square(pixels, self._size, fit="crop"), "label": self.labels[index]}
        return record | {"depth" if self._kind == "depth" else "pixel_label": dense}

    def _dense(self, path: pathlib.Path) -> np.ndarray:
        if self._kind == "depth":
            return fit_depth(decode_depth(path), self._size, fit="crop") / _MILLIMETERS
        with Image.open(path, formats=("PNG",)) as image:
            if max(image.size) > MAX_SIDE or image.mode not in ("L", "P"):
                raise CorruptImage(
                    f"labels need one channel and at most {MAX_SIDE} pixels a side, got {image.mode} {image.size}"
                )
            width, height = image.size
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            square = image.resize(
                (self._size, self._size), Image.Resampling.NEAREST, box=(left, top, left + side, top + side)
            )
            return np.asarray(square, np.uint8)
