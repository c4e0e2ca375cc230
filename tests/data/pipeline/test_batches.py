import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxface.data.pipeline.batches import Relabeled, batches, corrupt_labels, evaluation_batches, stack
from jaxface.data.sources.folder import FolderSource
from jaxface.data.sources.images import encode_image
from jaxface.data.sources.source import InMemory, Subset, WithFields
from jaxface.data.transforms.augment import Augment
from jaxface.errors import UserError

HEAVY = Augment(flip=0.5, crop=0.5, color=0.5, blur=0.5, jpeg=0.5, occlusion=0.5, low_resolution=0.5)


def which(batch):
    """The numbers of the records in a batch."""
    return batch["image"][:, 1, 1, 0].astype(int) + 256 * batch["image"][:, 0, 0, 0].astype(int)


def take(stream, count):
    return [next(stream) for _ in range(count)]


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_an_epoch_is_every_record_once_and_the_next_is_another_order(fake):
    stream = batches(fake(300), batch_size=50, seed=0)
    first, second = (np.concatenate([which(b) for b in take(stream, 6)]) for _ in range(2))
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(300))
    assert (first != second).mean() > 0.9 and (first != np.arange(300)).mean() > 0.9
    other = np.concatenate([which(b) for b in take(batches(fake(300), batch_size=50, seed=1), 12)])
    # A neighboring seed shares no epoch, not even shifted by one.
    assert all((other[k * 300 :][:300] != e).mean() > 0.9 for k in (0, 1) for e in (first, second))


def test_fields_and_dtypes(fake):
    batch = next(batches(fake(10), batch_size=4, seed=0, shuffle=False))
    assert batch["image"].shape == (4, 6, 6, 3) and batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32 and batch["landmarks"].shape == (4, 5, 2)
    np.testing.assert_array_equal(batch["label"], [0, 1, 2, 3])
    assert batch["spoof"].dtype == np.int32


def test_deterministic_whatever_the_threads(fake):
    runs = [take(batches(fake(40), batch_size=16, seed=3, augment=HEAVY, prefetch=p), 9) for p in (1, 4, 16)]
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])
    other = take(batches(fake(40), batch_size=16, seed=4, augment=HEAVY), 9)
    assert any((a["image"] != b["image"]).any() for a, b in zip(runs[0], other, strict=True))


def test_augmentation_differs_between_epochs(fake):
    stream = batches(fake(8), batch_size=8, seed=0, shuffle=False, augment=Augment(flip=0.0, color=1.0))
    first, second = take(stream, 2)
    np.testing.assert_array_equal(first["label"], second["label"])
    assert (first["image"] != second["image"]).any(axis=(1, 2, 3)).mean() > 0.8


@pytest.mark.parametrize("taken", [0, 1, 2, 5, 11])
@pytest.mark.parametrize("drop", [True, False])
def test_a_restored_position_goes_on_exactly(fake, taken, drop):
    make = lambda: batches(fake(40), batch_size=16, seed=3, augment=HEAVY, drop_remainder=drop)  # noqa: E731
    whole = take(make(), 15)
    stream = make()
    take(stream, taken)
    state = json.loads(json.dumps(stream.get_state()))
    take(stream, 3)  # work done after the state was saved is forgotten
    stream.set_state(state)
    assert_same(take(stream, 15 - taken), whole[taken:])
    fresh = make()
    fresh.set_state(state)
    assert_same(take(fresh, 15 - taken), whole[taken:])
    assert fresh.get_state()["step"] == 15


def test_the_position_belongs_to_its_data(fake):
    state = batches(fake(40), batch_size=16, seed=3).get_state()
    for name, other in [
        ("seed", batches(fake(40), batch_size=16, seed=4)),
        ("batch_size", batches(fake(40), batch_size=8, seed=3)),
        ("data: .* 40 photographs then and 41 now", batches(fake(41), batch_size=16, seed=3)),
    ]:
        with pytest.raises(UserError, match=name):
            other.set_state(state)
    with pytest.raises(UserError, match="step"):
        batches(fake(40), batch_size=16, seed=3).set_state({**state, "step": -1})


def write_faces(root, people):
    """Folders of a few photographs each: person -> names of the files."""
    for person, names in people.items():
        (root / person).mkdir(parents=True)
        for name in names:
            (root / person / name).write_bytes(encode_image(np.zeros((8, 8, 3), np.uint8)))
    return root


