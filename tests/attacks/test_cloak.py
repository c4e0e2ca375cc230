import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import attacks, models
from jaxface.attacks import Cloak, hulls
from jaxface.attacks import cloak as cloaks
from jaxface.errors import UserError
from jaxface.layers.prototypes import l2_normalize

KEY = jax.random.key(0)
SHAPE = (6, 6, 1)
PLAIN = Cloak(batch=0, accumulate=1)


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    person = rng.uniform(60, 195, SHAPE)
    return jnp.asarray(person + rng.uniform(-20, 20, (5, *SHAPE)), jnp.float32)


@pytest.fixture(scope="module")
def embed():
    model = models.create("mlp_24", embedding=8)
    return attacks.surrogate(model, model.init(jax.random.key(3), jnp.zeros((1, *SHAPE))))


def clean_features(embed, photos):
    return attacks.cloak_features(embed, photos, None, KEY)


def random_mask(seed=1, size=4.0):
    return jnp.asarray(np.random.default_rng(seed).uniform(-size, size, SHAPE), jnp.float32)


@pytest.mark.parametrize(
    ("kind", "bounds", "coefficients", "distance"),
    [
        ("affine", {}, (1.2, -0.2), 0.32),
        ("convex", {}, (1.0, 0.0), 0.40),
        ("reduced", {"high": 0.75}, (0.75, 0.25), 0.725),
        ("center", {}, (0.5, 0.5), 1.30),
    ],
)
def test_hulls_of_two_directions(kind, bounds, coefficients, distance):
    clean, u = jnp.eye(2), jnp.array([[0.8, -0.6]])
    c = hulls.hull_coefficients(clean, u, kind=kind, **bounds)
    np.testing.assert_allclose(c, [coefficients], atol=1e-5)
    value = cloaks._opom_objective(u, clean, hull=kind, low=0.0, high=bounds.get("high", 1.0))
    np.testing.assert_allclose(value * 2, [distance], atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "coefficients", "distance"),
    [("affine", (0.466667, 0.666667, -0.133333), 0.053333), ("convex", (0.4, 0.6, 0.0), 0.08)],
)
def test_hulls_of_three_directions(kind, coefficients, distance):
    u = jnp.array([[0.6, 0.8, 0.0]])
    c = hulls.hull_coefficients(jnp.eye(3), u, kind=kind)
    np.testing.assert_allclose(c, [coefficients], atol=1e-5)
    np.testing.assert_allclose(cloaks._opom_objective(u, jnp.eye(3), hull=kind) * 3, [distance], atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_hulls_are_nested_and_within_their_bounds(seed):
    rng = np.random.default_rng(seed)
    clean, u = (l2_normalize(jnp.asarray(rng.normal(size=shape) + 0.5)) for shape in ((7, 16), (4, 16)))
    distances = []
    for kind, low, high in (("affine", 0, 1), ("convex", 0, 1), ("reduced", 0.05, 0.4), ("center", 0, 1)):
        c = hulls.hull_coefficients(clean, u, kind=kind, low=low, high=high)
        np.testing.assert_allclose(c.sum(1), 1, atol=1e-5)
        if kind != "affine":
            assert c.min() >= low - 1e-6 and c.max() <= high + 1e-6
        distances.append(np.square(np.asarray(u - c @ clean)).sum(1))
    assert (np.diff(distances, axis=0) >= -1e-6).all()
    # No neighbor within the bounds is nearer: moving weight from one photo to another never helps.
    c = np.asarray(hulls.hull_coefficients(clean, u, kind="convex"))
    for i in range(7):
        for j in range(7):
            moved = c.copy()
            shift = np.minimum(1e-2, c[:, i])
            moved[:, i] -= shift
            moved[:, j] += shift
            assert (np.square(np.asarray(u - moved @ clean)).sum(1) >= distances[1] - 1e-6).all()


def test_the_affine_hull_of_equal_photos_is_their_feature():
    clean = jnp.tile(l2_normalize(jnp.arange(1.0, 5.0))[None], (4, 1))
    c = hulls.hull_coefficients(clean, jnp.eye(4)[:2], kind="affine")
    np.testing.assert_allclose(c, 0.25, atol=1e-5)


@pytest.mark.parametrize("kind", ["affine", "convex"])
def test_a_clean_feature_lies_in_its_hull_and_has_no_gradient(kind):
    clean = l2_normalize(jax.random.normal(KEY, (4, 9)))
    objective = functools.partial(cloaks._opom_objective, clean=clean, hull=kind)
    np.testing.assert_allclose(objective(clean), 0, atol=1e-8)
    gradient = jax.grad(lambda u: objective(u).sum())(clean)
    np.testing.assert_allclose(gradient, 0, atol=2e-4)
    from_center = jax.grad(lambda u: cloaks._opom_objective(u, clean).sum())(clean)
    assert jnp.abs(from_center).max() > 0.02


def test_coefficients_are_constants_of_the_gradient():
    clean, u = l2_normalize(jax.random.normal(KEY, (4, 9))), jnp.ones((2, 9)) / 3
    gradient = jax.grad(lambda u: cloaks._opom_objective(u, clean, hull="reduced").sum())(u)
    c = hulls.hull_coefficients(clean, u, kind="reduced", high=0.5)
    np.testing.assert_allclose(gradient, 2 / 9 * (u - c @ clean), atol=1e-6)


def test_feature_objectives_of_the_release():
    u, clean = jnp.array([[0.6, 0.8], [1.0, 0.0]]), jnp.array([[0.8, 0.6], [0.0, 1.0]])
    np.testing.assert_allclose(cloaks._fi_uap_objective(u, clean).mean(), 0.52, rtol=1e-6)
    np.testing.assert_allclose(cloaks._fi_uap_plus_objective(u, clean).mean(), -0.64, rtol=1e-6)
    for objective in (cloaks._fi_uap_objective, cloaks._fi_uap_plus_objective, cloaks._opom_objective):
        held = jax.grad(lambda c, objective=objective: objective(u, c).sum())(clean)
        np.testing.assert_array_equal(held, 0)  # clean features are constants


def full_batch_step(embed, mask, photos, clean, cloak):
    """OPOM and FI-UAP: one signed step along the gradient over all photos."""
    gradient = cloaks._gradient(embed, photos, clean, cloak, cloak.hull)(mask, jnp.arange(len(photos)), KEY)
    return cloaks._cloak_step(mask, mask, gradient, step_size=cloak.step_size, epsilon=cloak.epsilon)[0]


@pytest.mark.parametrize("hull", ["center", "affine"])
def test_one_batch_of_everybody_is_the_full_batch_step_bit_for_bit(embed, photos, hull):
    cloak = Cloak(hull=hull, batch=5, accumulate=1, look_ahead=0.7)
    clean, mask = clean_features(embed, photos), random_mask()
    gradient = cloaks._gradient(embed, photos, clean, cloak, cloak.hull)

    def accumulated_step(mask):
        batches = cloaks._small_batches(KEY, 5, cloak.batch, cloak.accumulate)
        total = cloaks._accumulated_gradient(gradient, mask, batches, KEY, look_ahead=0.7, epsilon=8.0)
        return cloaks._cloak_step(mask, mask, total, step_size=cloak.step_size, epsilon=8.0)[0]

    full = jax.jit(lambda m: full_batch_step(embed, m, photos, clean, cloak))(mask)
    ours = jax.jit(accumulated_step)(mask)
    np.testing.assert_array_equal(full, ours)
    assert (np.asarray(full) != np.asarray(mask)).mean() > 0.9


def objective_gradient(embed, photos):
    clean = clean_features(embed, photos)

    def objective(mask, rows, rng):
        return cloaks._opom_objective(attacks.cloak_features(embed, photos[rows], mask, rng), clean).mean()

    return jax.grad(objective)


def test_without_look_ahead_batches_that_tile_the_photos_are_the_full_batch(embed, photos):
    photos, mask = photos[:4], random_mask()
    gradient = objective_gradient(embed, photos)
    tiles = jnp.array([[2, 0], [3, 1]])
    total = cloaks._accumulated_gradient(gradient, mask, tiles, KEY, look_ahead=0.0, epsilon=8.0)
    full = gradient(mask, jnp.arange(4), KEY)
    np.testing.assert_allclose(total, 2 * full, rtol=1e-4, atol=1e-9)
    np.testing.assert_array_equal(jnp.sign(total), jnp.sign(full))
    # The moving scratch mask is the whole point: with it the sum is another one.
    moved = cloaks._accumulated_gradient(gradient, mask, tiles, KEY, look_ahead=1.0, epsilon=8.0)
    second = jnp.clip(mask + jnp.sign(gradient(mask, tiles[0], KEY)), -8, 8)
    expected = gradient(mask, tiles[0], KEY) + gradient(second, tiles[1], KEY)
    np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-9)
    assert jnp.abs(moved - total).max() > 1e-2 * jnp.abs(total).max()


