import types

import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import metrics, training
from jaxface.data import ArraySource, Digits, Split, WithFields, WithSemantics, load
from jaxface.errors import UserError

STATE = types.SimpleNamespace(level=jnp.float32(0.5))


def presented(count, seed, **fields):
    """Gray images whose level is the margin, with a semantic label that the level says, too."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    levels = np.clip(128 + 40 * (labels == 0) + 30 * rng.normal(size=count), 0, 255).astype(np.uint8)
    source = ArraySource(
        np.broadcast_to(levels[:, None, None, None], (count, 4, 4, 1)).copy(), labels, ["live", "a", "b"]
    )
    truth = {
        "bright": (levels > 150).astype(int),
        "marks": np.stack([levels > 100, levels > 200], 1).astype(int),
    }
    given = WithSemantics(source, {"bright": ("no", "yes"), "marks": ("one", "two")}, truth)
    return WithFields(given, **fields) if fields else given


def answer(level, images):
    mean = jnp.mean(images.astype(jnp.float32), (1, 2, 3))
    margin = (mean - 150) / 20
    semantics = {
        "bright": jnp.stack([150.5 - mean, mean - 150.5], 1),
        "marks": jnp.stack([mean - 100.5, mean - 180.5], 1),
    }
    return {
        "margins": {"raw": margin, "halved": level * margin},
        "semantics": semantics,
        "variance": jnp.abs(mean - 128),
    }


@pytest.fixture(scope="module")
def split():
    severity = (np.arange(300) % 3 == 0).astype(np.float32)
    test = presented(300, 1)
    seen = WithFields(test, severity=severity)
    seen.true_semantics = test.true_semantics
    return Split(presented(30, 0), seen, "levels", "spoofing", presented(150, 2))


@pytest.fixture(scope="module")
def evaluation(split):
    return training.LivenessConfidence(answer, lambda state: state.level, split)


def test_the_report_is_what_the_metrics_say(evaluation, split, tmp_path):
    report = evaluation(STATE)
    levels, labels = (
        (np.array([part[i]["image"][0, 0, 0] for i in range(len(part))], float) for part in split[1:2]),
        split.held_out.labels,
    )
    (margin,) = ((level - 150) / 20 for level in levels)
    development = np.array([split.development[i]["image"][0, 0, 0] for i in range(150)], float)
    known = split.development.labels
    threshold = metrics.equal_error_threshold((development - 150) / 20, known)
    np.testing.assert_allclose(report["eer@raw"], threshold.eer)
    expected = metrics.spoof_report(margin, labels, threshold.threshold, fprs=(0.01,))
    for name in ("acer", "acer_max", "bpcer", "tpr_at_1e-2"):
        np.testing.assert_allclose(report[f"{name}@raw"], expected[name], atol=1e-6)
        np.testing.assert_allclose(report[f"{name}@halved"], expected[name], atol=1e-6)  # ranks are the same
    live = labels == 0
    np.testing.assert_allclose(report["nll@halved"], metrics.binary_nll(margin / 2, live), rtol=1e-5)
    np.testing.assert_allclose(report["accuracy@raw"], ((margin > 0) == live).mean())
    spoofed = metrics.celeba_spoof_tpr(-margin, ~live, 0.01)
    np.testing.assert_allclose(report["spoof_tpr_at_1e-2@raw"], spoofed)
    assert "tpr_at_1e-3@raw" not in report  # too few attacks to say
    assert report["semantic/bright"] == 1 and 0.5 < report["semantic/marks"] < 1
    np.testing.assert_allclose(report["semantic/accuracy"], (1 + report["semantic/marks"]) / 2)
    variance = np.abs(margin * 20 + 150 - 128)
    bad = np.arange(300) % 3 == 0
    np.testing.assert_allclose(report["variance/bad"], variance[bad].mean(), rtol=1e-5)
    np.testing.assert_allclose(report["variance/auc"], metrics.auc(variance[bad], variance[~bad]))
    drawn = {name: draw(tmp_path / f"{name}.png") for name, draw in evaluation.figures(STATE).items()}
    assert set(drawn) == {"reliability", "roc", "scores"} and all(path.exists() for path in drawn.values())


def test_frames_of_a_video_are_one_test(split):
    test = presented(60, 5)
    order = np.argsort(test.labels, kind="stable")
    videos = np.empty(60, int)
    videos[order] = np.arange(60) // 2
    videos += 100 * test.labels  # none of two instruments
    test.videos = videos
    report = training.LivenessConfidence(answer, lambda s: s.level, split._replace(held_out=test))(STATE)
    levels = np.array([test[i]["image"][0, 0, 0] for i in range(60)], float)
    frames = 1 / (1 + np.exp(-(levels - 150) / 20))
    found = metrics.video_scores(frames, test.labels, videos)
    expected = -np.log(np.where(found.instruments == 0, found.scores, 1 - found.scores)).mean()
    np.testing.assert_allclose(report["nll@raw"], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("part", "kind", "purpose"),
    [("held_out", 0, "attack to test"), ("held_out", 1, "live face to test"), ("train", 1, "live face to train on"),
     ("development", 0, "attack to take a threshold on")],
)  # fmt: skip
def test_data_of_one_kind(split, part, kind, purpose):
    source = ArraySource(np.zeros((9, 4, 4, 1), np.uint8), np.full(9, kind), ["live", "attack"])
    for evaluation in (
        lambda data: training.LivenessConfidence(answer, lambda s: s.level, data),
        lambda data: training.PresentationDetection(answer, data, ("rgb",)),
    ):
        with pytest.raises(
            UserError, match=f"data: needs at least one {purpose}, got none in 9 presentations"
        ):
            evaluation(split._replace(**{part: source}))


def test_other_data():
    with pytest.raises(UserError, match="data: needs live faces and attacks with a development set"):
        training.check_spoofing(load(Digits(), image_size=8))
