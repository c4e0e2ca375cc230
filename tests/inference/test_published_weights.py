"""Published weights from file to embedding: random numbers under the published names and in the published shapes."""

import json

import cv2
import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from jaxface import data, inference, interop, models
from jaxface.cli import main as cli
from jaxface.models.detection import RetinaFace


def random_state(module, shape, seed):
    """A state dict whose activations keep their size; every tensor under its published name."""
    rng = np.random.default_rng(seed)
    tree = jax.eval_shape(
        lambda x: module.init(jax.random.key(0), x, train=False),
        jax.ShapeDtypeStruct((1, *shape), np.float32),
    )

    def leaf(path, leaf):
        name = path[-1].key
        if name == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            return (rng.standard_normal(leaf.shape) * np.sqrt(2 / fan_in)).astype(np.float32)
        values = {"scale": 1, "var": 1, "slope": 0.25}
        return (values.get(name, 0) + 0.1 * rng.random(leaf.shape)).astype(np.float32)

    return interop.to_state_dict(jax.tree_util.tree_map_with_path(leaf, tree), module, shape)


@pytest.mark.slow
def test_photographs_through_published_networks(tmp_path, capsys):
    save_file(
        random_state(RetinaFace(pixels="bgr").module, (64, 64, 3), 0), tmp_path / "retinaface.safetensors"
    )
    network = models.create("mobilefacenet", embedding=128)
    save_file(random_state(network, (112, 112, 3), 1), tmp_path / "mobilefacenet.safetensors")
    coarse = np.random.default_rng(2).integers(0, 256, (8, 8, 3), np.uint8)
    photograph = cv2.resize(coarse, (128, 96), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(photograph).save(tmp_path / "photo.png")
    cli.main(
        ["weights", "import", str(tmp_path / "mobilefacenet.safetensors"), "--bundle", str(tmp_path / "r")]
    )
    assert "license: non-commercial research only" in capsys.readouterr().out
    arguments = (
        f"embed {tmp_path}/photo.png --bundle {tmp_path}/r --detector {tmp_path}/retinaface.safetensors"
    )
    cli.main([*arguments.split(), "--score", "0.2", "--json"])
    (row,) = json.loads(capsys.readouterr().out)["photographs"]
    assert row["faces"], "random scores are around one half: some pass"
    bundle = inference.open_recognizer(tmp_path / "r")
    points = np.array([list(face["points"].values()) for face in row["faces"]])
    crops = np.stack([data.align_face(photograph, five) for five in points])
    cosines = np.sum(bundle.embed(crops) * [face["embedding"] for face in row["faces"]], axis=1)
    # Points are written to 0.01 pixel; a crop is enlarged many times.
    assert np.median(cosines) > 0.98 and cosines.min() > 0.5