def test_one_quantization_keeps_what_many_lose():
    """Gradients +3, -1, -1: three signed steps of one photo each go down, the sign of the sum goes up."""
    values = jnp.array([3.0, -1.0, -1.0])

    def gradient(mask, rows, rng):
        return jnp.full((1,), values[rows].mean())

    small = jnp.zeros(1)
    for photo in range(3):
        g = gradient(small, jnp.array([photo]), KEY)
        small, _ = cloaks._cloak_step(small, small, g, step_size=0.5, epsilon=8.0)
    np.testing.assert_allclose(small, -0.5)
    total = cloaks._accumulated_gradient(
        gradient, jnp.zeros(1), jnp.arange(3)[:, None], KEY, look_ahead=0.0, epsilon=8.0
    )
    np.testing.assert_allclose(total, 1.0)
    np.testing.assert_allclose(
        cloaks._cloak_step(jnp.zeros(1), jnp.zeros(1), total, step_size=0.5, epsilon=8.0)[0], 0.5
    )


def test_a_step_starts_from_the_old_mask_and_has_no_sign_where_there_is_no_gradient():
    direction = jnp.array([0.0, 2.0, -1e-9, 5.0])
    mask, _ = cloaks._cloak_step(
        jnp.array([1.0, 1.0, 1.0, 7.5]), jnp.zeros(4), direction, step_size=1.0, epsilon=8.0
    )
    np.testing.assert_allclose(mask, [1.0, 2.0, 0.0, 8.0])


