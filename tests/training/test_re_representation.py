"""R: idempotent on its codes, padded and cropped, and kept on the disk so that a kill costs no more than a file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_vqgan import tiny_generator

from jaxface import data
from jaxface.errors import UserError
from jaxface.training import re_representation
from jaxface.training.re_representation import (
    decode_codes,
    encode_images,
    padded_to_stride,
    re_represent,
    re_represented,
)

MODEL, PARAMS = tiny_generator()
LEVELS = np.random.default_rng(0).integers(0, 256, (7, 7, 8, 1)).astype(np.uint8)
SOURCE = data.ArraySource(LEVELS, np.arange(7) % 2, ["a", "b"])


def pixels(source):
    return [source[i]["image"].copy() for i in range(len(source))]


@jax.jit
def whole(images):
    latents = encode_images(MODEL, PARAMS, images)
    quantized = MODEL.apply({"params": PARAMS}, latents, method="quantize")
    again = MODEL.apply({"params": PARAMS}, quantized.codes, method="quantize")
    made = decode_codes(MODEL, PARAMS, quantized.codes, *images.shape[1:3])
    return re_represent(MODEL, PARAMS, images), made, quantized.codes, again.codes


def test_it_decodes_the_codes_of_what_was_reflected_to_whole_ones():
    images = jnp.asarray(LEVELS / 127.5 - 1, jnp.float32)
    padded = padded_to_stride(images, 2)
    assert padded.shape == (7, 8, 8, 1)
    np.testing.assert_array_equal(padded[:, 7], images[:, 5])
    said, made, codes, again = whole(images)
    assert said.shape == images.shape and float(jnp.abs(said).max()) <= 1
    np.testing.assert_array_equal(said, made)
    np.testing.assert_array_equal(codes, again)
    with pytest.raises(UserError, match="multiples of its stride, 2, got 7x8"):
        encode_images(MODEL, PARAMS, images, pad=False)
    with pytest.raises(UserError, match="images of 1 channels, as it was trained on, got 3"):
        encode_images(MODEL, PARAMS, jnp.zeros((1, 8, 8, 3)))


def test_a_source_keeps_all_but_its_images():
    said = re_represented(MODEL, PARAMS, SOURCE, batch_size=4)
    expected = whole(jnp.asarray(LEVELS / 127.5 - 1, jnp.float32))[0]
    np.testing.assert_allclose(
        [said[i]["image"] for i in range(7)], np.rint(np.asarray(expected) * 127.5 + 127.5), atol=1
    )
    assert said[3]["label"] == 1 and len(said) == 7 and said.class_names == ["a", "b"]
    assert said[0]["image"].dtype == np.uint8 and said.image_shape == (7, 8, 1)
    with pytest.raises(UserError, match="at least one image"):
        re_represented(MODEL, PARAMS, data.Subset(SOURCE, []))


def test_a_folder_is_filled_once_and_only_with_what_is_missing(tmp_path, monkeypatch):
    made = []
    plain = re_representation.map_source

    def noting(fn, source, *arguments, **options):
        made.append(len(source))
        if len(made) == 2:
            raise KeyboardInterrupt  # killed while the second file is made
        return plain(fn, source, *arguments, **options)

    monkeypatch.setattr(re_representation, "map_source", noting)
    options = {"folder": str(tmp_path), "shard_size": 3, "batch_size": 4}
    with pytest.raises(KeyboardInterrupt):
        re_represented(MODEL, PARAMS, SOURCE, **options)
    (folder,) = tmp_path.iterdir()
    assert [file.name for file in folder.iterdir()] == ["000000.npy"]
    first = pixels(re_represented(MODEL, PARAMS, SOURCE, **options))
    assert made == [3, 3, 3, 1]
    # Damaged files are made again; another generator or other pixels have a folder of their own.
    (folder / "000001.npy").write_bytes((folder / "000001.npy").read_bytes()[:90])
    second = re_represented(MODEL, PARAMS, SOURCE, **options)
    assert made == [3, 3, 3, 1, 3]
    memory = re_represented(MODEL, PARAMS, SOURCE, batch_size=4)
    for i in range(7):
        np.testing.assert_array_equal(first[i], memory[i]["image"])
        np.testing.assert_array_equal(second[i]["image"], memory[i]["image"])
    changed = LEVELS.copy()
    changed[0, 0, 0] ^= 1
    re_represented(MODEL, PARAMS, data.ArraySource(changed, np.arange(7) % 2, ["a", "b"]), **options)
    other = jax.tree.map(lambda leaf: leaf + 0.1, PARAMS)
    re_represented(MODEL, other, SOURCE, **options)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match="cannot write"):
        re_represented(MODEL, PARAMS, SOURCE, folder=str(file))
