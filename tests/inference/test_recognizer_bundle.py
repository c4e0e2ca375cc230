"""Recognizers in one folder, in a run and in published files: what comes back, and what is refused."""

import functools
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxface import inference, interop, models
from jaxface.errors import UserError
from jaxface.layers import BinaryConv, RBOConv

SHAPE = (8, 8, 3)


def made(**fields) -> inference.RecognizerBundle:
    """A perceptron with fixed weights behind the preprocessing of `fields`."""
    shape = fields.get("image_shape", SHAPE)
    module = models.create("mlp_8", embedding=4)
    variables = module.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), variables)
    return inference.RecognizerBundle(
        **{"module": module, "variables": variables, "image_shape": shape, **fields}
    )


@pytest.fixture(scope="module")
def bundle():
    threshold = inference.Threshold(0.3, 1e-3, "some people")
    return made(threshold=threshold, license="mine", origin="random numbers", flip=True)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (5, *SHAPE), np.uint8)


def expected(bundle, images, levels):
    """Unit embeddings by the formula, in float64 after the network; `levels` makes of RGB what the module sees."""

    def view(pixels):
        x = (levels(pixels.astype(np.float32)) - bundle.mean) / bundle.std
        return np.asarray(bundle.module.apply(bundle.variables, x, train=False), np.float64)

    features = view(images) + (view(images[:, :, ::-1]) if bundle.flip else 0)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def gray(x):
    return (x @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]


@pytest.mark.parametrize(
    ("fields", "levels"),
    [
        ({}, lambda x: x),
        ({"flip": True}, lambda x: x),
        ({"color": "bgr", "mean": 120.0, "std": 64.0}, lambda x: x[..., ::-1]),
        ({"color": "gray", "image_shape": (8, 8, 1)}, gray),
    ],
)
def test_embeddings_are_the_network_behind_its_preprocessing(images, fields, levels):
    bundle = made(**fields)
    ours = bundle.embed(images, batch_size=4)
    assert ours.dtype == np.float32 and ours.shape == (5, 4) == (5, bundle.dim)
    np.testing.assert_allclose(ours, expected(bundle, images, levels), atol=2e-5)
    np.testing.assert_allclose(ours, bundle.embed(images), atol=1e-6)
    assert bundle.embed(images[:0]).shape == (0, 4)


def test_gray_crops_are_repeated_over_the_channels(images):
    bundle, light = made(), images[..., :1]
    np.testing.assert_allclose(bundle.embed(light), bundle.embed(np.repeat(light, 3, axis=-1)), atol=1e-6)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), "needs uint8"),
        (np.zeros((8, 8, 3), np.uint8), r"needs uint8 \[B, H, W, 3 or 1\]"),
        (np.zeros((1, 8, 9, 3), np.uint8), "needs crops of 8 x 8 pixels"),
    ],
)
def test_what_is_no_crop_is_refused(bundle, images, words):
    with pytest.raises(ValueError, match=words):
        bundle.embed(images)


def test_a_folder_holds_all_of_a_bundle(bundle, images, tmp_path):
    inference.save_bundle(tmp_path / "b", bundle)
    again = inference.open_recognizer(tmp_path / "b")
    assert again.description() == bundle.description() and again.module == bundle.module
    assert again.threshold == bundle.threshold and again.identity == bundle.identity
    np.testing.assert_array_equal(again.embed(images), bundle.embed(images))


def test_identity_is_that_of_what_makes_the_embeddings(bundle):
    """Not of what people say of it: a new threshold or license leaves a gallery valid."""
    assert len(bundle.identity) == 32
    variables = jax.tree.map(np.copy, dict(bundle.variables))
    alike = made(variables=variables, flip=True)
    assert alike.identity == bundle.identity
    next(iter(jax.tree.leaves(variables)))[...] += 1e-3
    others = [
        made(variables=variables, flip=True),
        made(),
        made(flip=True, mean=127.0),
        made(flip=True, alignment=None),
    ]
    assert len({bundle.identity, *(other.identity for other in others)}) == 5


@pytest.mark.parametrize(
    "module",
    [
        models.create("iresnet50", embedding=128, dropout=0.4),
        models.create("mlp_16x8", embedding=None),
        models.create("mobilefacenet_large", dtype=jnp.bfloat16),
        models.create("vit_tiny", embedding=64),
        models.create("binary_small", conv=functools.partial(RBOConv, tau=0.5, variant="released")),
        models.create(
            "binary_resnet18", conv=functools.partial(BinaryConv, real_weights=True, dtype=jnp.bfloat16)
        ),
    ],
    ids=lambda module: type(module).__name__,
)
def test_a_network_survives_json(module):
    description = json.loads(json.dumps(models.describe(module)))
    again = models.from_description(description)
    # Partial applications are equal only to themselves; what they say is compared.
    assert type(again) is type(module) and models.describe(again) == models.describe(module)
    if "conv" not in description:
        assert again == module
    else:
        assert again.conv.func is module.conv.func and again.conv.keywords == module.conv.keywords


def test_every_registered_network_has_its_name():
    for name in models.names():
        if name != "mlp":
            description = models.describe(models.create(name, embedding=8))
            assert description["name"] == name
            assert (
                models.describe(models.from_description(json.loads(json.dumps(description)))) == description
            )


def change(folder, **fields):
    file = folder / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def network(folder, **fields):
    change(folder, network=json.loads((folder / "bundle.json").read_text())["network"] | fields)


