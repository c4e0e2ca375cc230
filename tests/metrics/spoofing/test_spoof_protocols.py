import numpy as np
import pytest

from jaxface import metrics
from jaxface.errors import UserError


def test_a_video_is_the_mean_of_its_frames():
    rng = np.random.default_rng(0)
    videos = rng.integers(0, 6, 50) * 7
    scores, instruments = rng.random(50).astype(np.float32), videos // 7 % 3
    found = metrics.video_scores(scores, instruments, videos)
    for score, instrument, video in zip(*found, strict=True):
        np.testing.assert_allclose(score, scores[videos == video].astype(np.float64).mean(), rtol=1e-12)
        assert instrument == video // 7 % 3
    with pytest.raises(UserError, match="one for all frames of a video, 4 has two"):
        metrics.video_scores([0.1, 0.2, 0.3], [0, 1, 0], [4, 4, 5])
    with pytest.raises(UserError, match="scores: needs finite"):
        metrics.video_scores([np.inf], [0], [1])


def test_folds():
    folds = [{"apcer": 0.1, "acer": 0.2}, {"apcer": 0.3, "acer": 0.3}, {"apcer": 0.2, "acer": 0.1}]
    found = metrics.leave_one_out(folds)
    np.testing.assert_allclose(found["apcer"], (0.2, 0.1), rtol=1e-12)
    np.testing.assert_allclose(found["acer"], (0.2, np.std([0.2, 0.3, 0.1], ddof=1)), rtol=1e-12)
    with pytest.raises(UserError, match="folds: needs at least two, got 1"):
        metrics.leave_one_out(folds[:1])
    with pytest.raises(UserError, match="folds: need the same rates"):
        metrics.leave_one_out([{"apcer": 0.1}, {"acer": 0.1}])
    with pytest.raises(UserError, match="acer: needs finite"):
        metrics.leave_one_out([{"acer": 0.1}, {"acer": np.nan}])


def test_the_opposite_convention_of_celeba_spoof():
    """Its threshold is the n-th largest live score, n = max(1, int(f L)), and what equals it is found, as released."""
    rng = np.random.default_rng(1)
    scores = np.round(rng.normal(size=700), 2)
    spoof = np.arange(700) >= 400
    scores[spoof] += 1
    live = np.sort(scores[~spoof])[::-1]
    for rate, place in ((0.01, 4), (0.005, 2), (0.001, 1)):
        expected = (scores[spoof] >= live[place - 1]).mean()
        assert metrics.celeba_spoof_tpr(scores, spoof, rate) == expected
    several = metrics.celeba_spoof_tpr(scores, spoof, [0.01, 0.001])
    assert several.shape == (2,) and several[1] == expected
    # The live point of 0.01 accepts the place itself no more: three of 400 lie above it, not four.
    assert (scores[~spoof] > live[3]).sum() <= 3
    for wrong, words in ((np.ones(700), "at least one live image"), (np.zeros(700), "at least one spoof")):
        with pytest.raises(UserError, match=words):
            metrics.celeba_spoof_tpr(scores, wrong, 0.01)
    with pytest.raises(UserError, match="fprs"):
        metrics.celeba_spoof_tpr(scores, spoof, 1.0)
