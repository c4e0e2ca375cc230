import json

import jax
import numpy as np
import pytest

from jaxface import inference, interop
from jaxface.errors import UserError
from jaxface.models.detection import RetinaFace, from_description, init_variables


@pytest.fixture(scope="module")
def bundle():
    detector = RetinaFace(context="ssh", anchor_sizes=(8, 16, 32, 48, 64, 96))
    shapes = jax.eval_shape(lambda rng: init_variables(detector, rng, (64, 64)), jax.random.key(0))
    rng = np.random.default_rng(0)
    params, extra = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes)
    variables = jax.device_get({"params": params, **extra})
    return inference.DetectorBundle(detector=detector, variables=variables, image_size=128)


def check_same(first, second):
    assert first.detector == second.detector and first.image_size == second.image_size
    assert jax.tree.structure(first.variables) == jax.tree.structure(second.variables)
    for a, b in zip(jax.tree.leaves(first.variables), jax.tree.leaves(second.variables), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_folder_holds_all_of_a_bundle(bundle, tmp_path):
    inference.save_bundle(tmp_path / "mine", bundle)
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["bundle.json", "weights.safetensors"]
    check_same(inference.open_detector(tmp_path / "mine"), bundle)


def test_published_names_say_the_backbone_and_a_file_of_ours_all_the_rest(bundle, tmp_path):
    inference.save_weights(tmp_path / "ours.safetensors", bundle)
    check_same(inference.open_detector(tmp_path / "ours.safetensors"), bundle)
    from safetensors.numpy import save_file

    save_file(interop.read_tensors(tmp_path / "ours.safetensors"), tmp_path / "published.safetensors")
    published = inference.open_detector(tmp_path / "published.safetensors")
    assert published.detector == RetinaFace(pixels="bgr") and published.image_size == 640


def change(folder, **fields):
    file = folder / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "bundle.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / "bundle.json").write_text("[]"), "needs a JSON object"),
        (lambda f: change(f, network={"name": "retina"}), "did you mean 'retinanet'"),
        (lambda f: change(f, network={"name": "retinaface", "x": 1}), "has no field x"),
        (
            lambda f: change(f, network={"name": "retinaface", "context": "dilated"}),
            "another architecture",
        ),
        (lambda f: change(f, network=3), "needs an object with the name of a detector"),
        (lambda f: change(f, image_size="128"), "integer image_size"),
        (lambda f: change(f, class_names=["face", "hand"]), "class_names: needs 1 names, got 2"),
        (lambda f: (f / "weights.safetensors").write_bytes(b"\0" * 40), "cannot be read as safetensors"),
    ],
)
def test_damaged_bundles_are_refused_in_a_line(bundle, tmp_path, damage, words):
    inference.save_bundle(tmp_path, bundle)
    damage(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        inference.open_bundle(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_no_detector_is_refused_in_a_line(tmp_path):
    with pytest.raises(UserError, match=r"holds no bundle\.json, and no run"):
        inference.open_detector(tmp_path)
    with pytest.raises(UserError, match="weights: cannot read"):
        inference.open_detector(tmp_path / "none.pth")
    from safetensors.numpy import save_file

    save_file({"conv1.weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="needs the tensors of a RetinaFace"):
        inference.open_detector(tmp_path / "other.safetensors")


def test_a_damaged_description_of_a_run_is_named(tmp_path):
    (tmp_path / "checkpoints" / "00-detector").mkdir(parents=True)
    file = tmp_path / "checkpoints" / "00-detector.json"
    for text, words in (
        ("{", "cannot be read as JSON"),
        ("[]", "needs a JSON object"),
        ("{}", "is not of jaxface: needs a format and a kind"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=words):
            inference.open_detector(tmp_path)


@pytest.mark.parametrize("fields", [{}, {"context": "dilated", "features": 32, "bfloat16": True}])
def test_a_description_survives_json(fields):
    from jaxface.models.detection import describe

    detector = RetinaFace(**fields)
    assert from_description(json.loads(json.dumps(describe(detector)))) == detector
