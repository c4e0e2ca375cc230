"""The perceptual attack against closed forms: directions, thresholds, balls, rounding, one program for a whole ladder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.attacks import niqa_attack as attacks
from jaxface.attacks import perceptual_attack
from jaxface.attacks.niqa_attack import PerceptualAttack
from jaxface.errors import UserError

KEY = jax.random.key(0)
W = jnp.array([0.3, 0.4])
START = jnp.full((1, 2, 1), 0.5)
GRAY = jnp.full((8, 8, 3), 0.5)
LINF = PerceptualAttack(geometry="linf", steps=8, keep_every=2)


def linear(x):
    return jnp.sum(W * x.ravel())


def squared(x, start):
    return jnp.sum(jnp.square(x - start)) / 2


def farthest(x, start):
    return jnp.abs(x - start).max()


def levels(x, start=GRAY):
    """The change in gray levels of the rounded start."""
    return np.asarray(x - jnp.round(start * 255) / 255) * 255


@pytest.mark.parametrize(
    ("fields", "expected", "product"),
    [
        ({"step_norm": "unit"}, (0.6, -0.8), 5),
        ({"geometry": "linf"}, (1, -1), 7),
        ({}, (0.848528, -1.131371), 7.071068),
        ({"optimizer": "fresh_adam"}, (1, -1), 7),
    ],
)
def test_steepest_directions(fields, expected, product):
    gradient = jnp.array([3.0, -4.0])
    direction = attacks._steepest(gradient, PerceptualAttack(**fields))
    np.testing.assert_allclose(direction, expected, atol=2e-6)
    assert float(gradient @ direction) == pytest.approx(product, abs=1e-4)
    # However small; and nothing where there is no gradient.
    np.testing.assert_allclose(
        attacks._steepest(1e-30 * gradient, PerceptualAttack(**fields)), expected, atol=2e-6
    )
    assert not attacks._steepest(0 * gradient, PerceptualAttack(**fields)).any()


def test_nothing_moves_without_the_noise():
    """At x₀ the change of the score is 0, and so is the gradient of its square and of the distance."""
    for sign in (-1.0, 0.0, 1.0):
        objective = lambda x, s=sign: attacks._objective(linear, squared, START, linear(START), 3.0, s, x)  # noqa: E731
        (value, score), gradient = jax.value_and_grad(objective, has_aux=True)(START)
        assert value == 0 and score == linear(START) and not gradient.any()


def test_the_gradient_of_a_linear_score():
    """∇J = -δ + 2 λ (w·δ) w; with the sign of the direction where δ goes that way."""
    delta, weight = jnp.array([0.01, 0.02]).reshape(START.shape), 3.0
    objective = lambda x, s: attacks._objective(linear, squared, START, linear(START), weight, s, x)[0]  # noqa: E731
    told = jax.grad(objective)(START + delta, 0.0)
    expected = -delta + 2 * weight * (W @ delta.ravel()) * W.reshape(START.shape)
    np.testing.assert_allclose(told, expected, atol=1e-6)
    np.testing.assert_allclose(jax.grad(objective)(START + delta, 1.0), expected, atol=1e-6)
    down = -delta - 2 * weight * (W @ delta.ravel()) * W.reshape(START.shape)
    np.testing.assert_allclose(jax.grad(objective)(START + delta, -1.0), down, atol=1e-6)


@pytest.fixture(scope="module")
def threshold():
    """A ladder around the threshold λ_c = 1 / (2 |w|²) = 2, without rounding."""
    attack = PerceptualAttack(steps=400, step=2e-3, quantize=False, keep_every=100)
    return perceptual_attack(linear, squared, START, KEY, [1.0, 4.0], attack)


@pytest.mark.slow
def test_below_the_threshold_the_image_comes_back_and_above_it_leaves(threshold):
    ends = np.abs(np.asarray(threshold.image - START)).max(axis=(1, 2, 3))
    assert ends[0] < 5e-3 and ends[1] == pytest.approx(0.5)  # to the box
    # Both directions, one behind the other; the larger change is the result.
    assert threshold.iterates.shape == (2, 8, 1, 2, 1) and threshold.trace.shape == (2, 2, 400)
    scores = threshold.scores[1] - linear(START)
    assert float(scores[3]) > 0.3 and float(scores[7]) < -0.3
    np.testing.assert_allclose(threshold.scores[1, 3], linear(threshold.iterates[1, 3]), rtol=1e-6)
    np.testing.assert_allclose(threshold.distances[1, 3], squared(threshold.iterates[1, 3], START), rtol=1e-6)


@pytest.mark.slow
def test_the_threshold_is_found():
    attack = PerceptualAttack(steps=100, step=2e-3)
    weight = attacks.critical_weight(linear, squared, START, KEY, attack, low=1e-3, high=1e3)
    assert weight == pytest.approx(2.0, rel=0.1)
    with pytest.raises(UserError, match="multiplier that moves the score"):
        attacks.critical_weight(linear, squared, START, KEY, attack, low=1e-3, high=1e-2)


def smooth(pattern, x):
    return 10 * jax.nn.sigmoid(jnp.vdot(pattern, x - 0.5) / 10)


def patterned(number):
    """A smooth score with parameters, as the attack takes it."""
    return jax.tree_util.Partial(
        smooth, jnp.asarray(np.random.default_rng(number).normal(size=GRAY.shape), jnp.float32)
    )


@pytest.fixture(scope="module")
def ladder():
    """Balls of 1, 2 and 4 levels around three images, and a smooth score."""
    starts = np.stack([GRAY, GRAY, GRAY])
    starts[1, 0], starts[2, 1] = 1.0, 0.0
    quality = patterned(7)
    return quality, starts, perceptual_attack(quality, farthest, starts, KEY, np.array([1, 2, 4]) / 255, LINF)


def test_a_ball_holds_every_pixel(ladder):
    quality, starts, told = ladder
    assert told.image.shape == (3, 3, 8, 8, 3) and told.iterates.dtype == jnp.uint8
    rounded = np.round(np.asarray(starts) * 255)[:, None]
    change = np.abs(np.asarray(told.image) * 255 - rounded).max(axis=(2, 3, 4))
    # 0.5 is half-way between two levels.
    np.testing.assert_allclose(change, np.broadcast_to([1, 2, 4], (3, 3)), atol=1.01)
    assert (
        np.abs(np.asarray(told.image) - np.asarray(starts)[:, None])
        <= np.array([1, 2, 4]).reshape(3, 1, 1, 1) / 255 + 0.51 / 255
    ).all()
    # Larger balls change more, in either direction.
    up, down = np.asarray(told.scores[..., 3] - 5), np.asarray(told.scores[..., 7] - 5)
    assert (np.diff(up[0]) > 0).all() and (np.diff(down[0]) < 0).all()
    assert bool(told.finite.all())


def test_what_is_returned_has_whole_levels(ladder):
    _, _, told = ladder
    values = np.asarray(told.image) * 255
    assert np.abs(values - np.round(values)).max() < 1e-4 and values.min() >= 0 and values.max() <= 255.001
    last = np.asarray(told.iterates)[:, :, [3, 7]]  # the ends of both directions, one of which is the result
    same = [(last[:, :, k] == np.round(values)).all(axis=(2, 3, 4)) for k in (0, 1)]
    assert (same[0] | same[1]).all()


@pytest.mark.slow
def test_a_ladder_is_its_rungs_one_by_one(ladder):
    quality, starts, told = ladder
    alone = perceptual_attack(quality, farthest, starts, KEY, 2 / 255, LINF, at_a_time=2)
    np.testing.assert_array_equal(alone.image, told.image[:, 1])
    np.testing.assert_allclose(alone.scores, told.scores[:, 1], atol=1e-5)


def test_other_rungs_images_and_parameters_compile_nothing(ladder):
    _, starts, before = ladder
    size = attacks._attacked._cache_size()
    for number in (1, 2):
        told = perceptual_attack(
            patterned(number),
            farthest,
            starts * 0.9,
            jax.random.key(number),
            np.array([1, 3, 9]) * number / 255,
            LINF,
        )
        assert (np.asarray(told.image) != np.asarray(before.image)).any()
    assert attacks._attacked._cache_size() == size
    # All rungs, both directions and all images are one product with the pattern, not a loop over them.
    program = attacks._attacked.lower(
        patterned(1), jax.tree_util.Partial(farthest), starts, jnp.zeros(3), KEY, jnp.ones(3), attack=LINF, at_a_time=None
    )  # fmt: skip
    assert "3x3x2x8x8x3xf32" in program.as_text()


def one_step(attack, quality, image, *, start=GRAY, rung=1.0, sign=0.0):
    """The image after a step under no distance."""
    nothing = lambda x, y: jnp.float32(0)  # noqa: E731
    return attacks._step(quality, nothing, start, quality(start), rung, sign, attack, image)[0]


def test_a_sign_step_changes_every_pixel_by_its_length():
    attack = PerceptualAttack(geometry="linf", constraint="penalty", step=2e-3)
    noisy = GRAY + jnp.asarray(np.random.default_rng(0).integers(-1, 2, GRAY.shape) / 255, jnp.float32)
    image = noisy
    for steps in (1, 2, 3):
        image = one_step(attack, jnp.sum, image)
        np.testing.assert_allclose(jnp.abs(image - noisy), steps * 2e-3, atol=1e-6)
        assert float(jnp.abs(attacks._rounded(image) - GRAY).max()) <= steps * 2e-3 + 1.5 / 255 + 1e-6


def test_a_pixel_without_a_gradient_stays():
    mask = jnp.zeros(GRAY.shape).at[0].set(1.0)
    attack = PerceptualAttack(geometry="linf", constraint="penalty")
    image = GRAY + 0.01
    moved = np.abs(np.asarray(one_step(attack, lambda x: jnp.vdot(x, mask), image) - image))
    np.testing.assert_allclose(moved[0], 1e-3, atol=1e-6)
    assert not moved[1:].any()


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0, 3])
def test_so_many_steps_are_taken(steps):
    attack = PerceptualAttack(
        geometry="linf",
        constraint="penalty",
        steps=steps,
        step=2e-3,
        direction="free",
        keep_every=0,
        quantize=False,
    )
    told = perceptual_attack(jnp.sum, farthest, GRAY, KEY, 1e6, attack)
    noisy = attacks._noisy(GRAY, attacks._keys(KEY, 1)[0])
    assert told.iterates.shape == (1, 8, 8, 3) and told.trace.shape == (1, steps)
    np.testing.assert_allclose(jnp.abs(told.image - noisy), steps * 2e-3, atol=1e-6)
    assert float(jnp.abs(noisy - GRAY).max()) == pytest.approx(1 / 255)


@pytest.mark.slow
def test_unit_steps_are_undone_by_rounding():
    """γ = 1e-3 of the whole image's norm is 9.2e-7 a value: after 200 steps the noisy start comes back."""
    start = jnp.full((512, 768, 3), 128 / 255)
    attack = PerceptualAttack(step_norm="unit", direction="free", keep_every=0)
    told = perceptual_attack(jnp.mean, lambda x, y: jnp.float32(0), start, KEY, 1e6, attack)
    np.testing.assert_allclose(told.image, attacks._noisy(start, attacks._keys(KEY, 1)[0]), atol=1e-6)
    rms = dataclasses.replace(attack, step_norm="rms", steps=10)
    moved = levels(
        perceptual_attack(jnp.mean, lambda x, y: jnp.float32(0), start, KEY, 1e6, rms).image, start
    )
    assert np.abs(moved).mean() > 1.5


