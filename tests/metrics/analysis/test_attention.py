import numpy as np
import pytest

from jaxface import metrics
from jaxface.errors import UserError

MAP = np.array([[[0.6, 0.3], [0.1, 0.0]]])
UNIFORM = np.full((1, 4, 4), 1 / 16)
SPIKE = np.eye(4)[:1, :, None] * np.eye(4)[0]
NOTHING = np.zeros((1, 4, 4))


def test_coverage():
    np.testing.assert_allclose(metrics.attention_coverage(MAP), 0.647731, atol=1e-6)
    np.testing.assert_allclose(metrics.attention_coverage(MAP), 0.897946 / np.log(4), atol=1e-6)
    found = metrics.attention_coverage(np.concatenate([UNIFORM, SPIKE, NOTHING]))
    np.testing.assert_allclose(found[:2], [1, 0], atol=1e-12)
    assert np.isnan(found[2])


def test_area_of_half_the_mass():
    np.testing.assert_allclose(metrics.sensitive_area(np.concatenate([UNIFORM, SPIKE])), [0.5, 1 / 16])
    np.testing.assert_allclose(metrics.sensitive_area(MAP), 0.25)
    np.testing.assert_allclose(metrics.sensitive_area(MAP, share=0.85), 0.5)


def test_gap_between_groups():
    other = SPIKE[:, ::-1]
    maps = np.concatenate([SPIKE, SPIKE, other, NOTHING])
    assert metrics.attention_gap(maps, [0, 0, 1, 1]) == 2
    assert metrics.attention_gap(np.concatenate([SPIKE, UNIFORM]), [0, 1]) == 2 * 15 / 16
    assert metrics.attention_gap(maps[:2], [0, 1]) == 0
    with pytest.raises(UserError, match="none of group 1"):
        metrics.attention_gap(np.concatenate([SPIKE, NOTHING]), [0, 1])


def test_mass_in_a_region():
    region = np.zeros((8, 8), bool)
    region[1:4, 1:4] = True
    np.testing.assert_allclose(metrics.attention_mass(UNIFORM, region), 9 / 64)
    np.testing.assert_allclose(metrics.attention_mass(SPIKE, region), 1 / 4)
    with pytest.raises(ValueError, match="region: needs multiples"):
        metrics.attention_mass(UNIFORM, region[:6])


def test_refusals():
    with pytest.raises(UserError, match="maps: needs values of at least 0"):
        metrics.attention_coverage(-MAP)
    with pytest.raises(UserError, match="at least two places"):
        metrics.attention_coverage(np.ones((2, 1, 1)))


def softmaxes(heads, count):
    values = np.random.default_rng(heads).uniform(size=(2, heads, count, count))
    return values / values.sum(-1, keepdims=True)


def test_rollout_is_the_product_of_layers_with_their_residuals():
    layers = [softmaxes(heads, 5) for heads in (1, 2, 3)]
    found = metrics.attention_rollout(layers)
    for image in range(2):
        expected = np.eye(5)
        for layer in layers:
            mixing = 0.5 * layer[image].mean(0) + 0.5 * np.eye(5)
            expected = mixing @ expected
        np.testing.assert_allclose(found[image], expected, rtol=1e-12)
    np.testing.assert_allclose(found.sum(-1), 1)
    np.testing.assert_allclose(metrics.attention_rollout([np.eye(5)[None, None]]), np.eye(5)[None])


def test_the_class_tokens_attention_becomes_a_map():
    layer = softmaxes(2, 6)
    row = layer.mean(1)[:, 0, 2:]
    found = metrics.class_attention(layer, extra=2)  # of a distilled network
    np.testing.assert_allclose(found, row / row.sum(-1, keepdims=True))
    np.testing.assert_allclose(metrics.class_attention(metrics.attention_rollout([layer])).sum(-1), 1)
    assert metrics.attention_coverage(found.reshape(2, 2, 2)).shape == (2,)
    alone = np.eye(3)[None, None]
    np.testing.assert_array_equal(metrics.class_attention(alone), [[0, 0]])  # nothing but itself


def test_refused_attention():
    layer = softmaxes(2, 6)
    for extra in (0, 6):
        with pytest.raises(UserError, match=f"extra: needs 1 to 5 of 6 tokens, got {extra}"):
            metrics.class_attention(layer, extra=extra)
    with pytest.raises(ValueError, match="layers: need at least one, and one shape"):
        metrics.attention_rollout([layer, softmaxes(2, 5)])
    with pytest.raises(ValueError, match="as many queries as keys"):
        metrics.class_attention(layer[:, :, :3])
    with pytest.raises(UserError, match="needs values of at least 0"):
        metrics.class_attention(-layer)
