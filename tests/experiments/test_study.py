"""Arms of a study differ in the claim alone: they start from the same weights, whatever stages come before."""

import collections
import dataclasses

import jax
import numpy as np
import pytest

from experiments import configs, reproduce
from experiments.recipes.teachers import TeacherSpec
from jaxface import data, training
from jaxface.training.stages import Stages

PEOPLE = data.Procedural(
    identities=24, per_identity=4, held_out_identities=6, held_out_per_identity=4, groups=4
)
TEACHER = TeacherSpec(backbone="mlp_8", embedding=8, steps=4)
STUDENT = {"data": PEOPLE, "backbone": "mlp_4", "embedding": 8, "batch_size": 8, "teacher": TEACHER}
ANCHORS = {"recorded_at": (1, 2, 3, 4), "validation": 0.2}
SMALL = {
    ("coupleface", "vectors"): {**STUDENT, "pairs": "balanced"},
    ("cckd", "procedural"): STUDENT,
    ("rco", "classes"): {**STUDENT, **ANCHORS},
    ("rco", "people"): {**STUDENT, **ANCHORS},
    ("gabn", "digits"): {},
    ("lrfr", "digits"): {},
    ("sface", "digits"): {},
}


def starts(stages: Stages, seed: int) -> dict[str, training.TrainState]:
    """The state in which every stage begins, by its part in the run; no step is taken."""
    source, outcome, states = iter(stages), None, {}
    while True:
        try:
            stage = next(source) if outcome is None or not hasattr(source, "send") else source.send(outcome)
        except StopIteration:
            return states
        state = stage.init(stage.rng(jax.random.key(seed)), outcome and outcome.state)
        metrics = collections.defaultdict(lambda: 1.0)  # whatever a search asks for
        states[stage.key or stage.name], outcome = state, training.Outcome(stage.name, state, metrics)


@pytest.mark.parametrize(("method", "name"), SMALL)
def test_arms_start_from_the_same_weights(method, name):
    study = reproduce.method_studies(method)[name]
    first: dict[str, dict] = {}
    for overrides in study.arms.values():
        config = dataclasses.replace(study.base, **{**SMALL[method, name], **overrides}, seed=3, data_seed=3)
        states = starts(configs.build(method, config), config.seed)
        for part, state in states.items():
            alike = first.setdefault(part, state.params["backbone"])
            jax.tree.map(np.testing.assert_array_equal, state.params["backbone"], alike)
    assert {"student"} <= first.keys() or list(first) == ["recognition"]