FACES = {"a": ["1.png", "2.png"], "b": ["1.png", "2.png"], "c": ["1.png", "2.png"]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: (root / "a").rename(root / "zoe"), "other names of people"),
        (lambda root: (root / "a/1.png").rename(root / "a/3.png"), "other names of photographs"),
        (lambda root: (root / "a/1.png").unlink(), "6 photographs then and 5 now"),
        (lambda root: write_faces(root, {"d": ["1.png"]}), "7 now, 3 people then and 4 now"),
        (lambda root: (root / "a/1.png").rename(root / "b/3.png"), "other names of photographs"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_position_in_data_that_changed_is_refused(tmp_path, change, words, wrapped):
    def stream():
        source = FolderSource(tmp_path / "faces", image_size=8)
        if wrapped:
            source = WithFields(Subset(source, np.arange(len(source))), weight=np.ones(len(source)))
        return batches(source, batch_size=2, seed=0)

    write_faces(tmp_path / "faces", FACES)
    state = json.loads(json.dumps(stream().get_state()))
    stream().set_state(state)
    (tmp_path / "faces").rename(tmp_path / "moved")  # the folder may move, what is in it may not
    (tmp_path / "moved").rename(tmp_path / "faces")
    change(tmp_path / "faces")
    with pytest.raises(
        UserError, match=f"^data: the data changed since the run was saved: .*{words}"
    ) as caught:
        stream().set_state(state)
    assert "\n" not in str(caught.value)


def test_a_position_under_other_labels_is_refused(fake):
    labels = np.asarray(fake(40).labels)
    state = batches(fake(40), batch_size=8, seed=0, label_override=labels).get_state()
    batches(fake(40), batch_size=8, seed=0, label_override=labels.astype(np.int64)).set_state(state)
    with pytest.raises(UserError, match="other labels"):
        batches(fake(40), batch_size=8, seed=0, label_override=labels[::-1]).set_state(state)


@pytest.mark.parametrize("count", [2, 4])
def test_shards_one_after_the_other_are_the_single_batch(fake, count):
    options = dict(batch_size=16, seed=7, augment=HEAVY)
    whole = take(batches(fake(50), **options), 10)
    shards = [batches(fake(50), **options, shard=(i, count)) for i in range(count)]
    parts = [take(shard, 4) for shard in shards]
    states = [shard.get_state() for shard in shards]
    assert len({json.dumps(state) for state in states}) == 1  # any number of processes can resume from it
    for i, state in enumerate(states):
        fresh = batches(fake(50), **options, shard=(i, count))
        fresh.set_state(state)
        parts[i] += take(fresh, 6)
    joined = [{name: np.concatenate([p[k][name] for p in parts]) for name in whole[0]} for k in range(10)]
    assert_same(joined, whole)


def test_remainders(fake):
    stream = batches(fake(10), batch_size=4, seed=0)
    left_out = set()
    for _ in range(20):
        seen = np.concatenate([which(b) for b in take(stream, 2)])
        assert len(set(seen)) == 8  # a batch never mixes epochs
        left_out |= set(range(10)) - set(seen)
    assert len(left_out) > 5  # not always the same ones
    once = list(batches(fake(10), batch_size=4, seed=0, repeat=False))
    assert [len(which(b)) for b in once] == [4, 4]
    short = list(batches(fake(10), batch_size=4, seed=0, repeat=False, drop_remainder=False))
    assert [len(which(b)) for b in short] == [4, 4, 2]
    np.testing.assert_array_equal(np.sort(np.concatenate([which(b) for b in short])), np.arange(10))
    runs_on = np.concatenate(
        [which(b) for b in take(batches(fake(10), batch_size=4, seed=0, drop_remainder=False), 5)]
    )
    np.testing.assert_array_equal(np.sort(runs_on[:10]), np.arange(10))
    np.testing.assert_array_equal(np.sort(runs_on[10:]), np.arange(10))
    ended = batches(fake(10), batch_size=4, seed=0, repeat=False)
    list(ended)
    fresh = batches(fake(10), batch_size=4, seed=0, repeat=False)
    fresh.set_state(ended.get_state())
    assert list(fresh) == []


def test_user_mistakes(fake):
    for name, wrong in [
        ("batch_size", dict(batch_size=11)),
        ("batch_size", dict(batch_size=0)),
        ("batch_size", dict(batch_size=9, shard=(0, 2))),
        ("batch_size", dict(batch_size=8, shard=(2, 2))),
        ("seed", dict(batch_size=4, seed=-1)),
        ("workers", dict(batch_size=4, workers=-1)),
    ]:
        with pytest.raises(UserError, match=f"^{name}: needs") as caught:
            batches(fake(10), **{"seed": 0, **wrong})
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="drop_remainder"):
        batches(fake(10), batch_size=4, seed=0, repeat=False, drop_remainder=False, shard=(0, 2))


