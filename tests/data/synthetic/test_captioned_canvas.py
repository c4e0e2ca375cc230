"""Captions of canvases say what lies on them."""

import numpy as np

from jaxface import data
from jaxface.data.synthetic.captioned_canvas import NUMBERS, PLACES
from jaxface.data.transforms.text import caption_text


def test_a_caption_tells_digit_squares_and_place():
    split = data.load(data.CaptionedCanvas(scenes=40, test_scenes=5, digits=(3, 7)), image_size=24, seed=0)
    source = split.train
    assert (len(source), len(split.held_out), split.protocol) == (40, 5, "classification")
    assert list(source[0]) == ["image", "label", "caption"]
    for i, caption in enumerate(source.captions):
        assert caption == caption_text(source[i]["caption"])
        words = caption.replace(",", "").split()
        assert NUMBERS[3 + source.labels[i]] in words
        assert f"{NUMBERS[source.attributes['squares'][i]]} square" in caption
        assert PLACES[source.attributes["place"][i]] in caption
    # The image is brighter where the digit is said to be: it is larger than any square.
    names = source.attribute_names
    assert names["digit"] == ("three", "four", "five", "six") and names["squares"][0] == "zero"
    alone = np.flatnonzero(source.attributes["squares"] == 0)
    for i in alone:
        image = source[i]["image"][..., 0].astype(float)
        halves = image[:12].sum() - image[12:].sum(), image[:, :12].sum() - image[:, 12:].sum()
        low, right = divmod(int(source.attributes["place"][i]), 2)
        if abs(halves[0]) > 8000:
            assert (halves[0] < 0) == bool(low)
        if abs(halves[1]) > 8000:
            assert (halves[1] < 0) == bool(right)
    again = data.load(data.CaptionedCanvas(scenes=20, test_scenes=5, digits=(3, 7)), image_size=24, seed=0)
    assert again.train.captions == source.captions[:20]
