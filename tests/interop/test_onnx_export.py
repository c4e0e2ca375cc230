"""Every network as an ONNX graph, run by onnxruntime: what it computes is what the network computes."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from jaxface import interop, models
from jaxface.errors import UserError
from jaxface.interop import onnx_export
from jaxface.interop.architecture import abstract_variables
from jaxface.layers.sparsevit import SparseEncoder
from jaxface.models.detection import DETECTORS, create_detector

# Fields that make every network small and leave it each kind of layer that it has.
SMALL = {
    models.MLP: {"hidden": (8,)},
    models.AttendedMLP: {"hidden": (8,)},
    models.AttendedResNet: {"channels": (8, 16), "blocks": 1},
    models.ConvNet: {},
    models.SmallLossCNN: {"channels": (8, 8)},
    models.PlainStages: {"channels": (4, 8), "steps": (2, 2)},
    models.IResNet: {"stages": (2, 1), "channels": (16, 32)},
    models.InceptionResNet: {"stages": (1, 1, 1)},
    models.MetaNet: {
        "stem": 8,
        "channels": (8, 12, 16),
        "repeats": (1, 1, 2),
        "operators": ("mbconv", "fused", "xca"),
        "strides": (1, 2, 2),
        "expansions": (1, 2, 2),
        "head_dim": 4,
        "head_features": 16,
    },
    models.MobileFaceNet: {"blocks": (1, 0, 0), "hidden": ((8, 8), (8, 8), (8, 8))},
    models.MobileNet: {"width": 0.125},
    models.MobileNetV1: {"width": 0.125},
    models.MobileNetV2: {"width": 0.125, "stages": ((16, 1), (24, 2))},
    models.ResNet: {"stages": (1, 1), "channels": (8, 16)},
    models.QualityCNN: {"channels": (4, 8, 8)},
    models.GDNPyramid: {"channels": (4, 8), "hidden": 8},
    models.FaceResNet: {"stages": (1, 1), "channels": (8, 16)},
    models.WideResNet: {"stages": (1, 1), "channels": (8, 16), "stem": 4},
    models.ViT: {"dim": 24, "depth": 1, "heads": 3},
    models.AdaptiveSparseViT: {
        "dim": 24,
        "depth": 3,
        "heads": 3,
        "encoder": functools.partial(SparseEncoder, stages=(1, 2), start=(0.2, 0.4)),
    },
    models.APViT: {
        "stem": "strided",
        "dim": 24,
        "depth": 2,
        "heads": 3,
        "keep_num": 12,
        "keep_rates": (1.0, 0.9),
    },
    models.Swin: {"dim": 12, "blocks": (2, 1), "heads": (2, 3), "window": 4},
    "BinaryResNet": {"stages": (1, 1), "channels": (8, 16)},
    "BinarySmall": {"width": 8},
    "CellNetwork": {"channels": 8, "cells": 2, "reductions": (1,)},
    "CondensedNet": {},
    "SeparableNet": {},
}


def small(name: str):
    """(a registered network with few and narrow layers, side of its images)."""
    kind = type(models.create(name, embedding=8))
    fields = SMALL.get(kind, SMALL.get(kind.__name__))
    assert fields is not None, f"{name}: say here how a {kind.__name__} becomes small"
    if kind is models.MobileNetV2 or kind is models.MobileNet:
        fields = {key: value for key, value in fields.items() if key in kind.__dataclass_fields__}
    return models.create(name, embedding=8, **fields), 75 if kind is models.InceptionResNet else 32


def variables_of(module, side: int) -> dict:
    """Weights and statistics drawn for a module: nothing is at its initial value, so nothing can be left out unseen."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("var", "scale"):
            return rng.uniform(0.8, 1.2, leaf.shape).astype(np.float32)
        values = rng.normal(size=leaf.shape) / max(1.0, np.sqrt(np.prod(leaf.shape[:-1])))
        return values.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_variables(module, (side, side, 3)))


def check(module, side: int, path, batch: int = 3) -> onnx.ModelProto:
    """Writes a network and runs the file on images; the outputs of both."""
    variables = variables_of(module, side)
    images = np.random.default_rng(1).uniform(-1, 1, (batch, side, side, 3)).astype(np.float32)
    interop.save_onnx(path, module, variables, (side, side, 3))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"data": images.transpose(0, 3, 1, 2)})
    expected = jax.jit(lambda v, x: jax.tree.leaves(module.apply(v, x, train=False)))(variables, images)
    for ours, theirs in zip(expected, outputs, strict=True):
        assert np.abs(ours).max() > 0.05
        np.testing.assert_allclose(theirs, ours, atol=1e-4 * max(1.0, float(np.abs(ours).max())))
    return session


