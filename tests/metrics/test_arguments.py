"""Arguments of another kind than a signature names are taken for what they are, or refused in a line."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import metrics, search

RNG = np.random.default_rng(0)
EMBEDDINGS = RNG.normal(size=(40, 8))
UNIT = EMBEDDINGS / np.linalg.norm(EMBEDDINGS, axis=1, keepdims=True)
LABELS = np.repeat(np.arange(10), 4)
SAME = np.tile([True, False], 20)
DISTANCES = np.where(SAME, 10.0, 1000.0)  # of embeddings that nobody normalized
MAPS = np.ones((4, 2, 2))


@pytest.mark.parametrize(
    "function",
    [metrics.ten_fold_accuracy, lambda *given, **more: metrics.val_at_far(*given, far=0.1, **more)],
)
def test_distances_that_are_not_of_unit_vectors_need_thresholds(function):
    for distances in (DISTANCES, -DISTANCES / 1000):
        with pytest.raises(
            ValueError, match=r"^distances: needs squared distances of unit vectors, in \[0, 4\]"
        ):
            function(distances, SAME, folds=2)
    assert function(DISTANCES, SAME, folds=2, thresholds=np.arange(0.0, 2000.0))[0] == 1
    function(np.where(SAME, -1e-7, 4 + 1e-7), SAME, folds=2)  # rounding of the cosine 1 is no mistake


@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint64"])
def test_labels_of_any_integer_type_give_the_same_numbers(dtype):
    labels = LABELS.astype(dtype)
    for of_labels in (
        lambda labels: metrics.verify(EMBEDDINGS, labels),
        lambda labels: metrics.open_set(EMBEDDINGS, labels),
        lambda labels: metrics.rank1(UNIT[:3] @ UNIT[3:].T, labels[:3], labels[3:]),
        lambda labels: metrics.impostor_spread(UNIT, labels),
        lambda labels: metrics.make_pairs(labels, seed=1).indices.tolist(),
    ):
        assert of_labels(labels) == of_labels(LABELS)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.verify(EMBEDDINGS, LABELS + 0.5), "labels: needs integers"),
        (lambda: metrics.verify(EMBEDDINGS, LABELS.astype(str)), "labels: needs integers"),
        (lambda: metrics.open_set(EMBEDDINGS, LABELS + 0.5), "labels: needs integers"),
        (lambda: metrics.all_pair_similarities(UNIT, LABELS + 0.5), "labels: needs integers"),
        (lambda: metrics.impostor_spread(UNIT, LABELS + 0.5), "labels: needs integers"),
        (lambda: metrics.rank1(UNIT @ UNIT.T, LABELS, LABELS + 0.5), "gallery_labels: needs integers"),
        (lambda: metrics.distractor_rank1(UNIT, LABELS + 0.5, UNIT, sizes=[1]), "labels: needs integers"),
        (lambda: metrics.distractor_rank1(UNIT, LABELS, UNIT, sizes=[1.5]), "sizes: needs integers"),
        (
            lambda: metrics.group_verification(UNIT, LABELS + 0.5, LABELS % 2, count=2),
            "labels: needs integers",
        ),
        (lambda: metrics.attention_gap(MAPS, [0.0, 0.5, 1.0, 1.0]), "groups: needs integers"),
        (lambda: metrics.attention_mass(MAPS, np.full((2, 2), 0.5)), "region: needs booleans or 0/1"),
        (lambda: metrics.sensitive_area(MAPS, share=50), "share: needs a number above 0 and up to 1, got 50"),
        (lambda: metrics.group_false_accepts(np.ones(3), np.ones(3), 0.1), "groups: needs integers"),
        (lambda: metrics.protection_success(UNIT[None], UNIT[None], UNIT, ks=[1.5]), "ks: needs integers"),
        (lambda: metrics.rank_k(UNIT @ UNIT.T, np.arange(40), 1.5), "k: needs an integer from 1, got 1.5"),
        (lambda: metrics.combine_scores(UNIT, UNIT, "mean"), "rule: needs one of rgb, depth, sum, max or"),
        (lambda: metrics.combine_scores(UNIT, UNIT, 2.0), "rule: needs a number from 0 to 1, got 2"),
        (
            lambda: metrics.adaptive_snorm(0.5, 0.1, 0.1, 0.1, 0.1, eps=0.0),
            "eps: needs a finite number above 0",
        ),
        (
            lambda: metrics.correct_top_k(jnp.eye(3), jnp.array([0, 1, 3])),
            r"labels: needs values in \[0, 3\)",
        ),
        (lambda: search.nearest(UNIT, UNIT, 1, mask=np.zeros((40, 40))), "mask: needs booleans"),
        (lambda: search.nearest(UNIT, UNIT, 1.5), "k: needs 1 to the 40"),
        (lambda: search.nearest(UNIT, UNIT, 1, exclude=LABELS + 0.5), "exclude: needs an integer dtype"),
        (
            lambda: search.nearest(
                UNIT, UNIT, 1, labels=LABELS, candidate_labels=LABELS.astype(np.int64) << 40
            ),
            "candidate_labels: needs values in",
        ),
    ],
)
def test_what_would_be_silently_wrong_is_refused(call, words):
    with pytest.raises(ValueError, match=f"^{words}") as refused:
        call()
    assert "\n" not in str(refused.value)


def test_a_narrow_index_of_what_to_leave_out():
    exclude = np.arange(200, dtype=np.uint8)
    rows = RNG.normal(size=(200, 4))
    _, ids = search.nearest(rows, rows, 1, exclude=exclude)
    assert not (np.asarray(ids)[:, 0] == np.arange(200)).any()