def spoil(folder, edit):
    tensors = load_file(folder / "weights.safetensors")
    edit(tensors)
    save_file(tensors, folder / "weights.safetensors")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: change(f, format=2), "has format 2, this jaxface 1 at most"),
        (lambda f: change(f, format=0), "needs format 1, got 0"),
        (lambda f: (f / "bundle.json").write_text('{"model_type": "vit"}'), "is not of jaxface"),
        (lambda f: (f / "bundle.json").write_text("[]"), "needs a JSON object"),
        (lambda f: (f / "bundle.json").write_text("[" * 100_000), "cannot be read as JSON"),
        (lambda f: (f / "bundle.json").write_text(" " * (2 << 20)), "needs at most 1048576 bytes"),
        (lambda f: (f / "bundle.json").unlink(), "holds no bundle.json"),
        (lambda f: (f / "weights.safetensors").unlink(), "lacks weights.safetensors"),
        (lambda f: (f / "weights.safetensors").write_bytes(b"\0" * 40), "cannot be read as safetensors"),
        (lambda f: spoil(f, lambda t: t.popitem()), "another architecture"),
        (lambda f: spoil(f, lambda t: t.update(x=np.zeros(3, np.float32))), "x is .3,., and nothing"),
        (lambda f: spoil(f, lambda t: next(iter(t.values())).fill(np.nan)), "needs finite floats"),
        (lambda f: spoil(f, lambda t: next(iter(t.values())).fill(1)), "its weights are not those"),
        (lambda f: change(f, image_size="8"), "integer image_size"),
        (lambda f: change(f, image_size=10**9), "image_size from 1 to 4096"),
        (lambda f: change(f, color="cmyk"), "a color of rgb, bgr, gray"),
        (lambda f: change(f, normalization={"mean": 0, "std": 0}), "std > 0"),
        (lambda f: change(f, alignment="mine"), "an alignment of arcface"),
        (lambda f: change(f, flip=1), "true or false as flip"),
        (lambda f: change(f, threshold={"value": 2}), "a threshold of value"),
        (lambda f: change(f, license=3), "a text or null as license"),
        (lambda f: change(f, network=3), "an object with the name of a network"),
        (lambda f: change(f, kind="teapot"), "a kind, recognizer or detector"),
        (lambda f: network(f, name="mpl"), r"needs one of \d+ known names, got 'mpl'"),
        (lambda f: network(f, embedding=10**15), "needs numbers up to"),
        (lambda f: network(f, hidden=[1 << 20, 1 << 20]), "another architecture"),
        (lambda f: network(f, hidden=["x"]), "describes an impossible network"),
        (lambda f: network(f, hidden=[8] * 1000), "too many values"),
        (lambda f: network(f, dtype="int8"), "needs float32, bfloat16 or float16"),
        (lambda f: network(f, depth=5), "has no field depth"),
        (lambda f: change(f, network={"name": "iresnet50", "stages": [10**6]}), "needs at most 512 units"),
        (lambda f: change(f, network={"name": "binary_small", "conv": {"layer": "os"}}), "needs a layer of"),
    ],
)
def test_damaged_bundles_are_refused_in_a_line(bundle, tmp_path, damage, words):
    inference.save_bundle(tmp_path, bundle)
    damage(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        inference.open_recognizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_that_claim_to_be_huge_are_not_read(bundle, tmp_path, monkeypatch):
    """A file of 4 TiB, sparse, whose header is good but of another network: its tensors are never looked at."""
    inference.save_bundle(tmp_path, bundle)
    size = 1 << 42
    header = json.dumps({"x": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    with (tmp_path / "weights.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        try:
            file.truncate(8 + len(header) + size)
        except OSError:  # a file system without such files
            file.truncate(8 + len(header) + (1 << 20))
    monkeypatch.setattr(interop, "read_safetensors", lambda _: pytest.fail("the tensors were read"))
    with pytest.raises(UserError, match=r"another architecture|cannot be read as safetensors"):
        inference.open_recognizer(tmp_path)


def test_a_detector_is_no_recognizer(bundle, tmp_path):
    inference.save_bundle(tmp_path, bundle)
    with pytest.raises(UserError, match=r"bundle: needs a detector, .* holds a recognizer"):
        inference.open_detector(tmp_path)


def test_a_folder_with_other_things_is_not_written_to(bundle, tmp_path):
    (tmp_path / "photo.jpg").write_text("mine")
    with pytest.raises(UserError, match="needs a new or empty folder, or one with a bundle"):
        inference.save_bundle(tmp_path, bundle)
    assert [p.name for p in tmp_path.iterdir()] == ["photo.jpg"]


def zeros_of(module, shape):
    tree = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), jnp.zeros((1, *shape)))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), tree)


@pytest.mark.parametrize(
    ("name", "embedding", "side"),
    [
        ("iresnet_nano", 32, 48),
        ("iresnet10", 64, 112),
        ("mobilefacenet", 128, 112),
        pytest.param("mobilefacenet_large", 512, 112, marks=pytest.mark.slow),
        pytest.param("iresnet50", 512, 112, marks=pytest.mark.slow),
    ],
)
def test_published_names_and_shapes_tell_the_network(tmp_path, name, embedding, side):
    module, shape = models.create(name, embedding=embedding), (side, side, 3)
    save_file(interop.to_state_dict(zeros_of(module, shape), module, shape), tmp_path / "w.safetensors")
    bundle = inference.open_recognizer(tmp_path / "w.safetensors")
    assert bundle.module == module and bundle.image_shape == shape
    assert "InsightFace" in bundle.origin and bundle.license and bundle.threshold is None


def test_a_graph_needs_the_name_of_its_network(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"jaxface weights import .* --network NAME"):
        inference.open_recognizer(tmp_path / "net.onnx")
