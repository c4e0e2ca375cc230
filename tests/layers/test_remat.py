"""Rematerialized blocks: the same parameters, outputs, statistics and gradients, with less memory between the passes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import models
from jaxface.errors import UserError
from jaxface.models.detection import RetinaFace, RetinaNet, TinyYolo, cell_net
from jaxface.optimizers import selects

SMALL = {
    "vit_tiny": {"dim": 24, "depth": 3, "heads": 2, "patch": 4, "dropout": 0.1, "drop_path": 0.2},
    "iresnet_pico": {},
    "gdn_pyramid": {"channels": (4, 4), "hidden": 8},
    "binary_resnet_pico": {"channels": (8,), "stages": (2,)},
    "binary_small": {"width": 16},
    "condensed_net": {},
    "convnet": {},
    "face_resnet34": {"stages": (1, 1), "channels": (8, 8)},
    "metanet_tiny": {"repeats": (1, 1, 1, 1, 1, 2), "drop_path": 0.2},
    "mlp": {"hidden": (16, 16)},
    "mobilefacenet": {"channels": (64, 8, 8, 8), "hidden": ((8, 8),) * 3, "blocks": (1, 0, 0)},
    "mobilenet": {"stages": ((8, 1), (8, 1), (8, 1))},
    "mobilenet_v1_quarter": {"width": 0.05},
    "mobilenet_v2_quarter": {"width": 0.07},
    "plain_stages": {"channels": (8, 8), "steps": (2, 1), "norm": True},
    "quality_cnn": {"channels": (4, 8, 8)},
    "resnet18": {"stages": (1, 1), "channels": (8, 8), "small_images": True},
    "separable_net": {"channels": 8},
    "swin_tiny": {"dim": 12, "blocks": (2, 1), "heads": (2, 3), "window": 4},
}
LESS = {"vit_tiny": 0.95, "iresnet_pico": 0.9}
"""Most of the plain network's bytes."""
FAST = ("vit_tiny", "convnet", "tiny_yolo")


def slow(names):
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in names]


def detector(make, remat):
    return make(remat=remat).module


OTHERS = {
    "retinaface": functools.partial(detector, functools.partial(RetinaFace, features=8)),
    "tiny_yolo": functools.partial(
        detector, functools.partial(TinyYolo, widths=(4, 8, 8), pools=(2, 1), ccp_layers=(2,))
    ),
    "retinanet": functools.partial(
        detector,
        functools.partial(RetinaNet, trunk="resnet18", features=8, head_convs=1, strides=(8, 16, 32)),
    ),
    "cell_net": lambda remat: cell_net.CellNet(remat=remat),
}


def compiled(module, image):
    """(variables, (loss, (outputs, statistics), gradients), bytes between the passes) of one training step."""
    variables = jax.jit(lambda image: module.init(jax.random.key(0), image, train=False))(image)
    params = variables["params"]

    def loss(params, variables, image):
        outputs, updated = module.apply(
            {**variables, "params": params},
            image,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)},
        )
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(outputs)), (outputs, updated)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params, variables, image).compile()
    return variables, step(params, variables, image), step.memory_analysis().temp_size_in_bytes


def maker(name):
    return OTHERS.get(name) or functools.partial(models.create, name, embedding=8, **SMALL.get(name, {}))


@pytest.mark.parametrize("name", slow(LESS))
def test_a_network_is_the_same_and_takes_less_memory(name):
    image = np.random.default_rng(0).uniform(-1, 1, (8, 32, 32, 3)).astype(np.float32)
    (first, plain, stored), (second, again, less) = (
        compiled(maker(name)(remat=remat), image) for remat in ("none", "block")
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), plain, again)
    assert less <= LESS[name] * stored, (less, stored)


@pytest.mark.parametrize("name", slow([*SMALL, *OTHERS]))
def test_the_blocks_of_every_network_are_computed_again(name):
    """Traced: the same shapes of parameters, a checkpoint per block, and an order whose names select parameters."""
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    shapes, counts = [], []
    for remat in ("none", "block"):
        module = maker(name)(remat=remat)
        shapes.append(jax.eval_shape(lambda x, m=module: m.init(jax.random.key(0), x, train=False), image))
        run = functools.partial(
            module.apply, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
        )
        jaxpr = jax.make_jaxpr(run)(shapes[-1], image)
        counts.append(sum(equation.primitive.name in ("checkpoint", "remat2") for equation in jaxpr.eqns))
    assert shapes[0] == shapes[1]
    assert counts[0] == 0 < counts[1], counts
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree.leaves_with_path({"net": shapes[0]["params"]})
    ]
    for names in module.depth_order():
        assert any(selects(f"net/{name}", path) for name in names for path in paths), names


@pytest.mark.parametrize("name", models.names())
def test_every_network_declares_it_and_an_order_of_its_parts(name):
    module = models.create(name, embedding=8, remat="block")
    assert module.remat == "block" and len(module.depth_order()) > 1


def test_another_mode_is_refused():
    module = models.create("convnet", embedding=8, remat="all")
    with pytest.raises(UserError, match="remat: needs one of none, block, got 'all'"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
