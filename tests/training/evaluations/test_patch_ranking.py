"""The ranking of patches by a network whose patches are the pixels' own values."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import training
from jaxface.data.sources.bundled import ArraySource
from jaxface.data.sources.source import WithFields
from jaxface.models import APViT

NETWORK = APViT(None, stem="strided", channels=(), keep_rates=(1.0,), dim=2, depth=1, heads=1, keep_num=5)


def test_by_hand():
    """3 x 3 pixels are 3 x 3 places; their score is twice the distance from middle gray."""
    images = np.full((3, 3, 3, 1), 128, np.uint8)
    images[0, 0, 0], images[0, 1, 1], images[0, 2, 2] = 255, 0, 200
    images[1, 0, 0] = 255
    boxes = np.array([[0, 0, 2, 2], [1, 1, 2, 2], [0, 0, 3, 3]], np.int32)  # the last leaves no other patch
    source = WithFields(ArraySource(images, np.zeros(3, int), ["one"]), box=boxes)
    params = jax.jit(NETWORK.init)(jax.random.key(0), jnp.zeros((1, 3, 3, 1)))["params"]
    params["patches"] = {"kernel": jnp.array([[[[1.0, -1.0]]]]), "bias": jnp.zeros(2)}
    state = types.SimpleNamespace(averaged_params={"backbone": params}, extra={})
    # First: 4 patches inside, of which two are above all five others and two tie with four of them and are below one.
    # Second: one inside, which ties with seven others and is below one.
    expected = np.mean([(2 * 5 + 2 * (4 / 2)) / 20, (7 / 2) / 8])
    assert training.PatchRanking(NETWORK, source)(state) == {"ranking/auc": float(expected)}
    nothing = WithFields(ArraySource(images[2:], np.zeros(1, int), ["one"]), box=boxes[2:])
    assert training.PatchRanking(NETWORK, nothing)(state) == {}
