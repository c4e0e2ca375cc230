import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import data, training

rng = np.random.default_rng(0)
PIXELS, DEPTH = (rng.integers(0, 256, (20, 4, 4, 1), np.uint8) for _ in range(2))
SOURCE = data.WithFields(data.ArraySource(PIXELS, np.arange(20) % 5, list("abcde")), depth=DEPTH)
STRENGTH = data.RgbdCorruption.mixed((0.5, 0.9))


class Flat(nn.Module):
    embedding: int

    @nn.compact
    def __call__(self, image, *, train=False):
        return nn.Dense(self.embedding)(image.reshape(len(image), -1))


@pytest.fixture(scope="module")
def both():
    """Both networks and the `extra` that they live in."""
    teachers, extra = [], {}
    for number, (name, size) in enumerate((("rgb", 3), ("depth", 2))):
        model = Flat(size)
        params = model.init(jax.random.key(number), jnp.zeros((1, 4, 4, 1)))["params"]
        teachers.append(training.Teacher(model, key=name))
        extra[name] = {"params": params}
    return training.RgbdNetworks(*teachers, kinds=("none", "both"), strength=STRENGTH), extra


def floats(pixels):
    return (pixels.astype(np.float32) - 127.5) / 127.5


def test_unit_embeddings_and_their_lengths(both):
    networks, extra = both
    features = networks.describe_source(extra, SOURCE, size=8)  # the last block is padded
    for name, pixels in (("rgb", PIXELS), ("depth", DEPTH)):
        rows = floats(pixels).reshape(20, -1) @ extra[name]["params"]["Dense_0"]["kernel"]
        length = np.linalg.norm(rows, axis=1)
        np.testing.assert_allclose(getattr(features, f"{name}_norm"), length, rtol=1e-5)
        np.testing.assert_allclose(getattr(features, name), rows / length[:, None], atol=1e-5)


def test_corruption_of_a_source_is_the_same_again_and_another_under_another_seed(both):
    networks, extra = both
    first, second, other = (
        networks.describe_source(extra, SOURCE, kind, seed=seed, size=8).rgb
        for kind, seed in (("rgb", 1), ("rgb", 1), ("rgb", 2))
    )
    np.testing.assert_array_equal(first, second)
    clean = networks.describe_source(extra, SOURCE, size=8)
    assert (np.abs(first - other).max(1) > 1e-3).all() and (np.abs(first - clean.rgb).max(1) > 1e-3).all()
    depth = networks.describe_source(extra, SOURCE, "rgb", seed=1, size=8).depth
    np.testing.assert_array_equal(depth, clean.depth)


def test_kinds_are_drawn_among_those_that_a_pair_may_meet(both):
    networks, _ = both
    keys = jax.random.split(jax.random.key(0), 20)
    images, depth = networks.corrupt(keys, floats(PIXELS), floats(DEPTH))
    changed = [
        np.abs(np.asarray(a) - floats(b)).max((1, 2, 3)) > 0 for a, b in ((images, PIXELS), (depth, DEPTH))
    ]
    np.testing.assert_array_equal(*changed)  # none or both, never one of them
    assert 0 < changed[0].sum() < 20
    given = networks.corrupt(keys, floats(PIXELS), floats(DEPTH), jnp.zeros(20, jnp.int32))
    np.testing.assert_array_equal(given[0], floats(PIXELS))


def test_a_mesh_describes_as_one_device_does(both):
    networks, extra = both
    parallel = training.make_parallel("jit")
    on_mesh = parallel.create(lambda: extra, rules={})
    one, mesh = (networks.describe_source(e, SOURCE, size=8) for e in (extra, on_mesh))
    for a, b in zip(one, mesh, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