def test_fresh_adam_takes_the_sign():
    attack = PerceptualAttack(optimizer="fresh_adam", step=5e-3)
    quality = patterned(3)
    image = GRAY + 0.01 * jnp.sign(quality.args[0])  # above the start: the square grows upwards
    moved = one_step(attack, quality, image) - image
    np.testing.assert_allclose(moved, 5e-3 * jnp.sign(quality.args[0]), atol=1e-6)


@pytest.mark.slow
def test_a_penalty_on_the_farthest_pixel_ignores_the_multiplier():
    """Only the farthest pixel feels it, and the sign discards how much: the literal form's ladder is none."""
    shape = (24, 24, 3)  # on a few pixels the one that feels it matters to the score
    start = jnp.asarray(np.random.default_rng(5).uniform(0.2, 0.8, shape), jnp.float32)
    pattern = jnp.asarray(np.random.default_rng(6).normal(size=shape), jnp.float32)

    def quality(x):
        return 10 * jax.nn.sigmoid(jnp.vdot(pattern, x - start) / 20)

    attack = PerceptualAttack(geometry="linf", constraint="penalty", steps=50, direction="free")
    told = perceptual_attack(quality, farthest, start, KEY, [1e-2, 1.0], attack)
    ends = np.abs(levels(told.image, start)).max(axis=(1, 2, 3))
    assert abs(ends[0] - ends[1]) <= 1.001 and ends.min() > 8
    noisy = jnp.clip(GRAY.at[0, 0, 0].add(0.1), 0, 1)
    slope = np.asarray(jax.grad(farthest)(noisy, GRAY))
    assert slope[0, 0, 0] == 1 and np.count_nonzero(slope) == 1


