"""Labeled and unlabeled images side by side, by the published rule, resumable by one number."""

import itertools

import numpy as np
import pytest

from jaxface import data
from jaxface.data.sources.source import WithFields
from jaxface.errors import UserError

COCO = 118_287


@pytest.mark.parametrize(("percent", "number"), [(1, 1182), (2, 2365), (5, 5914), (10, 11828)])
def test_the_published_rule(percent, number):
    labeled, unlabeled = data.labeled_split(COCO, percent, fold=3)
    np.random.seed(3)  # noqa: NPY002 - as the published script
    published = np.random.choice(range(COCO), size=int(percent / 100.0 * COCO), replace=False)  # noqa: NPY002
    assert len(labeled) == number == len(published)
    np.testing.assert_array_equal(labeled, np.sort(published))
    assert len(np.intersect1d(labeled, unlabeled)) == 0 and len(labeled) + len(unlabeled) == COCO


def test_folds_differ_and_repeat():
    first, again, second = (data.labeled_split(1000, 10, fold=f)[0] for f in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, second)


def test_every_batch_is_groups_of_one_labeled_image_and_the_others():
    labeled, unlabeled = data.labeled_split(50, 20, fold=1)
    order = data.TwoStreams(labeled, unlabeled, ratio=4)
    rows = [order(step, batch_size=10, seed=0).reshape(2, 5) for step in range(15)]
    assert all(np.isin(r[:, 0], labeled).all() and np.isin(r[:, 1:], unlabeled).all() for r in rows)
    epoch = np.concatenate([r[:, 1:].ravel() for r in rows[:5]])  # 40 images without labels, 8 of a step
    assert sorted(epoch) == sorted(unlabeled)
    drawn = np.concatenate([r[:, 0] for r in rows])
    assert len(set(drawn)) > 5 and all(r[0, 0] != r[1, 0] for r in rows)
    np.testing.assert_array_equal(order(7, batch_size=10, seed=0), rows[7].ravel())
    assert not np.array_equal(order(7, batch_size=10, seed=1), rows[7].ravel())


def test_a_batch_has_one_shape():
    buckets = np.arange(60) % 3
    labeled, unlabeled = data.labeled_split(60, 30, fold=2)
    order = data.TwoStreams(labeled, unlabeled, ratio=2, buckets=buckets)
    for step in range(12):
        assert len(set(buckets[order(step, batch_size=6, seed=0)])) == 1


def test_one_pipeline_yields_both_and_resumes_anywhere():
    scenes = data.object_scenes(40, seed=0)
    labeled, unlabeled = data.labeled_split(40, 10)
    mask = np.isin(np.arange(40), labeled)
    views = data.TeacherStudentViews()

    def open_batches():
        return data.batches(
            WithFields(scenes, labeled=mask),
            batch_size=10,
            seed=3,
            augment=views,
            order=data.TwoStreams(labeled, unlabeled),
        )

    stream = open_batches()
    batches = list(itertools.islice(stream, 5))
    for batch in batches:
        assert batch["labeled"].reshape(2, 5).tolist() == [[True] + [False] * 4] * 2
        assert batch["image"].shape == batch["teacher_image"].shape == (10, 32, 32, 3)
        assert (batch["teacher_image"][batch["labeled"]] == 0).all()
    resumed = open_batches()
    state = list(itertools.islice(stream, 1)) and stream.get_state()
    resumed.set_state({**state, "step": 3})
    following = next(resumed)
    for name, value in batches[3].items():
        np.testing.assert_array_equal(following[name], value)
    other = data.batches(
        WithFields(scenes, labeled=mask),
        batch_size=10,
        seed=3,
        augment=views,
        order=data.TwoStreams(labeled[:2], unlabeled),
    )
    with pytest.raises(UserError, match="order: the saved data position"):
        other.set_state(state)
    for opened in (stream, resumed, other):
        opened.close()


def test_a_marked_source_keeps_what_it_knows_of_objects_and_shapes():
    scenes = data.object_scenes(4, seed=0)
    marked = WithFields(scenes, labeled=np.ones(4, bool))
    assert marked.max_objects == scenes.max_objects and not hasattr(marked, "buckets")
    scenes.buckets = np.arange(4)
    assert marked.buckets.tolist() == [0, 1, 2, 3]


def test_shards_of_whole_groups_are_the_batch():
    labeled, unlabeled = data.labeled_split(40, 10)
    source = WithFields(data.object_scenes(40, seed=0), labeled=np.isin(np.arange(40), labeled))
    order = data.TwoStreams(labeled, unlabeled)
    whole, *halves = (
        next(data.batches(source, batch_size=10, seed=0, order=order, shard=shard))
        for shard in ((0, 1), (0, 2), (1, 2))
    )
    np.testing.assert_array_equal(np.concatenate([h["image"] for h in halves]), whole["image"])
    assert all(h["labeled"].tolist() == [True, False, False, False, False] for h in halves)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: data.labeled_split(50, 1),
            "percent: needs at least 2 for one of 50 images to have labels, got 1",
        ),
        (lambda: data.labeled_split(50, 0), "percent: "),
        (lambda: data.TwoStreams(np.arange(0), np.arange(3)), "labeled: needs at least one image, got none"),
        (
            lambda: data.TwoStreams(*data.labeled_split(5, 100)),
            "unlabeled: needs at least one image, got none",
        ),
        (
            lambda: data.TwoStreams(np.array([0]), np.array([1, 2]), buckets=np.array([0, 0, 1])),
            "labeled: needs an image of each shape",
        ),
        (
            lambda: data.TwoStreams(np.arange(2), np.arange(2, 20))(0, batch_size=8, seed=0),
            "batch_size: needs a multiple of 5",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
