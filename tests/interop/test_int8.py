"""The recipe of docs/guides/deployment.md: a network of 8 bits says nearly what the network says."""

import pathlib
import re

import jax
import numpy as np
import onnxruntime
import pytest

from jaxface import interop, models
from jaxface.interop.architecture import abstract_variables

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "guides" / "deployment.md"


@pytest.mark.slow
def test_the_recipe_for_int8(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    recipe = {}
    exec(next(block for block in blocks if "def to_int8" in block), recipe)
    network = models.create("iresnet_pico", embedding=32)
    images = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3)).astype(np.uint8)
    images = np.repeat(np.repeat(images[:, ::8, ::8], 8, 1), 8, 2)  # not noise alone
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        if path[-1].key in ("var", "scale"):
            return np.ones(leaf.shape, np.float32)
        return (rng.normal(size=leaf.shape) / max(1, np.prod(leaf.shape[:-1]) ** 0.5)).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(draw, abstract_variables(network, (32, 32, 3)))
    graph, small = tmp_path / "m.onnx", tmp_path / "int8.onnx"
    interop.save_onnx(graph, network, variables, (32, 32, 3))
    recipe["to_int8"](graph, small, images[:16])
    data = images[16:].astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1
    outputs = []
    for path in (graph, small):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (rows,) = session.run(None, {"data": data})
        outputs.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    assert small.stat().st_size < 0.4 * graph.stat().st_size
    assert (outputs[0] * outputs[1]).sum(axis=1).min() > 0.98
