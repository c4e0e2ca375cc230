import types

import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import data, training
from jaxface.errors import UserError
from jaxface.training import RgbdClasses, RgbdFeatures

KINDS, BASELINES = ("none", "rgb"), ("rgb", "depth", "sum")
rng = np.random.default_rng(0)
LABELS = np.repeat(np.arange(6), 4)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


CENTERS = unit(rng.normal(size=(6, 5))), unit(rng.normal(size=(6, 4)))
BOTH = np.concatenate(CENTERS, axis=1)


class Networks:
    """Features of the records themselves; a corrupted photograph is nobody's."""

    def describe_source(self, extra, source, kind="none", *, seed=0):
        labels = np.asarray(source.labels)
        noise = np.random.default_rng([seed, len(labels)])
        rgb = CENTERS[0][labels] + 0.2 * noise.normal(size=(len(labels), 5))
        rgb = noise.normal(size=rgb.shape) if kind == "rgb" else rgb
        depth = CENTERS[1][labels] + 0.5 * noise.normal(size=(len(labels), 4))
        return RgbdFeatures(
            unit(rgb), unit(depth), np.full(len(labels), 1.0 + (kind == "rgb")), np.ones(len(labels))
        )


def logits(params, features):
    """Trusts photographs by their length."""
    a = jnp.asarray(4.0 - 4.0 * (features.rgb_norm > 1.5))
    return jnp.stack([a, jnp.zeros_like(a)], axis=1)


def judge(protocol, name="acw", labels=LABELS, **options):
    source = data.ArraySource(np.zeros((len(labels), 2, 2, 1), np.uint8), labels, list("abcdef"))
    split = data.Split(source, source, "made", protocol)
    evaluation = training.RgbdIdentification(
        Networks(), split, logits, fusion=name, kinds=KINDS, baselines=BASELINES, **options
    )
    return evaluated(evaluation, name)


def evaluated(evaluation, name="acw"):
    params = {"confidence": {}} if name.startswith("acw") else {"projection": np.eye(9), "prototypes": BOTH}
    classes = RgbdClasses(*CENTERS, np.ones(2, np.float32), np.float32(0.25))
    return evaluation(types.SimpleNamespace(averaged_params=params, extra={"classes": classes}))


def test_rates_of_every_kind_and_fusion():
    report = judge("classification")
    for prefix in ("", "rgb/", "depth/", "sum/"):
        rates = [report[f"{prefix}rank1@{kind}"] for kind in KINDS]
        assert report[f"{prefix}rank1"] == pytest.approx(np.mean(rates))
    features = Networks().describe_source({}, types.SimpleNamespace(labels=LABELS), "rgb", seed=2)
    expected = ((features.rgb @ CENTERS[0].T).argmax(1) == LABELS).mean()
    assert report["rgb/rank1@rgb"] == pytest.approx(expected)
    assert report["rank1@none"] > 0.9 > 0.5 > report["rgb/rank1@rgb"]
    np.testing.assert_allclose(
        [report["confidence@none"], report["confidence@rgb"]], [1 / (1 + np.exp(-4.0)), 0.5], rtol=1e-5
    )
    assert "weight" not in report


def test_what_is_missing_is_as_if_it_had_never_been():
    report = judge("classification")
    assert report["rank1@no_rgb"] == report["depth/rank1@none"]
    assert report["rank1@no_depth"] == report["rgb/rank1@none"]


def test_people_are_enrolled_with_their_first_image():
    report = judge("verification")
    networks = Networks()
    probes, gallery = (
        types.SimpleNamespace(labels=x) for x in (np.delete(LABELS, np.arange(0, 24, 4)), np.arange(6))
    )
    seen, stored = networks.describe_source({}, probes, "none", seed=1), networks.describe_source({}, gallery)
    expected = ((seen.depth @ stored.depth.T).argmax(1) == probes.labels).mean()
    assert report["depth/rank1@none"] == pytest.approx(expected)
    with pytest.raises(
        UserError, match=r"^data: identification needs somebody to evaluate on with two images"
    ):
        judge("verification", labels=np.arange(6))


