import numpy as np
import pytest

from jaxface import metrics
from jaxface.errors import UserError


def people(seed, count=6, images=4, size=5, spread=0.6):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 1, size)) + spread * rng.normal(size=(count, images, size))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def literal(masked, clean, distractors, k):
    """The protocol as it is told: one query, one gallery at a time."""
    lost = total = 0
    for person in range(len(masked)):
        for a in range(masked.shape[1]):
            for b in range(masked.shape[1]):
                if a != b:
                    scores = np.sort(unit(distractors) @ unit(masked[person, a]))[::-1]
                    mate = unit(clean[person, b]) @ unit(masked[person, a])
                    lost += k <= len(scores) and not mate > scores[k - 1]
                    total += 1
    return lost / total


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_protocol(seed):
    clean = people(seed)
    masked = clean + np.random.default_rng(seed + 9).normal(size=clean.shape)
    distractors = np.random.default_rng(seed + 5).normal(size=(30, 5))
    ks = (1, 2, 5, 30, 31)
    rates = metrics.protection_success(masked, clean, distractors, ks)
    assert rates == pytest.approx({k: literal(masked, clean, distractors, k) for k in ks})
    assert 0 < rates[1] < 1 and rates[31] == 0
    assert list(rates.values()) == sorted(rates.values(), reverse=True)
    shuffled = np.random.default_rng(1).permutation(distractors)
    assert metrics.protection_success(masked, clean, shuffled, ks) == rates


def test_without_a_mask_it_is_one_minus_the_accuracy():
    clean, distractors = people(4), np.random.default_rng(0).normal(size=(40, 5))
    accuracy = np.mean(
        [
            unit(clean[i, a]) @ unit(clean[i, b]) > (unit(distractors) @ unit(clean[i, a])).max()
            for i in range(6)
            for a in range(4)
            for b in range(4)
            if a != b
        ]
    )
    assert metrics.protection_success(clean, clean, distractors, (1,))[1] == pytest.approx(1 - accuracy)


def test_a_copy_of_the_mate_is_found_and_a_tie_with_a_distractor_is_not():
    clean = np.repeat(people(1, images=1), 3, axis=1)
    others = np.random.default_rng(2).normal(size=(50, 5))
    assert metrics.protection_success(clean, clean, others)[1] == 0
    tied = np.concatenate([others, clean[:1, 0]])
    rates = metrics.protection_success(clean, clean, tied, (1, 2))
    assert rates == pytest.approx({1: 1 / 6, 2: 0.0})


def test_many_distractors_go_through_in_blocks(monkeypatch):
    clean = people(3, count=5, images=3)
    masked = clean + 0.8 * np.random.default_rng(1).normal(size=clean.shape)
    distractors = np.random.default_rng(6).normal(size=(157, 5))
    whole = metrics.protection_success(masked, clean, distractors, (1, 5, 20))
    blocks = metrics.similarity_blocks
    monkeypatch.setattr(
        "jaxface.metrics.analysis.protection.similarity_blocks", lambda a, b: blocks(a, b, block=7)
    )
    assert metrics.protection_success(masked, clean, distractors, (1, 5, 20)) == whole


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(ks=(4,)), r"ks: needs ranks from 1 to 3 \(distractors \+ 1\), got 4"),
        (dict(ks=(0, 1)), "ks: needs ranks from 1 to 3"),
        (
            dict(masked=np.ones((2, 1, 3)), clean=np.ones((2, 1, 3))),
            "needs at least 2 test images per person",
        ),
        (dict(masked=np.full((2, 2, 3), np.nan)), "masked: needs finite values"),
        (dict(clean=np.zeros((2, 2, 3))), "clean: need embeddings that are not zero"),
    ],
)
def test_refusals(change, words):
    arguments = dict(masked=np.ones((2, 2, 3)), clean=np.ones((2, 2, 3)), distractors=np.eye(3)[:2], ks=(1,))
    with pytest.raises(UserError, match=words):
        metrics.protection_success(**{**arguments, **change})
    with pytest.raises(ValueError, match="need shapes"):
        metrics.protection_success(np.ones((2, 2, 3)), np.ones((2, 2, 3)), np.ones((4, 2)))
