import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxface.data import Augment, batches
from jaxface.data.pipeline.samplers import ClassUniform, SuperclassUniform, class_means, superclasses
from jaxface.errors import UserError

LABELS = np.random.default_rng(0).integers(0, 30, 900)
GROUPS = np.arange(30) % 3
HEAVY = Augment(flip=0.5, crop=0.5, color=0.5)
STRATEGIES = {
    "class": lambda labels: ClassUniform(labels, per_class=4),
    "superclass": lambda labels: SuperclassUniform(labels, np.arange(labels.max() + 1) % 2, per_class=4),
}


def which(batch):
    """The numbers of the records in a batch of the fake source."""
    return batch["image"][:, 1, 1, 0].astype(int)


def take(stream, count):
    return [next(stream) for _ in range(count)]


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_forty_records_are_ten_classes_with_four_each():
    order = ClassUniform(LABELS, per_class=4)
    seen = set()
    for step in range(50):
        rows = order(step, batch_size=40, seed=0)
        assert len(set(rows)) == 40  # without replacement
        classes, counts = np.unique(LABELS[rows], return_counts=True)
        assert len(classes) == 10 and (counts == 4).all()
        np.testing.assert_array_equal(LABELS[rows].reshape(10, 4), LABELS[rows][::4, None].repeat(4, 1))
        seen |= set(rows)
    assert len(seen) > 800


def test_classes_are_drawn_uniformly_however_many_records_they_have():
    labels = np.repeat(np.arange(4), [5, 50, 500, 5])
    order = ClassUniform(labels, per_class=2)
    drawn = np.concatenate([labels[order(step, batch_size=4, seed=1)] for step in range(3000)])
    np.testing.assert_allclose(np.bincount(drawn) / len(drawn), 0.25, atol=0.02)
    first = np.concatenate([order(step, batch_size=4, seed=1) for step in range(3000)])
    np.testing.assert_allclose(np.bincount(first)[:5] / 12000, 0.05, atol=0.01)


def test_small_classes_give_records_twice_and_absent_ones_none():
    labels = np.array([7, 7, 7, 3, 5, 5, 5, 5])
    order = ClassUniform(labels, per_class=4)
    for step in range(20):
        rows = order(step, batch_size=12, seed=0)
        np.testing.assert_array_equal(np.bincount(labels[rows], minlength=8), [0, 0, 0, 4, 0, 4, 0, 4])
        assert (rows == 3).sum() == 4 and set(rows[labels[rows] == 5]) == {4, 5, 6, 7}


def test_a_superclass_fills_the_batch():
    order = SuperclassUniform(LABELS, GROUPS, per_class=4)
    groups = []
    for step in range(300):
        rows = order(step, batch_size=40, seed=0)
        classes, counts = np.unique(LABELS[rows], return_counts=True)
        assert len(classes) == 10 and (counts == 4).all()
        (group,) = set(GROUPS[classes])
        groups.append(group)
    np.testing.assert_allclose(np.bincount(groups) / 300, 1 / 3, atol=0.1)


def test_what_a_superclass_lacks_comes_from_another():
    sizes = np.repeat(np.arange(4), [2, 4, 12, 12])
    order = SuperclassUniform(LABELS, sizes, per_class=4)
    for step in range(60):
        classes = np.unique(LABELS[order(step, batch_size=40, seed=3)])
        assert len(classes) == 10
        taken = np.bincount(sizes[classes], minlength=4)
        # Whole ones, and at most one of which there was no room for more.
        assert ((taken > 0) & (taken < [2, 4, 12, 12])).sum() == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**20), st.integers(0, 1 << 40), st.sampled_from([1, 2, 4]), st.integers(1, 4))
def test_orders_are_functions_of_seed_and_step(seed, step, each, groups):
    for order in (
        ClassUniform(LABELS, per_class=each),
        SuperclassUniform(LABELS, np.arange(30) % groups, per_class=each),
    ):
        rows = order(step, batch_size=20, seed=seed)
        copy = pickle.loads(pickle.dumps(order))
        copy(step + 1, batch_size=8, seed=seed)
        np.testing.assert_array_equal(copy(step, batch_size=20, seed=seed), rows)
        assert (rows != order(step + 1, batch_size=20, seed=seed)).any()
        assert (rows != order(step, batch_size=20, seed=seed + 1)).any()


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("taken", [0, 1, 7])
def test_resumed_from_json(fake, name, taken):
    source = fake(120, classes=10)

    def make():
        order = STRATEGIES[name](source.labels)
        return batches(source, batch_size=16, seed=3, augment=HEAVY, order=order)

    whole = take(make(), 15)
    for batch in whole:
        assert (np.unique(batch["label"], return_counts=True)[1] == 4).all()
    stream = make()
    take(stream, taken)
    state = json.loads(json.dumps(stream.get_state()))
    take(stream, 3)
    stream.set_state(state)
    assert_same(take(stream, 15 - taken), whole[taken:])
    fresh = make()
    fresh.set_state(state)
    assert_same(take(fresh, 15 - taken), whole[taken:])


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("count", [2, 4])
def test_shards_one_after_the_other_are_the_single_batch(fake, name, count):
    source = fake(120, classes=10)
    options = dict(batch_size=16, seed=7, augment=HEAVY, order=STRATEGIES[name](source.labels))
    whole = take(batches(source, **options), 6)
    shards = [batches(source, **options, shard=(i, count)) for i in range(count)]
    parts = [take(shard, 6) for shard in shards]
    joined = [{key: np.concatenate([p[k][key] for p in parts]) for key in whole[0]} for k in range(6)]
    assert_same(joined, whole)
    assert len({json.dumps(shard.get_state()) for shard in shards}) == 1


