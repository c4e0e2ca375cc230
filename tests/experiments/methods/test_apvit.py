import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import configs
from experiments.methods import apvit
from jaxface import data, models, training
from jaxface.errors import UserError
from jaxface.models import APViT

TINY = dataclasses.replace(
    apvit.Config.clutter(),
    data=data.ClutteredDigits(scenes=48, test_scenes=12, noise=(0.2, 0.9)),
    channels=(4, 8),
    dim=8,
    batch_size=16,
    dense_steps=1,
    steps=1,
)


def initial(config):
    """(stages, states as they begin)."""
    stages, states = apvit.build(config), [None]
    for stage in stages:
        states.append(jax.jit(stage.init)(stage.rng(jax.random.key(config.seed)), states[-1]))
    return stages, states[1:]


def test_every_stage_begins_where_the_one_before_ended():
    config = dataclasses.replace(TINY, app_score="attention")
    stages, (start, dense, pooled) = initial(config)
    assert [(stage.name, stage.steps) for stage in stages] == [("start", 0), ("dense", 1), ("classifier", 1)]
    jax.tree.map(np.testing.assert_array_equal, start.params, dense.params)
    learned = dict(pooled.params["backbone"])
    assert set(learned.pop("select")) == {"attention"}  # the dense network has no map of scores
    jax.tree.map(np.testing.assert_array_equal, dense.params["backbone"], learned)
    assert not np.any(pooled.params["prototypes"]) and not np.any(pooled.params["bias"])
    assert stages[2].best == "classification/accuracy@0.5"


@pytest.mark.slow
def test_a_run_on_clutter_says_how_patches_rank_and_what_it_costs():
    outcome = training.run(apvit.build(TINY), parallel=training.make_parallel(devices=jax.devices()[:1]))
    metrics = outcome.metrics
    noises = ("0.5", "0.9")
    expected = {
        f"{stage}/ranking/auc@{noise}" for stage in ("start", "dense", "classifier") for noise in noises
    }
    expected |= {
        f"{stage}/classification/accuracy@{noise}" for stage in ("dense", "classifier") for noise in noises
    }
    expected |= {
        f"{stage}/transformer/{what}" for stage in ("dense", "classifier") for what in ("macs", "macs_ratio")
    }
    assert set(metrics) == expected
    assert all(0 <= metrics[name] <= 1 for name in expected if not name.endswith("/macs"))
    assert metrics["dense/transformer/macs_ratio"] == 1
    # Of 28 patches, of which the last blocks keep 25 and 22; hidden units are twice the channels.
    counts = ((29, 29), (29, 29), (29, 26), (26, 23))
    macs = sum(4 * 64 * n + 16 * n**2 + 4 * 64 * left for n, left in counts)
    assert metrics["classifier/transformer/macs"] == macs


def test_the_cost_of_an_arm():
    network = apvit.network(apvit.Config.clutter())
    cost = apvit.Cost(network, 36)(None)
    np.testing.assert_allclose(cost["transformer/macs_ratio"], 0.708, atol=5e-4)
    assert apvit.Cost(apvit.network(apvit.Config.clutter(), pooled=False), 36)(None) == {
        "transformer/macs": 1_562_880.0,
        "transformer/macs_ratio": 1.0,
    }


