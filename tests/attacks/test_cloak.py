import dataclasses
import functools
import itertools

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
# Σ|η| and Σ_k k η_k of 16 steps by `released_loop`, which follows the loop of OPOM's public release in float64.
GOLDEN = {
    ("fi_uap", False): (277.103, 1737.088),
    ("fi_uap", True): (175.0, 771.002),
    ("center", False): (278.098, 1661.369),
    ("center", True): (190.0, -1318.997),
    ("convex", False): (273.201, 1708.457),
    ("convex", True): (190.0, -1287.996),
}


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
    """By hand: on the line c = (t, 1 - t) the squared distance to (0.8, -0.6) is (t - 0.8)² + (1.6 - t)², least at t = 1.2."""
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
    """By hand: u minus its excess over sum 1, 0.4 / 3 each; without the negative one 0.4 / 2 of the other two."""
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
    """By hand: squared differences 0.08 and 2 over 2 photos and 2 dimensions; cosines 0.96, 0.8, 0.8, 0."""
    u, clean = jnp.array([[0.6, 0.8], [1.0, 0.0]]), jnp.array([[0.8, 0.6], [0.0, 1.0]])
    np.testing.assert_allclose(cloaks._fi_uap_objective(u, clean).mean(), 0.52, rtol=1e-6)
    np.testing.assert_allclose(cloaks._fi_uap_plus_objective(u, clean).mean(), -0.64, rtol=1e-6)
    for objective in (cloaks._fi_uap_objective, cloaks._fi_uap_plus_objective, cloaks._opom_objective):
        held = jax.grad(lambda c, objective=objective: objective(u, c).sum())(clean)
        np.testing.assert_array_equal(held, 0)  # clean features are constants


def mask_gradient(embed, photos, cloak=PLAIN):
    clean = clean_features(embed, photos)
    return cloaks._mask_gradient(cloaks._objective(embed, photos, clean, cloak, cloak.hull), photos)


@pytest.mark.parametrize("hull", ["center", "affine"])
def test_one_batch_of_everybody_is_the_full_batch_step_bit_for_bit(embed, photos, hull):
    """b = N and M = 1, with any look-ahead: the signed step along the gradient over all photos."""
    cloak, mask = Cloak(hull=hull, batch=5, accumulate=1, look_ahead=0.7), random_mask()
    gradient = mask_gradient(embed, photos, cloak)

    def accumulated_step(mask):
        batches = cloaks._small_batches(KEY, 5, cloak.batch, cloak.accumulate)
        return cloaks._ga_opom_step(gradient, mask, mask, batches, KEY, cloak)[0]

    def full_batch_step(mask):
        return jnp.clip(mask + jnp.sign(gradient(mask, jnp.arange(5), KEY)), -8, 8)

    full, ours = jax.jit(full_batch_step)(mask), jax.jit(accumulated_step)(mask)
    np.testing.assert_array_equal(full, ours)
    assert (np.asarray(full) != np.asarray(mask)).mean() > 0.9


def test_a_mask_is_made_of_the_steps_that_are_tested(embed, photos):
    """`make_cloak` against a loop over `_ga_opom_step` by hand, with its own keys and batches."""
    cloak = Cloak(batch=2, accumulate=3, steps=2, momentum=0.9)
    start_key, _, rng = jax.random.split(KEY, 3)
    mask = cloaks._start_masks(start_key, 5, SHAPE, cloak).mean(axis=0)
    velocity = jnp.zeros_like(mask)
    gradient = mask_gradient(embed, photos, cloak)
    for index in range(2):
        draw, key = jax.random.split(jax.random.fold_in(rng, index))
        batches = cloaks._small_batches(draw, 5, 2, 3)
        assert all(len(set(row)) == 2 for row in np.asarray(batches).tolist())
        step = jax.jit(lambda *x: cloaks._ga_opom_step(gradient, *x, cloak))
        mask, velocity = step(mask, velocity, batches, key)
    made = jax.jit(lambda x: attacks.make_cloak(embed, x, KEY, cloak))(photos)
    assert (np.abs(np.asarray(made - mask)) < 1e-4).mean() > 0.97  # up to ties of a rounded gradient with 0


