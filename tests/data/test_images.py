import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxface.data.images import (
    MAX_SIDE,
    CorruptImage,
    decode_image,
    encode_image,
    fit_scale_offset,
    fit_square,
)


def encoded(pixels, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def png_that_claims(width, height):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 64))
        + chunk(b"IEND", b"")
    )


RGB = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "PPM", "BMP"])
def test_lossless_formats_come_back_exactly(kind, tmp_path):
    np.testing.assert_array_equal(decode_image(encoded(RGB, kind)), RGB)
    grey = RGB[..., 0]
    np.testing.assert_array_equal(decode_image(encoded(grey, kind)), np.repeat(grey[..., None], 3, -1))
    path = tmp_path / "a.png"
    path.write_bytes(encoded(RGB, kind))
    np.testing.assert_array_equal(decode_image(path), RGB)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_come_back_closely(kind):
    smooth = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
    assert np.abs(decode_image(encoded(smooth, kind, quality=95)).astype(int) - smooth[..., None]).mean() < 4


def test_sixteen_bit_grey_is_scaled_not_clipped():
    deep = np.array([[0, 0x1234, 0xFFFF]], np.uint16)
    for kind in ("PNG", "PPM"):
        np.testing.assert_array_equal(decode_image(encoded(deep, kind))[0, :, 0], [0, 0x12, 0xFF])


def test_transparency_palette_and_orientation():
    rgba = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(decode_image(encoded(rgba, "PNG")), RGB)
    buffer = io.BytesIO()
    Image.fromarray(RGB).quantize(200).save(buffer, "PNG")
    assert decode_image(buffer.getvalue()).shape == RGB.shape
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    np.testing.assert_array_equal(decode_image(encoded(RGB, "PNG", exif=exif)), np.rot90(RGB, -1))


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"not an image at all\n",
        encoded(RGB, "JPEG")[:-100],
        encoded(np.tile(RGB, (9, 9, 1)), "PNG")[:-300],
        b"P5\n92 112\n255\n" + b"\0" * 50,
        png_that_claims(60_000, 60_000),
        png_that_claims(MAX_SIDE + 1, 1),
        png_that_claims(100, 100),
        b"P5\n60000 60000\n255\n",
        b"GIF89a" + b"\0" * 40,
        b"RIFF\x10\0\0\0WEBPVP8 ",
    ],
)
def test_garbage_is_one_kind_of_error_in_one_line(garbage):
    with pytest.raises(CorruptImage) as caught:
        decode_image(garbage)
    assert str(caught.value) and "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "BMP", "WEBP", "PPM"]), st.data())
def test_damaged_bytes_decode_or_are_refused(kind, data):
    raw = bytearray(encoded(RGB, kind))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = decode_image(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    except CorruptImage:
        return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[-1] == 3


def test_encode_image():
    np.testing.assert_array_equal(decode_image(encode_image(RGB)), RGB)
    np.testing.assert_array_equal(decode_image(encode_image(RGB[..., :1]))[..., :1], RGB[..., :1])
    assert encode_image(RGB, encoding="jpeg", quality=50)[:2] == b"\xff\xd8"
    with pytest.raises(ValueError, match="pixels"):
        encode_image(RGB.astype(np.float32))


def test_pad_keeps_a_portrait_whole_and_centred():
    portrait = np.zeros((112, 92, 3), np.uint8)
    portrait[:, :46] = 200
    square = fit_square(portrait, 112)
    np.testing.assert_array_equal(square[:, 10:102], portrait)
    assert (square[:, :10] == 200).all() and (square[:, 102:] == 0).all()  # the border is repeated
    np.testing.assert_array_equal(fit_square(square, 112), square)


def test_crop_keeps_the_middle():
    wide = np.zeros((10, 30, 1), np.uint8)
    wide[:, 10:20] = 255
    np.testing.assert_array_equal(fit_square(wide, 10, fit="crop"), np.full((10, 10, 1), 255))
    assert fit_square(wide, 16, fit="stretch").shape == (16, 16, 1)
    assert fit_square(wide[..., 0].astype(np.float32), 5).shape == (5, 5)


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (50, 50)])
@pytest.mark.parametrize("size", [25, 90])
def test_points_move_with_the_pixels(fit, shape, size):
    height, width = shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    place = fit_square(np.stack([x, y], -1), size, fit=fit)  # each pixel knows where it came from
    scale_x, scale_y, offset_x, offset_y = fit_scale_offset(height, width, size, fit)
    middle = slice(size // 2 - 3, size // 2 + 3)
    at = np.arange(size)[middle]
    np.testing.assert_allclose(place[size // 2, middle, 0], (at - offset_x) / scale_x, atol=0.15)
    np.testing.assert_allclose(place[middle, size // 2, 1], (at - offset_y) / scale_y, atol=0.15)
