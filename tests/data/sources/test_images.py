import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from jaxface.data.sources import images
from jaxface.data.sources.images import (
    MAX_SIDE,
    CorruptImage,
    decode_image,
    encode_image,
    fit_scale_offset,
    fit_square,
    jpeg_size,
    png_size,
)


def encoded(pixels, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def by_pillow(data):
    """What `decode_image` promises, from Pillow alone."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_that_claims(width, height):
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
    gray = RGB[..., 0]
    np.testing.assert_array_equal(decode_image(encoded(gray, kind)), np.repeat(gray[..., None], 3, -1))
    path = tmp_path / "a.png"
    path.write_bytes(encoded(RGB, kind))
    np.testing.assert_array_equal(decode_image(path), RGB)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_come_back_closely(kind):
    smooth = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
    assert np.abs(decode_image(encoded(smooth, kind, quality=95)).astype(int) - smooth[..., None]).mean() < 4


def test_sixteen_bit_gray_is_scaled_not_clipped():
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


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


PICTURES = [
    np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    for shape in [(16, 16, 3), (33, 17, 3), (20, 30)]
]


@pytest.mark.parametrize("pixels", PICTURES, ids=lambda pixels: str(pixels.shape))
@pytest.mark.parametrize(
    "options",
    [
        *(dict(quality=quality) for quality in (30, 95)),
        *(dict(orientation=orientation) for orientation in range(1, 9)),
        dict(progressive=True),
        dict(subsampling=0),
        dict(comment=b"a face"),
    ],
    ids=str,
)
def test_opencv_gives_the_pixels_of_pillow_for_jpeg(pixels, options):
    options = dict(options)
    if "orientation" in options:
        options["exif"] = turned(options.pop("orientation"))
    data = encoded(pixels, "JPEG", **options)
    assert jpeg_size(data) == pixels.shape[:2] and images._opencv(data) is not None
    np.testing.assert_array_equal(decode_image(data), by_pillow(data))


@pytest.mark.parametrize("pixels", PICTURES, ids=lambda pixels: str(pixels.shape))
def test_opencv_gives_the_pixels_of_pillow_for_png(pixels):
    data = encoded(pixels, "PNG")
    assert png_size(data) == pixels.shape[:2] and images._opencv(data) is not None
    np.testing.assert_array_equal(decode_image(data), by_pillow(data))


def test_what_opencv_reads_in_its_own_way_is_left_to_pillow():
    rgb = PICTURES[0]
    plain = encoded(rgb, "PNG")
    cmyk = io.BytesIO()
    Image.fromarray(rgb).convert("CMYK").save(cmyk, "JPEG")
    xmp = b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    for data in (
        cmyk.getvalue(),
        encoded(rgb, "JPEG", xmp=xmp),
        encoded(rgb, "JPEG") + bytes(100),
        encoded(rgb, "PNG", exif=turned(6)),
        plain[:-12] + chunk(b"eXIf", turned(6).tobytes()[6:]) + plain[-12:],  # behind the pixels
        encoded(np.dstack([rgb, rgb[..., :1]]), "PNG"),
        encoded(rgb, "PNG", dpi=(300, 300)),
        encoded(rgb, "BMP"),
        encoded(rgb, "WEBP"),
    ):
        assert images._opencv(data) is None
        np.testing.assert_array_equal(decode_image(data), by_pillow(data))


@pytest.mark.parametrize("at", [33, -12])
def test_a_chunk_that_claims_gigabytes_never_reaches_opencv(at):
    data = bytearray(encoded(PICTURES[0], "PNG"))
    data[at] = 0xF0
    assert images._opencv(bytes(data)) is None


def test_a_file_is_not_read_before_its_size_is_known(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(RGB, "PNG"))
    monkeypatch.setattr(images, "MAX_ENCODED", path.stat().st_size - 1)
    with pytest.raises(CorruptImage, match="more than"):
        decode_image(path)
    with pytest.raises(CorruptImage):
        decode_image(tmp_path / "none.png")


def jpeg_that_claims(width, height):
    whole = encoded(PICTURES[0], "JPEG")
    at = whole.index(b"\xff\xc0")
    return whole[: at + 5] + struct.pack(">HH", height, width) + whole[at + 9 :]


@pytest.mark.parametrize("claims", [(MAX_SIDE, MAX_SIDE), (MAX_SIDE + 1, 1), (60_000, 60_000)])
def test_an_absurd_size_is_refused_before_anything_is_allocated(claims, monkeypatch):
    encoded_ones = jpeg_that_claims(*claims), png_that_claims(*claims)
    monkeypatch.setattr(images.cv2, "imdecode", None)  # not even called
    monkeypatch.setattr(Image.Image, "load", None)
    for data in encoded_ones:
        with pytest.raises(CorruptImage, match="claims"):
            decode_image(data)


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
        jpeg_that_claims(0, 40),
        jpeg_that_claims(60, 60)[:-40],
        b"\xff\xd8",
        bytes(200),
        b"P5\n60000 60000\n255\n",
        b"GIF89a" + b"\0" * 40,
        b"RIFF\x10\0\0\0WEBPVP8 ",
    ],
)
def test_garbage_is_one_kind_of_error_in_one_line(garbage):
    with pytest.raises(CorruptImage) as caught:
        decode_image(garbage)
    assert str(caught.value) and "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "BMP", "WEBP", "PPM"]), st.booleans(), st.data())
def test_damaged_bytes_decode_or_are_refused(kind, gray, data):
    raw = bytearray(encoded(RGB[..., 0] if gray else RGB, kind))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw))) if data.draw(st.booleans()) else len(raw)
    try:
        pixels = decode_image(bytes(raw[:cut]))
    except CorruptImage as error:
        assert str(error) and "\n" not in str(error)
        return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[-1] == 3


@pytest.mark.parametrize(("kind", "cases"), [("PNG", 600), ("JPEG", 3000)])
def test_damage_never_makes_opencv_and_pillow_differ(kind, cases):
    rng = np.random.default_rng(0)
    whole, agreed = [encoded(pixels, kind) for pixels in PICTURES], 0
    for case in range(cases):
        raw = bytearray(whole[case % 3])
        for _ in range(int(rng.integers(1, 4))):
            raw[int(rng.integers(len(raw)))] = int(rng.integers(256))
        try:
            pixels = decode_image(bytes(raw))
        except CorruptImage:
            continue
        try:
            expected = by_pillow(bytes(raw))
        except OSError:  # of the JPEGs whose pixels end too early, OpenCV reads a few more
            assert kind == "JPEG"
            continue
        np.testing.assert_array_equal(pixels, expected)
        agreed += 1
    assert agreed > (3 if kind == "PNG" else 1500)


def test_encode_image():
    np.testing.assert_array_equal(decode_image(encode_image(RGB)), RGB)
    np.testing.assert_array_equal(decode_image(encode_image(RGB[..., :1]))[..., :1], RGB[..., :1])
    assert encode_image(RGB, encoding="jpeg", quality=50)[:2] == b"\xff\xd8"
    with pytest.raises(ValueError, match="pixels"):
        encode_image(RGB.astype(np.float32))


def test_pad_keeps_a_portrait_whole_and_centered():
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
