import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.training import Optimizer, decay_mask

PARAMS = {
    "conv": {"kernel": jnp.ones(2), "bias": jnp.ones(1)},
    "norm": {"scale": jnp.ones(1)},
    "prelu": {"slope": jnp.ones(1)},
}


def test_decay_spares_biases_and_scales():
    mask = decay_mask(PARAMS)
    assert mask == {
        "conv": {"kernel": True, "bias": False},
        "norm": {"scale": False},
        "prelu": {"slope": True},
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"schedule": "constant"}, {0: 0.1, 99: 0.1}),
        ({"schedule": "step"}, {0: 0.1, 49: 0.1, 51: 0.01, 81: 0.001}),
        ({"schedule": "step", "decay_by": 0.5}, {0: 0.1, 49: 0.1, 51: 0.05, 81: 0.025}),
        ({"schedule": "linear"}, {0: 0.1, 50: 0.05, 100: 0.0}),
        ({"schedule": "cosine"}, {0: 0.1, 50: 0.05, 100: 0.0}),
        ({"schedule": "linear", "hold": 0.4}, {0: 0.1, 40: 0.1, 70: 0.05, 100: 0.0}),
        ({"schedule": "cosine", "warmup": 0.1, "hold": 0.4}, {5: 0.05, 10: 0.1, 40: 0.1, 70: 0.05, 100: 0.0}),
        ({"schedule": "step", "hold": 0.7}, {0: 0.1, 49: 0.1, 51: 0.01, 81: 0.001}),
        ({"schedule": "linear", "warmup": 0.1}, {0: 0.0, 5: 0.05, 10: 0.1, 55: 0.05, 100: 0.0}),
        ({"schedule": "step", "warmup": 0.1}, {5: 0.05, 11: 0.1, 49: 0.1, 52: 0.01, 82: 0.001}),
    ],
)
def test_schedules(options, expected):
    rates = Optimizer(learning_rate=0.1, **options).learning_rates(100)
    for step, rate in expected.items():
        np.testing.assert_allclose(rates(step), rate, atol=1e-6)


def test_sgd_with_momentum_and_decay_by_hand():
    rule = Optimizer(learning_rate=0.1, schedule="constant", momentum=0.5, weight_decay=0.1).build(10)
    state = rule.init(PARAMS)
    gradients = {
        "conv": {"kernel": jnp.full(2, 2.0), "bias": jnp.full(1, 2.0)},
        "norm": {"scale": jnp.zeros(1)},
        "prelu": {"slope": jnp.zeros(1)},
    }
    for expected_kernel, expected_bias in ((-0.21, -0.2), (-0.315, -0.3)):
        updates, state = rule.update(gradients, state, PARAMS)
        np.testing.assert_allclose(updates["conv"]["kernel"], expected_kernel, rtol=1e-5)
        np.testing.assert_allclose(updates["conv"]["bias"], expected_bias, rtol=1e-5)
        np.testing.assert_array_equal(updates["norm"]["scale"], 0.0)


def test_adamw_decays_apart_from_the_gradient():
    rule = Optimizer(name="adamw", learning_rate=0.1, schedule="constant", weight_decay=0.1).build(10)
    gradients = {
        "conv": {"kernel": jnp.full(2, 3.0), "bias": jnp.full(1, 3.0)},
        "norm": {"scale": jnp.ones(1)},
        "prelu": {"slope": jnp.ones(1)},
    }
    updates, _ = rule.update(gradients, rule.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["conv"]["kernel"], -0.11, rtol=1e-4)
    np.testing.assert_allclose(updates["conv"]["bias"], -0.1, rtol=1e-4)


