import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import configs
from experiments.methods import condensation_net as method
from jaxface import data, hardware, layers, models, training
from jaxface.errors import UserError

SMALL = method.Config(data=data.DigitCanvas(copies=1), channels=2, batch_size=16, steps=3)
SCENES = data.Scenes(scenes=8, held_out_scenes=2, people=2, held_out_people=2, per_person=1)


@pytest.fixture(scope="module")
def trained():
    stages = method.build(dataclasses.replace(SMALL, steps=1))
    return stages[0], training.run(stages, parallel=training.make_parallel(devices=jax.devices()[:1]))


def test_a_run_classifies_and_tells_who_wins(trained):
    """The shares of the members, counted again by hand from the maps of each layer."""
    stage, outcome = trained
    metrics = outcome.metrics
    assert 0 <= metrics["classification/accuracy"] <= 1
    source = stage.evaluate.parts[1].source
    images = np.stack([source[i]["image"] for i in range(len(source))]) / 127.5 - 1
    params = jax.device_get(outcome.state.params["backbone"])
    x, idle, top = jnp.asarray(images, jnp.float32), [], []
    for name, stride in (("layer1", 2), ("layer2", 2), ("layer3", 1)):
        z = jax.lax.conv_general_dilated(
            x, params[name]["kernel"], (stride, stride), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        ) + params[name]["bias"]  # fmt: skip
        pairs = z.reshape(*z.shape[:3], -1, 2)
        second = np.asarray(pairs[..., 1] > pairs[..., 0]).mean(axis=(0, 1, 2))
        shares = np.stack([1 - second, second], axis=1)
        idle.append(shares == 0)
        top.append(shares.max(axis=1))
        y = pairs.max(axis=-1)
        x = jnp.where(y > 0, y, 0.1 * y)
    assert metrics["condensation/top"] == pytest.approx(np.concatenate(top).mean(), abs=1e-3)
    assert metrics["condensation/idle"] == pytest.approx(np.concatenate(idle).mean(), abs=1e-3)


@pytest.mark.parametrize(
    ("fields", "variance"),
    [
        ({"groups": 1}, 1.98),
        ({"groups": 4}, 0.648),
        ({"groups": 4, "corrected": False}, 2.0),
        ({"groups": 2, "reduce": "mean"}, 2 * 1.98),
    ],
)
def test_how_strong_filters_start(fields, variance):
    """Times the fan in: what keeps the power under the maximum of R, He's 2, or what makes the mean of R a plain filter."""
    model, gains = method.network(dataclasses.replace(SMALL, **fields)), []

    def note(call, arguments, keywords, context):
        if isinstance(layer := context.module, layers.CondensationConv):
            gains.append(layer.gain or layers.condensation_gain(layer.groups, layer.negative_slope))
        return call(*arguments, **keywords)

    with nn.intercept_methods(note):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 24, 24, 1))))
    np.testing.assert_allclose(gains, [variance] * 3, rtol=1e-3)


