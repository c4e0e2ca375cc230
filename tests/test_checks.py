import dataclasses
import math
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import configs, methods
from jaxface import checks
from jaxface.data.specs.base import KINDS
from jaxface.errors import UserError


@pytest.mark.parametrize(
    ("allowed", "words", "inside", "outside"),
    [
        (checks.Positive, "a finite number above 0", (1e-9, 7), (0, -1, math.nan, math.inf)),
        (checks.NonNegative, "a finite number from 0", (0, 7), (-1e-9, math.nan, math.inf)),
        (checks.Fraction, "a number from 0 to 1", (0, 0.5, 1), (-0.1, 1.1, math.nan)),
        (checks.ProperFraction, "a number from 0 and below 1", (0, 0.9), (1, -0.1)),
        (checks.OpenFraction, "a number above 0 and below 1", (0.5,), (0, 1)),
        (checks.Range(0, 1, above=True), "a number above 0 and up to 1", (0.1, 1), (0, 1.1)),
        (checks.Range(high=1), "a finite number up to 1", (-9, 1), (1.1, -math.inf)),
        (checks.AtLeast(2), "an integer from 2", (2, 10**9), (1, math.inf)),
        (checks.Integers(1, 3), "an integer from 1 to 3", (1, 3), (0, 4)),
    ],
    ids=str,
)
def test_ranges_say_what_they_hold(allowed, words, inside, outside):
    for value in inside:
        checks.check_number("x", value, allowed)
    for value in outside:
        with pytest.raises(UserError) as caught:
            checks.check_number("x", value, allowed)
        assert str(caught.value) == f"x: needs {words}, got {value:g}"


def test_a_traced_number_passes():
    jax.jit(lambda x: checks.check_number("x", x, checks.Positive) or x)(-1.0)


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: Annotated[float, checks.Positive] = 0.1
    times: Annotated[tuple[float, ...], checks.OpenFraction, checks.Increasing()] = (0.2, 0.5)
    span: Annotated[tuple[float, float], checks.NonNegative, checks.Ordered()] = (1.0, 1.0)
    free: float = math.nan


@dataclasses.dataclass(frozen=True)
class Outer:
    steps: Annotated[int, checks.AtLeast(1)] = 1
    decay: Annotated[float | None, checks.ProperFraction] = None
    width: Annotated[int, checks.AtLeast(1)] | None = None
    inner: Inner = Inner()
    several: tuple[Inner, ...] = (Inner(), Inner())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps: needs an integer from 1, got 0"),
        ({"decay": 1.0}, "decay: needs a number from 0 and below 1, got 1"),
        ({"width": 0}, "width: needs an integer from 1, got 0"),
        ({"inner": Inner(rate=0.0)}, "inner.rate: needs a finite number above 0, got 0"),
        ({"inner": Inner(times=(0.2, 1.0))}, "inner.times: needs a number above 0 and below 1, got 1"),
        ({"inner": Inner(times=(0.5, 0.2))}, "inner.times: needs increasing values, got 0.5, 0.2"),
        ({"inner": Inner(times=(0.5, 0.5))}, "inner.times: needs increasing values, got 0.5, 0.5"),
        ({"inner": Inner(span=(2.0, 1.0))}, "inner.span: needs least <= greatest, got 2, 1"),
        (
            {"several": (Inner(), Inner(rate=math.nan))},
            "several[1].rate: needs a finite number above 0, got nan",
        ),
    ],
)
def test_fields_are_held_to_what_they_declare(changes, words):
    checks.check_fields(Outer())
    with pytest.raises(UserError) as caught:
        checks.check_fields(dataclasses.replace(Outer(), **changes))
    assert str(caught.value) == words


@pytest.mark.parametrize("method", methods.descriptions())
def test_every_configuration_is_in_its_ranges(method):
    config_class = configs.method_module(method).Config
    for config in (
        config_class(),
        *(getattr(config_class, name)() for name in configs.presets(config_class)),
    ):
        checks.check_fields(config)
        assert configs.from_dict(configs.to_dict(method, config, configs.Run()))[1] == config
    with pytest.raises(UserError, match=r"^optimizer\.warmup: needs a number from 0 and below 1, got 1$"):
        configs.build(method, configs.parse(method, ["--optimizer.warmup", "1"])[0])


def test_every_kind_of_data_declares_its_numbers():
    """A whole number or a fraction of people has a range, whoever wrote the kind."""
    for name in KINDS.names():
        declared = checks._declared(KINDS[name])
        for field, rules in declared.items():
            if field.startswith(("held_out", "per_identity")):
                assert rules, f"{name}.{field}"


def test_unit_rows():
    rows = np.float32([[0.6, 0.8], [0, 0]])
    checks.check_unit_rows("x", rows, zeros=True)
    checks.check_unit_rows("x", rows[:1])
    np.testing.assert_array_equal(checks.unit_rows("x", rows), rows)
    with pytest.raises(UserError, match=r"^x: needs rows of length 1, got 0$"):
        checks.check_unit_rows("x", rows)
    with pytest.raises(UserError, match=r"^x: needs rows of length 1 or 0, got 2$"):
        checks.unit_rows("x", np.float32([[2, 0]]))
    for check in (checks.check_unit_rows, checks.check_finite):
        with pytest.raises(UserError, match=r"^x: needs finite values, 1 of 2 are NaN or infinite$"):
            check("x", np.float32([[np.nan, 0]]))
    rounded = jnp.asarray([[0.6, 0.8]], jnp.bfloat16) * 1.002
    checks.check_unit_rows("x", rounded)
    with pytest.raises(UserError, match="length 1"):
        checks.check_unit_rows("x", rounded.astype(jnp.float32) * 1.002)
    jax.jit(lambda x: checks.check_unit_rows("x", x) or x)(jnp.zeros((1, 2)))


def test_labels():
    checks.int32_labels("labels", jnp.array([-1, 2]), 3, low=-1)
    checks.int32_labels("labels", jnp.array([7]), None)
    with pytest.raises(ValueError, match=r"^labels: needs values in \[0, 3\), got -1..2$"):
        checks.int32_labels("labels", jnp.array([-1, 2]), 3)
    with pytest.raises(ValueError, match=r"^labels: needs an integer dtype, got float32$"):
        checks.int32_labels("labels", jnp.array([1.0]), 3)
    with pytest.raises(AssertionError, match="labels must be"):
        checks.int32_labels("labels", jnp.array([[1]]), 3)


def test_integers_of_no_length_are_none():
    with pytest.raises(ValueError, match=r"labels: needs integers of shape \(0,\)"):
        checks.integer_array("labels", [1, 2], 0)
