"""RBONN's layer: numbers worked out by hand from the equations, and what the two forms of the method share and do not share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxface import optimizers
from jaxface.errors import UserError
from jaxface.layers import RBOConv
from jaxface.layers.binary import convolve
from jaxface.layers.rbonn import (
    LAST_GRADIENT,
    backtrack,
    bilinear_binarize,
    bilinear_loss,
    density_mask,
    drelu,
    paper_gradients,
    paper_update,
)

# Two output channels of one input channel, 2x2.
W = jnp.array([[0.3, -0.2, 0.1, -0.4], [-0.05, 0.6, 0.7, 0.0]]).T.reshape(2, 2, 1, 2)
G = jnp.array([[1, 2, -1, 0.5], [0.2, -0.3, 0.4, 1.0]]).T.reshape(2, 2, 1, 2)
ALPHA = jnp.array([0.5, 1.5])


def rows(kernel):
    return np.asarray(kernel).reshape(4, 2).T


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_check_1_the_effective_kernel():
    wanted = [[0.01, -0.01, 0.01, -0.01], [-0.03, 0.03, 0.03, 0.0]]
    np.testing.assert_allclose(rows(bilinear_binarize(W, ALPHA)), wanted, atol=1e-8)


def test_checks_2_and_3_the_cotangents():
    by_kernel, by_alpha = jax.vjp(bilinear_binarize, W, ALPHA)[1](G)
    wanted = [[0.500029, 0.999981, -0.499991, 0.249961], [0.299998, -0.449943, 0.600067, 1.500000]]
    np.testing.assert_allclose(rows(by_kernel), wanted, atol=6e-7)
    np.testing.assert_allclose(by_alpha, [-0.400002, 0.089997], atol=6e-7)
    # A raw scale of -0.5 has the same α, and the opposite gradient.
    raw = jax.vjp(lambda s: bilinear_binarize(W, jnp.abs(s)), jnp.array([-0.5, 1.5]))[1](G)[0]
    np.testing.assert_allclose(raw, [0.400002, 0.089997], atol=6e-7)


def test_check_4_the_three_gates():
    alpha, kernel = jnp.array([0.9, 0.1, 0.5, 0.3, 0.7]), jnp.array([5.0, 1, 4, 6, 2]).reshape(1, 1, 1, 5)
    masks = {v: density_mask(alpha, kernel, 0.6, v).tolist() for v in ("released", "released_fixed")}
    assert masks == {"released": [1, 0, 0, 0, 1], "released_fixed": [0, 1, 0, 1, 0]}
    # D(A) = [0,1,0,1,0] and D(w') = [1,0,0,1,0]; with A = 1 / α as given it is the reciprocal that is ranked.
    assert density_mask(alpha, kernel, 0.6, "paper").tolist() == [0, 1, 0, 0, 0]
    assert density_mask(alpha, jnp.ones((1, 1, 1, 5)), 0.6, "paper").tolist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize("channels, gated", [(64, 25), (128, 51), (256, 102), (512, 204)])
def test_the_gate_opens_for_two_channels_in_five(channels, gated):
    alpha, kernel = jnp.abs(random(0, channels)), jnp.ones((1, 1, 1, channels))
    assert density_mask(alpha, kernel).sum() == gated == density_mask(alpha, kernel, 0.6, "released").sum()


def layer(variant="released_fixed", **fields):
    return RBOConv(6, (3, 3), variant=variant, **fields)


@functools.cache
def start(variant="released_fixed"):
    x = random(1, 2, 4, 4, 3)
    params = dict(layer(variant).init(jax.random.key(0), x)["params"])
    return x, params


def test_check_6_no_gate_no_look_ahead():
    x, params = start()
    last = {LAST_GRADIENT: {"kernel": 10 * random(2, 3, 3, 3, 6)}}

    def run(**fields):
        values = {
            **params,
            "recurrence": jnp.full(6, fields.pop("u", 0.2)),
        }
        return layer(**fields).apply({"params": values, **last}, x, train=True)

    plain = layer().apply({"params": params}, x, train=True)
    np.testing.assert_array_equal(run(tau=1.0), plain)
    np.testing.assert_array_equal(run(u=0.0), plain)
    assert np.abs(run() - plain).max() > 1e-3
    by_kernel = jax.vjp(functools.partial(bilinear_binarize, weight=0.0), W, ALPHA)[1](G)[0]
    np.testing.assert_allclose(by_kernel, G * ALPHA, rtol=1e-6)


def test_check_7_the_gradient_of_the_recurrence():
    last, mask = random(3, 3, 3, 2, 5), density_mask(jnp.abs(random(4, 5)), random(5, 3, 3, 2, 5))
    kernel, alpha, u = random(5, 3, 3, 2, 5), jnp.abs(random(4, 5)), jnp.full(5, 0.2)

    def loss(kernel, u):
        corrected = backtrack(kernel, u, mask, last)
        return jnp.sum(bilinear_binarize(corrected, alpha) * random(6, 3, 3, 2, 5))

    by_kernel, by_u = jax.grad(loss, argnums=(0, 1))(kernel, u)
    np.testing.assert_allclose(by_u, -jnp.sum(by_kernel * mask * last, axis=(0, 1, 2)), atol=1e-6)
    assert (np.asarray(by_u)[np.asarray(mask) == 0] == 0).all() and (by_u != 0).sum() == 2


def test_check_7b_the_scale_is_inert_under_batch_normalization():
    x, target = jnp.sign(random(7, 4, 5, 5, 3)), random(8, 4, 5, 5, 6)
    signs, alpha = jnp.sign(random(9, 3, 3, 3, 6)), jnp.abs(random(10, 6)) + 0.5

    def loss(kernel):
        y = convolve(x, kernel, (1, 1), "SAME")
        y = (y - y.mean((0, 1, 2))) / jnp.sqrt(y.var((0, 1, 2)))
        return jnp.sum(y * target) / 100, y

    (_, y), gradient = jax.value_and_grad(loss, has_aux=True)(signs * alpha)
    np.testing.assert_allclose(loss(signs * alpha * jnp.arange(1.0, 7))[1], y, atol=1e-5)
    np.testing.assert_allclose(jnp.sum(gradient * signs * alpha, (0, 1, 2)), 0, atol=1e-6)
    # The released rule multiplies by w instead, which is a direction of its own: documented, not repaired.
    assert np.abs(jnp.sum(gradient * jnp.abs(random(11, 3, 3, 3, 6)) * signs, (0, 1, 2))).min() > 1e-4


def test_check_8_training_looks_ahead_only_where_a_sign_flips():
    x, params = start()
    trained = functools.partial(layer().apply, x=x, train=True)
    evaluated = layer().apply({"params": params}, x, train=False)
    still = {LAST_GRADIENT: {"kernel": jnp.zeros_like(params["kernel"])}}
    np.testing.assert_array_equal(trained({"params": params, **still}), evaluated)
    kernel = params["kernel"]
    mask = density_mask(jnp.abs(params["scale"]), kernel)
    last = random(12, *kernel.shape)
    moved = kernel - 0.2 * mask * last
    changed = np.asarray((jnp.sign(moved) != jnp.sign(kernel)).any((0, 1, 2)))
    looked = trained({"params": params, LAST_GRADIENT: {"kernel": last}})
    different = np.asarray((looked != evaluated).any((0, 1, 2)))
    assert different.any() and not different[~changed].any()
    same = {LAST_GRADIENT: {"kernel": 1e-6 * jnp.sign(last)}}
    assert np.abs(kernel).min() > 1e-6
    np.testing.assert_array_equal(trained({"params": params, **same}), evaluated)
    aside = layer().apply({"params": params, LAST_GRADIENT: {"kernel": last}}, x, train=False)
    np.testing.assert_array_equal(aside, evaluated)


@pytest.mark.parametrize("variant", ["released_fixed", "paper", "released"])
def test_check_9_permuting_the_output_channels(variant):
    alpha, kernel = jnp.array([0.9, 0.1, 0.5, 0.3, 0.7]), random(13, 3, 3, 2, 5)
    order = jnp.array([2, 0, 1, 4, 3])
    mask, permuted = (
        density_mask(a, k, 0.6, variant) for a, k in ((alpha, kernel), (alpha[order], kernel[..., order]))
    )
    if variant == "released":
        assert mask[order].tolist() != permuted.tolist()  # a sorting permutation is not a rank
        return
    assert mask[order].tolist() == permuted.tolist()
    wanted = bilinear_binarize(kernel, alpha)[..., order]
    np.testing.assert_array_equal(bilinear_binarize(kernel[..., order], alpha[order]), wanted)


def test_check_10_the_paper_form():
    w, density, zeros = random(14, 3, 3, 2, 5), jnp.abs(random(15, 5)) + 0.1, jnp.zeros((3, 3, 2, 5))
    kernel, scales, _ = paper_gradients(w, density, (zeros, jnp.zeros(5)), w, weight=1.0)
    wanted = jax.grad(lambda w, a: bilinear_loss(w, a).sum(), argnums=(0, 1))(w, density)
    np.testing.assert_allclose(kernel, wanted[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scales, wanted[1], rtol=1e-5, atol=1e-5)
    steps = (random(16, 3, 3, 2, 5), 100 * random(17, 5))
    _, density, recurrence = paper_update(w, density, jnp.full(5, 1e-3), steps, w, rates=(1.0, 0.1, 10.0))
    assert (density >= 0).all() and (recurrence >= 0).all()
    np.testing.assert_array_equal(backtrack(w, jnp.ones(5), jnp.array([1, 0, 0, 0, 1.0]), variant="paper"),
                                  w + drelu(w, jnp.array([1, 0, 0, 0, 1.0])))  # fmt: skip


def test_the_paper_form_as_an_optimizer_is_its_update():
    x, params = start("paper")
    params = {"block": {"binary": params}, "other": jnp.ones(3)}
    tx = optimizers.recurrent_bilinear(optax.sgd(0.1))
    state = tx.init(params)
    previous = params["block"]["binary"]["kernel"]
    for seed in range(2):
        layer_params = params["block"]["binary"]
        by_kernel, by_density = random(seed, 3, 3, 3, 6), random(seed + 5, 6)
        gradient = {"kernel": by_kernel, "density": by_density, "recurrence": jnp.zeros(6)}
        wanted = paper_update(
            *(layer_params[name] for name in ("kernel", "density", "recurrence")),
            (by_kernel, by_density),
            previous,
            rates=(0.1, 0.1, 0.1),
        )
        updates, state = tx.update({"block": {"binary": gradient}, "other": jnp.ones(3)}, state, params)
        previous, params = layer_params["kernel"], optax.apply_updates(params, updates)
        for name, value in zip(("kernel", "density", "recurrence"), wanted, strict=True):
            np.testing.assert_allclose(params["block"]["binary"][name], value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(params["other"], 0.8, rtol=1e-6)


def test_check_11_refusals():
    kernel, alpha = jnp.ones((1, 1, 1, 2)), jnp.array([0.0, 1.0])
    for tau in (-0.1, 1.1):
        with pytest.raises(UserError, match="tau: needs"):
            density_mask(alpha, kernel, tau)
    with pytest.raises(UserError, match="alpha: needs positive"):
        density_mask(alpha, kernel, 0.5, "paper")
    with pytest.raises(UserError, match="density: needs positive"):
        paper_update(kernel, alpha, alpha, (kernel, alpha), kernel, rates=(1, 1, 1))
    with pytest.raises(UserError, match=r"kernel: needs \[kh, kw, I, O\]"):
        paper_update(kernel[0], alpha, alpha, (kernel, alpha), kernel, rates=(1, 1, 1))
    with pytest.raises(UserError, match="variant: needs one of paper, released, released_fixed"):
        density_mask(alpha, kernel, 0.5, "other")
    with pytest.raises(UserError, match=r"last_gradient: needs shape \(1, 1, 1, 2\)"):
        backtrack(kernel, alpha, alpha, jnp.ones((1, 1, 2)))
    with pytest.raises(UserError, match="alpha: needs shape"):
        density_mask(jnp.ones(3), kernel)
    with pytest.raises(UserError, match=r"x: needs \[B, H, W, C\]"):
        layer().init(jax.random.key(0), jnp.ones((2, 3)))


def test_where_the_scales_start():
    _, params = start()
    np.testing.assert_allclose(
        0.02 * params["scale"], jnp.mean(jnp.abs(params["kernel"]), (0, 1, 2)), rtol=1e-5
    )
    _, released = start("released")
    assert (jnp.abs(released["scale"]) > 0.1).all() and jnp.std(released["scale"]) > 0.2 > jnp.std(
        0.02 * params["scale"]
    )
    assert released["recurrence"].tolist() == [np.float32(0.2)] * 6
    _, paper = start("paper")
    assert paper["recurrence"].tolist() == [np.float32(1e-3)] * 6 and (paper["density"] > 0).all()


def test_the_last_gradient_is_kept():
    params = {"binary": {"kernel": jnp.ones(3), "scale": jnp.ones(2)}, "norm": jnp.ones(1)}
    tx = optimizers.keep_last_gradient(optimizers.name_mask(("kernel",)))
    state = tx.init(params)
    assert state.last_gradient["binary"]["kernel"].tolist() == [0, 0, 0]
    updates, state = tx.update(jax.tree.map(lambda p: 2 * p, params), state)
    assert (
        jax.tree.leaves(state.last_gradient)[0].tolist() == [2, 2, 2] == updates["binary"]["kernel"].tolist()
    )
    assert len(jax.tree.leaves(state.last_gradient)) == 1
