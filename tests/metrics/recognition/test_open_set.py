import numpy as np
import pytest

from jaxface import metrics
from jaxface.errors import UserError


def people(count=40, each=6, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(count) * 7 + 3, each)
    centers = rng.normal(size=(count, 24))
    return centers.repeat(each, axis=0) + noise * rng.normal(size=(len(labels), 24)), labels


def test_a_perfect_network_finds_everybody_and_a_blind_one_nobody():
    embeddings, labels = people(noise=0.01)
    report = metrics.open_set(embeddings, labels)
    # 120 records of people who are not enrolled: no FPIR of 1e-3 can be told, nor 1000 distractors be shown.
    assert set(report) == {
        "identification/rank1",
        "identification/tpir@1e-1",
        "identification/tpir@1e-2",
        "identification/distractor_rank1@10",
        "identification/distractor_rank1@100",
    }
    assert set(report.values()) == {1.0}
    assert set(metrics.open_set(np.ones((240, 8)), labels).values()) == {0.0}


def test_against_the_protocol_by_hand():
    """Two people with two records: one is enrolled, the other is not; the numbers follow from the three angles."""
    angles = np.deg2rad([0.0, 20.0, 90.0, 95.0])
    embeddings, labels = np.stack([np.cos(angles), np.sin(angles)], axis=1), np.array([5, 5, 9, 9])
    report = metrics.open_set(embeddings, labels)
    assert report == {"identification/rank1": 1.0}  # two strangers cannot resolve any of the rates


def test_harder_questions_have_smaller_answers():
    embeddings, labels = people(count=200, noise=1.1)
    report = metrics.open_set(embeddings, labels)
    assert (
        report["identification/rank1"]
        > report["identification/tpir@1e-1"]
        > report["identification/tpir@1e-2"]
    )
    assert report["identification/distractor_rank1@10"] > report["identification/distractor_rank1@100"] > 0.1


def test_lengths_and_names_do_not_matter_and_the_seed_does():
    embeddings, labels = people(noise=1.0)
    report = metrics.open_set(embeddings, labels)
    lengths = np.random.default_rng(1).uniform(0.5, 2, (len(labels), 1))
    scaled = metrics.open_set(embeddings * lengths, labels + 1000)
    assert scaled == pytest.approx(report, abs=0.01)
    assert metrics.open_set(embeddings, labels, seed=1) != report


def test_fewer_records_take_part_where_there_are_too_many():
    embeddings, labels = people(count=60, each=4, noise=0.01)
    report = metrics.open_set(embeddings, labels, most=20)
    assert set(report.values()) == {1.0} and "identification/tpir@1e-2" not in report


def test_people_with_one_record_are_strangers():
    embeddings, labels = people(count=8, each=2, noise=0.01)
    strangers = np.random.default_rng(3).normal(size=(30, 24))
    report = metrics.open_set(
        np.concatenate([embeddings, strangers]), np.concatenate([labels, 1000 + np.arange(30)])
    )
    assert report["identification/rank1"] == 1.0 and "identification/tpir@1e-1" in report


@pytest.mark.parametrize(
    ("embeddings", "labels", "words"),
    [
        (np.eye(4), np.arange(4), "labels: identification needs somebody with two records"),
        (np.eye(4), np.zeros(4, int), "and somebody else, got 1 people"),
        (np.full((2, 2), np.nan), np.zeros(2, int), "finite"),
        (np.eye(3), np.zeros(2, int), "labels: needs integers of shape"),
    ],
)
def test_refusals(embeddings, labels, words):
    with pytest.raises(ValueError, match=words) as caught:
        metrics.open_set(embeddings, labels)
    if isinstance(caught.value, UserError):
        assert "\n" not in str(caught.value)
