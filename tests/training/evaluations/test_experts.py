"""What is reported of several networks."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import data, metrics
from jaxface.errors import UserError
from jaxface.training import TrainState
from jaxface.training.evaluations.experts import ExpertAccuracy

LEVELS = np.array([10, 60, 110, 160, 210, 250], np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


class Table(nn.Module):
    """Scores [K, B, C] by the level of an image."""

    scores: tuple

    @nn.compact
    def __call__(self, image, *, train=False):
        self.param("unused", nn.initializers.zeros, ())
        index = jnp.searchsorted(jnp.asarray(LEVELS), jnp.round(127.5 * image[:, 0, 0, 0] + 127.5))
        return jnp.asarray(self.scores)[:, index]


def test_alone_and_together(tmp_path):
    scores = 3 * np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
    scores[0, np.arange(3), LABELS[:3]] += 9  # the first network knows one half, the second the other
    scores[1, np.arange(3, 6), LABELS[3:]] += 9
    images = np.tile(LEVELS[:, None, None, None], (1, 2, 2, 1))
    source = data.ArraySource(images, LABELS, ["a", "b", "c"])
    model = Table(tuple(map(tuple, (tuple(map(tuple, rows.tolist())) for rows in scores))))
    evaluation = ExpertAccuracy(model, source, [200, 50, 5], many_above=100, few_below=20)
    state = TrainState(0, None, {"experts": {"unused": jnp.zeros(())}}, {}, ())
    report = evaluation(state)
    alone, together = scores.argmax(2), scores.mean(0).argmax(1)
    accuracies = (alone == LABELS).mean(1)
    assert report["ensemble/accuracy"] == pytest.approx((together == LABELS).mean())
    assert report["single/accuracy"] == pytest.approx(accuracies.mean())
    assert report["single/best"] == pytest.approx(accuracies.max())
    for k, name in enumerate(("many", "medium", "few")):
        rows = k == LABELS
        assert report[f"ensemble/{name}"] == pytest.approx((together == LABELS)[rows].mean())
        assert report[f"single/{name}"] == pytest.approx((alone == LABELS)[:, rows].mean())
    assert report["experts/disagreement"] == pytest.approx((alone[0] != alone[1]).mean())
    log_probs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    assert report["experts/divergence"] == pytest.approx(
        metrics.mean_pairwise_divergence(log_probs.astype(np.float64)), rel=1e-4
    )
    (name, draw), *_ = evaluation.figures(state).items()
    assert name == "classes" and draw(tmp_path / "classes.png").stat().st_size > 1000


def test_nothing_to_evaluate_on():
    empty = data.ArraySource(np.zeros((0, 2, 2, 1), np.uint8), np.zeros(0, int), ["a"])
    with pytest.raises((UserError, ValueError)):
        ExpertAccuracy(Table(()), empty, [1], many_above=100, few_below=20)
