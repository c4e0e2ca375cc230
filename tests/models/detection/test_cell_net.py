import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.models.detection import STRUCTURES, CellNet, context_weights

# Weights of a layer from 16 to 16 channels: the cascades are check 8 of the specification, the controls its reproduction.
WEIGHTS = {
    "pointwise": 256, "dense": 2304, "separable": 400, "bottleneck": 1120, "ddp": 384, "dc": 1088, "cc": 2048, "cd": 1088,
}  # fmt: skip


@pytest.mark.parametrize("structure", STRUCTURES)
def test_weights_and_shapes(structure):
    model, image = CellNet(structure), jax.ShapeDtypeStruct((2, 40, 40, 1), jnp.float32)
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)
    assert set(variables) == {"params"}
    assert context_weights(variables["params"]) == WEIGHTS[structure]
    logits = jax.eval_shape(functools.partial(model.apply, train=False), variables, image)
    assert logits.shape == (2, 20, 20) and logits.dtype == jnp.float32
    last = jax.tree_util.tree_leaves_with_path(
        {n: v for n, v in variables["params"].items() if "context" in n}
    )
    assert sum(path[-1].key == "bias" for path, _ in last) == 1


@pytest.mark.parametrize(
    ("structure", "view"),
    [("pointwise", 3), ("dc", 11), ("separable", 11)],
)
def test_fields_of_view(structure, view):
    """Pixels that a logit depends on: 3 of the first layer, and 2 · 2d more by a filter of dilation d after its stride of 2."""
    model, image = CellNet(structure, width=2, narrow=1), jnp.ones((1, 24, 24, 1))
    init = jax.jit(lambda: jax.tree.map(jnp.abs, model.init(jax.random.key(1), image)))
    params = init()  # positive, so that no rectifier is off

    def logit(image):
        return model.apply(params, image)[0, 6, 6]

    seen = np.asarray(jax.jit(jax.grad(logit))(image))[0, :, :, 0]
    for places in (np.flatnonzero(seen.any(0)), np.flatnonzero(seen.any(1))):
        assert places[-1] - places[0] + 1 == view and places[0] + places[-1] == 24


def test_an_unknown_structure():
    with pytest.raises(UserError, match=r"^structure: needs one of pointwise"):
        CellNet("same").init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
