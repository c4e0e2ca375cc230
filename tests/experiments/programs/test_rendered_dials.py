import dataclasses

import numpy as np
import pytest

from experiments.programs import rendered_dials
from jaxface import data


def test_each_arm_leaves_one_dial_out():
    arms = rendered_dials.arms(2)
    full = data.Variation.photographed()
    assert arms["all, seed 0"] == (full, 0) and arms["all, seed 1"] == (full, 1)
    for dial in rendered_dials.DIALS:
        variation, seed = arms[f"without {dial}"]
        differs = [
            field.name
            for field in dataclasses.fields(full)
            if getattr(variation, field.name) != getattr(full, field.name)
        ]
        assert differs == [dial] and seed == 0
    assert len(arms) == 2 + 1 + len(rendered_dials.DIALS)


def test_the_dials_are_those_that_the_guide_lists():
    at_rest = {
        field.name
        for field in dataclasses.fields(data.Variation)
        if getattr(data.Variation(), field.name) in (0.0, (1.0, 1.0))
        and field.name not in ("dark", "spoof", "occlusion")
    }
    assert at_rest == set(rendered_dials.DIALS)


def test_centered_embeddings_have_lost_what_all_share():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(8), 4)
    people = rng.normal(size=(8, 16))[labels] + 0.6 * rng.normal(size=(32, 16))
    shared = people + 30 * rng.normal(size=16) * rng.uniform(0.2, 1.0, (32, 1))
    scores = rendered_dials.verified(shared, labels)
    assert scores["verification/auc, centered"] > scores["verification/auc"]


@pytest.mark.parametrize("flag", ["--steps", "--people", "--seeds"])
def test_refusals(flag, refusal, tmp_path):
    assert flag[2:] in refusal(rendered_dials.main, ["--faces", str(tmp_path), flag, "0"])
