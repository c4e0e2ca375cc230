"""Transfer modules: which of their gradients live, and a generalist that starts as its expert."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxface.errors import UserError
from jaxface.layers.intern import Transfer, TransferModule, transfer_name, transfer_steps
from jaxface.models.intern import Generalist, expert_parameters, joined_variables, transfer_parameters
from jaxface.models.staged import PlainStages, features

PAIRS = [(1, 1), (1, 2), (2, 2), (1, 3), (2, 3), (3, 3)]
EXPERT = PlainStages(None, (4, 5, 6), (2, 2, 1))


def zeroed(params):
    """All gains 0, as the released constructor has them."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros_like(leaf) if path[-1].key == "scale" else leaf, params
    )


def trained(params, steps):
    """The parameters after some steps of Adam, and every gradient on the way."""
    module, optimizer = Transfer(3, (2, 2)), optax.adam(1e-2)
    x = jax.random.normal(jax.random.key(1), (8, 8, 8, 2))
    # A target that depends on x: else the gradient would be rounding alone.
    kernel = jax.random.normal(jax.random.key(2), (4, 4, 2, 3))
    target = jax.lax.conv_general_dilated(
        x, kernel, (4, 4), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

    def loss(params):
        y, _ = module.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])
        return jnp.mean(jnp.square(y - target))

    stats = module.init(jax.random.key(0), x)["batch_stats"]

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value, gradient

    state, gradients, values = optimizer.init(params), [], []
    for _ in range(steps):
        params, state, value, gradient = step(params, state)
        gradients.append(gradient)
        values.append(float(value))
    return params, gradients, values


def test_a_bridge_of_gains_zero_is_dead_for_ever_and_ours_lives():
    params = Transfer(3, (2, 2)).init(jax.random.key(0), jnp.zeros((1, 8, 8, 2)))["params"]
    dead, gradients, dead_loss = trained(zeroed(params), 120)
    for gradient in gradients:
        last_bias = gradient["last_norm"].pop("bias")
        assert np.any(last_bias) and not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    assert np.any(dead["last_norm"]["bias"]) and not np.any(dead["norm1"]["scale"])
    _, gradients, loss = trained(params, 120)
    # Step 0: the last gain alone lets nothing through; from step 1 on everything learns.
    assert np.any(gradients[0]["last_norm"]["scale"])
    assert not any(np.any(gradients[0][name]["kernel"]) for name in ("conv1", "conv2"))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients[1]))
    assert loss[-1] < 0.8 * dead_loss[-1]


@pytest.fixture(scope="module")
def joined():
    """(generalist, its variables from two trained experts, images, gradients at steps 0 and 1)."""
    model = Generalist({"c": EXPERT, "d": EXPERT}, "c")
    images = jax.random.normal(jax.random.key(5), (4, 16, 16, 1))
    experts = {name: EXPERT.init(jax.random.key(seed), images) for seed, name in enumerate("cd")}
    variables = joined_variables(model.init(jax.random.key(3), images), experts)

    def loss(params, stats):
        maps, updated = model.apply(
            {"params": params, "batch_stats": stats},
            images,
            train=True,
            mutable=["batch_stats"],
            method=features,
        )
        return sum(jnp.mean(jnp.sin(3 * tap)) for tap in maps["taps"]), updated["batch_stats"]

    @jax.jit
    def step(params, stats):
        (_, stats), gradient = jax.value_and_grad(loss, has_aux=True)(params, stats)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), stats, gradient

    first, stats, gradient0 = step(variables["params"], variables["batch_stats"])
    _, _, gradient1 = step(first, stats)
    return model, variables, experts, images, (gradient0, gradient1)


@pytest.mark.parametrize("train", [False, True])
def test_a_generalist_is_its_expert_at_the_start(joined, train):
    model, variables, experts, images, _ = joined
    collections = ["batch_stats"] if train else False
    joint = model.apply(variables, images, train=train, mutable=collections, method=features)
    joint = joint[0] if train else joint
    alone = EXPERT.apply(experts["c"], images, train=train, method=features)
    for one, other in zip(jax.tree.leaves(joint), jax.tree.leaves(alone), strict=True):
        assert np.array_equal(one, other)
    assert len(joint["taps"]) == 3


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_the_last_gain_of_each_of_six_transfers_learns_first(joined, source, target):
    before, after = (g[transfer_parameters("d")][transfer_name(source, target)] for g in joined[-1])
    assert np.any(before["last_norm"]["scale"])
    inner = [name for name in before if name != "last_norm"]
    assert inner and not any(np.any(leaf) for name in inner for leaf in jax.tree.leaves(before[name]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(after))


def test_no_gradient_reaches_the_auxiliary_expert(joined):
    for gradient in joined[-1]:
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient[expert_parameters("d")]))
        assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient[expert_parameters("c")]))
        assert len(gradient[transfer_parameters("d")]) == 6


def test_shapes_of_a_b4_pair_at_224():
    widths, strides = (64, 128, 192), (4, 8, 16)
    maps = [
        jax.ShapeDtypeStruct((1, 224 // s, 224 // s, w), jnp.float32)
        for w, s in zip(widths, strides, strict=True)
    ]
    module = TransferModule(widths, strides)

    def received(maps):
        return module.init_with_output(jax.random.key(0), maps, 3)

    out, variables = jax.eval_shape(received, maps)
    assert out.shape == (1, 14, 14, 192)
    phi = variables["params"][transfer_name(1, 3)]
    assert [phi[name]["kernel"].shape for name in ("conv1", "conv2")] == [(3, 3, 64, 64), (3, 3, 64, 192)]
    assert transfer_steps(strides, 1, 3) == (2, 2) and transfer_steps(strides, 3, 3) == ()


def test_parameters_of_the_small_pair():
    model = Generalist({"c": PlainStages(None), "d": PlainStages(None)}, "c")
    image = jax.ShapeDtypeStruct((1, 24, 24, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), image)["params"]
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in shapes.items()}
    assert counts == {"experts_c": 14_336, "experts_d": 14_336, "transfers_d": 23_424}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: TransferModule((4, 4), (4, 6)),
            "strides: needs stages whose strides divide .*, got 4 and 6",
        ),
        (lambda: TransferModule((4,), (4, 8)), "strides: needs one for each of the 1 widths, got 2"),
        (lambda: Generalist({"c": EXPERT, "d": EXPERT}, "s"), "main: needs one of c, d, got 's'"),
        (lambda: Generalist({"c": EXPERT}, "c"), "backbones: needs a main and an auxiliary one"),
        (lambda: Generalist({"c": EXPERT, "d": EXPERT}, "c", 4), "stages: c has 3, 4 were to receive"),
        (
            lambda: Generalist({"c": EXPERT, "d": PlainStages(None, (4, 5, 6), (2, 2, 2))}, "c"),
            "backbones: needs maps of the same strides",
        ),
        (lambda: PlainStages(None, (4, 5), (2,)), "steps: needs one for each of the 2 channels, got 1"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(UserError, match=words):
        make()