class Tanh:
    """f(x) = V tanh(W (x / 127.5 - 1) + b) in float64, with its gradient written out; the same network for JAX."""

    def __init__(self, pixels: int):
        rng = np.random.default_rng(7)
        self.w, self.b, self.v = (
            rng.normal(size=(24, pixels)) * 1.5 / np.sqrt(pixels),
            rng.normal(size=24) * 0.3,
            rng.normal(size=(6, 24)) / np.sqrt(24),
        )

    def __call__(self, images, rng=None):
        exact = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        x = images.reshape(len(images), -1) / 127.5 - 1
        return exact(jnp.tanh(exact(x, self.w.T.astype(np.float32)) + self.b), self.v.T.astype(np.float32))

    def features(self, images):
        h = np.tanh((images.reshape(len(images), -1) / 127.5 - 1) @ self.w.T + self.b)
        f = h @ self.v.T
        return f / np.linalg.norm(f, axis=1, keepdims=True), np.linalg.norm(f, axis=1, keepdims=True), h

    def ascent(self, images, goal):
        """Gradient of mean ‖u_i - goal_i‖² over photos and dimensions, per photo."""
        u, norm, h = self.features(images)
        g = 2 / u.size * (u - goal)
        g = (g - u * (u * g).sum(1, keepdims=True)) / norm
        g = (g @ self.v) * (1 - h**2)
        return (g @ self.w / 127.5).reshape(images.shape)


def nearest_in_convex_hull(clean, u):
    """By solving every face of the hull, in float64: the best point of all those with coefficients from 0."""
    best = None
    for size in range(1, len(clean) + 1):
        for rows in itertools.combinations(range(len(clean)), size):
            f = clean[list(rows)]
            kkt = np.block([[2 * f @ f.T, np.ones((size, 1))], [np.ones((1, size)), np.zeros((1, 1))]])
            c = np.linalg.lstsq(kkt, np.append(2 * f @ u, 1), rcond=None)[0][:size]
            distance = np.sum((c @ f - u) ** 2)
            if c.min() >= -1e-12 and (best is None or distance < best[0]):
                best = distance, c @ f
    return best[1]


def released_loop(network, photos, start, kind, steps=16, epsilon=8.0, step_size=1.0):
    """OPOM's released loop (class FIM) in float64: (mask, smallest share of a pixel's gradient in the largest one)."""
    clean = network.features(photos)[0]
    masked, margin = photos + start, 1.0
    for step in range(steps):
        u = network.features(masked)[0]
        if kind == "fi_uap":
            goal = clean
        elif kind == "center" or step < 5:
            goal = np.broadcast_to(clean.mean(0), u.shape)
        else:
            goal = np.stack([nearest_in_convex_hull(clean, row) for row in u])
        g = network.ascent(masked, goal).mean(0)
        margin = min(margin, np.abs(g).min() / np.abs(g).max())
        mask = np.clip((masked + step_size * np.sign(g) - photos).mean(0), -epsilon, epsilon)
        masked = np.clip(photos + mask, 0, 255)
    return mask, margin


@pytest.mark.parametrize("saturated", [False, True])
@pytest.mark.parametrize("kind", ["fi_uap", "center", "convex"])
def test_sixteen_steps_of_the_release(monkeypatch, kind, saturated):
    """FI-UAP, OPOM-ClassCenter and OPOM-ConvexHull against `released_loop`; pinned numbers are that loop's."""
    rng = np.random.default_rng(0)
    photos = rng.uniform(60, 195, SHAPE) + rng.uniform(-20, 20, (4, *SHAPE))
    if saturated:
        photos[:, :2], photos[:, 2:4] = 255.0, 0.0
        photos[:2, 4] = 254.0
    start = rng.uniform(-8, 8, photos.shape)
    network = Tanh(photos[0].size)
    expected, margin = released_loop(network, photos, start, kind)
    assert margin > 1e-4  # no sign hangs on rounding
    monkeypatch.setattr(cloaks, "_start_masks", lambda *_: jnp.asarray(start, jnp.float32))
    objective = "fi_uap" if kind == "fi_uap" else "opom"
    hull = "convex" if kind == "convex" else "center"
    cloak = Cloak(objective=objective, hull=hull, batch=0, accumulate=1, rederive=True)
    made = jax.jit(lambda x: attacks.make_cloak(network, x, KEY, cloak))(photos.astype(np.float32))
    np.testing.assert_allclose(made, expected, atol=2e-3)
    sums = np.abs(made).sum(), np.ravel(made) @ np.arange(made.size)
    np.testing.assert_allclose(sums, GOLDEN[kind, saturated], atol=0.05)


