import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import configs
from experiments.methods import bamsprod
from experiments.methods.bamsprod import Config
from experiments.studies import bamsprod as studies
from jaxface import data, losses, models, optimizers, training
from jaxface.errors import UserError

SHORT = Config(steps=12, online_steps=0, batch_size=32)


def rule(name, **fields):
    return training.Optimizer(name=name, learning_rate=0.1, schedule="constant", weight_decay=0.0, **fields)


@pytest.fixture(scope="module")
def trained():
    """(state before, outcome) of a short run."""
    (stage,) = configs.build("bamsprod", SHORT)
    rng = jax.random.key(0)
    before = jax.jit(lambda key: stage.init(stage.rng(key), None))(rng)
    return before, training.run([stage], seed=0)


def test_binary_weights_alone_train_and_stay_in_the_box(trained):
    before, outcome = trained
    assert {"classification/accuracy", "signs/flip_rate", "steps_to_threshold"} == outcome.metrics.keys()
    assert outcome.metrics["signs/flip_rate"] > 0
    moved = jax.tree_util.tree_map_with_path(
        lambda path, a, b: (jax.tree_util.keystr(path), bool((a != b).any())),
        before.params,
        outcome.state.params,
    )
    for name, changed in jax.tree.leaves(moved, is_leaf=lambda x: isinstance(x, tuple)):
        assert changed == ("'binary'" in name), name
    kernels = [outcome.state.params["backbone"][f"block{i}"]["binary"]["kernel"] for i in (1, 2, 3)]
    assert all(float(jnp.abs(kernel).max()) <= 1 for kernel in kernels)
    started = before.params["backbone"]["block1"]["binary"]["kernel"]
    assert 0.9 < float(jnp.abs(started).max()) <= 1 and abs(float(jnp.mean(jnp.abs(started))) - 0.5) < 0.02
    assert outcome.state.extra["accuracy"].shape == (12,) and (outcome.state.extra["accuracy"] > 0).any()


def test_the_curve_is_drawn(trained, tmp_path):
    curve = bamsprod.TrainingCurve(0.9)
    (draw,) = curve.figures(trained[1].state).values()
    assert draw(tmp_path / "curve.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [([0.0, 1.0, 1.0, 1.0], 3), ([1.0, 1.0, 0.0, 0.0], 2), ([0.5] * 4, 5), ([0.0, 0.9, 0.9, 0.0], 3)],
)
def test_the_first_step_at_a_threshold(accuracies, expected):
    assert bamsprod.first_step_at(np.array(accuracies), 0.9, window=2) == expected


# What the configuration makes of an optimizer.

KERNEL = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 3)), jnp.float32)
PARAMS = {"block1": {"binary": {"kernel": KERNEL}}}
GRADIENTS = {
    "block1": {
        "binary": {"kernel": jnp.asarray(np.random.default_rng(1).normal(size=(8, 4, 3)), jnp.float32)}
    }
}


def walked(optimizer, params=PARAMS, gradients=GRADIENTS):
    def step(carry, gradient):
        updates, state = optimizer.update(gradient, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    (params, _), _ = jax.jit(functools.partial(jax.lax.scan, step))(
        (params, optimizer.init(params)), gradients
    )
    return params["block1"]["binary"]["kernel"]


BOX = optimizers.project_box()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"optimizer": rule("adam")}, optax.chain(optax.adam(0.1), BOX)),
        ({"optimizer": rule("amsgrad")}, optax.chain(optimizers.amsgrad(0.1), BOX)),
        ({"optimizer": rule("sgd"), "bop_threshold": 1e-3}, optimizers.bop(0.1, 1e-3)),
        ({"optimizer": rule("bamsprod"), "gamma": 0.1, "gradient_bound": "max", "target": "sum"},
         optimizers.bamsprod(0.1, gamma=0.1, gradient_bound="max", target="sum")),
        ({"optimizer": rule("bamsprod"), "per_channel": True, "q_min": 0.3, "beta_l": 0.5, "gamma": 0.2},
         optimizers.bamsprod(0.1, gamma=0.2, per_channel=True, q_min=0.3, beta_l=0.5)),
    ],
)  # fmt: skip
def test_optimizers_of_a_configuration(fields, expected):
    built = bamsprod.LatentRule(dataclasses.replace(SHORT, **fields)).build(8)
    np.testing.assert_allclose(walked(built), walked(expected), rtol=1e-5, atol=1e-6)


def test_real_layers_may_train_alone():
    params = {"head": {"kernel": jnp.ones(2)}}
    built = bamsprod.LatentRule(dataclasses.replace(SHORT, optimizer=rule("sgd"))).build(8)
    updates, _ = built.update(params, built.init(params), params)
    np.testing.assert_allclose(updates["head"]["kernel"], -0.1, rtol=1e-6)
    with pytest.raises(UserError, match="bamsprod needs binary layers among those that train"):
        bamsprod.LatentRule(SHORT).build(8).init(params)


