"""NCL++ as an experiment: a stage of stacked experts, the paper's recipe against the source's numbers, and what is refused."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.methods.nclpp import Config, build, copy_major, network
from jaxface import data, losses, models, training
from jaxface.data.transforms.pixels import device_batch
from jaxface.errors import UserError

TINY = dataclasses.replace(Config(), backbone="mlp_8", copies=2, batch_size=8, steps=2)


def one_step(config):
    (stage,) = build(config)
    state = stage.init(jax.random.key(0), None)
    batch = device_batch(next(stage.batches(state)))
    return stage, state, batch, jax.jit(stage.step)(state, batch)


def logits_of(config, state, batch):
    model = network(config, 10)
    return model.apply({"params": state.params["experts"]}, copy_major(batch["image"]), train=False)


@pytest.fixture(scope="module")
def nested():
    return one_step(TINY)


def test_the_step_trains_the_public_loss(nested):
    stage, state, batch, (after, reported) = nested
    counts = np.bincount(data.load(TINY.data, image_size=8).train.labels)
    assert sorted(counts, reverse=True) == [120, 77, 50, 32, 21, 13, 8, 5, 3, 2]
    assert batch["image"].shape == (8, 2, 8, 8, 1)
    logits = logits_of(TINY, state, batch)
    expected, terms = losses.ncl_pp_loss(
        logits, jnp.tile(batch["label"], 2), counts, copies=2, lam=0.1, num_hard=4
    )
    np.testing.assert_allclose(reported["loss"], expected, rtol=1e-5)
    for name, value in terms.items():
        np.testing.assert_allclose(reported[f"{name}_loss"], value, rtol=1e-4, atol=1e-6)
    assert after.extra["taken"] == 1
    report = stage.evaluate(after)
    assert report["experts/disagreement"] > 0 and set(report) >= {
        "ensemble/few",
        "single/many",
        "single/best",
    }


def test_rows_are_one_copy_after_another():
    images = jnp.arange(6).reshape(3, 2, 1)  # image 0 has copies 0 and 1
    assert copy_major(images)[:, 0].tolist() == [0, 2, 4, 1, 3, 5]


def test_the_scale_of_the_loss_is_that_of_the_rate():
    """Without weight decay twice the loss is twice the rate, which is why rates are tuned arm by arm."""
    plain = dataclasses.replace(TINY, loss="balanced", loss_scale=2.0)
    faster = dataclasses.replace(
        plain, loss_scale=1.0, optimizer=dataclasses.replace(TINY.optimizer, learning_rate=0.1)
    )
    weights = [one_step(config)[3][0].params for config in (plain, faster)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *weights)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ncl", "balanced", "cross_entropy", "ldam"])
def test_the_arms_train_the_public_losses(loss):
    config = dataclasses.replace(TINY, loss=loss, deferred=0.0, lam=0.6)
    _, state, batch, (_, reported) = one_step(config)
    counts = np.bincount(data.load(TINY.data, image_size=8).train.labels)
    logits, labels = logits_of(config, state, batch), jnp.tile(batch["label"], 2)
    if loss == "ncl":
        expected = losses.ncl_loss(logits, labels, counts, lam=0.6, num_hard=4, hcm_mode="restrict")[0]
    else:
        weights = losses.effective_number_weights(counts)[labels] if loss == "ldam" else 1.0
        each = {
            "balanced": lambda z: losses.balanced_softmax_loss(z, labels, counts),
            "cross_entropy": lambda z: losses.cross_entropy(z, labels),
            "ldam": lambda z: weights * losses.ldam_loss(z, labels, counts),
        }[loss]
        expected = sum(each(z).mean() for z in logits)
    np.testing.assert_allclose(reported["loss"], expected, rtol=1e-4)
    if loss == "ldam":
        assert np.abs(logits).max() <= 1 + 1e-6  # cosines


@pytest.mark.slow
def test_agreement_that_rises_and_weights_that_come_late():
    config = dataclasses.replace(TINY, steps=4, lam=0.6, lam_warmup=0.5)
    (stage,) = build(config)
    state = stage.init(jax.random.key(0), None)
    batch, step = device_batch(next(stage.batches(state))), jax.jit(stage.step)
    seen = [
        float(step(state.replace(extra={**state.extra, "taken": jnp.int32(taken)}), batch)[1]["inter_loss"])
        for taken in range(4)
    ]
    np.testing.assert_allclose(np.array(seen) / seen[-1], [0, 0.5, 1, 1], atol=1e-6)
    late = dataclasses.replace(TINY, steps=4, loss="ldam", deferred=0.5)
    (stage,) = build(late)
    state, step = stage.init(jax.random.key(0), None), jax.jit(stage.step)
    seen = [
        float(step(state.replace(extra={**state.extra, "taken": jnp.int32(n)}), batch)[1]["loss"])
        for n in range(4)
    ]
    assert seen[0] == seen[1] != seen[2] == seen[3]


@pytest.mark.slow
def test_experts_spread_over_devices_are_those_of_one(nested):
    """Two experts on a 4 x 2 mesh; three are more than two devices can share."""
    stage, state, _, (_, reported) = nested
    parallel = training.make_parallel(model_shards=2)
    spread = parallel.create(stage.init, jax.random.key(0), None, rules=stage.sharding)
    kernel = spread.params["experts"]["network"]["hidden1"]["kernel"]
    assert kernel.shape[0] == 2 and kernel.sharding.shard_shape(kernel.shape)[0] == 1
    _, found = parallel.compile(stage.step)(spread, next(stage.batches(state)))
    np.testing.assert_allclose(found["loss"], reported["loss"], rtol=1e-5)
    (three,) = build(dataclasses.replace(TINY, experts=3))
    with pytest.raises(UserError, match="model_shards: experts of size 3 cannot be split over 2 devices"):
        parallel.create(three.init, jax.random.key(0), None, rules=three.sharding)


@pytest.mark.slow
def test_it_learns_and_frequent_classes_first():
    config = dataclasses.replace(TINY, steps=60, backbone="mlp_32", batch_size=16)
    whole = training.run(build(config), seed=0)
    assert whole.metrics["ensemble/accuracy"] > 0.4
    assert whole.metrics["ensemble/many"] > whole.metrics["ensemble/few"]


@pytest.fixture
def cifar100(tmp_path):
    """As many images of each class as the smallest largest class needs, all black."""
    names = [f"c{k:02d}" for k in range(100)]
    for part, each in (("train", 500), ("test", 1)):
        labels = np.repeat(np.arange(100), each)
        pixels = np.zeros((len(labels), 3072), np.uint8)
        table = {b"data": pixels, b"fine_labels": labels.tolist(), b"coarse_labels": (labels // 5).tolist()}
        (tmp_path / part).write_bytes(pickle.dumps(table, protocol=2))
    meta = {
        b"fine_label_names": [n.encode() for n in names],
        b"coarse_label_names": [b"s%d" % k for k in range(20)],
    }
    (tmp_path / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    return tmp_path


@pytest.mark.slow
def test_the_papers_recipe(cifar100):
    """Released configuration: two ResNet-32, T = 4, H = 30, 64 images, Nesterov 0.1, 400 epochs, steps at 320 and 360."""
    config = Config.paper()
    assert (config.experts, config.copies, config.num_hard, config.lam) == (2, 4, 30, 0.6)
    assert (config.batch_size, config.steps) == (64, 400 * (10_847 // 64))
    assert config.data.tail == data.LongTail(imbalance=100)
    rule = config.optimizer
    assert (rule.name, rule.momentum, rule.weight_decay) == ("nesterov", 0.9, 2e-4)
    epoch, rate = config.steps // 400, rule.learning_rates(config.steps)
    expected = {0: 0.1 / 3, 2.5: 0.1 * (1 / 3 * 0.5 + 0.5), 5: 0.1, 319: 0.1, 321: 0.01, 361: 0.001}
    for number, value in expected.items():
        np.testing.assert_allclose(rate(round(number * epoch)), value, rtol=5e-3)
    assert (config.augment.policy, config.augment.hole, config.augment.shift, config.augment.flip) == (
        "cifar10", 16, 4, 0.5,
    )  # fmt: skip
    model = network(config, 100)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    # conv 3·3·3·16, 15 units, BN: 463,504 with the published option-A shortcuts, and 64·100 + 100 of the classifier.
    assert models.parameter_count(shapes["params"]) == 2 * (463_504 + 6_500)
    (stage,) = build(
        dataclasses.replace(config, data=data.Cifar100(str(cifar100), tail=config.data.tail), workers=0)
    )
    state = jax.eval_shape(stage.init, jax.random.key(0), None)
    batch = next(stage.batches(None))
    assert batch["image"].shape == (64, 4, 32, 32, 3)
    jax.eval_shape(lambda s, b: stage.step(s, device_batch(b)), state, batch)


def test_imagenet_lt():
    """NCL: SGD 0.2, a half cosine over 200 epochs of batches of 256, RandAugment (2, 10), H = 300, cosines of scale 16."""
    config = Config.imagenet_lt()
    assert (config.num_hard, config.cosine_scale, config.experts, config.batch_size) == (300, 16.0, 3, 256)
    assert (config.optimizer.learning_rate, config.steps) == (0.2, 200 * (115_846 // 256))
    assert (config.augment.policy, config.augment.rand_operations, config.augment.rand_magnitude) == (
        "rand",
        2,
        10,
    )
    shapes = jax.eval_shape(network(config, 1000).init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    # ResNet-50 without its last layer has 23,508,032 parameters.
    assert models.parameter_count(shapes["params"]) == 3 * (23_508_032 + 2048 * 1000 + 1000)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hard": 11}, "num_hard: needs at most the 10 classes, got 11"),
        ({"init_from": "run"}, "init_from: experts start from weights of their own"),
        ({"data": data.Procedural()}, "data: needs classes to be told apart"),
        ({"few_below": 50}, "few_below: needs at most many_above, 40, got 50"),
        ({"data": data.Digits(tail=data.LongTail(imbalance=1000))}, "imbalance: .* no example left"),
        ({"validate_packs": "x"}, "validate_packs"),
    ],
)  # fmt: skip
def test_refusals(changes, words):
    with pytest.raises(UserError, match=words):
        build(dataclasses.replace(TINY, **changes))
