"""Encoded image bytes from outside, and the size an image must have in a run.

Bytes from outside are untrusted: the header's size is checked before any pixel is allocated, only a few
formats are tried, and whatever goes wrong inside a decoder becomes one exception, `CorruptImage`. JPEG and PNG files that
are written plainly go through OpenCV, which takes half of Pillow's time for a JPEG; all others go through Pillow.
"""

import io
import os
import pathlib
from typing import Literal

import cv2
import numpy as np
from PIL import Image, ImageOps

from jaxface.checks import AtLeast, Integers, check_number
from jaxface.errors import UserError
from jaxface.paths import file_size, is_remote, reaching, user_path

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "WEBP")  # Pillow's PPM reader is also the one for PGM and PBM
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".pgm", ".ppm", ".pnm", ".bmp", ".webp"})
MAX_SIDE = 8192  # pixels: above any face photograph; a square of it is 192 MiB decoded
MAX_ENCODED = 1 << 29  # bytes of a file; such a square in 16-bit color, uncompressed, has 384 MiB
_RESIZED = (np.uint8, np.uint16, np.int16, np.float32, np.float64)
_CHUNKS = 4096  # of a PNG; some writers make one of every 8 KiB

Fit = Literal["pad", "crop", "stretch"]
Encoded = bytes | bytearray | memoryview | np.ndarray
"""The bytes of a file; of an array those of uint8 [N]."""


class CorruptImage(ValueError):
    """These bytes are not an image that can be used; the message says why in one line."""


def encoded_bytes(encoded: Encoded) -> bytes:
    """The bytes of a file, from whatever holds them.

    Raises:
      TypeError: something else than bytes.
    """
    if isinstance(encoded, np.ndarray) and (encoded.dtype != np.uint8 or encoded.ndim != 1):
        raise TypeError(f"encoded: needs the bytes of a file, uint8 [N], got {encoded.dtype} {encoded.shape}")
    if not isinstance(encoded, Encoded):
        raise TypeError(f"encoded: needs the bytes of a file or its path, got {type(encoded).__name__}")
    return bytes(encoded)


def jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """(height, width) in the header of a JPEG, gray or YCbCr of 8 bits; None where it is none, or not written plainly."""
    if encoded[:2] != b"\xff\xd8":
        return None
    at, end = 2, len(encoded) - 9
    while at < end and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if 0xC0 <= marker <= 0xC2:  # baseline, extended, progressive
            if encoded[at + 4] != 8 or encoded[at + 9] not in (1, 3):
                return None
            return encoded[at + 5] << 8 | encoded[at + 6], encoded[at + 7] << 8 | encoded[at + 8]
        length = encoded[at + 2] << 8 | encoded[at + 3]
        if length < 2 or not (marker in (0xC4, 0xDB, 0xDD, 0xFE) or 0xE0 <= marker <= 0xEF):
            return None
        if marker == 0xE1 and encoded[at + 4 : at + 8] != b"Exif":  # XMP, where an orientation may stand too
            return None
        at += 2 + length
    return None


def png_size(encoded: bytes) -> tuple[int, int] | None:
    """(height, width) in the header of a PNG, gray or RGB of 8 bits, with nothing but pixels behind it; None otherwise.

    The lengths of its chunks are followed to the end: OpenCV allocates what a chunk claims before it reads it.
    """
    if encoded[:8] != b"\x89PNG\r\n\x1a\n" or encoded[12:16] != b"IHDR":
        return None
    if encoded[24:26] not in (b"\x08\x00", b"\x08\x02"):  # depth and kind of color
        return None
    at = 33
    for _ in range(_CHUNKS):
        length, kind = int.from_bytes(encoded[at : at + 4]), encoded[at + 4 : at + 8]
        at += 12 + length
        if kind == b"IEND" and at == len(encoded):
            return int.from_bytes(encoded[20:24]), int.from_bytes(encoded[16:20])
        if kind != b"IDAT":
            return None
    return None


def _check_size(height: int, width: int) -> None:
    if max(height, width) > MAX_SIDE:
        raise CorruptImage(f"its header claims {width}x{height} pixels, the limit is {MAX_SIDE}x{MAX_SIDE}")


def _opencv(encoded: bytes) -> np.ndarray | None:
    """The pixels where OpenCV gives the same as Pillow, which decides on all other bytes."""
    if (size := jpeg_size(encoded)) is not None:
        densest = 512  # pixels to a byte: a block of 8x8 takes a bit at least
    elif (size := png_size(encoded)) is not None:
        densest = 1032  # what deflate can make of a byte
    else:
        return None
    height, width = size
    _check_size(height, width)
    if not 0 < height * width <= densest * len(encoded) + 4096:
        raise CorruptImage(f"its header claims {width}x{height} pixels in {len(encoded)} bytes")
    if densest == 512 and b"\xff\xd9" not in encoded[-64:]:
        return None  # a JPEG cut short, or with something of a camera's behind it
    try:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        return None


