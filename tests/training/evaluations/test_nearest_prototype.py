"""Classification by the nearest prototype, and several evaluations as one."""

import jax
import numpy as np
import pytest

from jaxface import models, training
from jaxface.data import ArraySource

LABELS = (np.arange(37) % 5).astype(np.int32)
COLORS = np.random.default_rng(1).integers(0, 256, (5, 1, 1, 3), np.uint8)
SOURCE = ArraySource(np.broadcast_to(COLORS[LABELS], (37, 8, 8, 3)).copy(), LABELS, list("abcde"))
MODEL = models.create("mlp", embedding=8, hidden=(16,))


def state(params):
    return training.create_state(jax.random.key(0), params)


def test_nearest_prototype_counts_the_classes_that_are_met():
    params = training.Recognizer(MODEL, 5, (8, 8, 3)).init(jax.random.key(0))[0]
    firsts = training.embed_source(MODEL, params["backbone"], {}, SOURCE, flip=False)[:5]
    evaluate = training.NearestPrototype(MODEL, SOURCE)
    assert evaluate(state({**params, "prototypes": firsts})) == {"classification/accuracy": 1.0}
    # Classes 0 and 1 exchange their prototypes: their records (8 each of 37) are missed.
    swapped = state({**params, "prototypes": 7.0 * firsts[[1, 0, 2, 3, 4]]})
    assert evaluate(swapped)["classification/accuracy"] == pytest.approx(21 / 37)


class Drawn:
    def __call__(self, state):
        return {"drawn": float(state)}

    def figures(self, state):
        return {"figure": lambda path: path / str(state)}


def test_evaluations_together_have_the_figures_of_those_that_draw(tmp_path):
    both = training.Evaluations(lambda state: {"plain": 2.0 * state}, Drawn())
    assert both(3) == {"plain": 6.0, "drawn": 3.0}
    figures = both.figures(3)
    assert list(figures) == ["figure"] and figures["figure"](tmp_path) == tmp_path / "3"
