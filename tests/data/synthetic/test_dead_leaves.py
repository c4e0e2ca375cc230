"""Dead leaves, patches of photographs, and pictures as they are."""

import numpy as np
import pytest
from PIL import Image

from jaxface import data
from jaxface.data.sources.patches import BUNDLED, BUNDLED_HELD_OUT, patches
from jaxface.data.sources.pictures import read_picture
from jaxface.errors import UserError


def test_an_image_depends_on_its_number_alone():
    some = data.dead_leaves(3, side=16, leaves=10, seed=5)
    np.testing.assert_array_equal(
        some[2]["image"], data.dead_leaves(1, side=16, leaves=10, seed=5, first=2)[0]["image"]
    )
    assert (some[0]["image"] != some[1]["image"]).mean() > 0.5
    assert (some[0]["image"] != data.dead_leaves(1, side=16, leaves=10, seed=6)[0]["image"]).mean() > 0.5


def test_leaves_are_flat_discs_over_each_other():
    image = data.dead_leaves(1, side=64, leaves=80, seed=0)[0]["image"].astype(int)
    same = (np.abs(np.diff(image, axis=1)).max(-1) == 0).mean()
    assert 0.4 < same < 0.95  # flat inside, edges between
    with pytest.raises(UserError, match="side: needs an integer from 8, got 4"):
        data.dead_leaves(1, side=4, seed=0)


def test_both_parts_of_a_split_are_of_other_images():
    split = data.load(data.DeadLeaves(images=4, held_out_images=3, leaves=5), image_size=16)
    assert (len(split.train), len(split.held_out), split.protocol) == (4, 3, "images")
    rows = [split.train[i]["image"] for i in range(4)]
    assert not any((row == split.held_out[0]["image"]).all() for row in rows)


def test_clips_move_and_their_ground_moves_as_one():
    source = data.moving_leaves(3, frames=3, side=32, leaves=40, movers=0, speed=3.0, seed=2)
    frames = source[1]["frames"].astype(float)
    np.testing.assert_array_equal(source[1]["image"], source[1]["frames"][0])
    # One shift explains the middle of the next frame.
    middle = frames[1, 8:24, 8:24]
    errors = {
        (dy, dx): np.abs(frames[0, 8 + dy : 24 + dy, 8 + dx : 24 + dx] - middle).mean()
        for dy in range(-4, 5)
        for dx in range(-4, 5)
    }
    assert min(errors.values()) < 0.5 * np.abs(frames[0, 8:24, 8:24] - middle).mean()
    still = data.moving_leaves(1, frames=2, side=16, speed=0.0, seed=0)[0]["frames"]
    np.testing.assert_array_equal(still[0], still[1])
    again = data.moving_leaves(1, frames=3, side=32, leaves=40, movers=0, speed=3.0, seed=2, first=1)
    np.testing.assert_array_equal(again[0]["frames"], source[1]["frames"])


def test_patches_are_cut_from_photographs_that_are_not_evaluated_on():
    split = data.load(data.Patches(per_photograph=3), image_size=32)
    assert len(split.train) == 3 * len(BUNDLED) and len(split.held_out) == 3 * len(BUNDLED_HELD_OUT)
    assert split.train.image_shape == (32, 32, 3) and not set(BUNDLED) & set(BUNDLED_HELD_OUT)
    again = data.load(data.Patches(per_photograph=3), image_size=32)
    np.testing.assert_array_equal(split.train[5]["image"], again.train[5]["image"])
    with pytest.raises(UserError, match="image_size: needs at most the 20 pixels of a photograph, got 32"):
        patches([np.zeros((20, 40, 3), np.uint8)], side=32, per_photograph=1, seed=0)


def test_a_folder_of_photographs(tmp_path):
    for number in range(3):
        Image.new("RGB", (40, 30), (number * 80, 0, 0)).save(tmp_path / f"p{number}.png")
    spec = data.Patches(root=str(tmp_path), held_out=0.3)
    train, held_out = spec.photographs(seed=0)
    assert len(train) == 2 and len(held_out) == 1 and not train.keys() & held_out.keys()
    assert len(data.load(spec, image_size=16).train) == 2 * 4 * (40 * 30 // 256)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"root: an image of .* cannot be read"):
        spec.photographs(seed=0)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(UserError, match="root: no image in"):
        spec.photographs(seed=0)
    with pytest.raises(UserError, match="root: needs a folder of images"):
        data.Patches(root=str(tmp_path / "missing")).photographs(seed=0)


def test_a_picture_is_read_as_it_is_or_refused(tmp_path):
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (5, 7, 3), np.uint8)
    files = {
        "color": Image.fromarray(color),
        "gray": Image.fromarray(color[..., 0]),
        "alpha": Image.fromarray(np.dstack([color, color[..., :1]])),
        "deep": Image.fromarray(color[..., 0].astype(np.uint16) * 257),
    }
    for name, image in files.items():
        image.save(tmp_path / f"{name}.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "color.png"), color)
    np.testing.assert_array_equal(read_picture(tmp_path / "gray.png"), color[..., :1])
    (tmp_path / "text.png").write_text("no image")
    for name, words in (
        ("alpha", "image: needs one without transparency"),
        ("deep", "image: needs 8 bits a channel, .* has mode I;16"),
        ("text", "image: cannot read .*: it is no JPEG, PNG"),
        ("missing", "image: cannot read .*: No such file"),
    ):
        with pytest.raises(UserError, match=words):
            read_picture(tmp_path / f"{name}.png")
