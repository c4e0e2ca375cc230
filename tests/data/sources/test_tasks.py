import numpy as np
import pytest

from jaxface.data import (
    ArraySource,
    TaskOrdered,
    TaskSpec,
    check_memory,
    check_tasks,
    exemplar_rows,
    session_source,
)
from jaxface.errors import UserError


def source(labels, classes):
    labels = np.asarray(labels)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    return ArraySource(images, labels, [f"c{i}" for i in range(classes)])


def test_classes_are_numbered_as_they_arrive():
    ordered = TaskOrdered(source([0, 1, 2, 3, 3, 1, 4], 5), ((3, 1), (0, 2)))
    assert ordered.class_names == ["c3", "c1", "c0", "c2"]
    assert ordered.labels.tolist() == [2, 1, 3, 0, 0, 1] and ordered.labels.dtype == np.int32
    assert ordered.tasks.tolist() == [1, 0, 1, 0, 0, 0] and ordered.ranges == [(0, 2), (2, 4)]
    # Images and labels stay together; class 4 is in no task.
    pairs = [(int(ordered[i]["image"][0, 0, 0]), int(ordered[i]["label"])) for i in range(len(ordered))]
    assert pairs == [(0, 2), (1, 1), (2, 3), (3, 0), (4, 0), (5, 1)]


def test_the_shuffled_order_is_that_of_its_seed_and_nothing_else():
    spec = TaskSpec(count=5, order="shuffled")
    tasks = spec.classes(100)
    assert tasks == spec.classes(100) != TaskSpec(count=5, order="shuffled", order_seed=1).classes(100)
    assert sorted(k for task in tasks for k in task) == list(range(100))
    assert tasks[0][:3] == tuple(np.random.default_rng(1993).permutation(100)[:3])


def test_the_published_memory():
    """2000 exemplars: 200 of each of 10 classes after the first session, 20 of each of 100 after the last; never more."""
    labels = np.tile(np.arange(100), 500)
    for session in range(10):
        seen = 10 * (session + 1)
        rows = exemplar_rows(labels, seen, 2000)
        counts = np.bincount(labels[rows], minlength=100)
        assert len(rows) <= 2000 and not counts[seen:].any()
        assert (counts[:seen] == 2000 // seen).all()
    assert np.array_equal(exemplar_rows(labels, 1, 3), [0, 100, 200])  # the first ones in order


@pytest.mark.parametrize("seed", [None, 3])
def test_lists_of_exemplars_only_ever_get_shorter(seed):
    labels = np.random.default_rng(0).integers(0, 4, 200)
    before = exemplar_rows(labels, 2, 24, seed=seed)
    after = exemplar_rows(labels, 4, 24, seed=seed)
    assert set(after[labels[after] < 2]) < set(before)
    assert np.array_equal(before, exemplar_rows(labels, 2, 24, seed=seed))


def test_a_drawn_memory_is_another_one():
    labels = np.zeros(50, np.int64)
    drawn = exemplar_rows(labels, 1, 5, seed=0)
    assert not np.array_equal(drawn, range(5)) and not np.array_equal(
        drawn, exemplar_rows(labels, 1, 5, seed=1)
    )


def test_a_session_has_its_task_and_the_memory_of_those_before():
    ordered = TaskOrdered(source(np.tile(np.arange(6), 10), 6), TaskSpec(count=3).classes(6))
    counts = [np.bincount(session_source(ordered, s, 8).labels, minlength=6).tolist() for s in range(3)]
    assert counts == [[10, 10, 0, 0, 0, 0], [4, 4, 10, 10, 0, 0], [2, 2, 2, 2, 10, 10]]
    assert np.bincount(session_source(ordered, 2, 0).labels, minlength=6).tolist() == [0, 0, 0, 0, 10, 10]
    together = session_source(ordered, 1, 8, keep_all=True)
    assert np.bincount(together.labels, minlength=6).tolist() == [10, 10, 10, 10, 0, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: check_tasks([[0, 1], [1, 2]], 3), "tasks: needs every class once, 1 is there 2 times"),
        (lambda: check_tasks([[0], [3]], 3), "tasks: needs classes from 0 to 2, got 3"),
        (lambda: check_tasks([], 3), "tasks: needs at least one task"),
        (lambda: check_tasks([[0], []], 3), "tasks: needs at least one task"),
        (lambda: TaskSpec(given=("0,1", "1,2")).classes(3), "tasks.given: needs every class once"),
        (lambda: TaskSpec(given=("0,a",)).classes(3), "tasks.given: needs numbers of classes"),
        (lambda: TaskSpec(count=3).classes(10), "tasks.count: needs a divisor of the 10 classes, got 3"),
        (lambda: TaskSpec(count=0).classes(10), "tasks.count: needs an integer from 1, got 0"),
        (lambda: check_memory(9, 10), "memory: needs at least one exemplar for each of 10 classes"),
        (lambda: exemplar_rows(np.arange(4), 4, 3), "memory: needs at least one exemplar"),
        (lambda: exemplar_rows(np.arange(4), 4, -1), "memory: needs an integer from 0"),
        (lambda: TaskOrdered(source([0, 0], 2), ((0,), (1,))), "data: needs records of every class.*'c1'"),
    ],
)
def test_refusals_name_the_argument(make, message):
    with pytest.raises(UserError, match=message):
        make()
