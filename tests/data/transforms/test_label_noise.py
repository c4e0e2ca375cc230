import dataclasses

import numpy as np
import pytest

from jaxface import data
from jaxface.errors import UserError


def test_matrices_of_the_protocol():
    symmetric, uniform = data.symmetric_noise(4, 0.3), data.uniform_noise(4, 0.3)
    np.testing.assert_allclose(symmetric, np.where(np.eye(4), 0.7, 0.1))
    np.testing.assert_allclose(uniform, np.where(np.eye(4), 0.775, 0.075))
    np.testing.assert_allclose(data.pairflip_noise(4, 0.45)[3], [0.45, 0, 0, 0.55])
    np.testing.assert_allclose(np.linalg.eigvalsh(data.symmetric_noise(10, 0.8)).min(), 0.111111, atol=1e-6)
    for matrix in (
        symmetric,
        uniform,
        data.pairflip_noise(7, 0.2),
        data.class_dependent_noise(4, 0.4, {3: 1}),
    ):
        np.testing.assert_allclose(matrix.sum(1), 1)


@pytest.mark.parametrize("kind", ["symmetric", "uniform", "pairflip", "asymmetric"])
def test_what_is_drawn_has_the_rates_of_the_matrix(kind):
    targets = {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}
    matrix = data.LabelNoise(kind, 0.4).matrix(10, targets)
    labels = np.tile(np.arange(10), 4000)
    drawn = data.draw_labels(labels, matrix, seed=0)
    counts = np.zeros((10, 10))
    np.add.at(counts, (labels, drawn), 1 / 4000)
    np.testing.assert_allclose(counts, matrix, atol=0.03)
    assert ((counts > 0) <= (matrix > 0)).all(), "nothing is drawn that has no probability"
    assert (drawn == data.draw_labels(labels, matrix, seed=0)).all()
    assert (drawn != data.draw_labels(labels, matrix, seed=1)).any()


def test_true_labels_stay_beside_the_given_ones():
    clean = data.load(data.Digits(), seed=3)
    spec = data.Digits(noise=data.LabelNoise(rate=0.5))
    split = data.load(spec, seed=3)
    train = split.train
    np.testing.assert_array_equal(train.true_labels, clean.train.labels)
    wrong = train.labels != train.true_labels
    assert 0.45 < wrong.mean() < 0.55
    record = train[np.flatnonzero(wrong)[0]]
    assert record["label"] != record["true_label"] and record["label"].dtype == record["true_label"].dtype
    np.testing.assert_array_equal(record["image"], clean.train[np.flatnonzero(wrong)[0]]["image"])
    np.testing.assert_array_equal(split.held_out.labels, clean.held_out.labels)
    part = data.Subset(train, np.arange(7, 40))
    np.testing.assert_array_equal(part.true_labels, train.true_labels[7:40])
    assert part[0]["label"] == train.labels[7] and part[0]["true_label"] == train.true_labels[7]
    indexed = data.WithFields(train, index=np.arange(len(train), dtype=np.int32))
    batch = next(data.batches(indexed, batch_size=64, seed=0))
    np.testing.assert_array_equal(batch["label"], train.labels[batch["index"]])
    np.testing.assert_array_equal(batch["true_label"], train.true_labels[batch["index"]])
    assert not hasattr(clean.train, "true_labels")


def test_mirrored_digits_are_closed_under_mirroring():
    plain, mirrored = (data.load(data.Digits(mirrored=m), seed=1) for m in (False, True))
    images = [np.stack([s.train[i]["image"] for i in range(1000)]) for s in (plain, mirrored)]
    same = (images[0] == images[1]).all((1, 2, 3))
    turned = (images[0][:, :, ::-1] == images[1]).all((1, 2, 3))
    assert (same | turned).all() and 0.4 < same.mean() < 0.6
    np.testing.assert_array_equal(plain.train.labels, mirrored.train.labels)


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        (
            data.Digits(noise=data.LabelNoise(rate=1.0)),
            r"^noise\.rate: needs a number from 0 and below 1, got 1",
        ),
        (
            data.Digits(noise=data.LabelNoise(rate=-0.1)),
            r"^noise\.rate: needs a number from 0 and below 1, got -0\.1",
        ),
        (
            data.Digits(noise=data.LabelNoise("pairflip", 0.6)),
            r"^noise\.rate: pairs flip with a rate below 0\.5",
        ),
        (data.Digits(noise=data.LabelNoise("superclass", 0.2)), r"^noise\.kind: superclass needs"),
    ],
)
def test_one_line_says_what_is_wrong(spec, line):
    with pytest.raises(UserError, match=line) as refused:
        data.load(spec)
    assert "\n" not in str(refused.value)


def test_a_class_without_an_example_is_refused():
    source = data.ArraySource(np.zeros((4, 2, 2, 1), np.uint8), [0, 0, 0, 1], "ab")
    gone = data.LabelNoise("asymmetric", 0.99)
    with pytest.raises(UserError, match=r"^noise\.rate: leaves class b without an example, got 0\.99$"):
        gone.apply(source, seed=0, targets={1: 0})
    assert dataclasses.replace(gone, rate=0.0).apply(source, seed=0) is source
    with pytest.raises(UserError, match=r"^noise\.kind: this data set has no asymmetric noise"):
        gone.apply(source, seed=0)


def test_superclass_noise_stays_in_its_group():
    labels = np.repeat(np.arange(6), 50)
    groups = np.array([0, 1, 0, 1, 0, 2])[labels]
    source = data.ArraySource(
        np.zeros((300, 2, 2, 1), np.uint8), labels, "abcdef", groups=groups, group_names="xyz"
    )
    shifts = data.block_shifts(np.array([0, 1, 0, 1, 0, 2]))
    assert shifts == {0: 2, 2: 4, 4: 0, 1: 3, 3: 1}
    noisy = data.LabelNoise("superclass", 0.4).apply(source, seed=0, targets=shifts)
    wrong = noisy.labels != labels
    assert 0.2 < wrong.mean() < 0.45 and not wrong[labels == 5].any()
    assert (np.array([0, 1, 0, 1, 0, 2])[noisy.labels] == groups).all()
    np.testing.assert_array_equal(noisy.groups, groups)


def test_bad_arguments_of_the_functions():
    with pytest.raises(ValueError, match="rows of probabilities"):
        data.draw_labels(np.array([0]), np.full((2, 2), 0.4), seed=0)
    with pytest.raises(ValueError, match=r"labels: needs values in \[0, 2\)"):
        data.draw_labels(np.array([2]), np.eye(2), seed=0)
    with pytest.raises(ValueError, match="taken for itself"):
        data.class_dependent_noise(3, 0.1, {1: 1})
    with pytest.raises(UserError, match="at least 2 classes"):
        data.symmetric_noise(1, 0.1)