def test_blocks_of_probes_change_nothing():
    assert judge("verification", block=5) == pytest.approx(judge("verification"))


def test_a_fusion_without_confidence():
    report = judge("classification", "fixed")
    assert report["weight"] == 0.25
    assert not [key for key in report if "confidence" in key or "no_rgb" in key]
    alone = judge("classification", "sum")
    assert alone["rank1"] == alone["sum/rank1"]


@pytest.mark.parametrize("protocol", ["classification", "verification"])
def test_a_concatenation_that_changes_nothing_is_the_sum(protocol):
    report = judge(protocol, "concat")
    for kind in KINDS:
        assert report[f"rank1@{kind}"] == report[f"sum/rank1@{kind}"]


def test_a_probe_alone_weighs_as_a_gallery_that_trusts_both_alike():
    alone, both = judge("classification", "acw_probe"), judge("classification")
    assert alone == pytest.approx(both)
    assert judge("verification", "acw_probe")["rank1@rgb"] != judge("verification")["rank1@rgb"]


def judge_subsets(labels, subsets, names=("NU", "FE", "TM")):
    """Of records that say which part of a benchmark they are of."""
    source = data.ArraySource(np.zeros((len(labels), 2, 2, 1), np.uint8), labels, list("abcdef"))
    source.subsets, source.subset_names = np.asarray(subsets), names
    split = data.Split(source, source, "made", "verification")
    networks = Networks()
    evaluation = training.RgbdIdentification(
        networks, split, logits, fusion="acw", kinds=KINDS, baselines=BASELINES, block=5
    )
    return evaluated(evaluation)


def test_subsets_of_a_benchmark_take_the_place_of_corruption():
    subsets = np.tile([1, 0, 2, 0], 6)  # everybody's second image is the first neutral one
    report = judge_subsets(LABELS, subsets)
    rest = np.delete(np.arange(24), np.arange(1, 24, 4))
    networks = Networks()
    probes, gallery = (types.SimpleNamespace(labels=x) for x in (LABELS[rest], np.arange(6)))
    clean, stored = networks.describe_source({}, probes), networks.describe_source({}, gallery)
    for name in ("rgb", "depth"):
        answers = (getattr(clean, name) @ getattr(stored, name).T).argmax(1)
        by_hand = [(answers == LABELS[rest])[subsets[rest] == i].mean() for i in range(3)]
        np.testing.assert_allclose([report[f"{name}/rank1@{part}"] for part in ("NU", "FE", "TM")], by_hand)
        np.testing.assert_allclose(report[f"{name}/rank1"], np.mean(by_hand))
        missing = {"rgb": "no_depth", "depth": "no_rgb"}[name]
        np.testing.assert_allclose(report[f"rank1@{missing}"], (answers == LABELS[rest]).mean())
    assert report["rank1"] == pytest.approx(np.mean([report[f"rank1@{part}"] for part in ("NU", "FE", "TM")]))
    assert {key for key in report if key.startswith("confidence")} == {
        f"confidence@{part}" for part in ("NU", "FE", "TM")
    }
    assert not [key for key in report if "none" in key]  # nothing was corrupted, and nothing says so


@pytest.mark.parametrize(
    ("subsets", "words"),
    [
        (np.tile([1, 2, 2, 1], 6), "gallery needs an image of NU of everybody, a has none"),
        (np.repeat([0, 0, 0, 0, 2, 1], 4), "gallery needs an image of NU of everybody, e has none"),
        (np.tile([0, 1, 1, 1], 6), "needs a probe of each, there is none of NU"),
        (np.tile([0, 0, 1, 1], 6), "needs a probe of each, there is none of TM"),
    ],
)
def test_subsets_that_cannot_be_judged(subsets, words):
    with pytest.raises(UserError, match=f"^subsets: .*{words}"):
        judge_subsets(LABELS, subsets)