def test_momentum_is_of_directions_of_unit_length():
    velocity = mask = jnp.zeros(2)
    step = functools.partial(cloaks._cloak_step, step_size=1.0, epsilon=8.0, momentum=0.9)
    mask, velocity = step(mask, velocity, jnp.array([3.0, 1.0]))
    np.testing.assert_allclose(velocity, [0.75, 0.25])
    mask, velocity = step(mask, velocity, jnp.array([-1e-6, 1e-6]))
    np.testing.assert_allclose(velocity, [0.175, 0.725], rtol=1e-6)
    mask, velocity = step(mask, velocity, jnp.zeros(2))
    np.testing.assert_allclose(velocity, [0.175, 0.725], rtol=1e-6)  # skipped
    np.testing.assert_allclose(mask, [3.0, 3.0])


METHODS = {
    "ga": Cloak(batch=2, accumulate=3),
    "full": PLAIN,
    "fi_uap": dataclasses.replace(PLAIN, objective="fi_uap"),
    "fi_uap_plus": dataclasses.replace(PLAIN, objective="fi_uap_plus"),
    "affine": Cloak(hull="affine", batch=2, accumulate=2),
    "convex": Cloak(hull="convex", batch=2, accumulate=2),
    "reduced": Cloak(hull="reduced", batch=2, accumulate=2),
    "momentum": Cloak(batch=2, accumulate=2, momentum=0.9),
    "rederived": dataclasses.replace(PLAIN, rederive=True),
}


@pytest.mark.parametrize("name", METHODS)
def test_masks_are_bounded_and_drive_features_away(embed, photos, name):
    cloak = dataclasses.replace(METHODS[name], steps=8, epsilon=6.0)
    make = jax.jit(lambda x, key: attacks.make_cloak(embed, x, key, cloak))
    mask = make(photos, KEY)
    assert jnp.abs(mask).max() <= 6.0 and mask.shape == SHAPE and mask.dtype == jnp.float32
    np.testing.assert_array_equal(mask, make(photos, KEY))
    if cloak.batch:
        assert (mask != make(photos, jax.random.key(1))).any()
    clean = clean_features(embed, photos)
    start = cloaks._start_cloak(jax.random.split(KEY, 3)[0], 5, SHAPE, cloak)

    def far(mask):
        return cloaks._opom_objective(attacks.cloak_features(embed, photos, mask, KEY), clean).mean()

    assert far(mask) > 1.5 * far(start)


def test_every_step_stays_within_reach(embed, photos):
    for steps in (0, 1, 3):
        cloak = Cloak(batch=2, accumulate=2, random_start=False, steps=steps, step_size=1.5)
        mask = attacks.make_cloak(embed, photos, KEY, cloak)
        assert jnp.abs(mask).max() <= 1.5 * steps
    cloak = Cloak(batch=2, accumulate=2, step_size=3.0, epsilon=4.0)
    for steps in range(5):
        mask = attacks.make_cloak(embed, photos, KEY, dataclasses.replace(cloak, steps=steps))
        assert jnp.abs(mask).max() <= 4.0