def test_the_same_record_is_augmented_again_at_every_place(fake):
    source = fake(8, classes=2)
    order = ClassUniform(source.labels, per_class=4)
    (batch,) = take(batches(source, batch_size=8, seed=0, augment=Augment(flip=0.5), order=order), 1)
    once = take(batches(source, batch_size=8, seed=0, order=order), 1)[0]
    np.testing.assert_array_equal(which(once), order(0, batch_size=8, seed=0))
    np.testing.assert_array_equal(once["label"], source.labels[which(once)])
    np.testing.assert_array_equal(batch["label"], once["label"])
    flipped = (batch["image"] != once["image"]).any(axis=(1, 2, 3))
    assert 0 < flipped.sum() < 8


def test_a_position_belongs_to_its_strategy(fake):
    source = fake(120, classes=10)
    streams = {
        "none": batches(source, batch_size=16, seed=0),
        **{k: batches(source, batch_size=16, seed=0, order=make(source.labels)) for k, make in STRATEGIES.items()},
        "two": batches(source, batch_size=16, seed=0, order=ClassUniform(source.labels, per_class=2)),
    }  # fmt: skip
    for name, stream in streams.items():
        for other, another in streams.items():
            if name == other:
                another.set_state(stream.get_state())
            else:
                with pytest.raises(UserError, match=r"^order: the saved data position was made with"):
                    another.set_state(stream.get_state())
    # A position from before there were strategies.
    old = {key: value for key, value in streams["none"].get_state().items() if key != "order"}
    streams["none"].set_state(old)


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(fake):
    source = fake(120, classes=10)
    order = ClassUniform(source.labels, per_class=4)
    expected = take(batches(source, batch_size=16, seed=1, augment=HEAVY, order=order), 6)
    stream = batches(source, batch_size=16, seed=1, augment=HEAVY, order=order, workers=2, prefetch=2)
    assert_same(take(stream, 6), expected)
    stream.close()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (dict(per_class=0), "per_class: needs an integer from 1, got 0"),
        (dict(per_class=3), "per_class: needs a divisor of the batch of 40, got 3"),
        (dict(per_class=1), "per_class: needs at least 2 to fill a batch of 40 from 30 classes, got 1"),
    ],
)
def test_refusals(fake, wrong, words):
    source = fake(120, classes=30)
    for make in (ClassUniform, lambda labels, **more: SuperclassUniform(labels, GROUPS, **more)):
        with pytest.raises(UserError) as caught:
            batches(source, batch_size=40, seed=0, order=make(source.labels, **wrong))
        assert str(caught.value) == words


def test_a_strategy_without_records_or_superclasses():
    with pytest.raises(UserError, match="labels"):
        ClassUniform(np.zeros(0, int))
    with pytest.raises(ValueError, match="superclasses: needs one per class"):
        SuperclassUniform(LABELS, GROUPS[:29])


def test_what_is_no_order_is_refused(fake):
    class Wrong:
        name = "wrong"

        def __init__(self, rows):
            self.rows = np.array(rows)

        def __call__(self, step, *, batch_size, seed):
            return self.rows

    for rows in ([0, 1], [0, 1, 2, 10], [-1, 0, 1, 2]):
        with pytest.raises(ValueError, match="order: needs 4 records of 10 per step, wrong gives"):
            batches(fake(10), batch_size=4, seed=0, order=Wrong(rows))
    for option in ("shuffle", "repeat", "drop_remainder"):
        with pytest.raises(ValueError, match="a strategy has no epochs"):
            batches(fake(10), batch_size=4, seed=0, order=Wrong([0, 1, 2, 3]), **{option: False})


def test_superclasses_are_the_clusters_of_class_means():
    rng = np.random.default_rng(1)
    centers = rng.normal(size=(4, 16))
    truth = rng.permutation(np.repeat(np.arange(4), 10))
    labels = np.repeat(np.arange(40), 5)
    embeddings = (centers[truth][labels] + 0.2 * rng.normal(size=(200, 16))) * rng.uniform(0.1, 9, (200, 1))
    means = class_means(embeddings, labels, 41)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    np.testing.assert_allclose(means[3], unit[15:20].mean(0), rtol=1e-12)
    assert (means[40] == 0).all()
    found = superclasses(means[:40], 4, seed=0)
    assert found.dtype == np.int32 and set(found) == {0, 1, 2, 3}
    assert len(set(zip(found.tolist(), truth.tolist(), strict=True))) == 4
    np.testing.assert_array_equal(found, superclasses(means[:40], 4, seed=0))


@pytest.mark.parametrize("count", [0, 6])
def test_superclasses_refuse(count):
    with pytest.raises(UserError, match=f"superclasses: needs an integer from 1 to 5, got {count}"):
        superclasses(np.eye(5), count, seed=0)
    with pytest.raises(UserError, match="finite"):
        superclasses(np.full((5, 2), np.nan), 2, seed=0)
