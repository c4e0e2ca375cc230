import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import configs
from experiments.methods import ddc
from jaxface import data, layers, models, training
from jaxface.errors import UserError

SMALL = ddc.Config(data=data.DigitCanvas(copies=1), channels=4, batch_size=16, steps=3)
SCENES = data.Scenes(scenes=8, held_out_scenes=2, people=2, held_out_people=2, per_person=1)


def weights(config, channels=1):
    """Of network and classifier of ten classes, whose bias has ten more."""
    image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, channels), jnp.float32)
    network = ddc.network(config)
    out, variables = jax.eval_shape(lambda x: network.init_with_output(jax.random.key(0), x), image)
    return models.parameter_count(variables) + 10 * out.shape[1]


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"dilations": (1, 1, 1)}, 2976),
        ({}, 2976),
        ({"dilations": (2, 2, 2)}, 2976),
        ({"dilations": (1, 1, 1), "depthwise_kernel": 5}, 4128),
        ({"dilations": (1, 1, 1), "channels": 29}, 4031),
    ],
)
def test_weights_of_the_arms(fields, count):
    """DDC layers have those of plain ones; the wide network has those of large kernels, within 3 %."""
    assert weights(ddc.Config(**fields)) == count


def test_layers_are_residual_separable_convolutions():
    """The network by hand: one layer of dilation 2 behind the stem."""
    model = models.create("separable_net", embedding=None, channels=3, dilations=(2,))
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 1)), jnp.float32)
    variables = model.init(jax.random.key(0), x)
    params = jax.tree.map(np.asarray, variables["params"])
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    stem = params["stem_conv"]["kernel"]
    windows = [padded[:, i : i + 7 : 2, j : j + 7 : 2] @ stem[i, j] for i in range(3) for j in range(3)]
    h = np.maximum(sum(windows), 0)
    w, p = params["layer1"]["depthwise"]["kernel"][:, :, 0], params["layer1"]["pointwise"]["kernel"]
    padded = np.pad(h, ((0, 0), (2, 2), (2, 2), (0, 0)))
    v = sum(padded[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] * w[i, j] for i in range(3) for j in range(3)) @ p
    mean, var = v.mean((1, 2), keepdims=True), v.var((1, 2), keepdims=True)
    expected = (h + np.maximum((v - mean) / np.sqrt(var + 1e-5), 0)).max((1, 2))
    np.testing.assert_allclose(model.apply(variables, x), expected, rtol=1e-4, atol=1e-4)


def test_a_run_classifies():
    outcome = training.run(ddc.build(SMALL), parallel=training.make_parallel(devices=jax.devices()[:1]))
    assert 0 <= outcome.metrics["classification/accuracy"] <= 1
    assert set(outcome.state.params) == {"backbone", "prototypes", "bias"}


def test_the_recipe_of_imagenet():
    """MobileNetV1 with 5x5 filters: 4,288,448 weights with its classifier; 90 epochs, a warm-up of 5."""
    paper = ddc.Config.paper()
    written = json.loads(json.dumps(configs.to_dict("ddc", paper, configs.Run())))
    assert configs.from_dict(written)[1] == paper
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    network = ddc.network(paper)
    features, variables = jax.eval_shape(lambda x: network.init_with_output(jax.random.key(0), x), image)
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    kernels = [leaf for path, leaf in leaves if path[-1].key == "kernel"]
    assert features.shape == (1, 1024)
    assert models.parameter_count({"params": kernels}) + 1024 * 1000 == 4_288_448
    assert paper.steps == 450_410 and paper.batch_size == 256
    rates = paper.optimizer.learning_rates(paper.steps)
    np.testing.assert_allclose([rates(0), rates(25_023), rates(paper.steps)], [0, 0.1, 0], atol=1e-4)
    assert paper.optimizer.weight_decay == 4e-5 and paper.optimizer.momentum == 0.9


def built(config, monkeypatch, size):
    source = data.ArraySource(np.zeros((4, size, size, 3), np.uint8), np.zeros(4, int), ["face"])
    monkeypatch.setattr(data, "load", lambda *_, **__: data.Split(source, source, "faces", "detection"))
    (stage,) = ddc.build(config)
    return stage, jax.eval_shape(stage.init, jax.random.key(0), None)


