"""FM-ViT: what branches may and may not know of each other, with every subset of the sensors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.models import FMViT, ViT, liveness, parameter_count

NAMES = ("rgb", "depth", "infrared")
SMALL = {"dim": 16, "heads": 2, "patch": 4, "blocks": ("self", "cross")}
RNG = np.random.default_rng(0)
IMAGES = {name: jnp.asarray(RNG.normal(size=(2, 16, 16, 3)), jnp.float32) for name in NAMES}
SUBSETS = np.array([bits for bits in itertools.product([False, True], repeat=3) if any(bits)])


def runner(**fields):
    """(network, compiled function of variables, images and available)."""
    model = FMViT(**{**SMALL, **fields})
    return model, jax.jit(lambda variables, images, there: model.apply(variables, images, available=there))


@pytest.fixture(scope="module")
def other():
    return runner()


@pytest.fixture(scope="module")
def unguided():
    return runner(guide="none")


@pytest.fixture(scope="module")
def variables(other):
    """Of the network whose classes look at each other, with fusion that does something."""
    return fused(jax.jit(other[0].init)(jax.random.key(0), IMAGES))


def fused(variables):
    out = variables["params"]["branches"]["block2"]["select"]["attention"]["out"]
    kernel = jnp.asarray(RNG.normal(size=out["kernel"].shape), jnp.float32)
    return changed(variables, kernel)


def changed(variables, kernel):
    """The same with another output layer of the fusion."""
    branches = variables["params"]["branches"]
    select = branches["block2"]["select"]
    attention = {**select["attention"], "out": {**select["attention"]["out"], "kernel": kernel}}
    block = {**branches["block2"], "select": {**select, "attention": attention}}
    return {"params": {"branches": {**branches, "block2": block}}}


def unfused(variables):
    return changed(variables, jnp.zeros((3, 16, 16)))


def stacked(outputs):
    return np.stack([outputs[name] for name in NAMES])


def test_a_static_subset_is_the_masked_one(other, variables):
    model, run = other
    names, there = ("rgb", "infrared"), [True, False, True]
    masked = run(variables, IMAGES, jnp.asarray(there))
    given = {name: IMAGES[name] for name in names}  # no image of the third is needed
    static = jax.jit(lambda variables, images: model.apply(variables, images, available=names[::-1]))
    alone = static(variables, given)
    assert set(alone) == set(names)  # what is compiled sorts a dict
    for name in names:
        np.testing.assert_allclose(alone[name], masked[name], atol=1e-5)
    # Each example with sensors of its own.
    each = np.array([there, [True, True, True]])
    rows = run(variables, IMAGES, jnp.asarray(each))
    for b, there in enumerate(each):
        whole = run(variables, IMAGES, jnp.asarray(there))
        np.testing.assert_allclose(stacked(rows)[there, b], stacked(whole)[there, b], atol=1e-5)


def test_without_guidance_and_fusion_a_crossing_block_is_an_ordinary_one(unguided, variables):
    plain, run_plain = runner(blocks=("self", "self"))
    branches = dict(variables["params"]["branches"])
    branches["block2"] = {k: v for k, v in branches["block2"].items() if k != "select"}
    for there in SUBSETS:
        found = unguided[1](unfused(variables), IMAGES, jnp.asarray(there))
        expected = run_plain({"params": {"branches": branches}}, IMAGES, jnp.asarray(there))
        np.testing.assert_allclose(stacked(found)[there], stacked(expected)[there], atol=1e-6)
    # And a branch of ordinary blocks is a ViT.
    run_vit = jax.jit(ViT(embedding=1, dim=16, depth=2, heads=2, patch=4).apply)
    for index, name in enumerate(NAMES):
        params = jax.tree.map(lambda leaf, i=index: leaf[i], branches)
        logits = run_vit({"params": params}, IMAGES[name])[:, 0]
        np.testing.assert_allclose(logits, expected[name], atol=1e-5)


def test_what_a_branch_knows_of_another(other, unguided, variables):
    noise = {**IMAGES, "depth": jnp.asarray(RNG.normal(size=(2, 16, 16, 3)), jnp.float32)}

    def moves(run, variables, there):
        before, after = (run(variables, images, jnp.asarray(there))["rgb"] for images in (IMAGES, noise))
        return bool((before != after).any())

    alone, pair = [True, False, False], [True, True, False]
    for _, run in (other, unguided):
        assert not moves(run, variables, alone)
        assert moves(run, variables, pair)
    assert not moves(unguided[1], unfused(variables), pair)  # its mask is all there is
    assert moves(other[1], unfused(variables), pair)
    _, run = runner(partners="itself")
    assert not moves(run, variables, pair)


def test_orders_do_not_matter(other, variables):
    _, run = other
    every = jnp.ones(3, bool)
    expected = run(variables, IMAGES, every)
    turned = run(variables, dict(reversed(IMAGES.items())), every)
    for name in NAMES:
        np.testing.assert_array_equal(turned[name], expected[name])
    order = RNG.permutation(16)

    def moved(image):
        patches = image.reshape(2, 4, 4, 4, 4, 3).swapaxes(2, 3).reshape(2, 16, 4, 4, 3)[:, order]
        return patches.reshape(2, 4, 4, 4, 4, 3).swapaxes(2, 3).reshape(image.shape)

    branches = variables["params"]["branches"]
    positions = branches["positions"]
    positions = positions.at[:, :, 1:].set(positions[:, :, 1:][:, :, order])
    permuted = {"params": {"branches": {**branches, "positions": positions}}}
    found = run(permuted, {name: moved(image) for name, image in IMAGES.items()}, every)
    for name in NAMES:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4)


def test_shared_branches():
    model = FMViT(**SMALL, modalities=("rgb", "depth"), share_branches=True)
    same = {name: IMAGES["rgb"] for name in ("rgb", "depth")}
    variables = jax.jit(model.init)(jax.random.key(0), same)
    own, shared = variables["params"]["branches"], variables["params"]["shared"]
    assert set(own) == {"patches", "class_token", "positions"} and not set(own) & set(shared)
    out = shared["block2"]["select"]["attention"]["out"]
    out["kernel"] = jnp.asarray(RNG.normal(size=out["kernel"].shape), jnp.float32)
    run = jax.jit(model.apply)
    first = run(variables, same)
    assert (first["rgb"] != first["depth"]).all()  # patches and positions are their own
    tied = jax.tree.map(lambda leaf: leaf.at[1].set(leaf[0]), own)
    found = run({"params": {"branches": tied, "shared": shared}}, same)
    np.testing.assert_allclose(found["rgb"], found["depth"], atol=1e-6)


def test_gray_images_are_repeated(other, variables):
    _, run = other
    gray = {name: image[..., 0] for name, image in IMAGES.items()}
    color = {name: jnp.repeat(image[..., None], 3, -1) for name, image in gray.items()}
    every = jnp.ones(3, bool)
    np.testing.assert_allclose(
        stacked(run(variables, gray, every)), stacked(run(variables, color, every)), atol=1e-6
    )


def test_random_guidance_is_drawn_from_its_key():
    model = FMViT(**SMALL, guide="random")
    variables = jax.jit(model.init)(jax.random.key(0), IMAGES)
    run = jax.jit(lambda variables, key: model.apply(variables, IMAGES, rngs={"guide": key}))
    first, second, again = (stacked(run(variables, jax.random.key(seed))) for seed in (1, 2, 1))
    assert (first != second).any()
    np.testing.assert_array_equal(first, again)
    jax.eval_shape(lambda: model.apply(variables, IMAGES))  # and without a key it runs, too


def test_parameters():
    def count(**fields):
        model = FMViT(**{"dim": 48, "heads": 4, "patch": 8, "blocks": ("self", "cross"), **fields})
        images = {name: jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32) for name in model.modalities}
        return parameter_count(jax.eval_shape(model.init, jax.random.key(0), images))

    plain = count(blocks=("self", "self"))
    crossing = 4 * (48 * 48 + 48) + 2 * 48  # query, key, value, output; their normalization
    assert count() == plain + 3 * crossing
    own = 192 * 48 + 48 + 48 + 17 * 48  # patches, class token, positions
    assert count(share_branches=True) == (count() - 3 * own) / 3 + 3 * own


def test_liveness():
    logits = jnp.array([[0.0, 2.0], [100.0, -100.0], [1.0, 1.0]])
    chances = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    np.testing.assert_allclose(liveness(logits), chances.mean(0), rtol=1e-6)
    found = liveness(dict(zip(NAMES, logits, strict=True)), jnp.array([True, True, False]))
    np.testing.assert_allclose(found, chances[:2].mean(0), rtol=1e-6)
    rows = jnp.array([[True, False, False], [False, False, True]])
    np.testing.assert_allclose(liveness(logits, rows), [chances[0, 0], chances[2, 1]], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"modalities": ()}, "modalities: needs different names"),
        ({"modalities": ("rgb", "rgb")}, "modalities: needs different names"),
        ({"blocks": ("self", "stb")}, "blocks: needs self and cross, got self, stb"),
        ({"blocks": ()}, "blocks: needs self and cross, got none"),
        ({"fraction": 0.0}, "fraction: needs a number above 0 and up to 1, got 0"),
        ({"fraction": 1.2}, "fraction: needs"),
        ({"threshold": 0.0}, "threshold: needs"),
        ({"heads": 3}, "dim: needs a multiple of heads, 3, got 16"),
        ({"guide": "both"}, "guide: needs one of other, union"),
        ({"alone": "none"}, "alone: needs one of all, own"),
        ({"combine": "and"}, "combine: needs one of sum, or"),
        ({"partners": "nobody"}, "partners: needs one of others, itself"),
    ],
)
def test_refused_networks(fields, words):
    with pytest.raises(UserError, match=words):
        FMViT(**{**SMALL, **fields})


@pytest.mark.parametrize(
    ("images", "available", "words"),
    [
        (IMAGES, (), "available: needs some of rgb, depth, infrared, got none"),
        (IMAGES, ("thermal",), "available: needs some of rgb, depth, infrared, got thermal"),
        ({"rgb": IMAGES["rgb"]}, None, "images: needs depth, infrared besides rgb"),
        ({**IMAGES, "depth": IMAGES["depth"][:, :8]}, None, "images: need one batch and size"),
        ({**IMAGES, "depth": IMAGES["depth"][:1]}, None, "images: need one batch and size"),
        ({**IMAGES, "depth": IMAGES["depth"][..., :2]}, None, "images: needs .* or gray"),
        ({n: i[:, :14] for n, i in IMAGES.items()}, None, "image_size: needs a multiple of the patch"),
    ],
)
def test_refused_calls(images, available, words):
    model = FMViT(**SMALL)
    with pytest.raises(UserError, match=words):
        jax.eval_shape(lambda: model.init(jax.random.key(0), images, available=available))