def decode_image(encoded: Encoded | str | os.PathLike) -> np.ndarray:
    """Decodes one image to RGB, upright.

    Gray is repeated over the three channels, 16-bit gray loses its low byte, transparency is dropped, and the
    EXIF orientation that a camera wrote is applied.

    Args:
      encoded: the bytes of a JPEG, PNG, PGM/PPM, BMP or WebP file, also as an array uint8 [N], or its path.

    Returns:
      [H, W, 3] uint8.

    Raises:
      CorruptImage: not such an image, truncated, empty, a side longer than `MAX_SIDE`, a file longer than
        `MAX_ENCODED`, or a header that claims more pixels than so few bytes can hold; a path without a file.
      UserError: an address that cannot be reached, which says nothing of the image.
      TypeError: neither bytes nor a path.

    Example:
      >>> pixels = np.full((4, 6, 3), 128, np.uint8)
      >>> decode_image(encode_image(pixels)).shape
      (4, 6, 3)
    """
    if not isinstance(encoded, str | os.PathLike):
        encoded = encoded_bytes(encoded)
    try:
        if not isinstance(encoded, bytes):
            encoded = read_encoded(encoded)
        pixels = _opencv(encoded)
        if pixels is not None:
            return pixels
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            width, height = image.size
            _check_size(height, width)
            if image.format != "PPM" and image.getexif().get(0x0112, 1) != 1:
                image = ImageOps.exif_transpose(image)
            if image.mode in ("I", "I;16", "I;16B", "I;16L"):
                # `convert` would clip these to 255 instead of scaling them.
                gray = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
                return np.repeat(gray[..., None], 3, axis=-1)
            return np.asarray(image.convert("RGB"))
    except (CorruptImage, UserError):
        raise
    except Exception as error:  # a decoder fed with garbage raises nearly anything
        raise CorruptImage(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from error


def read_encoded(path: str | os.PathLike) -> bytes:
    """The bytes of an image file of this machine or elsewhere.

    Raises:
      CorruptImage: more than `MAX_ENCODED` bytes. OSError: no such file. UserError: an address that cannot be reached.
    """
    path = user_path("path", path) if is_remote(path) else pathlib.Path(path).expanduser()
    with reaching(path):
        if file_size(path) > MAX_ENCODED:
            raise CorruptImage(f"more than {MAX_ENCODED} bytes")
        return path.read_bytes()


def encode_image(pixels: np.ndarray, *, encoding: Literal["png", "jpeg"] = "png", quality: int = 95) -> bytes:
    """Encodes [H, W, 3] (RGB) or [H, W, 1] (gray) uint8 pixels; `quality` in 1..100 matters to JPEG only.

    Raises:
      ValueError: pixels of another type or shape, or another encoding. UserError: a quality out of its range.

    Example:
      >>> encode_image(np.zeros((4, 6, 3), np.uint8))[:4]
      b'\x89PNG'
    """
    check_bytes("pixels", pixels)
    if encoding not in ("png", "jpeg"):
        raise ValueError(f"encoding: needs 'png' or 'jpeg', got {encoding!r}")
    check_number("quality", quality, Integers(1, 100))
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    buffer = io.BytesIO()
    if encoding == "jpeg":
        image.save(buffer, "JPEG", quality=quality)
    else:
        image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def check_bytes(name: str, pixels: np.ndarray) -> None:
    """Raises ValueError unless `pixels` are uint8 [H, W, 3] or [H, W, 1]."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3):
        raise ValueError(f"{name}: needs uint8 [H, W, 3] or [H, W, 1], got {pixels.dtype} {pixels.shape}")


def _check_fit(size: int, fit: str) -> None:
    check_number("size", size, AtLeast(1))
    if fit not in ("pad", "crop", "stretch"):
        raise ValueError(f"fit: needs 'pad', 'crop' or 'stretch', got {fit!r}")


def fit_scale_offset(height: int, width: int, size: int, fit: Fit) -> tuple[float, float, float, float]:
    """(scale_x, scale_y, offset_x, offset_y): x' = scale_x * x + offset_x, in pixel centers at integers."""
    _check_fit(size, fit)
    if fit == "stretch":
        scale_x, scale_y = size / width, size / height
    else:
        scale_x = scale_y = size / (max(height, width) if fit == "pad" else min(height, width))
    # Both squares share their center: x' + .5 - size/2 = scale * (x + .5 - width/2).
    offset_x = size / 2 - 0.5 + scale_x * (0.5 - width / 2)
    offset_y = size / 2 - 0.5 + scale_y * (0.5 - height / 2)
    return scale_x, scale_y, offset_x, offset_y


def fit_square(pixels: np.ndarray, size: int, *, fit: Fit = "pad") -> np.ndarray:
    """Brings an image to size x size around its center.

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

    Raises:
      ValueError: another shape, a dtype that OpenCV does not resize, or another fit. UserError: a size below 1.

    Example:
      >>> portrait = np.zeros((112, 92, 3), np.uint8)
      >>> fit_square(portrait, 64).shape
      (64, 64, 3)
    """
    _check_fit(size, fit)
    if pixels.ndim not in (2, 3) or pixels.dtype not in _RESIZED or 0 in pixels.shape:
        raise ValueError(
            f"pixels: needs [H, W, C] or [H, W] of uint8, uint16, int16, float32 or float64, got {pixels.dtype} {pixels.shape}"
        )
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