@pytest.mark.slow
def test_a_reference_of_people_changes_what_counts_as_far():
    attack = PerceptualAttack(steps=2, direction="free", keep_every=0, quantize=False)
    # Far above the model's own score: the square grows downwards.
    told = perceptual_attack(jnp.sum, squared, GRAY, KEY, 1.0, attack, reference=1e3)
    assert float(told.scores[0]) < float(jnp.sum(attacks._noisy(GRAY, attacks._keys(KEY, 1)[0])))


@pytest.mark.slow
def test_gradients_that_are_not_finite_count_as_none_and_are_told():
    def quality(x):  # the square root of 0 has no slope
        return jnp.sqrt(jnp.maximum(x.mean() - 0.5, 0)) + x[0, 0, 0]

    told = jax.jit(
        lambda start: perceptual_attack(
            quality, squared, start, KEY, 1.0, PerceptualAttack(steps=2, keep_every=0)
        )
    )(jnp.full((2, 2, 1), 0.2))
    assert not bool(told.finite) and bool(jnp.isfinite(told.image).all())


@pytest.mark.slow
def test_a_shuffled_change_has_the_size_of_the_change():
    start = (
        jnp.round(jax.random.uniform(jax.random.key(1), (6, 6, 3)) * 255).at[0].set(255.0).at[1].set(0.0)
        / 255
    )
    changed = (
        start + jnp.where(start > 0.5, -1, 1) * jax.random.randint(jax.random.key(2), start.shape, 0, 4) / 255
    )
    drawn = attacks.shuffled_changes(changed, start, KEY, 10)
    sizes = np.sort(np.abs(np.asarray(drawn - start)).reshape(10, -1)) * 255
    np.testing.assert_allclose(
        sizes, np.tile(np.sort(np.abs(np.asarray(changed - start)).ravel()) * 255, (10, 1)), atol=1e-3
    )
    assert float(drawn.min()) >= 0 and float(drawn.max()) <= 1
    assert len({np.asarray(one).tobytes() for one in drawn}) == 10


