"""AS-ViT as a network: every mode keeps the same tokens and says the same, and what is kept is what a threshold says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import models
from jaxface.errors import UserError
from jaxface.layers.sparsevit import COLLECTION, SparseEncoder
from jaxface.losses import budget_loss
from jaxface.models.transformers.sparsevit import (
    Compacted,
    apply_pruned,
    dense_macs,
    dense_network,
    pruned_macs,
)
from jaxface.models.transformers.vit import ViT

START = (0.6, 0.7)
FIELDS = {"dim": 16, "depth": 3, "heads": 2, "patch": 4, "embedding": 5}
IMAGE = np.random.default_rng(0).uniform(-1, 1, (6, 16, 16, 1)).astype(np.float32)
IMAGE[:2] *= 0.1  # images that differ in what they keep


def create(**fields):
    fields = {"stages": (1, 2), "start": START, **fields}
    return models.create("sparsevit_tiny", **FIELDS, encoder=functools.partial(SparseEncoder, **fields))


@functools.cache
def variables():
    """Attention that tells tokens apart: weights larger than at the start, and a class token."""
    made = jax.jit(lambda x: create().init(jax.random.key(0), x))(IMAGE)
    assert made.keys() == {"params"}
    params = jax.tree.map(lambda x: 2.5 * x if x.ndim == 2 else x, made["params"])
    params["class_token"] = jax.random.normal(jax.random.key(1), params["class_token"].shape)
    params["encoder"]["thresholds"] = jnp.array(START)
    return {"params": params}


@functools.cache
def applied(**fields):
    return jax.jit(functools.partial(apply_pruned, create(**fields)))(variables(), IMAGE)


def with_thresholds(*values):
    params = variables()["params"]
    return {"params": {**params, "encoder": {"thresholds": jnp.array(values)}}}


def test_check_6_every_mode_keeps_the_same_and_says_the_same():
    exact = applied()
    assert exact.kept.shape == (6, 2) and len(np.unique(exact.kept[:, 1])) > 2  # images differ
    assert (
        (exact.kept[:, 0] < 16).all()
        and (exact.kept[:, 1] <= exact.kept[:, 0]).all()
        and exact.kept[:, 1].min() > 1
    )
    for mode in ("capacity", "packed"):
        other = applied(mode=mode)
        np.testing.assert_array_equal(other.kept, exact.kept)
        np.testing.assert_allclose(other.output, exact.output, atol=1e-5)
        np.testing.assert_array_equal(other.macs, exact.macs)
    masked = applied(mode="masked")
    np.testing.assert_array_equal(masked.kept, exact.kept)
    np.testing.assert_allclose(masked.output, exact.output, atol=1e-4)
    assert jnp.abs(masked.output - exact.output).max() > 0  # the eps terms


def test_a_batch_is_its_images_and_compaction_computes_what_is_kept():
    exact = applied()
    compacted = Compacted(create(), variables(), steps=12, step=2)
    whole = compacted(IMAGE)
    np.testing.assert_array_equal(whole.kept, exact.kept)
    np.testing.assert_allclose(whole.output, exact.output, atol=1e-5)
    alone = Compacted(create(), variables(), steps=4, step=16)(IMAGE[3:4])
    np.testing.assert_array_equal(alone.kept, exact.kept[3:4])
    np.testing.assert_allclose(alone.output, exact.output[3:4], atol=1e-5)


def test_where_there_is_no_room_the_output_is_nan_or_the_best_stay():
    most = applied().kept.max(0).astype(int) + 1
    enough = applied(mode="packed", rows=(6 * 17, 6 * 17), capacities=tuple(map(int, most)))
    np.testing.assert_allclose(enough.output, applied().output, atol=1e-5)
    short = applied(mode="packed", capacities=(int(most[0]) - 1, 17))
    assert jnp.isnan(short.output).all()
    few = applied(mode="capacity", capacities=(5, 3))
    assert few.kept.max(0).tolist() == [4, 2] and jnp.isfinite(few.output).all()


def test_thresholds_below_every_score_leave_the_dense_network():
    dense = dense_network(create())
    assert type(dense) is ViT
    params = {name: part for name, part in variables()["params"].items() if name != "encoder"}
    wanted = jax.jit(dense.apply)({"params": params}, IMAGE)
    for mode in ("exact", "packed"):
        given = jax.jit(functools.partial(apply_pruned, create(mode=mode)))(
            with_thresholds(-jnp.inf, -jnp.inf), IMAGE
        )
        np.testing.assert_allclose(given.output, wanted, atol=1e-5)
        assert (given.kept == 16).all()


def test_check_8_higher_thresholds_keep_less_down_to_the_class_token():
    apply = jax.jit(functools.partial(apply_pruned, create(mode="packed")))
    kept = [apply(with_thresholds(t, t), IMAGE) for t in (0.0, 0.9, 1.0, 1.1, 99.0)]
    counts = np.stack([one.kept[:, 0] for one in kept])
    assert (np.diff(counts, axis=0) <= 0).all() and (counts[0] == 16).all() and (counts[-1] == 0).all()
    assert jnp.isfinite(kept[-1].output).all()


def test_check_7_the_order_of_the_patches_does_not_matter(monkeypatch):
    """Patch tokens are put in another order behind the positions."""
    order = np.random.default_rng(2).permutation(16)
    walk = SparseEncoder.__call__

    class Shuffled(SparseEncoder):
        def __call__(self, blocks, tokens, **options):
            patches = tokens[:, 1:][:, order]
            return walk(self, blocks, jnp.concatenate([tokens[:, :1], patches], axis=1), **options)

    encoder = functools.partial(Shuffled, stages=(1, 2), start=START)
    network = models.create("sparsevit_tiny", **FIELDS, encoder=encoder)
    shuffled, plain = (
        jax.jit(functools.partial(one.apply, mutable=[COLLECTION]))(variables(), IMAGE)
        for one in (network, create())
    )
    np.testing.assert_allclose(shuffled[0], plain[0], atol=1e-5)
    policies = [seen[COLLECTION]["encoder"]["policy"][0] for _, seen in (shuffled, plain)]
    np.testing.assert_array_equal(policies[0], policies[1][..., order])


@functools.cache
def gradients():
    """Of the budget, in training mode: (work, gradient of the parameters, what was left in the collection)."""
    network = create()

    def excess(params):
        output, seen = network.apply(
            {"params": params}, IMAGE, train=True, mutable=[COLLECTION], rngs={"dropout": jax.random.key(0)}
        )
        seen = seen[COLLECTION]["encoder"]
        macs = pruned_macs(network, seen["kept"][0], (16, 16, 1))
        return budget_loss(macs, 0.5 * dense_macs(network, (16, 16, 1))), (macs, seen, output)

    (value, aux), gradient = jax.jit(jax.value_and_grad(excess, has_aux=True))(variables()["params"])
    return value, aux, gradient


def test_check_9_over_budget_descent_raises_thresholds_and_reaches_the_scores():
    value, (macs, _, output), gradient = gradients()
    assert value > 0 and (gradient["encoder"]["thresholds"] < 0).all()
    assert jnp.abs(gradient["block1"]["attention"]["qkv"]["kernel"]).max() > 0
    masked = applied(mode="masked")
    np.testing.assert_allclose(macs, masked.macs, rtol=1e-6)
    np.testing.assert_allclose(output, masked.output, atol=1e-5)


def test_check_10_dropped_tokens_stay_dropped():
    _, (_, seen, _), _ = gradients()
    policy = seen["policy"][0]
    assert not (policy[:, 1] & ~policy[:, 0]).any()
    # Seen by all other tokens as eps / N: far below any threshold.
    low, high = np.moveaxis(seen["extremes"][0], 0, 0)[1]
    assert 0 < low < high and seen["range"][0].shape == (2, 2)
    assert (seen["range"][0][:, 0] < seen["range"][0][:, 1]).all() and 0 < seen["weighting"][0][0] < 1


@pytest.mark.slow
@pytest.mark.parametrize("select", ["top", "quantile", "random"])
def test_the_baselines_keep_what_they_are_told(select):
    network = create(select=select, keep=(9, 4), mode="packed")
    pruned = jax.jit(functools.partial(apply_pruned, network))(variables(), IMAGE)
    assert pruned.kept.mean(0).tolist() == [9, 4]
    assert (pruned.kept == jnp.array([9.0, 4.0])).all() == (select != "quantile")
    trained, seen = jax.jit(functools.partial(network.apply, train=True, mutable=[COLLECTION]))(
        variables(), IMAGE, rngs={"dropout": jax.random.key(3)}
    )
    np.testing.assert_array_equal(seen[COLLECTION]["encoder"]["kept"][0].mean(0), [9, 4])


@pytest.mark.slow
@pytest.mark.parametrize("history", ["sum", "average"])
def test_sums_and_averages_of_scores_give_one_choice_in_every_mode(history):
    """From the third block on; policies multiply, or a sum would bring tokens back."""
    fields = {"stages": (3, 4), "history": history, "start": (0.97, 0.5)}
    network, values = {}, None
    for mode in ("masked", "exact", "packed"):
        encoder = functools.partial(SparseEncoder, mode=mode, **fields)
        network[mode] = models.create("sparsevit_tiny", **{**FIELDS, "depth": 5}, encoder=encoder)
    values = jax.jit(lambda x: network["exact"].init(jax.random.key(4), x))(IMAGE)
    params = jax.tree.map(lambda x: 2.5 * x if x.ndim == 2 else x, values["params"])
    params["encoder"] = {"thresholds": jnp.array([1.0, 0.9] if history == "average" else [1.0, 2.2])}
    kept = {
        mode: jax.jit(functools.partial(apply_pruned, one))({"params": params}, IMAGE)
        for mode, one in network.items()
    }
    # Where a dropped key has the largest logit by far, the eps terms of the masked softmax grow with the distance.
    for mode, close in (("masked", 1e-2), ("packed", 1e-5)):
        np.testing.assert_array_equal(kept[mode].kept, kept["exact"].kept)
        np.testing.assert_allclose(kept[mode].output, kept["exact"].output, atol=close)
    assert (kept["exact"].kept[:, 1] <= kept["exact"].kept[:, 0]).all() and kept["exact"].kept[
        :, 0
    ].max() < 16


def test_check_5_the_work_of_a_network():
    network, shape = models.create("sparsevit_small", embedding=1000), (224, 224, 3)
    assert dense_macs(network, shape) == pytest.approx(4.573642752, abs=1e-9)
    whole, rounded, fractions = pruned_macs(
        network, jnp.array([[196.0] * 3, [137, 96, 67], [196 * 0.7, 196 * 0.49, 196 * 0.343]]), shape
    )
    np.testing.assert_allclose(
        [whole, rounded, fractions], [4.598498304, 3.132152064, 3.134425827], rtol=1e-6
    )
    assert 0.65 * dense_macs(network, shape) == pytest.approx(2.972867789, abs=1e-9)
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x), jnp.zeros((1, *shape)))
    assert models.parameter_count(variables) == 22_050_664 + 3  # DeiT-S and its thresholds
    again = models.from_description(models.describe(network))
    assert again == network


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"pool": "mean"},
            "pool: needs a class token, which scores the others, and no other, got pool 'mean'",
        ),
        ({"distilled": True}, "pool: needs a class token, .* got a distillation token besides"),
        ({"depth": 10}, "stages: needs increasing blocks from 1 to 9, got 4, 7, 10"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(UserError, match=message):
        models.create("sparsevit_tiny", **fields)