def test_without_look_ahead_batches_that_tile_the_photos_are_the_full_batch(embed, photos):
    photos, mask = photos[:4], random_mask()
    gradient = jax.jit(mask_gradient(embed, photos))
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
        small, _ = cloaks._signed_step(small, small, g, step_size=0.5, epsilon=8.0)
    np.testing.assert_allclose(small, -0.5)
    total = cloaks._accumulated_gradient(
        gradient, jnp.zeros(1), jnp.arange(3)[:, None], KEY, look_ahead=0.0, epsilon=8.0
    )
    np.testing.assert_allclose(total, 1.0)
    np.testing.assert_allclose(
        cloaks._signed_step(jnp.zeros(1), jnp.zeros(1), total, step_size=0.5, epsilon=8.0)[0], 0.5
    )


def test_a_step_starts_from_the_old_mask_and_has_no_sign_where_there_is_no_gradient():
    direction = jnp.array([0.0, 2.0, -1e-9, 5.0])
    mask, _ = cloaks._signed_step(
        jnp.array([1.0, 1.0, 1.0, 7.5]), jnp.zeros(4), direction, step_size=1.0, epsilon=8.0
    )
    np.testing.assert_allclose(mask, [1.0, 2.0, 0.0, 8.0])


def test_momentum_is_of_directions_of_unit_length():
    velocity = mask = jnp.zeros(2)
    step = functools.partial(cloaks._signed_step, step_size=1.0, epsilon=8.0, momentum=0.9)
    mask, velocity = step(mask, velocity, jnp.array([3.0, 1.0]))
    np.testing.assert_allclose(velocity, [0.75, 0.25])
    mask, velocity = step(mask, velocity, jnp.array([-1e-6, 1e-6]))
    np.testing.assert_allclose(velocity, [0.175, 0.725], rtol=1e-6)
    mask, velocity = step(mask, velocity, jnp.zeros(2))
    np.testing.assert_allclose(velocity, [0.175, 0.725], rtol=1e-6)  # skipped
    np.testing.assert_allclose(mask, [3.0, 3.0])