def test_the_eigen_distortion_is_noticed_most():
    np.testing.assert_allclose(attacks.eigen_distortion(linear, START).ravel(), [0.6, 0.8], atol=1e-6)


@pytest.mark.slow
def test_one_model_moves_while_the_other_is_held():
    weights = jnp.asarray(np.random.default_rng(4).normal(size=(2, *GRAY.shape)), jnp.float32)
    mover, holder = (lambda x, w=w: jnp.vdot(w, x) + 0.1 * jnp.sum(jnp.square(x)) for w in weights)
    ends = [
        attacks.maximum_differentiation(mover, holder, GRAY, up=up, steps=50, step=2e-3)
        for up in (True, False)
    ]
    assert float(mover(ends[0])) > float(mover(GRAY)) + 5 > float(mover(ends[1])) + 10
    np.testing.assert_allclose([holder(x) for x in ends], holder(GRAY), atol=1e-3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: attack_gray(start=GRAY + 1), r"starts: needs pixels in \[0, 1\], got 1\.5"),
        (lambda: attack_gray(start=GRAY * jnp.nan), "starts: needs finite values"),
        (lambda: attack_gray(lambda x: x.mean() * jnp.nan), "quality: needs a finite score, got none for start 0"),
        (lambda: attack_gray(lambda x: jnp.round(x).mean()), "quality: needs a gradient, it is 0 at every start"),
        (lambda: attack_gray(lambda x: x.mean(axis=(0, 1))), "quality: needs a floating scalar"),
        (lambda: attack_gray(steps=-1), "steps: needs an integer from 0, got -1"),
        (lambda: attack_gray(rungs=-1.0), "rungs: needs a finite number from 0, got -1"),
        (lambda: attack_gray(rungs=[1.0, np.nan]), "rungs: needs a finite number from 0"),
        (lambda: attack_gray(geometry="l1"), "geometry: needs l2 or linf, got 'l1'"),
        (lambda: attack_gray(constraint="ball"), "constraint: a ball needs geometry linf"),
        (lambda: attack_gray(geometry="linf", optimizer="fresh_adam"), "optimizer: a ball needs steepest"),
        (lambda: attacks.critical_weight(jnp.mean, squared, GRAY, KEY, LINF), "attack: needs a penalty"),
        (lambda: attacks.critical_weight(jnp.mean, squared, GRAY, KEY, low=1.0, high=0.5), "high: needs a finite"),
        (lambda: attacks.ladder_around(1.0, 3, factor=1.0), "factor: needs a number above 1"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call, words):
    with pytest.raises(UserError, match=words):
        call()


def attack_gray(quality=jnp.mean, *, start=GRAY, rungs=1.0, **fields):
    return perceptual_attack(quality, squared, start, KEY, rungs, PerceptualAttack(**fields))
