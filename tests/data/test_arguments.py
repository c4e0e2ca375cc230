"""Arguments of another kind than a signature names are taken for what they are, or refused in a line."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxface import data
from jaxface.data.sources.packs import read_bin
from jaxface.data.transforms import pixels
from jaxface.data.transforms.corruption import fill_holes

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), np.uint8)
FLOATS = pixels.from_levels(jnp.asarray(PIXELS, jnp.float32))
KEY = jax.random.key(0)


@pytest.mark.parametrize("decode", [data.decode_image, data.decode_depth])
def test_bytes_and_paths_of_any_kind_are_decoded(decode, tmp_path, monkeypatch):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[0, ..., 0]).save(buffer, "PNG")
    encoded, path = buffer.getvalue(), tmp_path / "photo.png"
    path.write_bytes(encoded)
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = decode(encoded)
    forms = [bytearray(encoded), memoryview(encoded), np.frombuffer(encoded, np.uint8)]
    for form in [*forms, path, str(path), "~/photo.png"]:
        np.testing.assert_array_equal(decode(form), expected)
    for form in (np.frombuffer(encoded, np.uint8).astype(np.int32), PIXELS[0], [1, 2], None, 3):
        with pytest.raises(TypeError, match=r"^encoded: needs the bytes of a file"):
            decode(form)
    with pytest.raises(data.CorruptImage, match="No such file"):
        decode(str(tmp_path / "nowhere.png"))


def test_writers_take_bytes_of_any_kind_and_whole_labels(tmp_path):
    encoded = data.encode_image(PIXELS[0])
    with data.RecordWriter(tmp_path / "train.rec") as writer:
        writer.write(np.int8(0), np.frombuffer(encoded, np.uint8))
        with pytest.raises(ValueError, match=r"^label: needs an integer from 0 to 16777215, got 1.5$"):
            writer.write(1.5, encoded)
        with pytest.raises(TypeError, match=r"^encoded: needs the bytes of a file"):
            writer.write(1, "photo.png")
        writer.write(1, bytearray(encoded))
    source = data.RecordIOFaces(tmp_path / "train.rec", image_size=12)
    np.testing.assert_array_equal(source[0]["image"], PIXELS[0])
    data.write_bin(tmp_path / "x.bin", [memoryview(encoded)] * 2, np.array([1]))
    assert read_bin(tmp_path / "x.bin")[0] == [encoded] * 2
    with pytest.raises(TypeError, match=r"^encoded: needs the bytes of a file"):
        data.write_bin(tmp_path / "x.bin", [5, 5], [True])
    with pytest.raises(ValueError, match=r"^same: needs booleans or 0/1"):
        data.write_bin(tmp_path / "x.bin", [encoded] * 2, ["False"])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: data.encode_image(PIXELS[0], encoding="jpg"), "encoding: needs 'png' or 'jpeg', got 'jpg'"),
        (
            lambda: data.encode_image(PIXELS[0], encoding="jpeg", quality=0),
            "quality: needs an integer from 1 to 100",
        ),
        (lambda: data.fit_square(PIXELS[0], 8, fit="squash"), "fit: needs 'pad', 'crop' or 'stretch'"),
        (lambda: data.fit_square(PIXELS[0], 0), "size: needs an integer from 1, got 0"),
        (lambda: data.fit_square(PIXELS[0], 7.5), "size: needs an integer from 1, got 7.5"),
        (lambda: data.fit_square(PIXELS[0].astype(np.int64), 8), "pixels: needs .* got int64"),
        (lambda: data.fit_square(PIXELS, 8), "pixels: needs .* got uint8"),
        (lambda: data.resize_twice(PIXELS[0].astype(np.int32), 4), "pixels: needs uint8"),
        (lambda: data.resize_twice(PIXELS[0], 0), "size: needs sides from 1 to 12, got 0"),
        (lambda: data.align_face(PIXELS[0].astype(np.int32), np.eye(5, 2)), "image: needs uint8"),
        (lambda: data.umeyama(np.eye(2), np.eye(3, 2)), "dst: needs shape"),
        (lambda: data.umeyama(np.full((2, 2), np.nan), np.eye(2)), "src, dst: need finite landmarks"),
        (lambda: data.encode_depth(np.ones((4, 4, 1)), 1.0), "depth: needs shape"),
        (lambda: data.low_resolution(jnp.asarray(PIXELS, jnp.float32), 4), "images: needs floats in"),
        (
            lambda: data.corrupt_rgbd(KEY, jnp.asarray(PIXELS), FLOATS, jnp.zeros(2, int)),
            "images: needs floats",
        ),
        (
            lambda: data.corrupt_rgbd(KEY, FLOATS, jnp.asarray(PIXELS), jnp.zeros(2, int)),
            "depth: needs floats",
        ),
        (lambda: data.corrupt_rgbd(KEY, FLOATS, FLOATS, jnp.array([0, 9])), "kinds: needs values in"),
        (
            lambda: data.corrupt_rgbd(KEY, 127.5 * FLOATS, FLOATS, jnp.zeros(2, int)),
            "images: needs floats in",
        ),
        (lambda: data.augment_depth(KEY, jnp.asarray(PIXELS)), "images: needs floats"),
        (lambda: fill_holes(jnp.asarray(PIXELS)), "depth: needs floats"),
        (lambda: pixels.to_bytes(PIXELS), "image: needs floats"),
        (lambda: pixels.fractions_to_bytes(PIXELS), "image: needs floats"),
        (
            lambda: data.Augmentation(data.Augment(color=1.0)).random_map(
                {"image": np.asarray(FLOATS[0])}, np.random.default_rng(0)
            ),
            "image: needs uint8 for changes of colors",
        ),
        (lambda: data.ArraySource(PIXELS, np.array([0.0, 1.0]), ["a", "b"]), "labels: needs integers"),
        (lambda: data.ArraySource(PIXELS, [0, 2], ["a", "b"]), r"labels: needs values in \[0, 2\)"),
        (
            lambda: data.ArraySource(PIXELS, [0, 1], "ab", groups=[0, 1], group_names="a"),
            "groups: needs values",
        ),
        (lambda: data.VectorSource(np.eye(2), [0.5, 1.5]), "labels: needs integers"),
        (lambda: data.VectorSource(np.eye(2), [0, 1], [0.5, 1.5]), "groups: needs integers"),
        (lambda: data.ClassUniform(np.array([0.5, 1.5])), "labels: needs integers"),
        (lambda: data.class_means(np.eye(2), [0, -1], 2), r"labels: needs values in \[0, 2\)"),
        (lambda: data.corrupt_labels([0.0, 1.0], 0.5, 2, seed=0), "labels: needs integers"),
    ],
)
def test_what_would_be_silently_wrong_is_refused(call, words):
    with pytest.raises(ValueError, match=f"^{words}") as refused:
        call()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("dtype", ["int16", "uint16", "int32", "bool"])
def test_pixels_of_a_type_without_a_range_are_refused(dtype):
    strange = jnp.asarray(PIXELS).astype(dtype)
    for call in (
        pixels.normalize_pixels,
        lambda x: pixels.device_batch({"image": x}),
        lambda x: data.low_resolution(x, 4),
    ):
        with pytest.raises(ValueError, match=rf"^image: needs uint8 pixels or floats in .*, got {dtype}"):
            call(strange)


def test_labels_of_eight_bits_move_past_the_sources_before():
    narrow = [data.ArraySource(PIXELS, np.uint8([0, 1]), [str(k) for k in range(200)]) for _ in range(2)]
    for source in narrow:
        source.labels = source.labels.astype(np.uint8)  # as a source of the user's own may have them
    assert data.JoinedGroups({"a": narrow[0], "b": narrow[1]}).labels.tolist() == [0, 1, 200, 201]
    noisy, _ = data.corrupt_labels(np.zeros(500, np.uint8), 1.0, 300, seed=0)
    assert noisy.min() > 0 and noisy.max() > 255
