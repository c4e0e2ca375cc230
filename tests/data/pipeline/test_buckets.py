"""Batches of one shape, every record once in an epoch, resumable by one number."""

import numpy as np
import pytest

from jaxface import data
from jaxface.errors import UserError

BUCKETS = np.array([0, 1, 0, 2, 1, 0, 0, 1, 0, 0, 1, 0])  # 7 of 0, 4 of 1, 1 of 2


class Shapes:
    """Records whose image has one of three shapes, and tells its own number."""

    class_names = ("thing",)
    image_shape = (4, 4, 3)

    def __init__(self, buckets=BUCKETS):
        self.buckets, self.labels = buckets, np.zeros(len(buckets), np.int32)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = np.full((4, 4 + 2 * int(self.buckets[index]), 3), index, np.uint8)
        return {"image": image, "label": self.labels[index]}


def steps(order, count, *, batch_size=2, seed=0):
    return [order(step, batch_size=batch_size, seed=seed) for step in range(count)]


def test_an_epoch_has_every_record_once_but_those_that_fill_no_batch():
    order = data.BucketOrder(BUCKETS)
    for epoch in range(6):  # 3 batches of bucket 0 and 2 of bucket 1
        drawn = steps(order, 5 * (epoch + 1))[5 * epoch :]
        assert all(len(set(BUCKETS[rows])) == 1 for rows in drawn)
        rows = np.concatenate(drawn)
        assert len(set(rows)) == 10 and set(BUCKETS[rows]) == {0, 1}
    left_out = [
        set(np.flatnonzero(BUCKETS == 0)) - set(np.concatenate(steps(order, 5 * k + 5)[5 * k :]))
        for k in range(9)
    ]
    assert len(set.union(*left_out)) > 1
    first, second = steps(order, 5), steps(order, 5, seed=1)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(order(3, batch_size=2, seed=0), first[3])


def test_batches_of_several_shapes_resume_anywhere():
    source = Shapes()
    arguments = dict(batch_size=2, seed=4, order=data.bucket_order(source))
    stream = data.batches(source, **arguments)
    whole = [next(stream) for _ in range(12)]
    assert len({batch["image"].shape for batch in whole}) == 2
    again = data.batches(source, **arguments)
    again.set_state({**stream.get_state(), "step": 7})
    for batch in whole[7:]:
        np.testing.assert_array_equal(next(again)["image"], batch["image"])
    stream.close()
    again.close()
    halves = [data.batches(source, **arguments, shard=(k, 2)) for k in range(2)]
    for batch in whole[:4]:
        joined = np.concatenate([next(half)["image"] for half in halves])
        np.testing.assert_array_equal(joined, batch["image"])
    for half in halves:
        half.close()


def test_evaluation_sees_every_record_and_says_which():
    seen = []
    for batch in data.bucket_evaluation_batches(Shapes(), 3):
        assert batch["image"].shape[0] == 3 and batch["position"].dtype == np.int32
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["position"])
        seen += batch["position"][batch["valid"]].tolist()
    assert sorted(seen) == list(range(12))
    one_shape = [b["position"].tolist() for b in data.bucket_evaluation_batches(Shapes(np.zeros(5, int)), 4)]
    assert one_shape == [[0, 1, 2, 3], [4, 4, 4, 4]]


def test_one_shape_needs_no_strategy():
    assert data.bucket_order(Shapes(np.ones(5, int))) is None
    assert data.bucket_order(data.VectorSource(np.eye(2), [0, 1])) is None
    assert data.bucket_order(Shapes()).name == "buckets"


def test_what_fills_no_batch_is_refused():
    with pytest.raises(UserError, match=r"^batch_size: needs at most the 7 records of one shape, got 8$"):
        data.BucketOrder(BUCKETS)(0, batch_size=8, seed=0)
    with pytest.raises(UserError, match=r"^buckets: needs at least one record"):
        data.BucketOrder(np.zeros(0, int))
    with pytest.raises(UserError, match=r"^batch_size: needs an integer from 1"):
        next(data.bucket_evaluation_batches(Shapes(), 0))
