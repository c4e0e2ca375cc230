import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxface.errors import UserError
from jaxface.optimizers import RULES
from jaxface.optimizers.rectified_adam import rectified_length, scale_by_rectified_adam


def exact_length(t, b2):
    return 2 / (1 - b2) - 1 - 2 * t * b2**t / (1 - b2**t)


@pytest.mark.parametrize("b2", [0.9, 0.99, 0.999])
def test_the_length_is_exact_in_float32(b2):
    """The series and the closed form meet at t log(1 / b2) = 0.5; the published 1.0, 4.996, 5.9942 are of b2 = 0.999."""
    t = np.array([1, 2, 5, 6, 7, 20, 50, 51, 400, 500, 501, 3000, 100_000])
    np.testing.assert_allclose(rectified_length(t, b2), exact_length(t.astype(np.float64), b2), rtol=1e-4)
    if b2 == 0.999:
        np.testing.assert_allclose(rectified_length(np.array([1, 5, 6])), [1.0, 4.996, 5.9942], atol=1e-4)


def test_the_released_steps_of_a_constant_gradient():
    """Momentum alone for five steps, then the rectified step."""
    rule = optax.chain(*RULES["radam"](0.9, optax.identity()).direction)
    state, steps = rule.init(jnp.float32(0.0)), []
    for _ in range(7):
        update, state = rule.update(jnp.float32(1.0), state)
        steps.append(float(update))
    np.testing.assert_allclose(steps, [1, 1, 1, 1, 1, 0.025821, 0.032739], atol=1e-6)
    # m and √v are 1 - 0.9^6 and √(1 - 0.999^6) there, and the factor before them is 0.004263.
    np.testing.assert_allclose(steps[5] / (1 - 0.9**6) * np.sqrt(1 - 0.999**6), 0.004263, atol=1e-6)


def test_it_is_adam_in_the_long_run():
    ours, theirs = scale_by_rectified_adam(b2=0.9), optax.scale_by_adam(b2=0.9)
    gradient = jnp.array([0.3, -2.0])
    states = [ours.init(gradient), theirs.init(gradient)]
    for t in range(1, 301):
        (first, states[0]), (second, states[1]) = (
            rule.update(gradient * (1 + t % 3), state)
            for rule, state in zip((ours, theirs), states, strict=True)
        )
    np.testing.assert_allclose(first, second, rtol=1e-4)


def test_refusals_name_the_argument():
    for name, value in (("b1", 1.0), ("b2", 0.0), ("eps", -1.0)):
        with pytest.raises(UserError, match=f"{name}: needs"):
            scale_by_rectified_adam(**{name: value})
