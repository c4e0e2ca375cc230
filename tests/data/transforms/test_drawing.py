"""Tokens and attention maps on an image, pixel by pixel."""

import numpy as np
import pytest

from jaxface.data.transforms.drawing import draw_map, draw_tokens
from jaxface.errors import UserError

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def test_dropped_tokens_fade():
    selected = np.array([True, False, False, True, True, False])  # two rows of three, each of 3 x 4 pixels
    image = np.concatenate([IMAGE, IMAGE[:, :4]], axis=1)
    drawn = draw_tokens(image, selected, (2, 3), fade=0.5)
    for place, is_selected in enumerate(selected):
        y, x = 3 * (place // 3), 4 * (place % 3)
        before, after = image[y : y + 3, x : x + 4].astype(float), drawn[y : y + 3, x : x + 4]
        np.testing.assert_array_equal(after, before if is_selected else np.round((before + 255) / 2))
    np.testing.assert_array_equal(draw_tokens(image, selected.reshape(2, 3), (2, 3), fade=0.5), drawn)


def test_a_map_colors_its_tokens():
    drawn = draw_map(IMAGE, np.array([0.0, 1.0, 2.0, 4.0]), (2, 2), strength=1.0)
    corners = [drawn[0, 0], drawn[0, -1], drawn[-1, 0], drawn[-1, -1]]
    np.testing.assert_array_equal(corners, [[0, 0, 4], [87, 16, 110], [188, 55, 84], [252, 255, 164]])
    lightness = drawn.astype(float).sum(-1)
    assert lightness[0, 0] < lightness[0, -1] < lightness[-1, 0] < lightness[-1, -1]
    gray = draw_map(IMAGE[..., :1], np.zeros((2, 2)), (2, 2), strength=0.0)  # no map, and none of it shown
    np.testing.assert_array_equal(gray, np.repeat(IMAGE[..., :1], 3, axis=-1))


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (
            lambda: draw_tokens(IMAGE, np.ones(4, bool), (4, 1)),
            ValueError,
            "grid: needs divisors of 6 x 8 pixels",
        ),
        (lambda: draw_tokens(IMAGE, np.ones(5, bool), (2, 2)), ValueError, "selected: needs 2 x 2 tokens"),
        (lambda: draw_tokens(IMAGE, np.ones(4), (2, 2)), ValueError, "selected: needs bool, got float64"),
        (lambda: draw_tokens(IMAGE / 255, np.ones(4, bool), (2, 2)), ValueError, "image"),
        (lambda: draw_map(IMAGE, -np.ones(4), (2, 2)), UserError, "values: need to be finite and at least 0"),
        (
            lambda: draw_map(IMAGE, np.ones(4), (2, 2), strength=2),
            UserError,
            "strength: needs a number from 0 to 1",
        ),
    ],
)
def test_refusals(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
