"""The regression that asks where features are to be imitated."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.recipes import locations
from jaxface.errors import UserError

SPEC = locations.LocationSpec(count=60, labelled=20, held_out=200, steps=30)


def test_locations_as_they_are_described():
    spec = dataclasses.replace(SPEC, foreground=0.2)
    problem = locations.draw_problem(jax.random.key(0), spec, 4000)
    features, logits = (np.asarray(x)[0, :, 0] for x in problem.teacher)
    background = logits[:, 0] == -4
    assert features.shape == (4000, 12) and abs(background.mean() - 0.8) < 0.03
    assert np.abs(features[~background]).max() < 1 < np.abs(features[background]).max() < 2
    assert 0.03 < problem.labels.mean() < 0.17
    np.testing.assert_array_equal(problem.labels, logits[:, 0] > 0)
    # The logits of the foreground are linear in its features, and those of other locations come from the same teacher.
    other = locations.draw_problem(jax.random.key(0), spec, 4000, part=1)
    assert not np.allclose(other.inputs, problem.inputs)
    head, *_ = np.linalg.lstsq(features[~background], logits[~background, 0], rcond=None)
    more = np.asarray(other.teacher.logits)[0, :, 0, 0]
    inside = more != -4
    fitted = np.asarray(other.teacher.features)[0, inside, 0] @ head
    np.testing.assert_allclose(fitted, more[inside], atol=1e-3)


def test_a_student_is_trained_by_labels_and_what_is_asked_besides():
    def nothing(student, teacher, adapter):
        return jnp.float32(0), {}

    def features(student, teacher, adapter):
        loss = jnp.mean(jnp.square(adapter(student.features) - teacher.features))
        return loss, {"distance": loss}

    alone, taught = (locations.location_stage(SPEC, imitate) for imitate in (nothing, features))
    states = [jax.jit(stage.init)(jax.random.key(1), None) for stage in (alone, taught)]
    reports = [stage.evaluate(state) for stage, state in zip((alone, taught), states, strict=True)]
    assert "locations/distance" not in reports[0] and 0 < reports[1]["locations/average_precision"] <= 1
    # Nothing else differs: without what is asked besides, the adapter stays where it starts, and is the same in both.
    kernel = [state["params"]["adapter"]["linear"]["kernel"] for state in states]
    untouched = jax.jit(locations.location_stage(dataclasses.replace(SPEC, steps=0), features).init)
    np.testing.assert_array_equal(
        untouched(jax.random.key(1), None)["params"]["adapter"]["linear"]["kernel"], kernel[0]
    )
    assert (kernel[1] != kernel[0]).any()
    np.testing.assert_array_equal(states[0]["labels"], states[1]["labels"])


def test_more_labels_than_locations_are_refused():
    with pytest.raises(UserError, match=r"locations\.labelled: needs at most the 60 locations, got 61"):
        locations.location_stage(dataclasses.replace(SPEC, labelled=61), lambda *_: (0.0, {}))