def some_slow(names, *slow):
    """The names as parameters, of which the slow ones run in the slow tier."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


METHODS = {
    "ga": Cloak(batch=2, accumulate=3),
    "full": PLAIN,
    "fi_uap": dataclasses.replace(PLAIN, objective="fi_uap"),
    "fi_uap_plus": dataclasses.replace(PLAIN, objective="fi_uap_plus"),
    "affine": Cloak(hull="affine", batch=2, accumulate=2),
    "convex": Cloak(hull="convex", batch=2, accumulate=2),
    "reduced": Cloak(hull="reduced", batch=2, accumulate=2),
    "momentum": Cloak(batch=2, accumulate=2, momentum=0.9),
    "release": dataclasses.replace(PLAIN, rederive=True),
}


@pytest.mark.parametrize("name", some_slow(METHODS, "full", "fi_uap", "affine", "convex"))
def test_masks_are_bounded_and_drive_features_away(embed, photos, name):
    cloak = dataclasses.replace(METHODS[name], steps=8, epsilon=6.0)
    make = jax.jit(lambda x, key: attacks.make_cloak(embed, x, key, cloak))
    mask = make(photos, KEY)
    assert jnp.abs(mask).max() <= 6.0 and mask.shape == SHAPE and mask.dtype == jnp.float32
    np.testing.assert_array_equal(mask, make(photos, KEY))
    if cloak.batch:
        assert (mask != make(photos, jax.random.key(1))).any()
    clean = clean_features(embed, photos)
    start = cloaks._start_masks(jax.random.split(KEY, 3)[0], 5, SHAPE, cloak).mean(axis=0)

    def far(mask):
        return cloaks._opom_objective(attacks.cloak_features(embed, photos, mask, KEY), clean).mean()

    assert far(mask) > 1.5 * far(start)


def test_every_step_stays_within_reach(embed, photos):
    """|η| ≤ ε at every step, and ≤ α T from no mask."""
    cloak = Cloak(batch=2, accumulate=2, step_size=1.5, epsilon=4.0)
    gradient = mask_gradient(embed, photos)
    batches = cloaks._small_batches(KEY, 5, 2, 2)
    step = jax.jit(lambda *carry: cloaks._ga_opom_step(gradient, *carry, batches, KEY, cloak))
    mask = velocity = jnp.zeros(SHAPE)
    for steps in range(1, 5):
        mask, velocity = step(mask, velocity)
        assert jnp.abs(mask).max() == min(4.0, 1.5 * steps)
    objective = cloaks._objective(embed, photos, clean_features(embed, photos), cloak, "center")
    step = jax.jit(lambda masked: cloaks._opom_step(objective, photos, masked, KEY, cloak))
    masked = photos + cloaks._start_masks(KEY, 5, SHAPE, cloak)
    for _ in range(5):
        masked, mask = step(masked)
        assert jnp.abs(mask).max() <= 4.0 and masked.min() >= 0 and masked.max() <= 255
    none = dataclasses.replace(cloak, steps=0, random_start=False)
    assert not attacks.make_cloak(embed, photos, KEY, none).any()


def test_the_start_is_the_mean_of_a_draw_per_photo(embed, photos):
    few, many = (np.asarray(cloaks._start_masks(KEY, n, (40, 40, 3), Cloak(epsilon=6.0))) for n in (1, 25))
    np.testing.assert_allclose(few.mean(0).std(), 6 / np.sqrt(3), rtol=0.05)
    np.testing.assert_allclose(many.mean(0).std(), 6 / np.sqrt(75), rtol=0.05)
    assert not cloaks._start_masks(KEY, 5, SHAPE, Cloak(random_start=False)).any()
    for cloak in (Cloak(steps=0), Cloak(steps=0, batch=0, accumulate=1, rederive=True)):
        drawn = cloaks._start_masks(jax.random.split(KEY, 3)[0], 5, SHAPE, cloak).mean(axis=0)
        np.testing.assert_allclose(attacks.make_cloak(embed, photos, KEY, cloak), drawn, atol=1e-6)


@pytest.mark.parametrize(
    "method",
    some_slow(["ga", "convex", "fi_uap_plus", "affine", "release"], "fi_uap_plus", "affine", "release"),
)
def test_only_distances_between_features_matter(embed, photos, method):
    rotation, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(8, 8)))
    cloak = dataclasses.replace(METHODS[method], steps=6)

    @jax.jit
    def make(rotation):
        def rotated(images, rng):
            return jnp.matmul(embed(images, rng), rotation, precision=jax.lax.Precision.HIGHEST)

        return attacks.make_cloak(rotated, photos, KEY, cloak)

    first, second = make(np.eye(8, dtype=np.float32)), make(rotation.astype(np.float32))
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


def test_clipped_pixels_get_no_gradient_but_in_the_release(embed):
    photos = jnp.full((3, *SHAPE), 255.0).at[:, 0].set(100.0)
    photos += -jnp.arange(3.0)[:, None, None, None] * 20 * (photos < 200)
    clean = clean_features(embed, photos)
    objective = cloaks._objective(embed, photos, clean, PLAIN, "center")
    g = jax.jit(cloaks._mask_gradient(objective, photos))(jnp.full(SHAPE, 2.0), jnp.arange(3), KEY)
    np.testing.assert_array_equal(g[1:], 0.0)
    assert (g[0] != 0).all()
    # The release takes the gradient at the clipped image: a pixel of 255 in all photos moves, up to what is left of it.
    _, mask = jax.jit(lambda x: cloaks._opom_step(objective, photos, x, KEY, PLAIN))(
        jnp.clip(photos + 2, 0, 255)
    )
    np.testing.assert_array_equal(jnp.abs(mask[1:]), 1.0)
    np.testing.assert_allclose(jnp.abs(mask[0] - 2), 1.0, atol=1e-4)


@pytest.mark.slow
def test_people_under_vmap_and_map_are_people_alone(embed, photos):
    people = jnp.stack([photos, photos[::-1] * 0.9])
    keys = jax.random.split(KEY, 2)
    cloak = Cloak(batch=2, accumulate=3, steps=4)
    make = functools.partial(attacks.make_cloak, embed, cloak=cloak)
    one = jax.jit(make)
    alone = jnp.stack([one(x, key) for x, key in zip(people, keys, strict=True)])
    mapped = jax.jit(lambda *inputs: jax.lax.map(lambda x: make(*x), inputs))(people, keys)
    for together in (jax.jit(jax.vmap(make))(people, keys), mapped):
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


def test_dropout_scatters_features_about_those_without_it(embed, photos):
    model = models.create("mlp_24", embedding=8)
    variables = model.init(jax.random.key(3), jnp.zeros((1, *SHAPE)))
    dropping = attacks.surrogate(model, variables, dropout=0.1)
    features = jax.jit(jax.vmap(lambda key: dropping(photos, key)))(jax.random.split(KEY, 64))
    exact = embed(photos, KEY)
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
        ({"rederive": True}, "rederive: needs batch 0, accumulate 1 and momentum 0, got 2, 20 and 0"),
        (
            {"rederive": True, "batch": 0, "accumulate": 1, "momentum": 0.9},
            "rederive: needs batch 0, accumulate 1 and momentum 0, got 0, 1 and 0.9",
        ),
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
