import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxface.errors import UserError
from jaxface.optimizers import amsgrad, scale_by_uncorrected_adam, uncorrected_adam


@pytest.mark.parametrize(("step", "ratio"), [(10, 10.02 * 0.6513), (100, 3.24 * 1.0)])
def test_steps_are_larger_than_those_of_the_corrected_form(step, ratio):
    """By sqrt(1 / (1 - b2^t)) (1 - b1^t)."""
    ours, theirs = scale_by_uncorrected_adam(), optax.scale_by_adam()
    gradient = jnp.array([0.3, -2.0])
    states = [ours.init(gradient), theirs.init(gradient)]
    for _ in range(step):
        (first, states[0]), (second, states[1]) = (
            rule.update(gradient, state) for rule, state in zip((ours, theirs), states, strict=True)
        )
    exact = np.sqrt(1 / (1 - 0.999**step)) * (1 - 0.9**step)
    np.testing.assert_allclose(first / second, exact, rtol=1e-4)
    np.testing.assert_allclose(exact, ratio, rtol=2e-3)


def test_amsgrad_never_forgets_and_adam_does():
    forgetful, faithful = (make(1.0, b1=0.0, b2=0.5) for make in (uncorrected_adam, amsgrad))
    for rule, expected in ((forgetful, 1 / np.sqrt(25.5)), (faithful, 1 / np.sqrt(50.0))):
        state = rule.init(jnp.float32(0.0))
        _, state = rule.update(jnp.float32(10.0), state)
        update, _ = rule.update(jnp.float32(1.0), state)
        np.testing.assert_allclose(-update, expected, rtol=1e-6)


def test_refusals_name_the_argument():
    for name, value in (("b1", 1.0), ("b2", -0.1), ("eps", -1.0)):
        with pytest.raises(UserError, match=f"^{name}: needs"):
            scale_by_uncorrected_adam(**{name: value})