def test_a_corrupt_image_changes_neither_the_size_nor_the_labels(faces_folder):
    clean = FolderSource(faces_folder, image_size=12)
    expected = list(batches(clean, batch_size=10, seed=0, repeat=False))
    (faces_folder / "s2" / "2.png").write_bytes(b"rubbish")
    for _ in range(2):
        damaged = FolderSource(faces_folder, image_size=12)
        found = list(batches(damaged, batch_size=10, seed=0, repeat=False))
        assert damaged.corrupt == 1
        changed = 0
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_array_equal(a["label"], b["label"])
            assert a["image"].shape == b["image"].shape
            changed += int((a["image"] != b["image"]).any(axis=(1, 2, 3)).sum())
        assert changed == 1


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(faces_folder):
    source = FolderSource(faces_folder, image_size=12)
    expected = take(batches(source, batch_size=8, seed=1, augment=HEAVY), 9)
    stream = batches(source, batch_size=8, seed=1, augment=HEAVY, workers=2, prefetch=2)
    found = take(stream, 5)
    state = stream.get_state()
    stream.close()
    fresh = batches(source, batch_size=8, seed=1, augment=HEAVY, workers=1)
    fresh.set_state(state)
    assert_same(found + take(fresh, 4), expected)
    fresh.close()


@pytest.mark.parametrize("records, batch_size", [(10, 4), (8, 4), (3, 8), (1, 1)])
def test_evaluation_sees_every_record_once_in_one_shape(fake, records, batch_size):
    found = list(evaluation_batches(fake(records), batch_size))
    assert len(found) == -(-records // batch_size)
    for batch in found:
        assert all(len(value) == batch_size for value in batch.values())
        assert batch["valid"].dtype == bool
    seen = np.concatenate([which(b)[b["valid"]] for b in found])
    np.testing.assert_array_equal(seen, np.arange(records))
    last = found[-1]
    assert (which(last)[~last["valid"]] == records - 1).all()


def test_evaluation_refuses_nothing(fake):
    for source, size in [(fake(0), 4), (fake(4), 0)]:
        with pytest.raises(UserError, match="batch_size"):
            evaluation_batches(source, size)


def test_relabeled_and_label_override(fake):
    source = fake(12)
    labels = (source.labels + 1) % 4
    changed = Relabeled(source, labels)
    np.testing.assert_array_equal([changed[i]["label"] for i in range(12)], labels)
    np.testing.assert_array_equal(changed.labels, labels)
    assert source[0]["label"] == 0 and changed.class_names == source.class_names
    assert changed.image_shape == source.image_shape
    for batch in take(batches(source, batch_size=6, seed=0, label_override=labels), 4):
        np.testing.assert_array_equal(batch["label"], labels[which(batch)])
    for wrong in (labels[:5], labels + 4, labels.astype(np.float32)):
        with pytest.raises(ValueError, match="labels"):
            Relabeled(source, wrong)
    assert len(pickle.loads(pickle.dumps(changed.labels))) == 12


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.floats(0, 1), st.integers(2, 9), st.integers(0, 2**31))
def test_corrupt_labels_replaces_exactly_that_many(records, fraction, classes, seed):
    labels = np.random.default_rng(seed).integers(0, classes, records)
    noisy, flipped = corrupt_labels(labels, fraction, classes, seed=seed)
    assert noisy.dtype == np.int32 and flipped.dtype == bool
    assert flipped.sum() == round(fraction * records)
    np.testing.assert_array_equal(noisy != labels, flipped)
    assert noisy.min() >= 0 and noisy.max() < classes
    again, _ = corrupt_labels(labels, fraction, classes, seed=seed)
    np.testing.assert_array_equal(noisy, again)


