"""Two views of a captioned image: each says which square of the image it shows."""

import numpy as np
import pytest

from jaxface import data
from jaxface.data.transforms.text import Tokenizer, caption_bytes
from jaxface.errors import UserError

pytest.importorskip("tokenizers")
CAPTION = "a photo of someone"


def record(flip=0.0, seed=0, size=32):
    rows, columns = np.mgrid[:size, :size] * (255 / size)
    image = np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)
    tokenizer = Tokenizer.train([CAPTION], vocabulary=280, length=12)
    spec = data.CaptionViewSpec(window=(0.4, 0.6), flip=flip, pixels=data.Augment(flip=0.0))
    views = data.CaptionViews(tokenizer, spec).transform()
    element = {"image": image, "caption": caption_bytes(CAPTION), "label": np.int32(3)}
    return tokenizer, views.random_map(element, np.random.default_rng(seed))


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_window_says_where_its_pixels_are(flip):
    _, made = record(flip)
    assert made["image"].shape == (2, 32, 32, 3) and made["window"].shape == (2, 4)
    for image, (y, x, side, mirrored) in zip(made["image"], made["window"], strict=True):
        assert mirrored == flip and 0 <= y <= 1 - side and 0.4 <= side <= 0.6
        shown = image[..., 1][:, ::-1] if mirrored else image[..., 1]
        # The ramp says the place: the middle of the view is the middle of the window.
        assert image[14:18, 14:18, 0].mean() / 255 == pytest.approx(y + side / 2, abs=0.03)
        assert shown[14:18, 14:18].mean() / 255 == pytest.approx(x + side / 2, abs=0.03)
        assert (shown[:, 24].mean() - shown[:, 8].mean()) / 255 == pytest.approx(side / 2, abs=0.03)
    assert not np.array_equal(made["window"][0], made["window"][1])


def test_a_caption_and_a_changed_one():
    tokenizer, made = record()
    assert tokenizer.decode(made["tokens"]) == CAPTION
    assert tokenizer.decode(made["changed_tokens"]) != CAPTION
    assert record()[1]["changed_tokens"].tolist() == made["changed_tokens"].tolist()


def test_pixels_that_would_move_are_refused():
    with pytest.raises(UserError, match=r"views\.pixels: needs changes that move no pixel, got crop"):
        data.CaptionViewSpec(pixels=data.Augment(flip=0.0, crop=0.5))