def test_the_recipe_of_raf_db():
    """65,209,543 weights with seven classes, 40 epochs of 15,545 images in batches of 128."""
    paper = apvit.Config.paper()
    written = json.loads(json.dumps(configs.to_dict("apvit", paper, configs.Run())))
    assert configs.from_dict(written)[1] == paper
    network = apvit.network(paper)
    image = jax.ShapeDtypeStruct((1, 112, 112, 3), jnp.float32)
    features, variables = jax.eval_shape(lambda x: network.init_with_output(jax.random.key(0), x), image)
    assert features.shape == (1, 768) and models.parameter_count(variables) + 769 * 7 == 65_209_543
    assert apvit.places(paper, network, (112, 112, 3)) == 196
    cost = apvit.Cost(network, 196)
    np.testing.assert_allclose([cost.macs / 1e9, 1 - cost.ratio], [7.1404, 0.269], atol=5e-4)
    # The training images of the seven classes as published.
    counts = np.array([1290, 281, 717, 4772, 1982, 705, 2524])
    copies = np.ceil(data.repeat_factors(counts / counts.sum(), threshold=paper.data.balance))
    assert (
        counts.sum() == 12_271
        and copies.tolist() == [2, 3, 2, 1, 1, 2, 1]
        and (counts * copies).sum() == 15_545
    )
    assert paper.batch_size == 128 and paper.steps == 40 * 121 and paper.prototype_std == 0
    optimizer = paper.optimizer
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay, optimizer.clip_norm) == (
        "sgd",
        0.9,
        5e-4,
        10,
    )
    rates = optimizer.learning_rates(paper.steps)
    np.testing.assert_allclose(
        [rates(0), rates(paper.steps // 2), rates(paper.steps)], [1e-3, 5e-4, 0], atol=1e-9
    )
    decayed = training.decay_mask(variables["params"])
    assert not decayed["class_token"] and not decayed["positions"] and decayed["patches"]["kernel"]
    augment = paper.augment
    changes = (
        augment.flip,
        augment.rotate,
        augment.rotate_degrees,
        augment.crop,
        augment.gray,
        augment.color,
    )
    assert changes == (0.5, 0.5, 6.0, 1.0, 0.2, 0.8)
    assert (augment.color_strength, augment.hue) == (0.4, 0.1)
    assert (augment.occlusion, augment.occlusion_area, augment.occlusion_noise) == (0.5, (0.02, 0.33), True)
    np.testing.assert_allclose(np.square(augment.crop_scale), [0.8, 1.0])


def test_a_stem_of_a_face_network(monkeypatch):
    network = APViT(embedding=None, keep_num=4, keep_rates=(1.0,), dim=8, depth=1, heads=2)
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)

    def opened(block):
        whole = models.create("iresnet50", embedding=8, block=block)
        shapes = jax.eval_shape(lambda x: whole.init(jax.random.key(0), x), image)
        variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        bundle = types.SimpleNamespace(variables=variables, check_plain=lambda name: None)
        monkeypatch.setattr(apvit.inference, "open_recognizer", lambda path: bundle)

    opened("sface")
    weights = apvit.stem_weights("faces", network, (16, 16, 3))
    wanted = jax.eval_shape(lambda x: network.init(jax.random.key(0), x), image)
    for kind in ("params", "batch_stats"):
        shapes = jax.tree.map(lambda leaf: leaf.shape, wanted[kind]["stem"])
        assert jax.tree.map(np.shape, weights[kind]) == shapes
    opened("insightface")
    with pytest.raises(UserError, match="stem_from: faces begins in another way: stage1_block1 is"):
        apvit.stem_weights("faces", network, (16, 16, 3))
    with pytest.raises(UserError, match="stem_from: needs a backbone with the stem of an iResNet"):
        apvit.stem_weights("faces", apvit.network(TINY), (24, 24, 1))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"keep_num": 40}, "keep_num: needs at most the 36 places of the map, got 40"),
        ({"keep_num": 0}, "keep_num: needs an integer from 1, got 0"),
        ({"keep_rates": (1.0, 1.2)}, "keep_rates: needs a number above 0 and up to 1, got 1.2"),
        ({"dim": 9}, "dim: needs a multiple of heads, 4, got 9"),
        ({"data": data.DigitCanvas(copies=1)}, "test_noises: needs digits on clutter, got digit canvas"),
        ({"test_noises": (1.5,)}, "test_noises: needs a number from 0 to 1, got 1.5"),
        ({"stem_from": "somewhere"}, "stem_from: needs a backbone with the stem of an iResNet"),
        (
            {"data": data.RenderedFaces(identities=2), "test_noises": (), "keep_num": None},
            "data: needs images of classes, such as rendered_expressions, got rendered 2x16",
        ),
    ],
)
def test_refusals(fields, words):
    with pytest.raises(UserError, match=words) as caught:
        configs.build("apvit", dataclasses.replace(TINY, **fields))
    assert "\n" not in str(caught.value)
