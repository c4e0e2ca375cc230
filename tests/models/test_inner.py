import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import models
from jaxface.errors import UserError

CUTS = {"iresnet_pico": "stage3_block1", "convnet": "stage3"}
with_layer, from_layer = (
    jax.jit(function, static_argnames=("model", "layer", "train"))
    for function in (models.apply_with_layer, models.apply_from_layer)
)


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("train", [False, True])
def test_a_network_goes_on_from_its_layer(name, train):
    model, layer = models.create(name, embedding=8), CUTS[name]
    image = jnp.asarray(np.random.default_rng(0).normal(size=(3, 16, 16, 3)), jnp.float32)
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(image)
    options = dict(layer=layer, train=train)
    output, features, _ = with_layer(model, variables, image, **options)
    again = from_layer(model, variables, features, image, **options)
    np.testing.assert_allclose(again, output, rtol=1e-4, atol=1e-5)
    # Only the features matter: neither the image nor the parameters up to the layer do.
    changed = jax.tree.map(jnp.copy, variables)
    changed["params"][layer] = jax.tree.map(jnp.zeros_like, changed["params"][layer])
    again = from_layer(model, changed, features, jnp.zeros_like(image), **options)
    np.testing.assert_allclose(again, output, rtol=1e-4, atol=1e-5)
    moved = from_layer(model, variables, features * jnp.arange(3.0)[:, None, None, None], image, **options)
    assert jnp.abs(moved - output).max() > 1e-3
    assert models.layer_shapes(model, (16, 16, 3))[layer] == features.shape[1:]


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("cifar_resnet20", "stage3_block3"),
        ("resnet18", "stage4_block2"),
        ("face_resnet34", "stage4_block3"),
        ("mobilefacenet", "stage3_block3"),
    ],
)
def test_every_convolutional_network_can_be_cut(name, last):
    model, shape = models.create(name, embedding=8), (32, 32, 3)
    shapes = models.layer_shapes(model, shape)
    image = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    features = jax.ShapeDtypeStruct((2, *shapes[last]), jnp.float32)
    output = jax.eval_shape(
        lambda v, a, x: models.apply_from_layer(model, v, a, x, layer=last), variables, features, image
    )
    assert output.shape == (2, 8) and len(shapes[last]) == 3


def test_layers_in_the_order_in_which_they_run():
    found = list(models.layer_shapes(models.create("iresnet_pico", embedding=8), (64, 64, 3)))
    assert found.index("stem_conv") < found.index("stage1_block1") < found.index("stage3_block1")
    assert found[-1] == "head_embedding"


def test_an_unknown_layer():
    model = models.create("convnet", embedding=4)
    image = jnp.zeros((1, 8, 8, 1))
    variables = model.init(jax.random.key(0), image)
    with pytest.raises(
        UserError, match="layer: ConvNet has head_dense, stage1, stage2, stage3, got 'stage9'"
    ):
        models.apply_from_layer(model, variables, image, image, layer="stage9")
    with pytest.raises(UserError, match="channels, strides: need the same length"):
        models.create("convnet", strides=(1,))