@pytest.mark.parametrize("name", ["iresnet18", "mobilefacenet"])
def test_published_families_run_in_onnxruntime(published, tmp_path, name):
    net = published(name)
    variables = interop.from_state_dict(net.state, net.module, net.shape)
    interop.save_onnx(tmp_path / "m.onnx", net.module, variables, net.shape)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (embeddings,) = session.run(["embedding"], {"data": net.images.transpose(0, 3, 1, 2)})
    np.testing.assert_allclose(embeddings, net.embeddings, atol=1e-4)


def test_a_network_beyond_two_gigabytes_is_refused(published, tmp_path, monkeypatch):
    net = published("iresnet_pico")
    variables = interop.from_state_dict(net.state, net.module, net.shape)
    monkeypatch.setattr(onnx_export, "_LARGEST", 1000)
    with pytest.raises(UserError, match="format: an ONNX file holds 2 GB; this network needs"):
        interop.save_onnx(tmp_path / "m.onnx", net.module, variables, net.shape)
    assert not list(tmp_path.iterdir())


def test_a_missing_tracer_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    module = models.create("mlp", embedding=4, hidden=(3,))
    with pytest.raises(UserError, match=r"jax2onnx.*pip install 'jaxface\[interop\]'"):
        interop.save_onnx(tmp_path / "m.onnx", module, variables_of(module, 4), (4, 4, 3))


def test_squeezing_blocks_have_no_published_names(tmp_path):
    """The chain of layers has no place for them: the tracer writes them, and nothing reads or writes them by name."""
    module = models.create("se_iresnet50", embedding=8, stages=(1, 1), channels=(16, 32))
    with pytest.raises(UserError, match="insightface blocks that squeeze, which has no PyTorch names"):
        interop.save_safetensors(tmp_path / "x", module, variables_of(module, 32), (32, 32, 3))


@pytest.mark.slow
def test_every_registered_network_computes_the_same_in_onnxruntime(tmp_path, capsys):
    modules = {small(name): name for name in models.names()}  # depths of one family are one network here
    assert len(modules) >= 15
    for number, ((module, side), name) in enumerate(modules.items()):
        try:
            session = check(module, side, tmp_path / f"{number}.onnx")
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None
        assert [value.shape for value in session.get_inputs()] == [["batch", 3, side, side]]
        assert [(value.name, value.shape) for value in session.get_outputs()] == [("embedding", ["batch", 8])]
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_detectors_give_their_arrays_in_order(tmp_path):
    small = {"trunk": "plain", "widths": (4, 8, 8), "steps": (2, 2, 2), "strides": (4, 8), "features": 8}
    fields = {
        "retinaface": {"backbone": "mobilenet_025"},
        "retinanet": {**small, "head_convs": 1},
        "faster_rcnn": {
            **small,
            "hidden": (8,),
            "region_levels": 2,
            "region_size": 2,
            "candidates": (8, 8),
            "proposals": 4,
        },
    }
    for name in DETECTORS.names():
        detector = create_detector(name, **fields.get(name, {}))
        if hasattr(detector.module, "no_onnx"):
            with pytest.raises(
                UserError, match=r"FasterRCNNNet has no form in ONNX: its proposals are suppressed"
            ):
                interop.save_onnx(tmp_path / f"{name}.onnx", detector.module, {}, (64, 64, 3))
            continue
        session = check(detector.module, 64, tmp_path / f"{name}.onnx", batch=1)
        assert session.get_outputs()[0].name in ("embedding", "output_0")


@pytest.mark.slow
def test_a_network_in_bfloat16_is_written_in_float32(tmp_path):
    module = models.create("convnet", embedding=8, dtype=jnp.bfloat16)
    variables = variables_of(module, 32)
    interop.save_onnx(tmp_path / "m.onnx", module, variables, (32, 32, 3))
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    images = np.random.default_rng(1).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    (embeddings,) = session.run(None, {"data": images.transpose(0, 3, 1, 2)})
    exact = module.clone(dtype=jnp.float32)
    expected = jax.jit(lambda v, x: exact.apply(v, x, train=False))(variables, images)
    np.testing.assert_allclose(embeddings, expected, atol=1e-4 * max(1.0, float(np.abs(expected).max())))