def test_corrupt_labels_is_uniform_over_the_other_classes():
    noisy, flipped = corrupt_labels(np.full(40_000, 3), 1.0, 5, seed=0)
    assert flipped.all()
    np.testing.assert_allclose(
        np.bincount(noisy, minlength=5) / 40_000, [0.25, 0.25, 0.25, 0, 0.25], atol=0.01
    )
    assert (
        corrupt_labels(np.arange(100) % 7, 0.3, 7, seed=0)[0]
        != corrupt_labels(np.arange(100) % 7, 0.3, 7, seed=1)[0]
    ).any()
    for wrong in ((1.5, 5), (float("nan"), 5), (0.5, 1)):
        with pytest.raises(UserError, match="label_noise"):
            corrupt_labels(np.zeros(10, int), *wrong, seed=0)


def test_stack_names_the_field_that_differs():
    with pytest.raises(ValueError, match="image"):
        stack([{"image": np.zeros((2, 2))}, {"image": np.zeros((3, 2))}], 2)
    with pytest.raises(ValueError, match="depth"):
        stack([{"depth": np.zeros(2)}, {}], 2)
    with pytest.raises(ValueError, match="spoof"):
        stack([{"spoof": np.int32(1)}, {"spoof": 0.5}], 2)


def test_data_that_vanishes_is_one_line_from_the_stream_too(faces_folder):
    stream = batches(FolderSource(faces_folder, image_size=12), batch_size=30, seed=0)
    for path in (faces_folder / "s2").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="s2") as caught:
        next(stream)
    assert "\n" not in str(caught.value)


def test_stack_takes_records_as_they_come():
    """One image's memory may serve all of them."""
    image = np.zeros((2, 3), np.uint8)

    def records():
        for number in range(5):
            image[:] = number
            yield {"image": image, "label": np.int32(number)}

    batch = stack(records(), 5)
    np.testing.assert_array_equal(batch["image"], np.broadcast_to(np.arange(5)[:, None, None], (5, 2, 3)))
    np.testing.assert_array_equal(batch["label"], np.arange(5))
    assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32


@pytest.mark.parametrize("shards", [1, 2])
def test_several_batches_come_as_one_each_device_with_its_own_rows(fake, shards):
    """Row r of batch t is at r T + t, over the end of an epoch too; a memory that gathers gives the same."""
    source, settings = fake(40), dict(batch_size=12, seed=3)
    plain = [which(batch) for batch in take(batches(source, **settings), 8)]
    for records in (source, InMemory(source)):
        streams = [batches(records, **settings, consecutive=4, shard=(i, shards)) for i in range(shards)]
        for first in (0, 4):
            together = np.concatenate([which(next(stream)).reshape(-1, 4) for stream in streams])
            np.testing.assert_array_equal(together.T, plain[first : first + 4])


def test_records_in_memory_are_the_records(fake):
    source = WithFields(fake(30), spoof=np.arange(30, dtype=np.int32))
    memory = InMemory(source)
    for i in (0, 29):
        assert_same([memory[i]], [source[i]])
    assert_same([memory.take(np.array([3, 3, 1]))], [stack((source[i] for i in (3, 3, 1)), 3)])
    assert (len(memory), memory.image_shape) == (30, source.image_shape)
    for options in ({}, {"shuffle": False}, {"drop_remainder": False}):
        settings = dict(batch_size=7, seed=1, **options)
        assert_same(take(batches(memory, **settings), 6), take(batches(source, **settings), 6))
    assert_same(
        take(batches(memory, batch_size=7, seed=1, augment=Augment(flip=0.5)), 3),
        take(batches(source, batch_size=7, seed=1, augment=Augment(flip=0.5)), 3),
    )


def test_the_position_of_several_batches(fake):
    memory = InMemory(fake(40))
    stream = batches(memory, batch_size=10, seed=0, consecutive=2)
    take(stream, 3)
    state, rest = json.loads(json.dumps(stream.get_state())), take(stream, 2)
    again = batches(memory, batch_size=10, seed=0, consecutive=2)
    again.set_state(state)
    assert_same(take(again, 2), rest)
    with pytest.raises(
        UserError, match="consecutive: the saved data position was made with 2, this run has 4"
    ):
        batches(memory, batch_size=10, seed=0, consecutive=4).set_state(state)
    with pytest.raises(UserError, match="consecutive: needs an integer from 1, got 0"):
        batches(memory, batch_size=10, seed=0, consecutive=0)
    with pytest.raises(ValueError, match="consecutive: needs repeat"):
        batches(memory, batch_size=10, seed=0, consecutive=2, repeat=False)
