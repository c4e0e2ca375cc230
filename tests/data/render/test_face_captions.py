"""Captions of rendered faces say what the renderer was told."""

import dataclasses
import types

import numpy as np
import pytest

from jaxface import data
from jaxface.data.render import face_captions
from jaxface.data.render.face_captions import ATTRIBUTES, describe_face, face_attributes, person_name
from jaxface.data.transforms.text import caption_text


def faces(**changes):
    style = types.SimpleNamespace(
        glasses=np.array([[0.0, 1], [0.7, 1]]),
        beard=np.array([[0.0, 0, 0], [0.0, 0.5, 0]]),
        hair=np.array([[9.0, 9, 130], [9.0, 9, 60]]),
        hair_color=np.array([[0.1, 0.1, 0.1], [0.1, 0.08, 0.05]]),
    )
    identity = types.SimpleNamespace(style=style, tone=np.array([0.1, 0.9]))
    made = types.SimpleNamespace(
        identity=identity,
        pose=np.deg2rad(np.array([[0.0, -30, 0], [0.0, 5, 0]])),
        expression=np.array([[0.0] * 6, [0.0, 0, 0, 0.9, 0, 0]]),
    )
    return types.SimpleNamespace(**{**vars(made), **changes})


def test_attributes_are_read_from_the_parameters():
    values = face_attributes(faces())
    named = [{name: ATTRIBUTES[name][column[i]] for name, column in values.items()} for i in range(2)]
    assert named[0] == {
        "expression": "neutral", "pose": "left", "glasses": "none", "beard": "none", "hair": "bald", "skin": "light",
    }  # fmt: skip
    assert named[1] == {
        "expression": "frown", "pose": "ahead", "glasses": "glasses", "beard": "beard", "hair": "brown", "skin": "dark",
    }  # fmt: skip
    plain = faces(identity=types.SimpleNamespace(style=None, tone=np.zeros(2)))
    with pytest.raises(ValueError, match="needs people with a style"):
        face_attributes(plain)


def test_every_value_has_words_of_its_own():
    assert {name: len(words) for name, words in face_captions._WORDS.items()} == {
        name: len(values) for name, values in ATTRIBUTES.items()
    }
    for words in face_captions._WORDS.values():
        phrases = [phrase for choices in words for phrase in choices]
        assert len(set(phrases)) == len(phrases)
    values = {name: 1 for name in ATTRIBUTES}
    every = describe_face(values, "bababa", np.random.default_rng(0), mentioned=1.0)
    assert len(every.split(", ")) == 1 + len(ATTRIBUTES) and "bababa" in every
    for name, words in face_captions._WORDS.items():
        assert any(phrase in every.split(", ") for phrase in words[1]), name
    alone = describe_face(values, "bababa", np.random.default_rng(0), mentioned=0.0)
    assert "," not in alone
    assert len({person_name(i) for i in range(5000)}) == 5000


@pytest.mark.slow
def test_a_rendered_source_says_what_it_shows():
    spec = data.CaptionedFaces(identities=6, per_identity=7, held_out_identities=2, held_out_per_identity=1)
    split = data.load(spec, image_size=32, seed=1)
    source = split.train
    assert len(source) == 42 and len(split.held_out) == 2 and split.protocol == "verification"
    assert not set(source.class_names) & set(split.held_out.class_names)
    attributes = source.attributes
    np.testing.assert_array_equal(attributes["expression"], np.arange(42) % 7)
    for i in range(42):
        record = source[i]
        assert caption_text(record["caption"]) == source.captions[i]
        assert source.class_names[record["label"]] in source.captions[i]
        assert attributes["expression"][i] == record["expression"]
        # The nose points where the caption says, in the image.
        points = record["landmarks"]
        offset = points[2, 0] - points[:2, 0].mean()
        side = ATTRIBUTES["pose"][attributes["pose"][i]]
        assert {"left": offset < 0, "right": offset > 0, "ahead": True}[side]
    again = data.load(dataclasses.replace(spec, identities=3), image_size=32, seed=1).train
    assert again.captions == source.captions[:21]  # of the person and the image alone
    assert len(np.unique(np.concatenate([attributes[n] for n in ("glasses", "beard")]))) == 2
