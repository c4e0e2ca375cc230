"""Drawn images of known quality."""

import numpy as np
import pytest

from jaxface import data


def test_an_image_and_its_opinion_depend_on_its_number_alone():
    many, one = data.distorted_leaves(4, side=16, seed=3), data.distorted_leaves(1, side=16, seed=3, first=2)
    np.testing.assert_array_equal(many[2]["image"], one[0]["image"])
    assert many[2]["opinion"] == one[0]["opinion"] == many.opinions[2] and many[2]["label"] == one[0]["label"]
    assert many[2]["reference"] == 2 and many.references.tolist() == [0, 1, 2, 3]
    assert (many[2]["image"] != data.distorted_leaves(3, side=16, seed=4)[2]["image"]).any()


def test_discs_have_texture_where_it_is_asked_for():
    flat, rough = (data.textured_leaves(1, side=48, texture=t, seed=0)[0]["image"] for t in (0.0, 0.25))
    np.testing.assert_array_equal(flat, data.dead_leaves(1, side=48, seed=0)[0]["image"])
    still = [np.mean(np.abs(np.diff(x.astype(int), axis=1)).max(-1) == 0) for x in (flat, rough)]
    assert still[0] > 0.4 > 0.2 > still[1]


@pytest.mark.parametrize("kind", data.DISTORTIONS)
def test_worse_is_further_away(kind):
    clean = data.textured_leaves(1, side=44, seed=0)[0]["image"]
    np.testing.assert_array_equal(data.distort(clean, kind, 0.0, rng=np.random.default_rng(0)), clean)
    errors = [
        np.mean((data.distort(clean, kind, s, rng=np.random.default_rng(0)).astype(float) - clean) ** 2)
        for s in (0.1, 0.4, 1.0)
    ]
    assert 0.01 < errors[0] < errors[1] < errors[2] and errors[1] > 100


def test_what_each_distortion_does():
    clean = data.textured_leaves(1, side=48, seed=1)[0]["image"]
    changed = {
        k: data.distort(clean, k, 0.5, rng=np.random.default_rng(0)).astype(float) for k in data.DISTORTIONS
    }
    rough = {
        k: np.abs(np.diff(x, axis=0)).mean() for k, x in {**changed, "none": clean.astype(float)}.items()
    }
    assert rough["blur"] < rough["none"] < rough["noise"]
    at, shares = np.arange(1, 48) % 8 == 0, []
    for severity in (0.0, 1.0):
        coded = data.distort(clean, "blocks", severity, rng=np.random.default_rng(0)).astype(float)
        steps = np.abs(np.diff(coded.mean(-1), axis=1))
        shares.append(steps[:, at].mean() / steps[:, ~at].mean())
    assert shares[1] > 1.4 * shares[0]  # edges between the blocks


def test_a_kind_of_data():
    spec = data.DistortedLeaves(images=60, held_out_images=20, leaves=5, severity=(0.2, 0.6))
    split = data.load(spec, image_size=16)
    assert split.protocol == "quality" and split.name == "distorted leaves 60"
    assert len(split.train) == 60 and len(split.held_out) == 20
    assert split.train.opinions.min() >= 4 and split.train.opinions.max() <= 8
    assert sorted(set(split.train.labels)) == [0, 1, 2] and split.train.class_names == list(data.DISTORTIONS)
    assert not set(split.train.references) & set(split.held_out.references)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: data.distorted_leaves(1, seed=0, severity=(0.0, 1.5)), "severity: needs a number from 0 to 1, got 1.5"),
        (lambda: data.textured_leaves(1, seed=0, texture=-1.0), "texture: needs a finite number from 0, got -1"),
        (lambda: data.textured_leaves(0, seed=0), "count: needs an integer from 1, got 0"),
        (lambda: data.load(data.DistortedLeaves(severity=(0.5, 0.2)), image_size=16), "severity: needs least <= greatest"),
        (
            lambda: data.distort(np.zeros((8, 8, 3), np.uint8), "rain", 0.5, rng=np.random.default_rng(0)),
            "kind: needs one of blur, noise, blocks, got 'rain'",
        ),
    ],
)  # fmt: skip
def test_impossible_distortions(call, words):
    with pytest.raises(ValueError, match=words):
        call()
