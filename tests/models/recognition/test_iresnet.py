import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import axes, models
from jaxface.models.recognition.iresnet import Block


def images(count, size, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, size, size, 3)).astype(np.float32)


def initial(module, x, **options):
    """`init` as one program: operation by operation it would compile dozens."""
    return jax.jit(lambda x: module.init(jax.random.key(0), x, **options))(x)


def tiny(**fields):
    return models.create("iresnet_nano", **{"embedding": 16, "width": 0.25, **fields})


def embed(module, variables, x, **options):
    return module.apply(variables, x, train=True, mutable=["batch_stats"], **options)


def test_sface_block_has_no_norm_before_the_activation_and_subsamples_where_channels_match():
    x = jnp.asarray(images(2, 6)).repeat(3, axis=-1)[..., :8]
    names = {
        kind: set(initial(Block(8, 2, kind), x, train=False)["params"]) for kind in ("insightface", "sface")
    }
    assert names["insightface"] - names["sface"] == {"norm2", "shortcut_conv", "shortcut_norm"}
    assert names["sface"] == {"norm1", "conv1", "activation", "conv2", "norm3"}

    wider = initial(Block(16, 2, "sface"), x, train=False)["params"]
    assert wider["shortcut_conv"]["kernel"].shape == (1, 1, 8, 16)

    # With the branch's last scale at zero only the shortcut is left: every second pixel.
    block = Block(8, 2, "sface")
    variables = initial(block, x, train=False)
    variables["params"]["norm3"]["scale"] = jnp.zeros(8)
    np.testing.assert_array_equal(block.apply(variables, x, train=False), x[:, ::2, ::2])


def test_identity_shortcut_and_no_activation_after_the_sum():
    x = jnp.asarray(images(2, 4))
    block = Block(3, 1)
    variables = initial(block, x, train=False)
    variables["params"]["norm3"]["scale"] = jnp.zeros(3)
    np.testing.assert_array_equal(block.apply(variables, x, train=False), x)  # negative pixels stay


def test_parameters_of_the_sface_variant():
    def count(**fields):
        module = models.create("iresnet50", **fields)
        image = jax.ShapeDtypeStruct((1, 112, 112, 3), jnp.float32)
        return models.parameter_count(jax.eval_shape(lambda x: initial(module, x, train=False), image))

    units = {64: 3, 128: 4, 256: 14, 512: 3}
    norms = sum(2 * channels * count for channels, count in units.items())
    first_shortcut = 64 * 64 + 2 * 64
    assert count() - count(block="sface") == norms + first_shortcut - 512  # its last scale is learned


def test_convolutions_of_the_sface_unit_start_as_in_its_release():
    """normal(2 sqrt(2 / fan_out)), where the other unit has normal(0.1)."""
    module = models.create("iresnet10", width=0.5, block="sface", embedding=8)
    params = initial(module, images(1, 32), train=False)["params"]
    for name in ("conv1", "conv2"):
        kernel = params["stage4_block1"][name]["kernel"]
        assert float(kernel.std()) == pytest.approx(2 * (2 / (9 * kernel.shape[-1])) ** 0.5, rel=0.02)


def test_initialization_follows_the_published_rule():
    params = initial(models.create("iresnet10", width=0.5), images(1, 32), train=False)["params"]
    assert float(jnp.std(params["stage4_block1"]["conv1"]["kernel"])) == pytest.approx(0.1, rel=0.01)
    bound = params["head_dense"]["kernel"].shape[0] ** -0.5
    assert 0.99 * bound < float(jnp.max(jnp.abs(params["head_dense"]["kernel"]))) <= bound
    np.testing.assert_array_equal(params["stem_activation"]["slope"], 0.25)


def test_gradients_are_finite_and_reach_every_parameter():
    module, x = tiny(), images(4, 24)
    variables = initial(module, x, train=False)

    @jax.jit
    def gradient(params):
        # Batch statistics make the embeddings' sum constant, so the loss must be nonlinear.
        return jax.grad(lambda p: jnp.sum(jnp.sin(embed(module, {**variables, "params": p}, x)[0])))(params)

    gradients = gradient(variables["params"])
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert jnp.all(jnp.isfinite(leaf)), path
        assert jnp.any(leaf != 0), path


def test_bfloat16_is_close_to_float32():
    x = images(16, 24)
    variables = initial(tiny(), x, train=False)
    single, _ = jax.jit(lambda v: embed(tiny(), v, x))(variables)
    half, updated = jax.jit(lambda v: embed(tiny(dtype=jnp.bfloat16), v, x))(variables)
    assert half.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype("float32")}
    cosine = jnp.sum(single * half, -1) / jnp.linalg.norm(single, axis=-1) / jnp.linalg.norm(half, axis=-1)
    assert float(cosine.min()) > 0.99
    assert float(jnp.max(jnp.abs(single - half))) > 0  # the compute type did change


def test_dropout_draws_from_its_own_key():
    module, x = tiny(dropout=0.5), images(4, 24)
    variables = initial(module, x, train=False)
    run = jax.jit(lambda seed: embed(module, variables, x, rngs={"dropout": jax.random.key(seed)})[0])
    assert jnp.array_equal(run(0), run(0))
    assert not jnp.allclose(run(0), run(1))


def test_pmap_over_eight_devices_equals_jit_over_the_whole_batch():
    module, x = tiny(), images(16, 24) * np.linspace(0.2, 1.0, 16, dtype=np.float32)[:, None, None, None]
    variables = initial(module, x, train=False)

    def gradient(x):
        def loss(params):
            embeddings, updated = embed(module, {**variables, "params": params}, x)
            return jnp.mean(jnp.sin(embeddings)), updated

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    whole = jax.jit(gradient)(x)
    replicas = jax.pmap(lambda x: axes.mean(gradient(x)), axis_name=axes.DATA)(x.reshape(8, 2, 24, 24, 3))
    for (path, a), b in zip(jax.tree.leaves_with_path(whole), jax.tree.leaves(replicas), strict=True):
        np.testing.assert_allclose(b, np.broadcast_to(a, b.shape), rtol=1e-3, atol=1e-5, err_msg=str(path))
