"""Template pooling: per medium first, weights kept, bad templates named."""

import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.metrics import aggregate_templates, template_pair_similarities

F = np.array([[3, 0], [0, 1], [0, 3], [2, 2]], np.float32)
MEDIA = np.array([1, 2, 2, 3])
WEIGHTS = np.array([0.9, 0.5, 1.0, 0.8])


def test_template_by_hand():
    result = aggregate_templates(F, np.zeros(4, int), MEDIA, WEIGHTS)
    np.testing.assert_allclose(result.embeddings, [[0.788858, 0.614575]], atol=1e-6)
    np.testing.assert_array_equal(result.ids, [0])


def test_agrees_with_a_loop_on_interleaved_templates():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 5)).astype(np.float32)
    template, media = (
        rng.choice([11, 5, 900], 60),
        rng.integers(-2, 4, 60),
    )  # media ids shared between templates
    weights = rng.random(60)
    result = aggregate_templates(features, template, media, weights)
    np.testing.assert_array_equal(result.ids, [5, 11, 900])
    for row, t in zip(result.embeddings, result.ids, strict=True):
        total = sum(
            (features * weights[:, None])[(template == t) & (media == m)].mean(axis=0)
            for m in np.unique(media[template == t])
        )
        np.testing.assert_allclose(row, total / np.linalg.norm(total), atol=1e-5)


def test_a_long_video_counts_as_one_photograph():
    frames = np.tile([[0.0, 1.0]], (50, 1))
    result = aggregate_templates(np.r_[[[1.0, 0.0]], frames], [7] * 51, [0] + [1] * 50)
    np.testing.assert_allclose(result.embeddings, [[0.5**0.5, 0.5**0.5]], atol=1e-6)


def test_length_is_a_quality_weight():
    result = aggregate_templates([[3.0, 0.0], [0.0, 1.0]], [0, 0], [0, 1])
    np.testing.assert_allclose(result.embeddings, [[3 / 10**0.5, 1 / 10**0.5]], atol=1e-6)


@pytest.mark.parametrize(
    ("features", "template", "media", "weights", "kind", "message"),
    [
        (F, [4, 4, 9, 9], MEDIA, [1, 1, 0, 0], UserError, "weights: those of template 9 sum to zero"),
        ([[1.0, 0.0], [-1.0, 0.0]], [3, 3], [0, 1], None, UserError, "features: those of template 3"),
        (F[:0], [], [], None, UserError, "features: needs at least one"),
        (F * np.nan, [0] * 4, MEDIA, None, UserError, "features: needs finite"),
        (F, [0] * 4, MEDIA, [1, 1, 1, -1], UserError, "weights: need values >= 0"),
        (F, [0] * 3, MEDIA, None, ValueError, "template_ids"),
        (F, [0] * 4, MEDIA[:2], None, ValueError, "media_ids"),
        (F, [0.5] * 4, MEDIA, None, ValueError, "template_ids"),
        (F, [0] * 4, MEDIA, WEIGHTS[:2], ValueError, "weights"),
    ],
)
def test_bad_input_is_refused(features, template, media, weights, kind, message):
    with pytest.raises(kind, match=message):
        aggregate_templates(features, template, media, weights)


def test_pairs_of_templates():
    templates = aggregate_templates([[1.0, 0], [0, 1], [1, 1]], [10, 20, 30], [0, 0, 0])
    scores = template_pair_similarities(templates, [10, 10, 30], [20, 30, 30])
    np.testing.assert_allclose(scores, [0, 0.5**0.5, 1], atol=1e-6)
    with pytest.raises(UserError, match="second: 1 ids have no template, the first is 40"):
        template_pair_similarities(templates, [10, 10], [20, 40])
    with pytest.raises(ValueError, match="one shape"):
        template_pair_similarities(templates, [10, 10], [20])