def test_clipping_bounds_the_norm():
    rule = Optimizer(
        learning_rate=1.0, schedule="constant", weight_decay=0.0, momentum=0.0, clip_norm=1.0
    ).build(10)
    updates, _ = rule.update(
        {"w": jnp.array([30.0, 40.0])}, rule.init({"w": jnp.zeros(2)}), {"w": jnp.zeros(2)}
    )
    np.testing.assert_allclose(updates["w"], [-0.6, -0.8], rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"warmup": 1.0}, {"momentum": 1.0}, {"weight_decay": -1.0},
        {"clip_norm": 0.0}, {"decay_at": (0.8, 0.5)}, {"decay_at": (0.5, 1.0)}, {"decay_by": 1.0},
    ],
)  # fmt: skip
def test_refusals_name_the_field(options):
    with pytest.raises(UserError, match=f"optimizer.{next(iter(options))}"):
        Optimizer(**options).build(10)


def test_the_state_of_a_default_is_what_it_was():
    """Checkpoints depend on it: the chain of SGD is decay, momentum, rate."""
    state = Optimizer().build(10).init(PARAMS)
    assert [type(part).__name__ for part in state] == ["MaskedState", "TraceState", "ScaleByScheduleState"]


class Net(nn.Module):
    def depth_order(self):
        return ("conv",), ("norm",)


def test_rates_and_layer_decay_multiply_the_learning_rate():
    rule = Optimizer(
        name="sgd",
        learning_rate=0.1,
        schedule="constant",
        momentum=0.0,
        weight_decay=0.0,
        rates=("prelu=10",),
        layer_decay=0.5,
    ).build(10, network=("net", Net()))
    params = {"net": PARAMS}
    updates, _ = rule.update(params, rule.init(params), params)
    found = {name: jnp.unique(jnp.concatenate(list(part.values()))) for name, part in updates["net"].items()}
    for name, rate in {"conv": 0.025, "norm": 0.05, "prelu": 1.0}.items():
        np.testing.assert_allclose(found[name], [-rate], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "network", "words"),
    [
        ({"layer_decay": 0.5}, None, "layer_decay: needs a network, which this optimizer does not train"),
        (
            {"layer_decay": 0.5},
            ("net", nn.Dense(2)),
            "layer_decay: needs a network that declares an order, Dense",
        ),
        ({"layer_decay": 1.5}, None, "layer_decay: needs a number above 0 and up to 1, got 1.5"),
        ({"frozen_statistics": True, "frozen": ("conv",)}, None, "frozen_statistics: needs frozen parts"),
        ({"frozen_statistics": True}, ("net", Net()), "frozen_statistics: needs frozen parts of a network"),
        ({"rates": ("conv",)}, None, "optimizer.rates: needs NAME=FACTOR, got 'conv'"),
        ({"rates": ("conv=0",)}, None, "optimizer.rates of conv: needs a finite number above 0, got 0"),
    ],
)
def test_refusals_of_groups(options, network, words):
    with pytest.raises(UserError, match=words) as caught:
        Optimizer(**options).build(10, network=network)
    assert "\n" not in str(caught.value)


def test_nesterovs_momentum_and_a_warm_up_from_a_third():
    rule = Optimizer(
        name="nesterov",
        learning_rate=0.1,
        schedule="constant",
        weight_decay=0.0,
        warmup=0.5,
        warmup_from=1 / 3,
    )
    np.testing.assert_allclose(
        [rule.learning_rates(8)(step) for step in (0, 2, 4, 7)], [0.1 / 3, 0.2 / 3, 0.1, 0.1]
    )
    constant = Optimizer(name="nesterov", learning_rate=0.1, schedule="constant", weight_decay=0.0)
    optimizer = constant.build(8)
    params = {"w": jnp.zeros(())}
    state, moved = optimizer.init(params), []
    for _ in range(2):
        updates, state = optimizer.update({"w": jnp.ones(())}, state, params)
        moved.append(float(updates["w"]))
    # v = 0.9 v + g, and the step is g + 0.9 v: 1.9, then 2.71.
    np.testing.assert_allclose(moved, [-0.19, -0.271], rtol=1e-6)
