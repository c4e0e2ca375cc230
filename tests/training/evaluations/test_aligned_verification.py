import numpy as np
import pytest

from jaxface import data, metrics, training
from jaxface.metrics import Discrepancy

PEOPLE, VIRTUAL, OTHERS = (
    data.crowded_embeddings(count, each, seed=0, first_identity=first, size=16)
    for count, each, first in ((30, 4, 1 << 20), (200, 1, 0), (90, 1, 500))
)
SOURCE = data.VectorSource(*PEOPLE)


def support(**changes):
    rows, labels = PEOPLE.embeddings, PEOPLE.labels
    constant = Discrepancy(np.full(120, 0.3, np.float32), np.zeros(120), np.ones(120, np.int32))
    sets = training.SupportSets(
        gallery=metrics.local_discrepancy(rows, OTHERS.embeddings, k=10),
        generated=None,
        simulated=metrics.local_discrepancy(rows, VIRTUAL.embeddings, k=10),
        learned=constant,
        oracle=metrics.local_discrepancy(rows, rows, k=10, labels=labels, candidate_labels=labels),
    )
    return sets._replace(**changes)


def judge(sets, source=SOURCE, **options):
    evaluation = training.AlignedVerification(
        source, lambda state: PEOPLE.embeddings, lambda state, rows: sets, **options
    )
    return evaluation(None), evaluation


def test_scores_are_those_of_the_library():
    sets = support()
    report, _ = judge(sets, score="oracle", weight=0.8)
    pairs = metrics.all_pairs(PEOPLE.labels)
    first, second = pairs.indices.T
    cosines = np.sum(PEOPLE.embeddings[first] * PEOPLE.embeddings[second], axis=1)
    scores = {"cosine": cosines, "learned": cosines}  # a constant estimate changes nothing
    for name in ("gallery", "simulated", "oracle"):
        mean = np.asarray(getattr(sets, name).mean)
        scores[name] = np.asarray(metrics.aligned_similarity(cosines, mean[first], mean[second], weight=0.8))
    m, s = np.asarray(sets.simulated.mean), np.asarray(sets.simulated.deviation)
    scores["snorm"] = np.asarray(metrics.adaptive_snorm(cosines, m[first], s[first], m[second], s[second]))
    for name, values in scores.items():
        for key, expected in metrics.report_scores(values, pairs, PEOPLE.groups).items():
            np.testing.assert_allclose(report[f"{name}/{key}"], expected, atol=0.006 if "tar" in key else 0.1)
    assert report["verification/tar@1e-2"] == report["oracle/tar@1e-2"] != report["cosine/tar@1e-2"]
    correlation = np.corrcoef(m, np.asarray(sets.oracle.mean))[0, 1]
    np.testing.assert_allclose(report["simulated/correlation"], correlation, atol=1e-4)
    np.testing.assert_allclose(report["simulated/deviation"], m.std(), rtol=1e-5)
    assert "learned/correlation" not in report and "oracle/correlation" not in report


@pytest.mark.parametrize(("score", "normalizer"), [("snorm", "simulated"), ("generated", "generated")])
def test_what_snorm_is_normalized_by(score, normalizer):
    sets = support()
    both = sets._replace(generated=sets.gallery, distinct=0.5)
    report, _ = judge(both, score=score)
    alone, _ = judge(sets._replace(simulated=getattr(both, normalizer)), score="snorm")
    assert report["snorm/eer"] == alone["snorm/eer"]
    assert report["generated/kept"] == 0.5 and "generated/kept" not in alone


def test_what_is_not_there_is_not_reported():
    official = data.VectorSource(PEOPLE.embeddings, PEOPLE.labels)
    official.pairs = metrics.make_pairs(PEOPLE.labels, folds=2)
    report, evaluation = judge(support(simulated=None, oracle=None), official, score="cosine")
    names = {key.partition("/")[0] for key in report}
    assert names == {"cosine", "gallery", "learned", "verification"}
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
