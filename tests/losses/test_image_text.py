"""Losses of images and captions: closed forms, what is stopped, and eight devices that are one."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import losses
from jaxface.errors import UserError
from jaxface.losses.image_text import DeclipOutputs

RNG = np.random.default_rng(0)


def rows(*shape):
    x = RNG.normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_check_4_closed_forms_of_infonce():
    same = np.tile([[1.0, 0.0]], (4, 1)).astype(np.float32)
    np.testing.assert_allclose(losses.clip_infonce(same, same, 5.0), math.log(4), rtol=1e-6)
    eye = np.eye(2, dtype=np.float32)
    np.testing.assert_allclose(losses.clip_infonce(eye, eye, 1.0), 0.313262, rtol=2e-6)
    # log(1 + e^-14.29) is rounded in steps of 1e-6 by the difference of numbers near 14.
    np.testing.assert_allclose(losses.clip_infonce(eye, eye, 1 / 0.07), 6.2487e-07, atol=1e-6)


def test_check_4_pairs_in_another_order_have_the_same_loss():
    u, v, order = rows(6, 4), rows(6, 4), RNG.permutation(6)
    first = np.asarray(losses.clip_infonce(u, v, 7.0))
    np.testing.assert_allclose(losses.clip_infonce(u[order], v[order], 7.0), first[order], rtol=1e-5)
    scores = 7 * u @ v.T
    ce = [np.log(np.exp(s).sum(1)) - np.diag(s) for s in (scores, scores.T)]
    np.testing.assert_allclose(first, (ce[0] + ce[1]) / 2, rtol=1e-5)


def test_check_5_views():
    z, other = np.array([[1.0, 0.0]] * 2, np.float32), np.array([[0.0, 3.0]] * 2, np.float32)
    np.testing.assert_allclose(losses.simsiam_loss(z, 2 * z, z, z), -1)
    np.testing.assert_allclose(losses.simsiam_loss(z, z, other, other), 0, atol=1e-7)
    gradients = jax.grad(lambda *a: losses.simsiam_loss(*a).sum(), argnums=(0, 2, 3))(*rows(4, 2, 3))
    assert np.abs(gradients[0]).max() > 0.01
    assert not np.any(gradients[1]) and not np.any(gradients[2])


def test_check_6_weights_of_one_and_words_that_nobody_asks_for():
    weights = losses.DeclipWeights()
    ones = dict.fromkeys(("clip", "neighbors", "views", "words"), 1.0)
    assert weights.total(ones) == pytest.approx(1.0)
    assert weights.total(ones | {"clip": 2.0}) == pytest.approx(1.4)
    logits = jnp.asarray(RNG.normal(size=(2, 3, 5)), jnp.float32)
    words, nothing = np.ones((2, 3), int), np.zeros((2, 3), bool)
    value, gradient = jax.value_and_grad(losses.mlm_loss)(logits, words, nothing)
    assert value == 0 and np.isfinite(gradient).all()
    some = nothing.copy()
    some[0, 1] = True
    expected = np.log(np.exp(logits[0, 1]).sum()) - logits[0, 1, 1]
    np.testing.assert_allclose(losses.mlm_loss(logits, words, some), expected, rtol=1e-5)


def test_check_7_a_stored_row_is_found_and_the_oldest_goes_first():
    stored, lookup = rows(5, 3), jax.jit(losses.nn_bank_lookup)
    bank = losses.TextBank.empty(4, 3)
    np.testing.assert_array_equal(lookup(stored[:3], bank), np.zeros((3, 3)))
    bank = losses.nn_bank_push(bank, 3 * stored[:3])
    np.testing.assert_allclose(lookup(5 * stored[:3], bank), stored[:3], atol=1e-6)
    # An unwritten row, of zeros, is nearer to the opposite of all others; it is not taken.
    opposite = np.tile(-stored[:3].mean(0, keepdims=True), (3, 1))
    np.testing.assert_allclose(np.linalg.norm(lookup(opposite, bank), axis=1), 1, atol=1e-5)
    bank = losses.nn_bank_push(bank, stored[3:])
    assert (int(bank.cursor), int(bank.written)) == (1, 4)
    np.testing.assert_allclose(bank.rows, stored[[4, 1, 2, 3]], atol=1e-6)
    with pytest.raises(UserError, match="bank: needs at least the 5 rows of a batch, got 4"):
        losses.nn_bank_push(bank, stored)


def outputs(batch, key=1):
    rng = np.random.default_rng(key)

    def unit(*shape):
        x = rng.normal(size=shape)
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

    return DeclipOutputs(
        images=tuple(unit(2, batch, 4)),
        texts=tuple(unit(2, batch, 4)),
        predicted=tuple(unit(2, batch, 3)),
        projected=tuple(unit(2, batch, 3)),
        word_logits=unit(batch, 5, 6),
        words=rng.integers(0, 6, (batch, 5)),
        masked=rng.random((batch, 5)) < 0.4,
        logit_scale=np.full((), 4.0, np.float32),
    )


def test_check_7_both_captions_look_before_either_is_pushed():
    batch = outputs(3)
    bank = losses.nn_bank_push(losses.TextBank.empty(8, 4), rows(2, 4))
    run = jax.jit(losses.declip_loss)
    _, terms, after = run(batch, bank)
    # As computed by hand from the bank before the step.
    pairs = []
    for u in batch.images:
        for v in batch.texts:
            near = bank.rows[np.argmax(v @ bank.rows[:2].T, axis=1)]
            scores = 4 * u @ near.T
            pairs.append((np.log(np.exp(scores).sum(1)) - np.diag(scores)).mean())
    np.testing.assert_allclose(terms["neighbors"], np.mean(pairs), rtol=1e-5)
    # The changed caption goes in first, then the caption.
    np.testing.assert_allclose(after.rows[2:5], batch.texts[1], atol=1e-6)
    np.testing.assert_allclose(after.rows[5:8], batch.texts[0], atol=1e-6)
    _, first, _ = run(batch, losses.TextBank.empty(8, 4))
    assert first["neighbors"] == 0


@pytest.mark.slow
def test_eight_devices_are_one_in_value_and_gradient():
    """All of DeCLIP's loss on features that parameters make, with the batch over eight devices and on one."""
    batch, count = outputs(16), 8
    bank = losses.nn_bank_push(losses.TextBank.empty(40, 4), rows(12, 4))
    names = ("images", "texts", "predicted", "projected")
    weights = {name: np.eye(getattr(batch, name)[0].shape[1], dtype=np.float32) for name in names}

    def loss(weights, batch, axis_name):
        made = {
            name: tuple(losses.image_text.l2_normalize(x @ weights[name]) for x in getattr(batch, name))
            for name in names
        }
        value, terms, after = losses.declip_loss(batch._replace(**made), bank, axis_name=axis_name)
        return value, (terms, after)

    def on(axis_name, weights, batch):
        (value, (terms, after)), gradient = jax.value_and_grad(loss, has_aux=True)(weights, batch, axis_name)
        if axis_name is not None:
            value, terms, gradient = jax.lax.pmean((value, terms, gradient), axis_name)
        return value, terms, gradient, after

    whole = jax.jit(functools.partial(on, None))(weights, batch)
    shards = jax.tree.map(
        lambda x: x.reshape(count, -1, *x.shape[1:]) if np.ndim(x) else np.tile(x, count), batch
    )
    spread = jax.pmap(functools.partial(on, "data"), axis_name="data", in_axes=(None, 0), out_axes=None)(
        weights, shards
    )
    value, terms, gradient, after = spread
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole[2])) > 0.01
    # Words differ in number between devices; the order of rows of the bank is that of the devices.
    for one, other in zip(
        jax.tree.leaves((value, terms, gradient, after)), jax.tree.leaves(whole), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


def test_pairs_are_contrasted_over_all_devices():
    """InfoNCE with the batch over eight devices: values and gradients of the features."""
    u, v = rows(16, 4), rows(16, 4)

    def run(axis_name, u, v):
        return jax.value_and_grad(
            lambda u: losses.clip_infonce(u, v, 5.0, axis_name=axis_name).mean(), has_aux=False
        )(u)

    whole = jax.jit(functools.partial(run, None))(u, v)
    spread = jax.pmap(functools.partial(run, "data"), axis_name="data")(
        u.reshape(8, 2, 4), v.reshape(8, 2, 4)
    )
    np.testing.assert_allclose(np.mean(spread[0]), whole[0], rtol=1e-5)
    # A device's gradient is of the sum of all devices' means, eight times that of their mean.
    np.testing.assert_allclose(spread[1].reshape(16, 4) / 8, whole[1], rtol=2e-5, atol=1e-6)


def test_places_of_two_views_that_are_near_agree():
    windows = np.array([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.25, 0.0]], np.float32)
    grid = losses.view_grid(windows, (2, 2))
    np.testing.assert_allclose(grid[0, :, :, 0], [[0.25, 0.25], [0.75, 0.75]])
    np.testing.assert_allclose(grid[0, 0, 0, 2], math.hypot(0.5, 0.5), rtol=1e-6)
    mirrored = losses.view_grid(windows * [1, 1, 1, 0] + [0, 0, 0, 1], (2, 2))
    maps = rows(2, 2, 2, 5)
    # The same view: every place is near itself alone (a neighbor is 0.707 diagonals away), mirrored it is near its mirror image.
    np.testing.assert_allclose(losses.pixpro_loss(maps, 3 * maps, grid, grid), [-1, -1], rtol=1e-5)
    np.testing.assert_allclose(
        losses.pixpro_loss(maps, maps[:, :, ::-1], grid, mirrored), [-1, -1], rtol=1e-5
    )
    far = losses.view_grid(np.array([[2.0, 2.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]], np.float32), (2, 2))
    value, gradient = jax.value_and_grad(lambda p: losses.pixpro_loss(p, maps, grid, far).sum())(maps)
    assert losses.pixpro_loss(maps, maps, grid, far)[0] == 0 and np.isfinite(gradient).all()
    assert not np.any(jax.grad(lambda f: losses.pixpro_loss(maps, f, grid, grid).sum())(maps))
    assert value != 0


def test_masked_words_are_four_of_five_hidden_and_never_special():
    tokens = np.tile(np.arange(10), (4000, 1)).astype(np.int32)
    shown, mask = jax.jit(
        functools.partial(losses.mask_tokens, vocabulary=10, mask_token=3, special=(0, 1, 2, 3))
    )(jax.random.key(0), tokens)
    shown, mask = np.asarray(shown), np.asarray(mask)
    assert not mask[:, :4].any() and (shown[~mask] == tokens[~mask]).all()
    assert mask[:, 4:].mean() == pytest.approx(0.15, abs=0.01)
    hidden = (shown == 3)[mask].mean()
    same = (shown == tokens)[mask].mean()
    assert hidden == pytest.approx(0.8, abs=0.02) and same == pytest.approx(0.1 + 0.1 / 6, abs=0.02)
    with pytest.raises(UserError, match=r"special: needs some of 10 tokens, got \[3, 10\]"):
        losses.mask_tokens(jax.random.key(0), tokens, vocabulary=10, mask_token=3, special=(10,))
