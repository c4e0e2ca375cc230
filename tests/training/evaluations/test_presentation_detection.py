import types

import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import metrics, training
from jaxface.data import Split
from jaxface.errors import UserError
from jaxface.training.evaluations.presentation_detection import subsets

NAMES = ("rgb", "depth", "infrared")
STATE = types.SimpleNamespace(averaged_params={"backbone": {"gain": jnp.float32(2.0)}}, extra={})


class Presented:
    """Images of one gray level per sensor; live ones are brighter, each sensor with its own spread and offset."""

    class_names, image_shape = ("live", "print", "mask"), (4, 4, 3)

    def __init__(self, count, seed, offset=0):
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(0, 3, count).astype(np.int32)
        spread = np.array([60, 30, 20])
        levels = 120 + offset + 40 * (self.labels[:, None] == 0) + spread * rng.normal(size=(count, 3))
        self.levels = np.clip(levels, 0, 255).astype(np.uint8)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        rgb, depth, infrared = self.levels[index]
        shown = {
            "image": np.full((4, 4, 3), rgb),
            "depth": np.full((4, 4), depth),
            "infrared": np.full((4, 4), infrared),
        }
        return {**shown, "label": self.labels[index], "spoof": self.labels[index]}


def score(variables, images, there):
    """The gain times the mean level of the sensors that are there."""
    means = jnp.stack([images[name].reshape(len(images[name]), -1).mean(1) for name in images])
    return variables["params"]["gain"] * (means * there[:, None]).sum(0) / there.sum()


@pytest.fixture(scope="module")
def split():
    return Split(Presented(8, 0), Presented(300, 1), "levels", "spoofing", Presented(150, 2, offset=10))


@pytest.fixture(scope="module")
def evaluation(split):
    return training.PresentationDetection(score, split, NAMES)


def test_subsets():
    assert list(subsets(("rgb", "depth"))) == ["rgb", "depth", "rgb+depth"]
    every = subsets(NAMES)
    assert len(every) == 7 and list(every)[-1] == "rgb+depth+infrared"
    assert every["rgb+infrared"].tolist() == [True, False, True]


def test_thresholds_are_those_of_the_development_set_with_the_same_sensors(split, evaluation):
    report = evaluation(STATE)
    development, test = (
        evaluation.scores(source, STATE)[0] for source in (split.development, split.held_out)
    )
    for column, (name, there) in enumerate(subsets(NAMES).items()):
        expected = 2 * (split.held_out.levels / 127.5 - 1)[:, there].mean(1)
        np.testing.assert_allclose(test[:, column], expected, atol=1e-5)
        point = metrics.equal_error_threshold(development[:, column], split.development.labels)
        expected = metrics.spoof_report(test[:, column], split.held_out.labels, point.threshold)
        assert {key: report[f"{key}@{name}"] for key in expected} == expected
        assert report[f"hter@{name}"] == report[f"acer@{name}"] <= report[f"acer_max@{name}"]
        assert report[f"eer@{name}"] == point.eer
    single = np.mean([report[f"acer@{name}"] for name in NAMES])
    np.testing.assert_allclose(report["acer@single"], single)
    assert report["auc@rgb+depth+infrared"] > report["auc@rgb"] and 0.5 < report["development/auc"] < 1
    # 200 attacks or so resolve a hundredth, not a ten-thousandth.
    assert "tpr_at_1e-2@rgb" in report and "tpr_at_1e-4@rgb" not in report


def test_figures(evaluation, tmp_path):
    evaluation(STATE)
    for name, draw in evaluation.figures(STATE).items():
        assert draw(tmp_path / f"{name}.png").stat().st_size > 1000
    assert set(evaluation.figures(STATE)) == {"roc", "scores"}


def test_what_another_stands_in_for_is_left_out(split):
    damaged = Presented(300, 1)
    damaged.shown = lambda index: 7 if index in (3, 4) else index
    evaluation = training.PresentationDetection(score, split._replace(held_out=damaged), NAMES)
    scores, instruments = evaluation.scores(damaged, STATE)
    assert scores.shape == (298, 7) and len(instruments) == 298
    np.testing.assert_array_equal(instruments, np.delete(damaged.labels, (3, 4)))


@pytest.mark.parametrize(
    ("changes", "modalities", "words"),
    [
        ({"development": None}, NAMES, "data: needs live faces and attacks with a development set"),
        ({"protocol": "classification"}, NAMES, "data: needs live faces and attacks"),
        ({}, ("thermal",), "modalities: needs some of rgb, depth, infrared, got thermal"),
        ({}, (), "modalities: needs some of rgb, depth, infrared, got none"),
        ({}, ("rgb", "rgb"), "modalities: needs some of"),
        ({"held_out": Presented(0, 0)}, NAMES, "data: needs at least one record"),
    ],
)
def test_refusals(split, changes, modalities, words):
    with pytest.raises(UserError, match=words):
        training.PresentationDetection(score, split._replace(**changes), modalities)
