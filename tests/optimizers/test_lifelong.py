import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxface.errors import UserError
from jaxface.optimizers import fuse_tasks, fusion_rate, fusion_weights

BASE = jnp.array([1.0, 2.0])
THETAS = jnp.array([[1.1, 2.0], [0.9, 2.3]])
BOTH = jnp.array([True, True])


def test_the_worked_example():
    """d 0.1, 0.4; g 0.86, 1.01; w 0.459893, 0.540107."""
    weights = fusion_weights(THETAS, BASE, BOTH)
    np.testing.assert_allclose(weights, [0.459893, 0.540107], atol=1e-6)
    np.testing.assert_allclose(fuse_tasks(THETAS, BASE, weights, 1.0), [0.991979, 2.162032], atol=1e-6)
    alpha = fusion_rate(1, 10)
    np.testing.assert_allclose(alpha, 0.904837, atol=1e-6)
    expected = {"ari": [0.992742, 2.146613], "uniform": [1.0, 2.135726], "last": [0.909516, 2.271451]}
    for kind, value in expected.items():
        fused = fuse_tasks(THETAS, BASE, fusion_weights(THETAS, BASE, BOTH, kind=kind), alpha)
        np.testing.assert_allclose(fused, value, atol=1e-6)


def test_the_rate_over_the_sessions():
    np.testing.assert_allclose(fusion_rate(0, 10), 1.0)
    np.testing.assert_allclose(fusion_rate(jnp.int32(9), 10), 0.406570, atol=1e-6)
    np.testing.assert_allclose(fusion_rate(4, 5, beta=0.5), 0.670320, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["sum", "relative"]), st.sampled_from([0.0, 0.85]))
def test_weights_are_a_mean_and_follow_the_order_of_the_tasks(seed, distance, floor):
    rng = np.random.default_rng(seed)
    base, thetas = rng.normal(size=(3, 2)).astype(np.float32), rng.normal(size=(4, 3, 2)).astype(np.float32)
    present = np.array([True, True, False, True])
    weights = np.asarray(fusion_weights(thetas, base, present, distance=distance, floor=floor))
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
    assert (weights[present] > 0).all() and (weights < 1).all() and weights[2] == 0
    order = rng.permutation(4)
    permuted = fusion_weights(thetas[order], base, present[order], distance=distance, floor=floor)
    np.testing.assert_allclose(permuted, weights[order], rtol=1e-5)


def test_equal_distances_are_uniform_and_large_ones_are_squares():
    moved = jnp.array([[1.0, 1.0], [-1.0, 1.0]])
    np.testing.assert_allclose(fusion_weights(BASE + moved, BASE, BOTH), [0.5, 0.5])
    far = fusion_weights(BASE + 1e4 * jnp.array([[1.0, 0.0], [0.0, 3.0]]), BASE, BOTH)
    np.testing.assert_allclose(far, [0.1, 0.9], atol=1e-4)
    for floor, distance in ((0.85, "sum"), (0.0, "sum"), (0.0, "relative")):
        still = fusion_weights(jnp.stack([BASE, BASE]), BASE, BOTH, floor=floor, distance=distance)
        np.testing.assert_allclose(still, [0.5, 0.5])
        np.testing.assert_allclose(fuse_tasks(jnp.stack([BASE, BASE]), BASE, still, 0.3), BASE)


def test_relative_distances_know_no_scale():
    small, large = (
        fusion_weights(BASE + k * (THETAS - BASE), BASE, BOTH, distance="relative") for k in (1e-3, 1e3)
    )
    np.testing.assert_allclose(small, large, rtol=1e-3)
    np.testing.assert_allclose(
        fusion_weights(THETAS, BASE, BOTH, distance="relative", floor=0.0), [1 / 17, 16 / 17], rtol=1e-4
    )


def test_last_is_the_last_that_is_there():
    for present, expected in (([1, 1, 0], [0, 1, 0]), ([1, 0, 1], [0, 0, 1]), ([1, 0, 0], [1, 0, 0])):
        weights = fusion_weights(jnp.ones((3, 2)), BASE, jnp.array(present, bool), kind="last")
        np.testing.assert_array_equal(weights, expected)


def test_every_tensor_has_weights_of_its_own():
    thetas = {"a": THETAS, "b": jnp.array([[1.0], [1.0]])}
    weights = fusion_weights(thetas, {"a": BASE, "b": jnp.zeros(1)}, BOTH)
    np.testing.assert_allclose(weights["b"], [0.5, 0.5])
    assert abs(weights["a"][0] - 0.5) > 0.03


def test_refusals():
    with pytest.raises(UserError, match=r"^floor: needs"):
        fusion_weights(THETAS, BASE, BOTH, floor=-1.0)
    with pytest.raises(ValueError, match="kind, distance"):
        fusion_weights(THETAS, BASE, BOTH, kind="mean")
    for name, arguments in {"tasks": (0, 0), "session": (5, 5), "beta": (0, 5)}.items():
        with pytest.raises(UserError, match=rf"^{name}: needs"):
            fusion_rate(*arguments, beta=-1.0 if name == "beta" else 1.0)


def test_fusion_compiles_once_for_all_sessions():
    fused = jax.jit(
        lambda thetas, base, present, s: fuse_tasks(
            thetas, base, fusion_weights(thetas, base, present), fusion_rate(s, 5)
        )
    )
    for s in range(5):
        fused(THETAS, BASE, BOTH, s)
    assert fused._cache_size() == 1
