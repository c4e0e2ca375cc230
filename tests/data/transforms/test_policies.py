"""Policies of augmentation on uint8, and several copies of an image."""

import numpy as np
import pytest

from jaxface import data
from jaxface.data.transforms import policies
from jaxface.data.transforms.copies import Copies
from jaxface.data.transforms.policies import apply_operation, cifar10_policy, cut_hole, rand_augment
from jaxface.errors import UserError

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
OPERATIONS = [*policies._SIGNED, *policies._UNSIGNED]


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_operations_keep_shape_and_type(name, channels):
    image = np.ascontiguousarray(IMAGE[..., :channels])
    for magnitude, negative in ((0.0, False), (1.0, False), (1.0, True)):
        changed = apply_operation(image, name, magnitude, negative=negative)
        assert changed.shape == image.shape and changed.dtype == np.uint8
    if name in policies._SIGNED or name == "solarize":
        np.testing.assert_array_equal(apply_operation(image, name, 0.0), image)
    if name in policies._SIGNED and (channels == 3 or name != "color"):
        assert (apply_operation(image, name, 1.0) != apply_operation(image, name, 1.0, negative=True)).any()


def test_operations_by_hand():
    np.testing.assert_array_equal(apply_operation(IMAGE, "invert", 0.0), 255 - IMAGE)
    np.testing.assert_array_equal(apply_operation(IMAGE, "posterize", 1.0), IMAGE & 0xF0)
    half = apply_operation(IMAGE, "solarize", 0.5)
    np.testing.assert_array_equal(half, np.where(IMAGE < 128, IMAGE, 255 - IMAGE))
    np.testing.assert_array_equal(apply_operation(IMAGE, "solarize", 1.0), 255 - IMAGE)
    dark = apply_operation(IMAGE, "brightness", 1.0, negative=True)
    assert dark.max() <= 26 and np.abs(dark - 0.1 * IMAGE).max() <= 1
    moved = apply_operation(IMAGE, "translate_x", 10 / 32 * 331 / 150)
    np.testing.assert_array_equal(moved[:, :22], IMAGE[:, 10:])
    assert (moved[:, 22:] == 128).all()
    down = apply_operation(IMAGE, "translate_y", 10 / 32 * 331 / 150, negative=True)
    np.testing.assert_array_equal(down[10:], IMAGE[:22])
    gray = apply_operation(IMAGE, "color", 1.0, negative=True).astype(int)
    assert np.ptp(gray, axis=-1).max() <= 0.1 * 255 + 2


def test_the_policy_has_25_pairs_of_known_operations():
    """arXiv:1805.09501, table 7: sums of the probabilities and levels of its 50 operations."""
    pairs = policies._CIFAR10
    assert len(pairs) == 25 and {name for pair in pairs for name, _, _ in pair} <= set(OPERATIONS)
    assert all(0 <= p <= 1 and 0 <= level <= 9 for pair in pairs for _, p, level in pair)
    assert len(policies.RAND_AUGMENT) == len(set(policies.RAND_AUGMENT)) == 14
    assert set(policies.RAND_AUGMENT) <= set(OPERATIONS)


@pytest.mark.parametrize("policy", [cifar10_policy, rand_augment])
def test_policies_are_functions_of_their_generator(policy):
    images = [policy(IMAGE, np.random.default_rng(seed)) for seed in (*range(30), 0)]
    np.testing.assert_array_equal(images[0], images[-1])
    assert sum((image != IMAGE).any() for image in images) > 15
    assert len({image.tobytes() for image in images}) > 15


def test_rand_augment_of_strength_zero_moves_nothing():
    rng = np.random.default_rng(1)
    for _ in range(20):
        image = np.full((8, 8, 3), 100, np.uint8)
        assert (rand_augment(image, rng, magnitude=0.0) == image).mean() == 1.0


def test_a_hole_may_lie_partly_outside():
    white = np.full((32, 32, 3), 255, np.uint8)
    areas = [(cut_hole(white, np.random.default_rng(s), side=16) == 0).all(-1).sum() for s in range(200)]
    assert max(areas) == 256 and 64 <= min(areas) < 100 and (white == 255).all()


def test_augment_has_them_and_leaves_other_draws_alone():
    record = {"image": IMAGE, "label": np.int32(1)}

    def changed(seed=0, **fields):
        augment = data.Augment(**{"flip": 0.0, **fields})
        assert augment.active
        return augment.transform().random_map(record, np.random.default_rng(seed))["image"]

    for fields in ({"policy": "cifar10"}, {"policy": "rand"}, {"hole": 16}, {"noise": 0.1}):
        assert any((changed(seed, **fields) != IMAGE).any() for seed in range(5))
    noisy = np.concatenate([changed(seed, noise=0.05) for seed in range(5)]).astype(float)
    clean = np.concatenate([IMAGE] * 5)
    inner = (clean > 60) & (clean < 195)
    assert abs((noisy - clean)[inner].std() / 255 - 0.05) < 0.002
    shifted = changed(shift=4)
    holed = changed(shift=4, hole=8)
    kept = (holed != 0).all(-1)
    np.testing.assert_array_equal(holed[kept], shifted[kept])


def test_copies_differ_and_the_first_ones_stay():
    record = {"image": IMAGE, "label": np.int32(1)}
    augment = data.Augment(flip=0.5, shift=4)
    few, many = (
        Copies(augment, count).transform().random_map(record, np.random.default_rng(3)) for count in (2, 4)
    )
    assert few["image"].shape == (2, 32, 32, 3) and few["label"] == 1
    np.testing.assert_array_equal(many["image"][:2], few["image"])
    assert len({image.tobytes() for image in many["image"]}) == 4


def test_batches_of_copies_resume():
    source = data.ArraySource(np.stack([IMAGE] * 6), np.arange(6) % 2, ["a", "b"])

    def opened():
        return data.batches(source, batch_size=2, seed=1, augment=Copies(data.Augment(shift=2), 3))

    stream = opened()
    first = [next(stream) for _ in range(4)]
    assert first[0]["image"].shape == (2, 3, 32, 32, 3)
    resumed = opened()
    resumed.set_state({**stream.get_state(), "step": 2})
    np.testing.assert_array_equal(next(resumed)["image"], first[2]["image"])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: apply_operation(IMAGE, "melt", 0.5), "name: needs one of shear_x, .*, got 'melt'"),
        (lambda: apply_operation(IMAGE, "invert", 1.5), "magnitude"),
        (lambda: rand_augment(IMAGE, np.random.default_rng(0), magnitude=31), "magnitude"),
        (lambda: rand_augment(IMAGE, np.random.default_rng(0), operations=0), "operations"),
        (lambda: cut_hole(IMAGE, np.random.default_rng(0), side=0), "side"),
        (lambda: data.Augment(policy="best"), "policy"),
        (lambda: Copies(count=0), "count"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(UserError, match=words):
        call()
