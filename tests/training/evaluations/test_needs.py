"""What an evaluation needs of its data is refused when it is made, before anything is computed."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxface import metrics, models, training
from jaxface.data import ArraySource
from jaxface.errors import UserError
from jaxface.metrics import Pairs
from jaxface.metrics.recognition.open_set import check_open_set
from jaxface.metrics.recognition.report import check_verification

MODEL = models.create("mlp", embedding=4, hidden=(4,))


def people(labels, **fields):
    labels = np.asarray(labels, np.int32)
    names = [f"person{k}" for k in range(labels.max() + 1 if labels.size else 2)]
    return ArraySource(np.zeros((len(labels), 8, 8, 3), np.uint8), labels, names, **fields)


def pack(same):
    pairs = Pairs(np.zeros((len(same), 2), np.int32), np.asarray(same), folds=2)
    return SimpleNamespace(labels=None, pairs=pairs, image_shape=(8, 8, 3))


def by_group(labels, groups):
    return people(labels, groups=np.array(groups), group_names=["one", "two"])


def aligned(source):
    return training.AlignedVerification(source, None, None, score="cosine")


def fair(source):
    return training.GroupFairness(MODEL, source, verification=True)


SINGLES, ONE_PERSON, ENOUGH = [0, 1, 2, 3], [0, 0, 0], [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: training.Verification(MODEL, people(SINGLES)), "needs two people and two genuine pairs"),
        (lambda: training.Verification(MODEL, people(ONE_PERSON)), "needs two people and two genuine pairs"),
        (lambda: training.Verification(MODEL, people(ENOUGH), pairs=600), "folds need 300 genuine"),
        (
            lambda: training.Verification(MODEL, people(np.arange(30_000) % 9), pairs="all"),
            "'all' needs at most 20000 records",
        ),
        (lambda: training.Verification(MODEL, pack([True, True])), "needs genuine and impostor ones"),
        (lambda: training.CrossResolution(MODEL, people(SINGLES), (4,)), "needs two people and two genuine"),
        (
            lambda: fair(by_group([0, 0, 0, 1, 2, 3], [0, 0, 0, 0, 1, 1])),
            "of each group, group 1 has 2 and 0",
        ),
        (
            lambda: training.PackFairness(MODEL, {"a": pack([True, False]), "b": pack([False, False])}),
            "group 1 has one kind",
        ),
        (lambda: aligned(people(SINGLES)), "two people and somebody with two records"),
        (lambda: aligned(people(ONE_PERSON)), "two people and somebody with two records"),
        (lambda: aligned(by_group([0, 0, 1, 1], [0, 0, 1, 1])), "a group of two people"),
        (lambda: training.NearestPrototype(MODEL, people([])), "at least one record to evaluate on"),
    ],
)
def test_data_that_cannot_be_evaluated(make, words):
    with pytest.raises(UserError, match=words) as caught:
        make()
    assert str(caught.value).startswith("data: ") and "\n" not in str(caught.value)


def test_data_that_can():
    training.Verification(MODEL, people(ENOUGH), identify=True)
    training.Verification(MODEL, people(ENOUGH), pairs="all")
    training.CrossResolution(MODEL, people([0, 0, 1, 1]), (4,))
    fair(by_group([0, 0, 0, 1, 2, 2, 2, 3], [0, 0, 0, 0, 1, 1, 1, 1]))
    aligned(by_group([0, 0, 1, 1], [0, 0, 0, 1]))
    training.NearestPrototype(MODEL, people([0]))


@pytest.mark.parametrize("seed", range(40))
def test_the_check_refuses_exactly_what_the_metric_refuses(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, rng.integers(1, 5), rng.integers(2, 9)).astype(np.int32)
    embeddings = rng.normal(size=(len(labels), 3)).astype(np.float32)

    def refusal(function, *arguments):
        try:
            function(*arguments, seed=seed)
        except UserError as error:
            return str(error)

    assert refusal(check_verification, labels) == refusal(metrics.verify, embeddings, labels)
    assert refusal(check_open_set, labels) == refusal(metrics.open_set, embeddings, labels)
