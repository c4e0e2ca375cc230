"""Rendered expressions: the class is what is shown, the shares are equal, and an image depends on who and which alone."""

import pickle

import numpy as np
import pytest

from jaxface.data import ExpressionSource, RenderedExpressions, load
from jaxface.data.render.face_model import EXPRESSIONS
from jaxface.data.sources.source import Source
from jaxface.data.specs.base import FIRST_HELD_OUT
from jaxface.errors import UserError


@pytest.fixture(scope="module")
def source():
    return ExpressionSource(4, 2, 24)


def test_the_label_is_what_is_shown(source):
    assert isinstance(source, Source) and len(source) == 4 * 14 and source.class_names == list(EXPRESSIONS)
    assert np.bincount(source.labels).tolist() == [8] * 7
    np.testing.assert_array_equal(source.people, np.repeat(np.arange(4), 14))
    for index in range(0, 56, 5):
        record = source[index]
        assert record["label"] == record["expression"] == source.labels[index]
        assert record["label"].dtype == np.int32 and record["image"].shape == (24, 24, 3)
    images = {source[i]["image"].tobytes() for i in range(14)}
    assert len(images) == 14


def test_an_image_depends_on_person_and_shot_alone(source):
    copy = pickle.loads(pickle.dumps(ExpressionSource(1, 1, 24, first_identity=2)))
    np.testing.assert_array_equal(copy[4]["image"], source[2 * 14 + 4]["image"])


def test_training_and_test_have_other_people(monkeypatch):
    made = []
    monkeypatch.setattr("jaxface.data.specs.expressions._rendered", lambda *a, **k: made.append((a, k)))
    split = load(RenderedExpressions(identities=5), image_size=16, seed=3)
    assert split.protocol == "classification" and split.name == "rendered expressions 5x14"
    (train, first), (test, held_out) = made
    assert train[:4] == (5, 2, 16, 3) and test[:4] == (100, 1, 16, 3)
    assert first["first_identity"] == 0 and held_out["first_identity"] == FIRST_HELD_OUT


@pytest.mark.parametrize("strengths", [(0.3, 1.0), (1.0, 0.8), (0.5, 1.6)])
def test_strengths_that_would_show_something_else(strengths):
    with pytest.raises(UserError, match=r"strengths: needs 0\.4 <= least <= greatest <= 1\.5"):
        ExpressionSource(2, 1, 16, strengths=strengths)
