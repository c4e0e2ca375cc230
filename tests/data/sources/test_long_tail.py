"""Long tails: the published counts, their splits, and what is drawn."""

import numpy as np
import pytest

from jaxface import data
from jaxface.data.sources.long_tail import LongTail, long_tail_counts
from jaxface.errors import UserError


@pytest.mark.parametrize(
    ("classes", "imbalance", "total", "smallest", "splits"),
    [
        (10, 50, 13_996, 100, None),
        (10, 100, 12_406, 50, None),
        (10, 200, 11_203, 25, None),
        (100, 10, 19_573, 50, (69, 31, 0)),
        (100, 50, 12_608, 10, (41, 41, 18)),
        (100, 100, 10_847, 5, (35, 35, 30)),
        (100, 200, 9_502, 2, (30, 31, 39)),
    ],
)
def test_cifar_as_published(classes, imbalance, total, smallest, splits):
    counts = long_tail_counts(50_000 // classes, classes, imbalance)
    assert (counts.sum(), counts.min()) == (total, smallest) and (np.diff(counts) <= 0).all()
    if splits:
        many, few = int((counts > 100).sum()), int((counts < 20).sum())
        assert (many, classes - many - few, few) == splits


def test_cifar10_class_by_class():
    assert long_tail_counts(5000, 10, 100).tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert long_tail_counts(5000, 10, 50).tolist() == [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100]
    assert long_tail_counts(5000, 10, 100, profile="step").tolist() == [5000] * 5 + [50] * 5


def source(each=40, classes=5):
    labels = np.arange(each * classes) % classes
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] + np.zeros((1, 2, 2, 1), np.uint8)
    return data.ArraySource(pixels, labels, [f"c{k}" for k in range(classes)])


def test_the_first_of_a_permutation_of_each_class():
    everything = source()
    tails = [LongTail(imbalance=8).apply(everything, seed=seed) for seed in (0, 0, 1)]
    assert [np.bincount(t.labels).tolist() for t in tails] == [long_tail_counts(40, 5, 8).tolist()] * 3
    rows = [[int(t[i]["image"][0, 0, 0]) for i in range(len(t))] for t in tails]
    assert rows[0] == rows[1] != rows[2] and rows[0] == sorted(rows[0])
    assert all(row % 5 == label for row, label in zip(rows[0], tails[0].labels, strict=True))
    # A larger imbalance keeps a part of what a smaller one kept.
    fewer = LongTail(imbalance=40).apply(everything, seed=0)
    assert {int(fewer[i]["image"][0, 0, 0]) for i in range(len(fewer))} < set(rows[0])


def test_classes_in_a_random_order():
    counts = [
        np.bincount(LongTail(imbalance=40, order="random").apply(source(), seed=seed).labels)
        for seed in range(3)
    ]
    assert all(sorted(c, reverse=True) == long_tail_counts(40, 5, 40).tolist() for c in counts)
    assert len({tuple(c) for c in counts}) > 1


def test_nothing_changes_by_default():
    everything = source()
    assert LongTail().apply(everything, seed=0) is everything and LongTail().title == ""


def test_any_set_of_classes_takes_one_and_noise_besides():
    spec = data.Digits(
        test_per_class=50,
        tail=LongTail(imbalance=50, largest=120, order="random"),
        noise=data.LabelNoise(kind="symmetric", rate=0.2),
    )
    split = data.load(spec, image_size=8, seed=3)
    assert "IF 50" in split.name
    assert np.bincount(split.held_out.labels).tolist() == [50] * 10
    true = np.bincount(split.train.true_labels)
    assert sorted(true, reverse=True) == [120, 77, 50, 32, 21, 13, 8, 5, 3, 2]
    assert 0.05 < (split.train.labels != split.train.true_labels).mean() < 0.4


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        (LongTail(imbalance=41), "imbalance: needs at most 40, .* 1 of 5 classes would have no example left"),
        (LongTail(largest=41), "tail.largest: class 'c0' has 40 examples, 41 were to be left"),
        (LongTail(imbalance=0.5), "tail.imbalance: needs a number from 1"),
        (LongTail(imbalance=2, profile="linear"), "profile: needs exponential or step, got 'linear'"),
    ],
)
def test_refusals(tail, words):
    with pytest.raises(UserError, match=words):
        tail.apply(source(), seed=0)


def test_a_class_without_examples_is_named():
    empty = data.ArraySource(np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 0, 2, 2]), ["a", "b", "c"])
    with pytest.raises(UserError, match="tail: needs examples of every class, 'b' has none"):
        LongTail(imbalance=2).apply(empty, seed=0)
