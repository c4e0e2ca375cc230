"""A regression of locations whose teacher has features that matter at few of them, and larger ones that do not at the others.

Where features are to be imitated is all that this problem asks: a student with half the features cannot follow everywhere.

Methods: rm_pfi
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import ndtri

from jaxface import losses, metrics, training
from jaxface.checks import AtLeast, OpenFraction, Positive
from jaxface.errors import UserError
from jaxface.layers import FeatureAdapter

INPUTS, FEATURES, HIDDEN = 16, 12, 6


class Level(NamedTuple):
    """What a network says of locations, as one level of a detector: features [1, N, 1, Q] and logits [1, N, 1, 1]."""

    features: jax.Array
    logits: jax.Array


Imitate = Callable[[Level, Level, losses.rm_pfi.Adapter], tuple[jax.Array, dict[str, jax.Array]]]
"""(student, teacher, adapter) -> (scalar, its parts)."""


@dataclasses.dataclass(frozen=True)
class LocationSpec:
    """Locations that are foreground or not, and are positive where a teacher's logit is; labels of a part of them."""

    count: Annotated[int, AtLeast(2)] = 2000
    """Locations that the student imitates the teacher at."""
    labelled: Annotated[int, AtLeast(1)] = 240
    """Locations, of these, whose label is known."""
    held_out: Annotated[int, AtLeast(1)] = 4000
    """Other locations, to test."""
    foreground: Annotated[float, OpenFraction] = 0.1
    """Share of foreground."""
    steps: Annotated[int, AtLeast(0)] = 1500
    """Steps, each over all locations."""
    learning_rate: Annotated[float, Positive] = 0.01
    """Of Adam."""


class Problem(NamedTuple):
    """Locations with what the teacher says of them.

    Attributes:
      inputs: [N, 16]. labels: [N] 0 or 1. teacher: features [1, N, 1, 12] and logits [1, N, 1, 1].
    """

    inputs: jax.Array
    labels: jax.Array
    teacher: Level


def draw_problem(rng: jax.Array, spec: LocationSpec, count: int, *, part: int = 0) -> Problem:
    """Locations x ~ N(0, I) with a teacher of 12 features.

        foreground: w·x above the quantile of the share, |w| = 1      f = tanh(A x), logit 2 v·f
        background: all others                                        f = 2 tanh(B x), logit -4

    with entries of A and B ~ N(0, 1/16) and v ~ N(0, I). A location is positive where its logit is: half of the foreground.

    Args:
      rng: of the teacher, and folded with `part` of the locations.
      spec: the share of foreground.
      count: N.
    """
    keys = jax.random.split(rng, 4)
    inside, outside = (jax.random.normal(key, (INPUTS, FEATURES)) / INPUTS**0.5 for key in keys[:2])
    normal, head = jax.random.normal(keys[2], (INPUTS,)), jax.random.normal(keys[3], (FEATURES,))
    inputs = jax.random.normal(jax.random.fold_in(rng, 1 + part), (count, INPUTS))
    side = inputs @ normal / jnp.linalg.norm(normal)
    foreground = (side > ndtri(1 - spec.foreground))[:, None]
    features = jnp.where(foreground, jnp.tanh(inputs @ inside), 2 * jnp.tanh(inputs @ outside))
    logits = jnp.where(foreground, 2 * (features @ head)[:, None], -4.0)
    level = Level(features[None, :, None], logits[None, :, None])
    return Problem(inputs, (logits[:, 0] > 0).astype(jnp.int32), level)


def student_level(params: dict, inputs: jax.Array) -> Level:
    """Six hyperbolic tangents and a linear head over them."""
    hidden = jnp.tanh(inputs @ params["hidden"] + params["bias"])
    logits = hidden @ params["head"] + params["offset"]
    return Level(hidden[None, :, None], logits[None, :, None])


def location_stage(spec: LocationSpec, imitate: Imitate) -> training.Stage:
    """Trains a student on the labels of some locations and the teacher's answers at all, in one compiled function.

        L = mean of the labelled BCE(logit, label) + imitate(student, teacher, φ)

    Reported is the average precision of the positives on other locations.

    Args:
      spec: the problem.
      imitate: what is asked of the student besides.

    Raises:
      UserError: more labels than locations.
    """
    if spec.labelled > spec.count:
        raise UserError(f"locations.labelled: needs at most the {spec.count} locations, got {spec.labelled}")
    adapter, optimizer = FeatureAdapter(FEATURES), optax.adam(spec.learning_rate)

    def init(rng, previous):
        del previous
        data, draw = jax.random.split(rng)
        train, held_out = (
            draw_problem(data, spec, spec.count),
            draw_problem(data, spec, spec.held_out, part=1),
        )
        keys = jax.random.split(draw, 3)
        params = {
            "hidden": jax.random.normal(keys[0], (INPUTS, HIDDEN)) / INPUTS**0.5,
            "bias": jnp.zeros(HIDDEN),
            "head": jax.random.normal(keys[1], (HIDDEN, 1)) / HIDDEN**0.5,
            "offset": jnp.zeros(1),
        }
        params["adapter"] = adapter.init(keys[2], jnp.zeros((1, HIDDEN)))["params"]

        def loss_fn(params):
            student = student_level(params, train.inputs)
            known = (
                student.logits[0, : spec.labelled, 0, 0],
                train.labels[: spec.labelled].astype(jnp.float32),
            )
            taught, parts = imitate(
                student, train.teacher, lambda level: adapter.apply({"params": params["adapter"]}, level)
            )
            return jnp.mean(optax.sigmoid_binary_cross_entropy(*known)) + taught, parts

        def step(carry, _):
            params, state = carry
            (loss, parts), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), {"loss": loss, **parts}

        (params, _), trace = jax.lax.scan(step, (params, optimizer.init(params)), length=spec.steps)
        scores = student_level(params, held_out.inputs).logits[0, :, 0, 0]
        last = jax.tree.map(lambda x: x[-1], trace) if spec.steps else {}
        return {"params": params, "scores": scores, "labels": held_out.labels, "last": last}

    def evaluate(state):
        precision = metrics.average_precision(np.asarray(state["scores"]), np.asarray(state["labels"]))
        return {"locations/average_precision": precision} | {
            f"locations/{name}": float(value) for name, value in state["last"].items()
        }

    return training.Stage("locations", init=init, evaluate=evaluate)