def test_bop_leaves_the_other_parameters_to_another_rule():
    config = dataclasses.replace(
        SHORT, bop_threshold=0.0, optimizer=rule("sgd"), others=training.adam(0.5, schedule="constant")
    )
    params = {**PARAMS, "head": {"kernel": jnp.ones(2)}}
    built = bamsprod.LatentRule(config).build(8)
    gradients = jax.tree.map(jnp.ones_like, params)
    updates, _ = built.update(gradients, built.init(params), params)
    np.testing.assert_allclose(updates["head"]["kernel"], -0.5, rtol=1e-4)
    flipped = KERNEL + updates["block1"]["binary"]["kernel"]
    np.testing.assert_allclose(flipped, -jnp.abs(KERNEL), rtol=1e-6)


# The rare, heavy class.


def test_a_class_is_made_rare_and_heavy():
    split = bamsprod.with_rare_class(Config.heavy(), data.load(data.Digits(), image_size=8, seed=0))
    labels = np.asarray(split.train.labels)
    rare, others = (labels == 3).sum(), (labels != 3).sum()
    assert rare == round(others / 100) and len(split.held_out) == 797
    head = bamsprod.HeavyClass(3, 100.0)
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(4, 10)), jnp.float32)
    plain, heavy = (h.loss(scores, jnp.array([3, 1, 3, 0])) for h in (losses.Linear(), head))
    np.testing.assert_allclose(heavy, plain * jnp.array([100, 1, 100, 1]), rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heavy_class": 10}, "heavy_class: needs one of the 10 classes, got 10"),
        ({"heavy_class": 3, "heavy_weight": 1e4}, "heavy_weight: needs to leave 1 to"),
        ({"steps": 0}, "steps: needs a positive number where online_steps is 0, got 0"),
        ({"gamma": -1.0}, "gamma: needs"),
        ({"optimizer": rule("bop")}, "optimizer.name: needs one of"),
        ({"backbone": "mlp_8", "weight_init": None, "train_only": None}, "binary layers|names"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(UserError, match=message):
        for stage in configs.build("bamsprod", dataclasses.replace(SHORT, **fields)):
            jax.eval_shape(stage.init, jax.eval_shape(lambda: jax.random.key(0)), None)


# The convex counter-example as a stage.


def test_the_online_problems_are_measured_and_drawn(tmp_path):
    (stage,) = configs.build("bamsprod", dataclasses.replace(Config.online(), online_steps=999))
    state = jax.jit(stage.init)(jax.random.key(0), None)
    regret = stage.evaluate(state)
    assert len(regret) == 18
    # Check 3 at t = 999.
    expected = {
        "adam": 4 / 3,
        "amsgrad": 0.042042,
        "sgd": 0.008008,
        "bamsprod": 0.042042,
        "bamsprod_faster": 0.020020,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(regret[f"rare_large/{name}/regret"], value, atol=2e-6)
    assert regret["rare_large/bop/regret"] < 0.1
    assert {len(state[f"{problem}/adam"]["regret"]) for problem in bamsprod.ONLINE} == {999, 1998}
    figures = stage.figures(state)
    assert len(figures) == 6
    assert figures["outlier_weights"](tmp_path / "weights.png").stat().st_size > 1000


# The paper's recipe, and what is claimed.


def test_the_paper_recipe_has_the_network_and_the_schedule_that_its_page_says():
    config = Config.paper()
    assert config.steps == 200 * 390 and config.batch_size == 128 and config.train_only is None
    assert config.optimizer.name == "bamsprod" and (config.gamma, config.gradient_bound) == (None, "rms")
    model = bamsprod.network(dataclasses.replace(config, embedding=10))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    binary = sum(
        leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
        if "binary" in jax.tree_util.keystr(path)
    )  # fmt: skip
    assert binary == 10_985_472  # all 3 x 3 convolutions of ResNet-18 but the first
    stem, shortcuts, head = 27 * 64 + 2 * 64, 64 * 128 + 128 * 256 + 256 * 512 + 2 * (128 + 256 + 512), 5130
    units = 5 * 4 * (64 + 128 + 256 + 512) + 4 * 64 + 64 + 3 * 128 + 128 + 3 * 256 + 256 + 3 * 512
    assert models.parameter_count(variables) == binary + stem + shortcuts + head + units == 11_188_874


def test_arms_differ_in_the_optimizer_alone():
    base = Config(online_steps=0)
    free = {
        "optimizer", "bop_threshold", "gradient_bound", "gamma", "train_only"
    }  # fmt: skip
    for study in studies.STUDIES.values():
        assert study.method in study.arms and len(study.arms) >= 4
        for arm in study.arms.values():
            assert arm.keys() <= free
            config = dataclasses.replace(study.base, **arm)
            assert config.optimizer.weight_decay == 0 and config.steps == base.steps == 400
    assert {"signs held at random"} <= studies.STUDIES["digits"].arms.keys()


@pytest.mark.slow
def test_binary_weights_learn_what_random_signs_do_not():
    """The control that holds everything reads about one digit in ten; the effect is measured by `reproduce`."""
    base = Config(online_steps=0)
    accuracy = {}
    for name, only in (("trained", ("binary",)), ("held", ())):
        outcome = training.run(configs.build("bamsprod", dataclasses.replace(base, train_only=only)), seed=0)
        accuracy[name] = outcome.metrics["classification/accuracy"]
    assert accuracy["trained"] > 0.85 and accuracy["held"] < 0.3
