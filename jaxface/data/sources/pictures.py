"""Pictures as they are, for what must give them back: nothing is dropped or converted without a word.

Methods: edic
"""

import io
import os
import pathlib

import numpy as np
from PIL import Image, ImageOps

from jaxface.data.sources.images import FORMATS, MAX_SIDE, SUFFIXES, CorruptImage, read_encoded
from jaxface.data.sources.listing import natural_key
from jaxface.errors import UserError
from jaxface.paths import local_path, name_text, reason_of

_COLOR, _GRAY = ("RGB", "P", "CMYK", "YCbCr"), ("L", "1")


def read_picture(path: str | os.PathLike) -> np.ndarray:
    """A picture of 8 bits a channel, upright: [H, W, 3], gray [H, W, 1] uint8.

    Raises:
      UserError: no such file, no image, one with transparency or more bits, or a header that claims too many pixels.
    """
    shown = name_text(str(path))
    try:
        with Image.open(io.BytesIO(read_encoded(path)), formats=FORMATS) as image:
            if max(image.size) > MAX_SIDE:
                raise UserError(
                    f"image: {shown} claims {image.width}x{image.height} pixels, the limit is {MAX_SIDE}"
                )
            if "A" in image.getbands() or "transparency" in image.info:
                raise UserError(f"image: needs one without transparency, {shown} has some; flatten it first")
            if image.mode not in (*_COLOR, *_GRAY):
                raise UserError(
                    f"image: needs 8 bits a channel, {shown} has mode {image.mode}; convert it first"
                )
            if image.format != "PPM" and image.getexif().get(0x0112, 1) != 1:
                image = ImageOps.exif_transpose(image)
            pixels = np.asarray(image.convert("L" if image.mode in _GRAY else "RGB"))
    except UserError:
        raise
    except (OSError, CorruptImage) as error:
        reason = "it is no JPEG, PNG, PPM, BMP or WebP image"
        missing = isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError)
        raise UserError(f"image: cannot read {shown}: {reason_of(error) if missing else reason}") from None
    except Exception as error:  # a decoder fed with garbage raises nearly anything
        raise UserError(f"image: cannot read {shown}: {' '.join(str(error).split())[:120]}") from None
    return pixels if pixels.ndim == 3 else pixels[..., None]


def frame_files(folder: str | os.PathLike) -> list[pathlib.Path]:
    """The images in a folder in natural order (2 before 10): the frames of a video.

    Raises:
      UserError: no folder that can be read, or no image in it.
    """
    place = local_path("frames", folder)
    try:
        paths = [path for path in place.iterdir() if path.suffix.lower() in SUFFIXES]
    except OSError as error:
        raise UserError(f"frames: cannot read {name_text(str(place))}: {reason_of(error)}") from None
    if not paths:
        raise UserError(f"frames: no image in {name_text(str(place))}")
    return sorted(paths, key=lambda path: natural_key(path.name))
