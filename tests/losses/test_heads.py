"""Heads: one value that is the plain loss and the fused one."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import losses
from jaxface.errors import UserError
from pallas_kernels import margin_softmax

CASES = [
    (losses.Softmax(20.0), lambda c, y: losses.softmax_loss(c, y, scale=20.0)),
    (losses.CosFace(20.0, 0.2), lambda c, y: losses.cosface_loss(c, y, scale=20.0, margin=0.2)),
    (losses.ArcFace(20.0, 0.3), lambda c, y: losses.arcface_loss(c, y, scale=20.0, margin=0.3)),
    (
        losses.SFace(20.0, 10.0, 0.9, 1.1),
        lambda c, y: losses.sface_loss(c, y, scale=20.0, sharpness=10.0, intra_angle=0.9, inter_angle=1.1),
    ),
]


@pytest.mark.parametrize(("head", "loss"), CASES, ids=lambda x: type(x).__name__)
def test_a_head_is_its_loss_plain_and_fused(head, loss):
    keys = jax.random.split(jax.random.key(0), 2)
    embeddings, prototypes = (jax.random.normal(key, (n, 8)) for key, n in zip(keys, (6, 5), strict=True))
    unit = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (embeddings, prototypes)]
    cosines, labels = unit[0] @ unit[1].T, jnp.arange(6) % 5
    np.testing.assert_array_equal(head.loss(cosines, labels), loss(cosines, labels))
    _, terms = margin_softmax.margin_softmax(embeddings, prototypes, labels, head.fused())
    np.testing.assert_allclose(terms.losses, loss(cosines, labels), rtol=1e-4, atol=1e-4)


def test_the_defaults_are_those_of_the_losses():
    cosines, labels = jax.random.uniform(jax.random.key(0), (3, 4), minval=-1), jnp.array([0, 3, 1])
    for name in ("softmax", "cosface", "arcface", "sface"):
        head = losses.create_head(name)
        expected = getattr(losses, f"{name}_loss")(cosines, labels)
        np.testing.assert_array_equal(head.loss(cosines, labels), expected)
        assert head.fused() == getattr(margin_softmax, {"sface": "SFace"}.get(name, name))()


def test_a_linear_classifier_is_the_cross_entropy_of_its_scores():
    scores = jnp.asarray([[3.0, 1.0, -2.0], [0.0, 5.0, 100.0]])
    expected = [np.log(np.exp([3.0, 1.0, -2.0]).sum()) - 1.0, 0.0]
    np.testing.assert_allclose(
        losses.create_head("linear", scale=3.0).loss(scores, jnp.array([1, 2])), expected, rtol=1e-5
    )


def test_heads_by_name_take_the_options_that_they_have():
    options = {"scale": 16.0, "margin": 0.1, "sharpness": 5.0, "intra_angle": 1.0, "inter_angle": 1.2}
    assert losses.create_head("softmax", **options) == losses.Softmax(16.0)
    assert losses.create_head("cosface", **options) == losses.CosFace(16.0, 0.1)
    assert losses.create_head("cosface", margin=None) == losses.CosFace()
    assert losses.create_head("sface", **options) == losses.SFace(16.0, 5.0, 1.0, 1.2)
    with pytest.raises(
        UserError, match=r"^loss: needs one of .*arcface.*, got 'arkface'; did you mean 'arcface'"
    ):
        losses.create_head("arkface")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("softmax", {"scale": 0.0}),
        ("softmax", {"scale": math.inf}),
        ("cosface", {"margin": 2.5}),
        ("arcface", {"margin": -0.1}),
        ("arcface", {"margin": 3.2}),
        ("sface", {"sharpness": -1.0}),
        ("sface", {"intra_angle": 3.2}),
        ("sface", {"inter_angle": math.nan}),
    ],
)
def test_a_head_out_of_its_range_cannot_be_made(name, wrong):
    with pytest.raises(UserError, match=rf"^{next(iter(wrong))}: needs a (finite )?number (above|from) 0"):
        losses.create_head(name, **wrong)
