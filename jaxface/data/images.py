"""Encoded image bytes from outside, and the size an image must have in a run.

Bytes from outside are untrusted: the header's size is checked before any pixel is allocated, only a few
formats are tried, and whatever goes wrong inside a decoder becomes one exception, `CorruptImage`.
"""

import io
import pathlib
from typing import Literal

import cv2
import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "WEBP")  # Pillow's PPM reader is also the one for PGM and PBM
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".pgm", ".ppm", ".pnm", ".bmp", ".webp"})
MAX_SIDE = 8192  # pixels: above any face photograph; a square of it is 192 MiB decoded

Fit = Literal["pad", "crop", "stretch"]


class CorruptImage(ValueError):
    """These bytes are not an image that can be used; the message says why in one line."""


def decode_image(encoded: bytes | pathlib.Path) -> np.ndarray:
    """Decodes one image to RGB, upright.

    Grey is repeated over the three channels, 16-bit grey loses its low byte, transparency is dropped, and the
    EXIF orientation that a camera wrote is applied.

    Args:
      encoded: the bytes of a JPEG, PNG, PGM/PPM, BMP or WebP file, or its path.

    Returns:
      [H, W, 3] uint8.

    Raises:
      CorruptImage: not such an image, truncated, empty, or a side longer than `MAX_SIDE`.
    """
    try:
        with Image.open(
            io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded, formats=FORMATS
        ) as image:
            width, height = image.size
            if max(width, height) > MAX_SIDE:
                raise CorruptImage(
                    f"its header claims {width}x{height} pixels, the limit is {MAX_SIDE}x{MAX_SIDE}"
                )
            if image.format != "PPM" and image.getexif().get(0x0112, 1) != 1:
                image = ImageOps.exif_transpose(image)
            if image.mode in ("I", "I;16", "I;16B", "I;16L"):
                # `convert` would clip these to 255 instead of scaling them.
                grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=-1)
            pixels = np.asarray(image.convert("RGB"))
    except CorruptImage:
        raise
    except Exception as error:  # a decoder fed with garbage raises nearly anything
        raise CorruptImage(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from error
    return pixels


def encode_image(pixels: np.ndarray, *, encoding: Literal["png", "jpeg"] = "png", quality: int = 95) -> bytes:
    """Encodes [H, W, 3] (RGB) or [H, W, 1] (grey) uint8 pixels; `quality` in 1..100 matters to JPEG only."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3):
        raise ValueError(f"pixels must be uint8 [H, W, 3] or [H, W, 1], got {pixels.dtype} {pixels.shape}")
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    buffer = io.BytesIO()
    if encoding == "jpeg":
        image.save(buffer, "JPEG", quality=quality)
    else:
        image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def fit_scale_offset(height: int, width: int, size: int, fit: Fit) -> tuple[float, float, float, float]:
    """(scale_x, scale_y, offset_x, offset_y): x' = scale_x * x + offset_x, in pixel centres at integers."""
    if fit == "stretch":
        scale_x, scale_y = size / width, size / height
    else:
        scale_x = scale_y = size / (max(height, width) if fit == "pad" else min(height, width))
    # Both squares share their centre: x' + .5 - size/2 = scale * (x + .5 - width/2).
    offset_x = size / 2 - 0.5 + scale_x * (0.5 - width / 2)
    offset_y = size / 2 - 0.5 + scale_y * (0.5 - height / 2)
    return scale_x, scale_y, offset_x, offset_y


def fit_square(pixels: np.ndarray, size: int, *, fit: Fit = "pad") -> np.ndarray:
    """Brings an image to size x size around its centre.

    `pad` first extends the short side to the long one by repeating the border pixels, so that nothing is lost
    and no black bar (an edge that every image would share) appears: right for portraits such as 92x112.
    `crop` first cuts the long side to the short one: right for wide photographs with the face in the middle.
    `stretch` changes the aspect ratio. Then the square is resized, averaging areas when it shrinks and bilinearly when it grows.

    Args:
      pixels: [H, W, C] or [H, W], any dtype that OpenCV resizes (uint8, float32).
      size: side of the result, pixels.
      fit: see above.

    Returns:
      [size, size, C] or [size, size], the same dtype.
    """
    height, width = pixels.shape[:2]
    if (height, width) == (size, size):
        return pixels
    channels = pixels.shape[2:]
    difference = abs(height - width)
    before, after = difference // 2, difference - difference // 2
    if fit == "crop" and difference:
        window = slice(before, before + min(height, width))
        pixels = pixels[window] if height > width else pixels[:, window]
    elif fit == "pad" and difference:
        padding = [(0, 0)] * pixels.ndim
        padding[0 if height < width else 1] = (before, after)
        pixels = np.pad(pixels, padding, mode="edge")
    shrinks = min(pixels.shape[:2]) > size
    resized = cv2.resize(
        np.ascontiguousarray(pixels),
        (size, size),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
    )
    return resized.reshape((size, size) + channels)  # OpenCV drops a channel axis of one
