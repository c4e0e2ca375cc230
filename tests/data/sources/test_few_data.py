"""Few data: what is left of every class, and upstream classes that are refused downstream."""

import numpy as np
import pytest

from jaxface import data
from jaxface.data.sources.few_data import FewData, check_unseen_classes, class_record, stratified_subset
from jaxface.errors import UserError

LABELS = np.repeat([0, 1, 2], [100, 9, 1])


def left(**settings):
    return np.bincount(LABELS[stratified_subset(LABELS, **settings)], minlength=3).tolist()


def test_a_share_is_rounded_up_and_at_least_one():
    assert left(fraction=0.1) == [10, 1, 1]
    assert left(fraction=0.01) == [1, 1, 1]
    assert left(fraction=0.07) == [7, 1, 1]  # 0.07 · 100 is above 7 in floating point
    assert left(fraction=1.0) == [100, 9, 1]
    assert left(shots=1) == [1, 1, 1]


def test_the_seed_says_which_and_a_smaller_share_lies_in_a_larger():
    first, again, other = (stratified_subset(LABELS, 0.1, seed).tolist() for seed in (0, 0, 1))
    assert first == again != other and first == sorted(first)
    assert set(first) < set(stratified_subset(LABELS, 0.5, 0).tolist())


def test_any_set_of_classes_takes_one_with_a_tail_and_noise():
    few, tail, noise = data.FewData(0.1), data.LongTail(imbalance=4, largest=80), data.LabelNoise(rate=0.2)
    spec = data.Digits(test_per_class=50, few=few, tail=tail, noise=noise)
    split = data.load(spec, image_size=8)
    counts = np.bincount(split.train.true_labels)
    assert (counts[0], counts[-1]) == (8, 2) and np.bincount(split.held_out.labels).tolist() == [50] * 10
    assert split.name.endswith("IF 4 0.1") and not spec.plain().few.active
    five = data.load(data.Digits(few=data.FewData(shots=5)), image_size=8)
    assert np.bincount(five.train.labels).tolist() == [5] * 10 and five.name.endswith("5 shots")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(fraction=0.0), "fraction: needs a number above 0 and up to 1, got 0"),
        (dict(fraction=1.5), "fraction: needs"),
        (dict(fraction=0.5, num_classes=4), "fraction: class 3 would be left empty"),
        (dict(shots=2), "shots: class 2 has 1 examples, 2 were to be left"),
        (dict(fraction=0.5, shots=2), "fraction: needs either a fraction or shots"),
        (dict(), "fraction: needs either a fraction or shots"),
    ],
)
def test_refusals(settings, words):
    with pytest.raises(UserError, match=words):
        stratified_subset(LABELS, **settings)


@pytest.mark.parametrize(
    ("few", "words"),
    [
        (FewData(0.5), "few.fraction: class 'b' has 0 examples, and needs one"),
        (FewData(shots=2), "few.shots: class 'b' has 0 examples, 2 were to be left"),
        (FewData(0.5, shots=2), "few.shots: needs fraction 1, got 0.5 and 2 shots"),
        (FewData(-0.5), "few.fraction: needs"),
    ],
)
def test_classes_are_named(few, words):
    source = data.ArraySource(np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 0, 2, 2]), ["a", "b", "c"])
    with pytest.raises(UserError, match=words):
        few.apply(source, seed=0)
    assert FewData().apply(source, seed=0) is source


def test_upstream_classes_are_refused_downstream():
    record = class_record(["cat", "dog", "bird", "frog", "deer"])
    check_unseen_classes(record, ["truck"], argument="generator")
    with pytest.raises(
        UserError, match=r"generator: needs a run of other classes .* 'bird', 'cat', 'deer' and 2 more"
    ):
        check_unseen_classes(record, record["classes"], argument="generator")
    with pytest.raises(UserError, match="generator: needs a run that recorded the classes"):
        check_unseen_classes({}, ["cat"], argument="generator")