def test_the_start_is_the_mean_of_a_draw_per_photo():
    few, many = (np.asarray(cloaks._start_cloak(KEY, n, (40, 40, 3), Cloak(epsilon=6.0))) for n in (1, 25))
    np.testing.assert_allclose(few.std(), 6 / np.sqrt(3), rtol=0.05)
    np.testing.assert_allclose(many.std(), 6 / np.sqrt(75), rtol=0.05)
    assert not cloaks._start_cloak(KEY, 5, SHAPE, Cloak(random_start=False)).any()


@pytest.mark.parametrize("method", ["ga", "fi_uap", "fi_uap_plus", "affine", "convex"])
def test_only_distances_between_features_matter(embed, photos, method):
    rotation, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(8, 8)))
    cloak = dataclasses.replace(METHODS[method], steps=6)

    def rotated(images, rng):
        return jnp.matmul(embed(images, rng), rotation, precision=jax.lax.Precision.HIGHEST)

    first, second = (attacks.make_cloak(f, photos, KEY, cloak) for f in (embed, rotated))
    assert (
        np.abs(np.asarray(first - second)) < 1e-4
    ).mean() > 0.97  # up to ties of a rounded gradient with 0


def test_with_linear_features_all_batches_agree():
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(5, 12)), jnp.float32)
    photos = jnp.asarray(np.random.default_rng(1).uniform(100, 150, (6, 12)), jnp.float32)

    def objective(mask, rows, rng):
        x = photos[rows]
        return cloaks._fi_uap_objective((x + mask) @ matrix.T, x @ matrix.T).mean()

    gradient, mask = jax.grad(objective), jnp.asarray(np.random.default_rng(2).normal(size=12), jnp.float32)
    expected = 2 / 5 * matrix.T @ matrix @ mask
    for rows in ([0], [3, 1], range(6)):
        np.testing.assert_allclose(gradient(mask, jnp.array(list(rows)), KEY), expected, rtol=1e-3, atol=1e-3)
    batches = jnp.array([[0, 1], [2, 3], [4, 5]])
    total = cloaks._accumulated_gradient(gradient, mask, batches, KEY, look_ahead=0.0, epsilon=8.0)
    np.testing.assert_array_equal(jnp.sign(total), jnp.sign(expected))


def test_clipped_pixels_get_no_gradient(embed):
    photos = jnp.full((3, *SHAPE), 255.0).at[:, 0].set(100.0)
    photos += -jnp.arange(3.0)[:, None, None, None] * 20 * (photos < 200)
    cloak = dataclasses.replace(PLAIN, random_start=False, steps=1)
    clean = clean_features(embed, photos)
    mask = full_batch_step(embed, jnp.full(SHAPE, 2.0), photos, clean, cloak)
    np.testing.assert_array_equal(mask[1:], 2.0)
    assert (mask[0] != 2.0).all()


def test_rederived_masks_shrink_where_images_clip(embed):
    photos = jnp.full((3, *SHAPE), 254.0) - jnp.arange(3.0)[:, None, None, None]
    cloak = dataclasses.replace(PLAIN, steps=4)
    unclipped, shrunk = (
        attacks.make_cloak(embed, photos, KEY, dataclasses.replace(cloak, rederive=flag))
        for flag in (False, True)
    )
    assert shrunk.max() <= 2 + 1 < unclipped.max()  # the mean of what is left below 255, and a step


def test_people_under_vmap_and_map_are_people_alone(embed, photos):
    people = jnp.stack([photos, photos[::-1] * 0.9])
    keys = jax.random.split(KEY, 2)
    cloak = Cloak(batch=2, accumulate=3, steps=4)
    make = functools.partial(attacks.make_cloak, embed, cloak=cloak)
    alone = jnp.stack([make(x, key) for x, key in zip(people, keys, strict=True)])
    mapped = jax.lax.map(lambda inputs: make(*inputs), (people, keys))
    for together in (jax.vmap(make)(people, keys), mapped):
        assert (np.abs(np.asarray(together - alone)) < 1e-4).mean() > 0.97


