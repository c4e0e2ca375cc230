import logging

import numpy as np

from jaxface import data, metrics, training
from jaxface.metrics import Discrepancy
from jaxface.training import SupportSet

PEOPLE, VIRTUAL, OTHERS = (
    data.crowded_embeddings(count, each, seed=0, first_identity=first, size=16)
    for count, each, first in ((30, 4, 1 << 20), (200, 1, 0), (90, 1, 500))
)
SOURCE = data.VectorSource(*PEOPLE)


WEIGHT = 0.8


def support(**changes):
    """By kind; None leaves one out."""
    rows, labels = PEOPLE.embeddings, PEOPLE.labels
    constant = Discrepancy(np.full(120, 0.3, np.float32), np.zeros(120), np.ones(120, np.int32))
    oracle = metrics.local_discrepancy(rows, rows, k=10, labels=labels, candidate_labels=labels)
    kinds = {
        "gallery": SupportSet(metrics.local_discrepancy(rows, OTHERS.embeddings, k=10)),
        "simulated": SupportSet(
            metrics.local_discrepancy(rows, VIRTUAL.embeddings, k=10), WEIGHT, {"passed": 0.5}
        ),
        "learned": SupportSet(constant),
        "oracle": SupportSet(oracle),
    }
    return {name: kind for name, kind in {**kinds, **changes}.items() if kind is not None}


def judge(kinds, source=SOURCE, **options):
    evaluation = training.AlignedVerification(
        source, lambda state: PEOPLE.embeddings, lambda state, rows: kinds, **options
    )
    return evaluation(None), evaluation


def test_scores_are_those_of_the_library():
    kinds = support()
    report, _ = judge(kinds, score="oracle")
    pairs = metrics.all_pairs(PEOPLE.labels)
    first, second = pairs.indices.T
    cosines = np.sum(PEOPLE.embeddings[first] * PEOPLE.embeddings[second], axis=1)
    scores = {"cosine": cosines, "learned": cosines}  # a constant estimate changes nothing
    for name, weight in (("gallery", 1.0), ("simulated", WEIGHT), ("oracle", 1.0)):
        mean = np.asarray(kinds[name].discrepancy.mean)
        scores[name] = cosines - weight / 2 * (mean[first] + mean[second])
    # The s-norm is that of the gallery, whatever else there is.
    m, s = (np.asarray(x) for x in kinds["gallery"].discrepancy[:2])
    scores["snorm"] = ((cosines - m[first]) / s[first] + (cosines - m[second]) / s[second]) / 2
    for name, values in scores.items():
        for key, expected in metrics.report_scores(values, pairs, PEOPLE.groups).items():
            np.testing.assert_allclose(report[f"{name}/{key}"], expected, atol=0.006 if "tar" in key else 0.1)
    assert report["verification/tar@1e-2"] == report["oracle/tar@1e-2"] != report["cosine/tar@1e-2"]
    virtual, labeled = (np.asarray(kinds[name].discrepancy.mean) for name in ("simulated", "oracle"))
    correlation = np.corrcoef(virtual, labeled)[0, 1]
    np.testing.assert_allclose(report["simulated/held_out_correlation"], correlation, atol=1e-4)
    np.testing.assert_allclose(report["simulated/deviation"], virtual.std(), rtol=1e-5)
    assert (report["simulated/weight"], report["simulated/passed"]) == (WEIGHT, 0.5)
    assert "learned/held_out_correlation" not in report and "oracle/held_out_correlation" not in report


def test_what_is_not_there_is_not_reported():
    official = data.VectorSource(PEOPLE.embeddings, PEOPLE.labels)
    official.pairs = metrics.make_pairs(PEOPLE.labels, folds=2)
    report, evaluation = judge(support(simulated=None, oracle=None), official, score="cosine")
    names = {key.partition("/")[0] for key in report}
    assert names == {"cosine", "gallery", "learned", "snorm", "verification"}
    assert not [key for key in report if "spread" in key or "correlation" in key]
    assert report["verification/eer"] == report["cosine/eer"]
    first, second = official.pairs.indices.T
    cosines = np.sum(PEOPLE.embeddings[first] * PEOPLE.embeddings[second], axis=1)
    assert report["cosine/tar@1e-2"] == metrics.report_scores(cosines, official.pairs)["tar@1e-2"]
    assert set(evaluation.figures(None)) == {"roc"}


def test_a_figure_of_all_curves(tmp_path):
    _, evaluation = judge(support(), score="cosine")
    path = evaluation.figures(None)["roc"](tmp_path / "roc.png")
    assert path.stat().st_size > 1000


def test_the_weight_is_the_slope_on_labeled_people():
    """Float64 numpy: a noisy copy at twice the deviation gets half the weight of its signal."""
    rng = np.random.default_rng(0)
    labeled = rng.normal(0.3, 0.1, 500)
    among = 2 * labeled + rng.normal(0, 0.05, 500)
    among[7] = np.nan  # an image all of whose candidates may be the same person
    known = np.arange(500) != 7
    discrepancy = support()["simulated"].discrepancy
    kind = training.fitted_support(discrepancy, labeled, among, candidates=VIRTUAL.embeddings)
    covariance = np.cov(labeled[known], among[known])
    np.testing.assert_allclose(kind.weight, covariance[0, 1] / covariance[1, 1], rtol=1e-6)
    correlation = np.corrcoef(labeled[known], among[known])[0, 1]
    np.testing.assert_allclose(kind.facts["correlation"], correlation, rtol=1e-6)
    cosines = VIRTUAL.embeddings @ VIRTUAL.embeddings.T
    pair_cosine = cosines[np.triu_indices(200, k=1)].mean()
    np.testing.assert_allclose(kind.facts["pair_cosine"], pair_cosine, atol=1e-6)
    assert training.fitted_support(discrepancy, labeled, among, weight=0.7).weight == 0.7
    constant = training.fitted_support(discrepancy, labeled, np.full(500, 0.2))
    assert constant.weight == 0 and constant.facts == {}


def test_kinds_that_say_little_are_named_in_one_line(caplog):
    good, bad, worse = (
        SupportSet(support()["simulated"].discrepancy, weight, {"correlation": value, "pair_cosine": 0.68})
        for weight, value in ((0.9, 0.31), (0.2, 0.29), (0.0, -0.4))
    )
    with caplog.at_level(logging.WARNING, logger="jaxface.training"):
        judge(support(simulated=good), score="cosine")
        assert not caplog.records
        judge(support(simulated=good, generated=bad, mixed=worse), score="cosine")
    (record,) = caplog.records
    assert record.getMessage() == (
        "candidates that say little of how crowded a neighborhood is: generated (correlation 0.29, mean pair cosine 0.68, "
        "weight 0.20); mixed (correlation -0.40, mean pair cosine 0.68, weight 0.00)"
    )
