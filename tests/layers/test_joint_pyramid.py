import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import layers
from jaxface.errors import UserError
from jaxface.layers.joint_pyramid import _resize, fuse_joint_pyramid
from pallas_kernels import dilated_conv


def pyramid(channels=(3, 4, 5), seed=0):
    rng = np.random.default_rng(seed)
    return tuple(
        jnp.asarray(rng.normal(size=(2, *plane, c)), jnp.float32)
        for plane, c in zip(((9, 8), (5, 4), (3, 2)), channels, strict=True)
    )


def trained(module, levels):
    rng = np.random.default_rng(1)

    def change(path, leaf):
        name = path[-1].key
        drawn = rng.uniform(0.5, 2, leaf.shape) if name == "var" else rng.normal(size=leaf.shape)
        return jnp.asarray(drawn, jnp.float32) if name in ("scale", "bias", "mean", "var") else leaf

    return jax.tree_util.tree_map_with_path(
        change, jax.jit(lambda: module.init(jax.random.key(0), levels, train=False))()
    )


@pytest.mark.parametrize(("kind", "weights"), [("separable", 800_256), ("ddp", 798_720)])
def test_weights_of_a_branch(kind, weights):
    module = layers.JointPyramidUpsample(kind=kind)
    levels = [jax.ShapeDtypeStruct((1, s, s, c), jnp.float32) for s, c in ((8, 512), (4, 1024), (2, 2048))]
    shapes = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), levels)["params"]
    for dilation in (1, 2, 4, 8):
        branch = [shapes[f"dilation{dilation}"], shapes[f"dilation{dilation}_pointwise"]]
        assert sum(leaf.size for leaf in jax.tree.leaves(branch)) == weights
    assert shapes["conv5"]["kernel"].shape == (3, 3, 2048, 512)
    # What a dense second stage would cost: 3.9 times as much.
    dense = sum(map(np.prod, layers.cascade_shapes("dc", 1536, 512).values()))
    assert dense == 3_151_872 and round(dense / weights, 1) == 3.9


def test_the_deployment_form_gives_what_the_training_form_gives_and_cascades_are_their_composed_taps():
    cascades, separable = (
        layers.JointPyramidUpsample(4, dilations=(1, 4), kind=kind) for kind in ("ddp", "separable")
    )
    levels = pyramid()
    variables = trained(cascades, levels)

    @jax.jit
    def forms(variables, levels):
        params = dict(variables["params"])
        for name in ("dilation1", "dilation4"):
            params[name] = {"taps": dilated_conv.compose_taps(params[name]["a"], params[name]["b"])}
        composed = {**variables, "params": params}
        return (
            cascades.apply(variables, levels, train=False),
            fuse_joint_pyramid(cascades, variables, levels),
            separable.apply(composed, levels, train=False),
            fuse_joint_pyramid(separable, composed, levels),
        )

    y, *others = forms(variables, levels)
    assert y.shape == (2, 9, 8, 8)
    for other in others:
        np.testing.assert_allclose(other, y, atol=1e-5 * float(y.max()))


def test_levels_go_to_the_first_plane_from_corner_to_corner():
    x = jnp.asarray([[0.0, 4.0], [8.0, 12.0]]).reshape(1, 2, 2, 1)
    raised = _resize(x, (3, 5))[0, :, :, 0]
    np.testing.assert_allclose(raised, [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [8, 9, 10, 11, 12]], atol=1e-6)
    np.testing.assert_allclose(_resize(x[:, :1], (2, 2))[0, :, :, 0], [[0, 4], [0, 4]], atol=1e-6)
    np.testing.assert_allclose(_resize(x, (1, 1)).ravel(), [0])


@pytest.mark.parametrize(
    ("fields", "levels", "words"),
    [
        ({"kind": "dc"}, pyramid(), "kind: needs one of separable, ddp, got 'dc'"),
        ({"dilations": ()}, pyramid(), "dilations: needs numbers from 1"),
        ({"dilations": (0,)}, pyramid(), "dilations: needs numbers from 1"),
        ({}, pyramid()[:2], "levels: needs three"),
    ],
)
def test_refusals(fields, levels, words):
    with pytest.raises(UserError, match=f"^{words}"):
        layers.JointPyramidUpsample(4, **fields).init(jax.random.key(0), levels, train=False)