@pytest.mark.slow
def test_dropout_makes_another_network_of_every_gradient(photos):
    model = models.create("iresnet_pico", embedding=8, dropout=0.5)
    images = jnp.asarray(np.random.default_rng(0).uniform(0, 255, (4, 16, 16, 3)), jnp.float32)
    variables = model.init(KEY, images, train=False)
    still, dropping = (attacks.surrogate(model, variables, dropout=rate) for rate in (0.0, 0.1))
    exact = model.apply(variables, images / 127.5 - 1, train=False)
    np.testing.assert_allclose(still(images, KEY), exact, rtol=1e-3, atol=1e-5)
    first, again, other = dropping(images, KEY), dropping(images, KEY), dropping(images, jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and (first != still(images, KEY)).any()
    cloak = Cloak(batch=2, accumulate=2, steps=2, dropout=0.1, momentum=0.9)
    mask = jax.jit(lambda x: attacks.make_cloak(dropping, x, KEY, cloak))(images)
    assert 0 < jnp.abs(mask).max() <= 8
    with pytest.raises(UserError, match="dropout: ViT has no convolution"):

        class ViT:
            def apply(self, *_, **__):
                return jnp.zeros((4, 8))

        attacks.surrogate(ViT(), {}, dropout=0.1)(images, KEY)


def test_dropout_scatters_features_about_those_without_it():
    model = models.create("iresnet_pico", embedding=8)
    images = jnp.asarray(np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)), jnp.float32)
    variables = model.init(KEY, images, train=False)
    dropping = attacks.surrogate(model, variables, dropout=0.1)
    features = jax.jit(jax.vmap(lambda key: dropping(images, key)))(jax.random.split(KEY, 64))
    exact = attacks.surrogate(model, variables)(images, KEY)
    size = jnp.linalg.norm(exact)
    spread = jnp.mean(jnp.linalg.norm(features - exact, axis=(1, 2))) / size
    assert jnp.linalg.norm(features.mean(0) - exact) / size < 0.6 * spread and spread > 0.05


def test_a_published_photo_is_cut_to_whole_levels():
    images = jnp.array([100, 250, 2], jnp.uint8).reshape(1, 3, 1)
    mask = jnp.array([3.7, 8.0, -5.0]).reshape(1, 3, 1)
    np.testing.assert_array_equal(attacks.apply_cloak(images, mask).ravel(), [103, 255, 0])
    stack = attacks.apply_cloak(np.asarray(images)[None].repeat(2, 0), mask)
    assert stack.shape == (2, 1, 3, 1) and stack.dtype == jnp.uint8
    with pytest.raises(ValueError, match="images: need uint8"):
        attacks.apply_cloak(images.astype(jnp.float32), mask)


def test_gradients_are_counted():
    assert Cloak().photo_gradients(10) == 640
    assert PLAIN.photo_gradients(10) == 160


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"epsilon": 0.0}, "epsilon: needs a number above 0 and up to 255"),
        ({"step_size": 0.0}, "step_size: needs a finite number above 0"),
        ({"batch": 6}, "batch: needs at most the 5 photos of a person, got 6"),
        ({"accumulate": 0}, "accumulate: needs an integer from 1"),
        ({"momentum": 1.0}, "momentum: needs a number from 0 and below 1"),
        ({"dropout": 1.0}, "dropout: needs a number from 0 and below 1"),
        ({"objective": "max"}, "objective: needs opom, fi_uap or fi_uap_plus, got 'max'"),
        ({"hull": "ball"}, "hull: needs center, affine, convex or reduced, got 'ball'"),
        ({"hull": "reduced", "hull_high": 0.1}, r"5 coefficients in \[0, 0.1\] cannot sum to 1"),
        ({"hull": "reduced", "hull_low": 0.3}, r"5 coefficients in \[0.3, 0.5\] cannot sum to 1"),
    ],
)
def test_refusals(embed, photos, fields, words):
    with pytest.raises(UserError, match=words) as caught:
        attacks.make_cloak(embed, photos, KEY, Cloak(**fields))
    assert "\n" not in str(caught.value)


def test_photos_that_are_none_are_refused(embed, photos):
    for bad in (photos.at[0].set(jnp.nan), photos.at[0].set(256.0), photos.at[0].set(-1.0)):
        with pytest.raises(UserError, match=r"photos: need finite pixels in \[0, 255\]"):
            attacks.make_cloak(embed, bad, KEY, PLAIN)
    with pytest.raises(UserError, match="photos: needs at least 2 per person, got 1"):
        attacks.make_cloak(embed, photos[:1], KEY, PLAIN)
    with pytest.raises(AssertionError):
        attacks.make_cloak(embed, photos[0], KEY, PLAIN)
