"""AS-ViT's functions against the specification's numbers, which are float64 NumPy's, and its encoder's refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.layers import (
    SparseEncoder,
    block_macs,
    head_weighted_cls_score,
    masked_softmax,
    prune_tokens,
    threshold_mask,
)

CLASS_ROWS = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]])
VALUES = np.array([[[1, 0], [0, 1], [1, 1], [2, 0]], [[0, 1], [1, 0], [0, 0], [0, 3]]], np.float32)


def attended(values=VALUES):
    """(attention, head outputs) of one image, two heads, a class token and three patches."""
    attention = np.full((1, 2, 4, 4), 0.25, np.float32)
    attention[0, :, 0] = CLASS_ROWS
    return attention, attention @ values[None]


def test_check_1_the_score():
    np.testing.assert_allclose(
        head_weighted_cls_score(*attended())[0], [0.2520304, 0.2479697, 0.2439089], rtol=2e-6
    )
    np.testing.assert_allclose(CLASS_ROWS.mean(0)[1:], 0.25)  # the plain mean tells nothing apart
    only_row = attended()[0][:, :, :1]
    np.testing.assert_array_equal(
        head_weighted_cls_score(only_row, attended()[1]), head_weighted_cls_score(*attended())
    )


def test_check_2_what_changes_the_weights():
    attention, out = attended()
    same = np.broadcast_to(out[:, :1], out.shape)
    np.testing.assert_allclose(head_weighted_cls_score(attention, same)[0], 0.25, rtol=1e-6)
    score = head_weighted_cls_score(attention, out)
    np.testing.assert_allclose(head_weighted_cls_score(attention, 7 * out), score, rtol=1e-6)
    louder = VALUES * np.array([1, 3])[:, None, None]
    second = head_weighted_cls_score(*attended(louder)) - score
    assert (np.sign(second[0]) == np.sign(CLASS_ROWS[1, 1:] - CLASS_ROWS[0, 1:])).all()


def test_a_silent_token_has_a_finite_gradient_and_no_more_than_the_heads_together():
    gradient = jax.grad(lambda out: head_weighted_cls_score(attended()[0], out).sum())(
        jnp.zeros((1, 2, 4, 2))
    )
    assert jnp.isfinite(gradient).all()
    # Two heads that each see one token, and alone respond there: the bound h is reached.
    attention = jnp.array([[[[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]]])
    out = jnp.array([[[[0.0], [1.0], [0.0]], [[0.0], [0.0], [1.0]]]])
    assert float(head_weighted_cls_score(attention, out).sum()) == pytest.approx(2, abs=1e-4)


def test_check_3_the_mask_and_its_gradients():
    score, upstream = jnp.array([0.1, 0.1499, 0.15, 0.1501, 0.2]), jnp.arange(1.0, 6.0)
    theta = jnp.float32(0.15)
    value, pull = jax.vjp(lambda s, t: threshold_mask(s, t, tau=1e-4), score, theta)
    np.testing.assert_array_equal(value, [0, 0, 0, 1, 1])
    by_score, by_theta = pull(upstream)
    # Scores and threshold are float32, whose spacing at 0.15 is 1.5e-4 of τ.
    np.testing.assert_allclose(by_score, [0, 3932.2387, 7500, 7864.4773, 0], rtol=2e-4)
    np.testing.assert_allclose(by_theta, -19296.716, rtol=2e-4)
    with pytest.raises(UserError, match="tau: needs a finite number above 0, got 0"):
        threshold_mask(score, theta, tau=0)


def test_check_4_the_masked_softmax():
    logits = jnp.array([[0.0, 1, 2], [1, 0, 1], [2, 2, 0]])
    rows = masked_softmax(logits, jnp.array([1.0, 1, 0]))
    wanted = [
        [0.268941549, 0.731057788, 6.624e-7],
        [0.731058288, 0.268941468, 2.437e-7],
        [0.468310468, 0.468310468, 0.063379065],
    ]
    np.testing.assert_allclose(rows, wanted, rtol=3e-4, atol=1e-9)
    np.testing.assert_allclose(rows[:, :2], np.array(wanted)[:, :2], rtol=2e-7)
    np.testing.assert_allclose(rows.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(masked_softmax(logits, jnp.ones(3)), jax.nn.softmax(logits), atol=3e-7)


def test_check_5_the_work_of_a_block():
    np.testing.assert_allclose(
        block_macs(jnp.array([196.0, 197.0]), 384, 1536), [0.376320000, 0.378391296], rtol=1e-6
    )
    np.testing.assert_allclose(jax.grad(lambda n: block_macs(n, 384, 1536))(10.0), 1.784832e-3, rtol=1e-5)


def test_a_static_number_of_tokens_in_the_order_of_the_image():
    x = jnp.arange(10.0).reshape(1, 5, 2)
    prune = jax.jit(prune_tokens, static_argnames="capacity")
    score = jnp.array([[0.3, 0.9, 0.1, 0.9]])
    for capacity, wanted in ((5, [0, 1, 2, 4]), (2, [0, 2]), (1, [0])):
        tokens, valid = prune(x, score, 0.2, capacity=capacity)
        count = len(wanted)
        assert tokens.shape == (1, capacity, 2) and valid[0].tolist() == [i < count for i in range(capacity)]
        np.testing.assert_array_equal(tokens[0, :count], x[0, jnp.array(wanted)])
    gone = jnp.array([[True, True, False, True, True]])
    _, valid = prune(x, score, -jnp.inf, capacity=5, valid=gone)
    assert valid.sum() == 4
    for capacity in (0, 6):
        with pytest.raises(UserError, match="capacity: needs an integer from 1 to the 5 tokens, got"):
            prune_tokens(x, score, 0.2, capacity=capacity)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stages": (4, 4, 7)}, "stages: needs increasing blocks from 1 to 11, got 4, 4, 7"),
        ({"stages": (0, 4, 7)}, "stages: needs increasing blocks from 1 to 11, got 0, 4, 7"),
        ({"stages": (4, 7, 12)}, "stages: needs increasing blocks from 1 to 11, got 4, 7, 12"),
        ({"stages": ()}, "stages: needs increasing blocks from 1 to 11, got none"),
        ({"start": (0.2,)}, "start: needs one for each of 3 stages, got 1"),
        ({"temperature": 0.0}, "temperature: needs a finite number above 0, got 0"),
        ({"mode": "sparse"}, "mode: needs one of masked, exact, capacity, packed, got 'sparse'"),
        ({"select": "top"}, "keep: needs the tokens to keep at each stage with top, got none"),
        ({"capacities": (9, 0, 1)}, "capacities: needs an integer from 1, got 0"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(UserError, match=message):
        SparseEncoder(parent=None, **fields).check(12)
