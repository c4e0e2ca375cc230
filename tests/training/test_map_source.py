"""A function over all records of a source: in order, without the filling, on one device or on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxface import training
from jaxface.data import ArraySource
from jaxface.errors import UserError

COUNT = 37
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 2, 2, 3), np.uint8)
LABELS = (np.arange(COUNT) % 5).astype(np.int32)
SOURCE = ArraySource(IMAGES, LABELS, list("abcde"))
SCALE = np.float32(3)


@jax.jit
def describe(params, batch):
    sums = batch["image"].astype(jnp.float32).sum(axis=(1, 2, 3))
    return {
        "sum": params["scale"] * sums,
        "more": (batch["position"], batch["valid"], batch["label"][:, None]),
    }


def check(found):
    np.testing.assert_allclose(found["sum"], 3.0 * IMAGES.sum(axis=(1, 2, 3)), rtol=1e-6)
    position, valid, label = found["more"]
    np.testing.assert_array_equal(position, np.arange(COUNT))
    np.testing.assert_array_equal(label, LABELS[:, None])
    assert valid.all()
    assert all(isinstance(leaf, np.ndarray) and len(leaf) == COUNT for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("batch_size", [1, 16, 37, 64])
def test_every_record_once_and_in_order(batch_size):
    found = training.map_source(
        describe, SOURCE, {"scale": SCALE}, batch_size=batch_size, fields=("image", "label")
    )
    check(found)


@pytest.mark.parametrize("shape", [(8, 1), (4, 2)], ids=str)
def test_records_are_spread_over_the_mesh_of_the_parameters(shape):
    mesh = Mesh(np.array(jax.devices()).reshape(shape), ("data", "model"))
    placed = jax.device_put(SCALE, NamedSharding(mesh, PartitionSpec()))
    alone = jax.device_put(np.float32(1), jax.devices()[3])  # copied to the others
    sizes = []

    def fn(params, batch):
        assert set(batch) == {"image", "label", "valid", "position"}
        sizes.append({shard.data.shape[0] for shard in batch["image"].addressable_shards})
        return describe({"scale": params["scale"] * params["one"]}, batch)

    found = training.map_source(
        fn, SOURCE, {"one": alone, "scale": placed}, batch_size=13, fields=("image", "label")
    )
    check(found)
    assert sizes == [{2}] * 3  # 13 rounded up to 16, of 8 devices


def test_what_is_no_batch_is_refused():
    with pytest.raises(UserError, match=r"^batch_size: needs a positive number"):
        training.map_source(describe, SOURCE, {"scale": SCALE}, batch_size=0)
