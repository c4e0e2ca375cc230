"""Ten-fold accuracy, VAL at FAR, the flip test and thresholds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score
from sklearn.model_selection import KFold

from jaxface.errors import UserError
from jaxface.metrics import (
    convert_threshold,
    cosine_to_squared_l2,
    flip_embeddings,
    mean_norm,
    normalize,
    squared_l2_to_cosine,
    ten_fold_accuracy,
    val_at_far,
)

quick = settings(max_examples=40, deadline=None)


def brute_force(distances, same, folds, thresholds):
    """The protocol as it is told: every threshold tried on every fold."""
    accuracies, chosen = [], []
    for train, test in KFold(folds).split(distances):
        on_train = [accuracy_score(same[train], distances[train] < t) for t in thresholds]
        chosen.append(thresholds[int(np.argmax(on_train))])
        accuracies.append(accuracy_score(same[test], distances[test] < chosen[-1]))
    return np.array(accuracies), np.array(chosen)


def test_ten_fold_by_hand():
    i = np.arange(20)
    same = i % 2 == 0
    result = ten_fold_accuracy(np.where(same, 0.505 + 0.06 * i, 1.905 - 0.05 * i), same)
    thresholds = [0.87, 0.87, 0.87, 0.75, 0.87, 0.87, 0.87, 1.23, 1.11, 0.99]
    np.testing.assert_allclose(result.fold_thresholds, thresholds, atol=1e-12)
    np.testing.assert_array_equal(result.fold_accuracies, [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0, 0, 0])
    assert result.accuracy == pytest.approx(0.5, abs=1e-12)
    assert result.std == pytest.approx(0.387298, abs=1e-6)


def test_the_best_threshold_on_all_pairs_flatters():
    i = np.arange(20)
    same = i % 2 == 0
    distances = np.where(same, 0.505 + 0.06 * i, 1.905 - 0.05 * i)
    best = max(np.mean((distances < t) == same) for t in np.arange(0, 4, 0.01))
    assert best == pytest.approx(0.7)
    assert ten_fold_accuracy(distances, same).accuracy < best


@quick
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=5, max_size=40), st.integers(2, 5))
def test_ten_fold_agrees_with_brute_force(pairs, folds):
    # Distances on the grid of thresholds: strictness and the first-maximum rule decide.
    distances = np.array([d / 2 for d, _ in pairs])
    same = np.array([s for _, s in pairs])
    if same.all() or not same.any():
        return
    thresholds = np.arange(0, 4.5, 0.5)
    result = ten_fold_accuracy(distances, same, folds=folds, thresholds=thresholds)
    accuracies, chosen = brute_force(distances, same, folds, thresholds)
    np.testing.assert_allclose(result.fold_accuracies, accuracies, atol=1e-12)
    np.testing.assert_array_equal(result.fold_thresholds, chosen)


def test_a_distance_on_the_threshold_is_different():
    distances, same = np.array([1.0, 1.0, 2.0, 2.0]), np.array([True, True, False, False])
    assert ten_fold_accuracy(distances, same, folds=2, thresholds=[1.0]).accuracy == 0.5
    assert ten_fold_accuracy(distances, same, folds=2, thresholds=[1.5]).accuracy == 1.0


def test_folds_are_contiguous_and_the_first_take_the_remainder():
    # 7 pairs in 3 folds: sizes 3, 2, 2. Only the last pair can be wrong, so only the last fold shows it.
    distances = np.array([0.1, 1.9, 0.1, 1.9, 0.1, 1.9, 1.9])
    same = np.array([1, 0, 1, 0, 1, 0, 1])
    np.testing.assert_allclose(ten_fold_accuracy(distances, same, folds=3).fold_accuracies, [1, 1, 0.5])


def test_identical_distances_score_a_constant_answer():
    same = np.tile([True, False], 20)
    assert ten_fold_accuracy(np.ones(40), same).accuracy == 0.5


def test_seven_thousand_pairs_are_quick():
    rng = np.random.default_rng(0)
    same = np.arange(7000) % 700 < 350
    distances = np.clip(rng.normal(np.where(same, 1.0, 1.6), 0.3), 0, 4)
    result = ten_fold_accuracy(distances, same)
    accuracies, chosen = brute_force(distances, same, 10, np.arange(0, 4, 0.01)[80:180])
    np.testing.assert_allclose(result.fold_accuracies, accuracies)
    np.testing.assert_allclose(result.fold_thresholds, chosen)
    fine = val_at_far(distances, same)
    assert 0 < fine.val < result.accuracy


@pytest.mark.parametrize("function", [ten_fold_accuracy, val_at_far])
@pytest.mark.parametrize(
    ("distances", "same", "kind", "message"),
    [
        ([], [], UserError, "distances: needs at least one"),
        ([1.0] * 10, [1, 0] * 4 + [1], ValueError, r"same: needs shape \(10,\)"),
        ([1.0] * 10, [1] * 10, UserError, "same: needs genuine and impostor"),
        ([1.0] * 10, [0] * 10, UserError, "same: needs genuine and impostor"),
        ([1.0] * 9, [1] * 4 + [0] * 5, UserError, "folds: needs 2 <= folds"),
        ([np.nan] + [1.0] * 9, [1, 0] * 5, UserError, "distances: needs finite"),
        ([1.0] * 10, [2, 0] * 5, ValueError, "same: needs booleans"),
    ],
)
def test_bad_pairs_are_refused(function, distances, same, kind, message):
    with pytest.raises(kind, match=message):
        function(distances, same)


def test_bad_thresholds_are_refused():
    with pytest.raises(ValueError, match="thresholds"):
        ten_fold_accuracy(np.ones(10), [1, 0] * 5, thresholds=[1.0, 1.0])


def test_val_at_far_by_hand():
    # Two folds. Of the other fold's five impostors one may pass at .2, so t is the last grid point at or below
    # the second smallest impostor distance there: .8 (fold 0 looks at fold 1) and .4 (fold 1 looks at fold 0).
    genuine, impostors = [0.1, 0.3, 0.5, 0.7], ([0.2, 0.4, 1.0, 1.1, 1.2], [0.6, 0.8, 1.3, 1.4, 1.5])
    distances = np.r_[genuine, impostors[0], genuine, impostors[1]]
    same = np.r_[[1] * 4, [0] * 5, [1] * 4, [0] * 5]
    result = val_at_far(distances, same, far=0.2, folds=2, thresholds=np.linspace(0, 4, 401))
    np.testing.assert_allclose(result.fold_thresholds, [0.8, 0.4])
    np.testing.assert_allclose(result.fold_vals, [1.0, 0.5])
    np.testing.assert_allclose(result.fold_fars, [0.4, 0.0])
    assert (result.val, result.std, result.far) == pytest.approx((0.75, 0.25, 0.2))


def test_val_is_zero_where_no_threshold_reaches_the_target():
    distances, same = np.r_[np.zeros(4), np.full(4, 3.9999)], np.tile([1, 1, 0, 0], 2)
    distances = np.where(same, 0.0, 3.9999)
    result = val_at_far(distances, same, far=0.1, folds=2)
    assert (result.val, result.far) == (0.0, 0.0)
    np.testing.assert_array_equal(result.fold_thresholds, 0)


def test_val_needs_both_kinds_in_every_fold():
    with pytest.raises(UserError, match="fold 1 has no genuine pair"):
        val_at_far(np.ones(6), [1, 0, 1, 0, 0, 0], folds=2)


def test_flip_adds_before_it_normalizes():
    views = {0.0: (1.0, 2.0), 1.0: (3.0, 0.0)}
    image = (
        jnp.zeros((1, 2, 2, 1)).at[0, :, 1].set(1.0)
    )  # bright on the right: its mirror image is bright on the left

    def embed(x):
        return jnp.where(x[:, 0, 0] == 0, jnp.array(views[0.0]), jnp.array(views[1.0]))

    np.testing.assert_allclose(flip_embeddings(embed, image), [[0.894427, 0.447214]], atol=1e-6)
    np.testing.assert_allclose(flip_embeddings(embed, image, unit=False), [[4.0, 2.0]])
    np.testing.assert_allclose(
        jax.jit(lambda x: flip_embeddings(embed, x))(image), [[0.894427, 0.447214]], atol=1e-6
    )
    wrong = normalize(normalize(jnp.array([1.0, 2.0])) + normalize(jnp.array([3.0, 0.0])))
    np.testing.assert_allclose(wrong, [0.850651, 0.525731], atol=1e-6)
    assert float(mean_norm(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 0.0]]))) == pytest.approx(
        (5**0.5 + 3) / 2
    )


def test_views_side_by_side_compare_by_the_mean_of_their_cosines():
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, 3, 4, 1)), jnp.float32)

    def embed(x):
        return x.reshape(len(x), -1)

    plain = np.asarray(images).reshape(2, -1)
    mirrored = np.asarray(images)[:, :, ::-1].reshape(2, -1)
    both = np.asarray(flip_embeddings(embed, images, flip="concat"))
    assert both.shape == (2, 24)
    views = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (plain, mirrored)]
    np.testing.assert_allclose(both[0] @ both[1], np.mean([v[0] @ v[1] for v in views]), atol=1e-6)
    raw = flip_embeddings(embed, images, flip="concat", unit=False)
    np.testing.assert_allclose(raw, np.hstack([plain, mirrored]), rtol=1e-6)
    np.testing.assert_allclose(flip_embeddings(embed, images, flip="none"), views[0], atol=1e-6)
    with pytest.raises(UserError, match=r"^flip: needs one of none, sum, concat, got 'both'$"):
        flip_embeddings(embed, images, flip="both")


def test_flip_needs_four_axes():
    with pytest.raises(ValueError, match=r"images: needs shape \[B, H, W, C\]"):
        flip_embeddings(lambda x: x, jnp.zeros((2, 2, 1)))


def test_normalize_keeps_a_zero_row_and_its_gradient_finite():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(normalize(x), [[0.6, 0.8], [0, 0]], atol=1e-7)
    assert np.isfinite(jax.grad(lambda v: normalize(v).sum())(x)).all()
    assert normalize(x.astype(jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize(
    ("cosine", "squared", "distance"), [(0.3, 1.4, 1.183216), (0.363, 1.274, 1.128716), (0.5, 1.0, 1.0)]
)
def test_thresholds_between_measures(cosine, squared, distance):
    assert cosine_to_squared_l2(cosine) == pytest.approx(squared)
    assert squared_l2_to_cosine(squared) == pytest.approx(cosine)
    assert convert_threshold(cosine, source="cosine", target="l2") == pytest.approx(distance, abs=1e-6)
    assert convert_threshold(distance, source="l2", target="squared_l2") == pytest.approx(squared, abs=2e-6)
    assert convert_threshold(squared, source="squared_l2", target="angle") == pytest.approx(np.arccos(cosine))


@quick
@given(st.floats(-1, 1), st.sampled_from(["cosine", "squared_l2", "l2", "angle"]))
def test_threshold_conversion_round_trips(cosine, measure):
    there = convert_threshold(cosine, source="cosine", target=measure)
    # arccos is steep at the ends of its range: 1e-16 of cosine is 1e-8 of angle there, and comes back as 1e-16.
    assert convert_threshold(there, source=measure, target="cosine") == pytest.approx(cosine, abs=1e-12)


@pytest.mark.parametrize(
    ("value", "source", "target", "name"),
    [(1.1, "cosine", "l2", "value"), (2.1, "l2", "cosine", "value"), (np.nan, "l2", "cosine", "value"),
     (0.5, "cos", "l2", "source"), (0.5, "l2", "euclid", "target")],
)  # fmt: skip
def test_impossible_thresholds_are_refused(value, source, target, name):
    with pytest.raises(UserError, match=name):
        convert_threshold(value, source=source, target=target)
