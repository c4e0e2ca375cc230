"""AS-ViT's recipe: the dense network first, thresholds that learn and stay inside the scores, and the paper's numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import configs
from experiments.methods import sparsevit
from experiments.recipes.recognition import load
from experiments.studies import sparsevit as studies
from jaxface import data, models, training
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.models.transformers.sparsevit import Compacted, dense_macs, dense_network

SMALL = sparsevit.Config(
    data=data.ClutteredDigits(scenes=64, test_scenes=40, scales=(1, 3)),
    dim=8,
    depth=3,
    heads=2,
    batch_size=16,
    steps=2,
    prune_steps=6,
)


@functools.cache
def trained():
    """Outcomes of the two stages by name."""
    seen = {}

    def watched():
        for stage in sparsevit.build(SMALL):
            seen[stage.name] = yield stage

    training.run(watched(), seed=0, parallel=training.make_parallel(devices=jax.devices()[:1]))
    return seen


def test_the_second_stage_adds_thresholds_to_the_weights_of_the_first():
    dense, pruning = (trained()[name] for name in ("dense", "pruning"))
    stage = sparsevit.build(SMALL)[1]
    start = jax.jit(stage.init)(jax.random.key(0), dense.state)
    backbone = dict(start.params["backbone"])
    np.testing.assert_allclose(backbone.pop("encoder")["thresholds"], SMALL.thresholds, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, backbone, dense.state.params["backbone"])
    np.testing.assert_array_equal(start.params["prototypes"], dense.state.params["prototypes"])
    frozen = pruning.state.extra["teacher"]["params"]
    jax.tree.map(np.testing.assert_array_equal, frozen, dense.state.params["backbone"])
    moved = pruning.state.params["backbone"]
    assert (moved["block1"]["expand"]["kernel"] != backbone["block1"]["expand"]["kernel"]).any()


def test_what_a_run_reports():
    report = trained()["pruning"].metrics
    assert {
        "scale1/accuracy",
        "scale3/accuracy",
        "scale1/kept",
        "tokens/kept2",
        "tokens/dead",
    } <= report.keys()
    assert 0.3 < report["tokens/ratio"] < 1.1 and 0 < report["tokens/weighting"] < 1
    accuracy = (report["scale1/accuracy"] + report["scale3/accuracy"]) / 2
    assert report["classification/accuracy"] == pytest.approx(accuracy)
    kept = (report["scale1/kept"] + report["scale3/kept"]) / 2
    assert report["tokens/kept2"] == pytest.approx(kept, rel=1e-5)


def test_the_tokens_of_some_images_are_drawn(tmp_path):
    stage = sparsevit.build(SMALL)[1]
    stage.evaluate(trained()["pruning"].state)
    (draw,) = stage.evaluate.figures(trained()["pruning"].state).values()
    assert {name: row.shape for name, row in draw.args[0].items()} == {
        name: (8, 24, 24, 3) for name in ("all", "from block 2", "from block 3")
    }
    assert draw(tmp_path / "tokens.png").stat().st_size > 1000
    whole, _, last = (row.mean(axis=(1, 2, 3)) for row in draw.args[0].values())
    assert (last >= whole).all() and last.mean() > whole.mean()  # what is dropped fades to white


def test_a_run_is_opened_without_the_method():
    stage = sparsevit.build(SMALL)[1]
    network = models.from_description(stage.description["network"])
    assert network.encoder(parent=None).stages == (1, 2) and network.dim == 8


def test_compacted_predictions_are_those_of_the_masks():
    state, split = trained()["pruning"].state, load(SMALL)
    network = sparsevit.network(SMALL)
    images = normalize_pixels(np.stack([split.held_out[i]["image"] for i in range(40)]))
    variables = {"params": state.params["backbone"]}
    wanted = jax.jit(network.apply)(variables, images)
    given = Compacted(network, variables)(images)
    np.testing.assert_allclose(given.output, wanted, atol=1e-5)


def test_thresholds_are_held_between_the_scores_that_they_see():
    """One that is far above all scores has no gradient; the next step brings it back."""
    dense, stage = trained()["dense"].state, sparsevit.build(SMALL)[1]
    state = jax.jit(stage.init)(jax.random.key(0), dense)
    lost = {**state.params["backbone"], "encoder": {"thresholds": jnp.array([9.0, 1e-6])}}
    state = state.replace(params={**state.params, "backbone": lost})
    batch = next(stage.batches(state))
    batch = {"image": normalize_pixels(batch["image"]), "label": batch["label"]}
    state, metrics = jax.jit(stage.step)(state, batch)
    first, second = state.params["backbone"]["encoder"]["thresholds"]
    _, high = state.extra["scores"]["range"][0] / (1 - SMALL.range_decay)
    assert float(first) == pytest.approx(float(high), rel=1e-5) and first < 4
    assert second >= sparsevit.LEAST
    # The first keeps nothing; the second, near 0, brings everything back in training: two blocks of three.
    assert jnp.isfinite(metrics["loss"]) and 0.65 < float(metrics["ratio"]) < 0.75


def test_thresholds_have_a_rate_of_their_own_and_no_decay():
    config = dataclasses.replace(
        SMALL,
        prune_optimizer=training.Optimizer(
            name="adamw", learning_rate=1e-2, schedule="constant", weight_decay=0.5
        ),
    )
    tx = sparsevit.Rule(config.prune_optimizer, 7.0).build(10)
    block = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    params = {"backbone": {"encoder": {"thresholds": jnp.ones(2)}, "block1": block, "positions": jnp.ones(2)}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates = tx.update(zeros, tx.init(params), params)[0]["backbone"]
    np.testing.assert_allclose(updates["block1"]["kernel"], -5e-3, rtol=1e-5)
    for leaf in (updates["encoder"]["thresholds"], updates["positions"], updates["block1"]["bias"]):
        np.testing.assert_array_equal(leaf, 0)
    updates = tx.update(params, tx.init(params), zeros)[0]["backbone"]
    np.testing.assert_allclose(updates["encoder"]["thresholds"], -7e-2, rtol=1e-4)
    np.testing.assert_allclose(updates["positions"], -1e-2, rtol=1e-4)


def test_the_arms_start_alike_and_spend_alike():
    study = studies.STUDIES["clutter"]
    budgets = []
    for arm, changes in study.arms.items():
        config = dataclasses.replace(study.base, **changes)
        encoder = sparsevit.network(config).encoder(parent=None)
        assert encoder.stages == (1, 2)
        if config.select != "threshold":
            network = sparsevit.network(config)
            macs = sparsevit.pruned_macs(network, jnp.array(config.keep, jnp.float32), (24, 24, 1))
            budgets.append(float(macs) / dense_macs(network, (24, 24, 1)))
            assert abs(budgets[-1] - study.base.budget) < 0.02, arm
    assert len(budgets) == len(study.arms) - 1 and study.shared == 1


def test_the_paper_recipe_against_the_source():
    """Cydia2018/AS-ViT: the numbers of its training script for DeiT-S."""
    config, shape = sparsevit.Config.paper(), (224, 224, 3)
    network = sparsevit.network(config)
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x), image)
    # timm's deit_small_patch16_224 has 22,050,664 with its classifier, which is the recipe's here.
    assert models.parameter_count(variables) == 22_050_664 - 384 * 1000 - 1000 + 3
    encoder = network.encoder(parent=None)
    assert encoder.stages == (4, 7, 10) and encoder.select == "threshold" and encoder.history == "last"
    np.testing.assert_allclose(np.array(encoder.start) / 197, [0.001, 0.002, 0.003], rtol=1e-6)
    assert encoder.temperature / 197 == pytest.approx(1e-4)
    # 2 |F - ρ F_T| in 10⁹, and 0.5 of the divergence at temperature 1.
    whole = dense_macs(dense_network(network), shape)
    assert config.budget_weight / whole == pytest.approx(2.0) and config.distillation_weight == 0.5
    assert config.budget * whole == pytest.approx(2.972867789)
    assert (config.batch_size, config.prune_steps) == (512, 30 * (1_281_167 // 512))
    rule = config.prune_optimizer
    assert (rule.name, rule.learning_rate, rule.weight_decay, rule.warmup) == ("adamw", 2e-5, 1e-6, 0.0)
    # The thresholds' own unit is 197 times smaller than ours, so that they learn at 2e-5 of theirs.
    assert config.threshold_rate * rule.learning_rate / 197 == pytest.approx(2e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"backbone": "vit_tiny"},
            "backbone: needs a network that drops tokens, sparsevit_…, got 'vit_tiny'",
        ),
        ({"stages": (2, 1)}, "stages: needs increasing blocks from 1 to 2, got 2, 1"),
        ({"stages": (0, 1)}, "stages: needs an integer from 1, got 0"),
        ({"thresholds": (0.2,)}, "start: needs one for each of 2 stages, got 1"),
        ({"budget": 0.0}, "budget: needs a number above 0 and up to 1, got 0"),
        ({"budget": 1.2}, "budget: needs a number above 0 and up to 1, got 1.2"),
        ({"temperature": 0.0}, "temperature: needs a finite number above 0, got 0"),
        ({"patch": 5}, "image_size: needs a multiple of the patch, which has 5 pixels, got"),
        ({"select": "top"}, "keep: needs the tokens to keep at each stage with top, got none"),
        ({"data": data.Procedural()}, "needs classes that are the same in the test"),
        ({"dense_run": "nowhere", "init_from": "x"}, "init_from: needs a network that the run trains"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(UserError, match=message):
        list(configs.build("sparsevit", dataclasses.replace(SMALL, **fields)))


def test_another_network_cannot_be_pruned_into_this_one():
    dense = trained()["dense"].state
    stage = sparsevit.build(dataclasses.replace(SMALL, dim=16))[1]
    with pytest.raises(UserError, match="dense_run: needs the network that is to be pruned, it differs in"):
        jax.eval_shape(stage.init, jax.random.key(0), dense)


@pytest.mark.slow
@pytest.mark.parametrize("select", ["top", "quantile", "random"])
def test_the_baselines_are_fine_tuned_the_same_way(select):
    stage = sparsevit.build(dataclasses.replace(SMALL, select=select, keep=(20, 9)))[1]
    state = jax.jit(stage.init)(jax.random.key(0), trained()["dense"].state)
    batch = next(stage.batches(state))
    batch = {"image": normalize_pixels(batch["image"]), "label": batch["label"]}
    after, metrics = jax.jit(stage.step)(state, batch)
    np.testing.assert_array_equal(*(s.params["backbone"]["encoder"]["thresholds"] for s in (state, after)))
    assert "budget_loss" not in metrics
    report = stage.evaluate(after)
    # The best of a batch are as many on average over the batch, the filling of the last one counted.
    tolerance = 1.0 if select == "quantile" else 0.0
    assert [report["tokens/kept1"], report["tokens/kept2"]] == pytest.approx([20, 9], abs=tolerance)
