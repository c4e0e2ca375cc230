"""Semantic labels beside live and attack, rendered and of digits; which are wrong, and how often."""

import numpy as np
import pytest

from jaxface import data
from jaxface.data.sources.semantics import FIELD
from jaxface.errors import UserError


@pytest.fixture(scope="module")
def split():
    spec = data.AnnotatedPresentations(
        identities=16, development_identities=8, held_out_identities=8, semantic_noise=0.5, depth=True
    )
    return data.load(spec, image_size=16, seed=1)


def test_rendered_faces_say_what_they_are(split):
    assert split.protocol == "spoofing" and split.train.semantic_names["illumination"][0] == "live"
    true, live = split.train.true_semantics, split.train.labels == 0
    np.testing.assert_array_equal(true["spoof_type"], split.train.labels)
    assert (true["illumination"][live] == 0).all() and (true["illumination"][~live] > 0).all()
    assert true["attributes"].shape == (64, 5) and 0 < true["attributes"].mean() < 1
    assert len(split.held_out.people) == 32  # nothing is rendered for any of this


@pytest.mark.slow
def test_their_records(split):
    record = split.train[3]
    assert record["known"] and record["label"] == record["spoof"] == split.train.labels[3]
    assert record[FIELD + "spoof_type"] == split.train.semantics["spoof_type"][3]
    assert record["depth"].shape == (16, 16) and record["depth"].dtype == np.uint8
    assert "severity" in split.held_out[0]


def test_labels_to_learn_from_are_wrong_and_those_of_the_test_right(split):
    for name, given in split.train.semantics.items():
        wrong = (given != split.train.true_semantics[name]).mean()
        assert 0.1 < wrong < 0.6, name
        np.testing.assert_array_equal(split.held_out.semantics[name], split.held_out.true_semantics[name])
    assert (split.train.labels == split.train.true_semantics["spoof_type"]).all()  # live or not stays right


def test_half_of_the_labels_drawn_anew_leave_a_tenth_of_them_right():
    names = {"digit": tuple("0123456789"), "marks": ("a", "b")}
    true = {"digit": np.arange(20_000) % 10, "marks": np.zeros((20_000, 2), int)}
    given = data.redraw_semantics(true, names, 0.5, seed=0)
    np.testing.assert_allclose((given["digit"] != true["digit"]).mean(), 0.45, atol=0.02)
    np.testing.assert_allclose(given["marks"].mean(axis=0), [0.25, 0.25], atol=0.02)
    alone = data.redraw_semantics({"marks": true["marks"]}, names, 0.5, seed=0)
    np.testing.assert_array_equal(alone["marks"], given["marks"])
    same = data.redraw_semantics(true, names, 0.0, seed=0)
    np.testing.assert_array_equal(same["digit"], true["digit"])
    with pytest.raises(UserError, match=r"semantic_noise: needs .* got 1"):
        data.redraw_semantics(true, names, 1.0, seed=0)


def test_digits_stand_for_presentations():
    spec = data.DigitPresentations(training=600, development=300, labeled=60, semantic_noise=0.25)
    split = data.load(spec, image_size=8, seed=2)
    assert [len(part) for part in (split.train, split.development, split.held_out)] == [600, 300, 897]
    assert split.train.known.sum() == 60 and set(np.unique(split.train.labels)) == {0, 1}
    np.testing.assert_array_equal(split.train.labels == 0, split.train.true_semantics["digit"] >= 5)
    wrong = (split.train.semantics["digit"] != split.train.true_semantics["digit"]).mean()
    assert abs(wrong - 0.225) < 0.06
    severity = np.array([split.held_out[i]["severity"] for i in range(100)])
    assert 0.25 < (severity > 0).mean() < 0.55
    pictures = [{part[i]["image"].tobytes() for i in range(len(part))} for part in split[:1]]
    assert len(pictures[0]) > 590
    other = data.load(spec, image_size=8, seed=3)
    assert (other.train.labels != split.train.labels).any()


def test_semantic_labels_need_names():
    source = data.digits()
    with pytest.raises(ValueError, match="lamp"):
        data.WithSemantics(source, {"lamp": ("off", "on")}, {"lamp": np.full(len(source), 2)})
    with pytest.raises(ValueError, match="marks: needs"):
        data.WithSemantics(source, {"marks": ("a", "b")}, {"marks": np.zeros((len(source), 3), int)})
    with pytest.raises(ValueError, match="need the groups"):
        data.WithSemantics(source, {"lamp": ("off", "on")}, {})
    with pytest.raises(ValueError, match="known: needs"):
        data.WithSemantics(source, {}, {}, known=np.ones(3, bool))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (data.DigitPresentations(training=1400, development=700), "data.training: needs at most 1697 digits"),
        (
            data.DigitPresentations(labeled=900),
            "data.labeled: needs at most the 700 training images, got 900",
        ),
        (data.DigitPresentations(semantic_noise=1.0), "semantic_noise"),
        (data.AnnotatedPresentations(held_out_identities=1 << 20), "held_out_identities: needs at most"),
    ],
)
def test_refusals(spec, words):
    with pytest.raises(UserError, match=words):
        data.load(spec, image_size=16)