@pytest.mark.parametrize(
    ("fields", "stored"), [({"groups": 1}, 1), ({"groups": 2}, 1), ({"groups": 4}, 1), ({"channels": 12}, 2)]
)
def test_the_memory_of_the_arms(fields, stored):
    """Maps that are stored, in multiples of those of six channels and one filter per map."""
    base = method.Config()

    def elements(config):
        network, size, channels, total = method.network(config), config.image_size, 1, []
        for width, stride in ((1, 2), (2, 2), (2, 1)):
            layer = layers.CondensationConv(width * network.channels, network.groups, stride=stride)
            (spec,) = layer.conv_specs((1, size, size, channels))
            total.append(spec)
            size, channels = -(-size // stride), width * network.channels
        return np.sum(hardware.accelerator.table(total).stored)

    assert elements(dataclasses.replace(base, **fields)) == stored * elements(base)


def test_the_recipe_of_the_paper(monkeypatch):
    """Tiny YOLOv2 for faces: 15,758,256 weights of convolutions and as many again in layers 2 to 8; darknet's schedule."""
    paper = method.Config.paper()
    written = json.loads(json.dumps(configs.to_dict("condensation_net", paper, configs.Run())))
    assert configs.from_dict(written)[1] == paper
    source = data.ArraySource(np.zeros((4, 416, 416, 3), np.uint8), np.zeros(4, int), ["face"])
    monkeypatch.setattr(data, "load", lambda *_, **__: data.Split(source, source, "faces", "detection"))
    monkeypatch.setattr(method, "face_anchors", lambda source, count: ((20.0, 16.0),) * count)
    (stage,) = method.build(dataclasses.replace(paper, workers=0, batch_size=4))
    state = jax.eval_shape(stage.init, jax.random.key(0), None)
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    kernels = [leaf for path, leaf in leaves if path[-1].key == "kernel"]
    assert models.parameter_count({"params": kernels}) == 15_758_256 + 15_727_104
    assert (paper.batch_size, paper.image_size, paper.groups) == (64, 416, 2)
    rates = paper.optimizer.learning_rates(paper.steps)
    given = [float(rates(step)) for step in (0, 500, 1000, 19_999, 20_001, 30_001)]
    np.testing.assert_allclose(given, [0, 5e-4, 1e-3, 1e-3, 1e-4, 1e-5], rtol=1e-5)
    assert (paper.optimizer.momentum, paper.optimizer.weight_decay) == (0.9, 5e-4)


def test_anchors_suit_the_faces():
    """Of boxes of two sizes; padding and regions to ignore count for nothing."""
    record = {
        "boxes": np.array([[0, 0, 20, 10], [5, 5, 45, 35], [0, 0, 1, 1], [0, 0, 300, 300]], np.float32),
        "box_mask": np.array([True, True, False, True]),
        "box_crowd": np.array([False, False, False, True]),
    }
    assert method.face_anchors([record] * 30, 2, most=7) == ((20.0, 10.0), (40.0, 30.0))


@pytest.mark.slow
def test_a_run_detects():
    config = dataclasses.replace(
        method.Config.detector(), data=SCENES, image_size=64, batch_size=4, steps=2, widths=(4, 4, 4), ccp_layers=(2, 3),
        quantized=True, anchor_sizes=((20.0, 16.0), (40.0, 32.0)),
    )  # fmt: skip
    outcome = training.run(method.build(config), parallel=training.make_parallel(devices=jax.devices()[:1]))
    assert "detection/ap50" in outcome.metrics


@pytest.mark.slow
def test_two_filters_fit_what_their_mean_does_not():
    """The mechanism: the maximum of two filters learns more from the same batches than their mean, which is one filter."""
    ends = {}
    for name, fields in {"max": {}, "mean": {"reduce": "mean"}}.items():
        config = method.Config(**fields, data=data.DigitCanvas(copies=2), batch_size=32, steps=250)
        (stage,) = method.build(config)
        state = jax.jit(stage.init)(jax.random.key(0), None)
        batches, step, losses = stage.batches(state), jax.jit(stage.step), []
        for _ in range(config.steps):
            batch = next(batches)
            image = (batch["image"].astype(np.float32) - 127.5) / 127.5
            state, report = step(state, {"image": image, "label": batch["label"]})
            losses.append(report["loss"])
        ends[name] = float(np.mean(losses[-50:]))
    assert ends["max"] < ends["mean"] - 0.05, ends


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"groups": 0}, "groups: needs an integer from 1 to 127, got 0"),
        ({"channels": 0}, "channels: needs an integer from 1, got 0"),
        ({"backbone": "tiny_yolo"}, "backbone: needs condensed_net for digit canvas, got 'tiny_yolo'"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(UserError, match=message):
        configs.build("condensation_net", dataclasses.replace(SMALL, **fields))