@pytest.mark.parametrize(
    ("preset", "context", "count"),
    [("wider", "ddc", 426_608 - 85_248), ("wider", "ssh", 426_608), ("detector", "ddc", 426_608 - 85_248)],
)
def test_detectors(monkeypatch, preset, context, count):
    """With SSH's context modules RetinaFace's 426,608 parameters; with DDC's 19.98 % fewer."""
    config = dataclasses.replace(getattr(ddc.Config, preset)(), context=context, workers=0, batch_size=4)
    stage, state = built(config, monkeypatch, 64)
    assert stage.name == "detector" and models.parameter_count(state.params) == count
    np.testing.assert_allclose(85_248 / 426_608, 0.1998, atol=5e-5)


def test_the_recipe_of_wider_face():
    wider = ddc.Config.wider()
    assert wider.steps == 250 * 12_880 // 32 and wider.object_augment.side == 640
    rates = wider.optimizer.learning_rates(wider.steps)
    epoch = 12_880 / 32
    given = [float(rates(int(e * epoch))) for e in (0, 189, 191, 221)]
    np.testing.assert_allclose(given, [1e-3, 1e-3, 1e-4, 1e-5], rtol=1e-5)
    faces = ddc.detection_recipe(wider)
    assert faces.augment == wider.object_augment and faces.point_weight == 1
    assert faces.context == "ddc" and faces.anchor_sizes == (16, 32, 64, 128, 256, 512)
    assert (faces.seed, faces.data_seed, faces.steps) == (wider.seed, wider.data_seed, wider.steps)


@pytest.mark.slow
def test_a_step_on_scenes():
    """Traced, not compiled: the loss of RetinaFace on batches of scenes."""
    config = dataclasses.replace(ddc.Config.detector(), data=SCENES, image_size=64, batch_size=4, steps=2)
    (stage,) = ddc.build(config)
    state, batch = jax.eval_shape(stage.init, jax.random.key(0), None), next(stage.batches(None))
    batch["image"] = batch["image"].astype(np.float32)
    after, report = jax.eval_shape(stage.step, state, batch)
    assert {"class_loss", "box_loss", "point_loss", "loss"} <= report.keys()
    assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.parametrize(
    ("fields", "seen"),
    [({"dilations": (1, 1, 1)}, 7), ({}, 11), ({"dilations": (1, 1, 1), "depthwise_kernel": 5}, 13)],
)
def test_the_field_of_view_of_three_layers(fields, seen):
    """On the plane of the layers, of half the pixels: 7 with 3x3 filters, 11 with dilations (1, 2, 2), 13 with 5x5 ones."""
    config = ddc.Config(**fields)
    x = jnp.zeros((1, 31, 31, 1)).at[0, 15, 15, 0].set(1.0)
    for dilation in config.dilations:
        x = layers.depthwise_dilated(x, jnp.ones((config.depthwise_kernel,) * 2 + (1,)), dilation=dilation)
    assert np.ptp(np.flatnonzero(np.asarray(x)[0, 15].any(axis=-1))) + 1 == seen


def test_equal_dilations_leave_holes():
    """Three layers of dilation 2 see every second pixel alone."""
    x = jnp.zeros((1, 31, 31, 1)).at[0, 15, 15, 0].set(1.0)
    holes = {}
    for dilations in ((2, 2, 2), (1, 2, 2)):
        y = x
        for dilation in dilations:
            y = layers.depthwise_dilated(y, jnp.ones((3, 3, 1)), dilation=dilation)
        seen = np.flatnonzero(np.asarray(y)[0, 15, :, 0])
        holes[dilations] = int(np.ptp(seen) + 1 - len(seen))
    assert holes == {(2, 2, 2): 6, (1, 2, 2): 0}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "iresnet_pico"}, "backbone: needs separable_net or mobilenet_v1 for digit canvas"),
        ({"depthwise_kernel": 4}, "kernel_size: needs an odd number"),
        ({"channels": 0}, "channels: needs an integer from 1, got 0"),
        ({"dilations": (0, 1, 1)}, "dilations: needs an integer from 1, got 0"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(UserError, match=message):
        configs.build("ddc", dataclasses.replace(SMALL, **fields))
