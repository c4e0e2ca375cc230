"""Privacy cloaks: one bounded mask per person that hides any photo of that person from face recognition.

FI-UAP, FI-UAP+ and OPOM (arXiv:2205.11981) push the features of masked photos away from the person's clean features by signed
gradients; `rederive` makes them step by step as their release does. GA-OPOM (arXiv:2401.01575) sums raw gradients of several
small batches, each looked at from where the ones before lead, into one signed step. Its abstract says what is summed; the
look-ahead is that of the same author's arXiv:2308.06015, which states the same dilemma and remedy (our reading). Pixels go from
0 to 255 throughout.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxface.attacks.hulls import Hull, check_bounds, hull_coefficients
from jaxface.checks import AtLeast, NonNegative, Positive, ProperFraction, Range, check_fields
from jaxface.errors import UserError
from jaxface.layers.prototypes import l2_normalize

Embed = Callable[..., jax.Array]  # (images [B, H, W, C] in [0, 255], rng) -> [B, D]
# (images [b, H, W, C], rows [b], rng) -> mean objective of photos `rows` in the form of these images
Objective = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# (mask, rows [b], rng) -> gradient like the mask
Gradient = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

WARM_UP = 5  # steps that push away from the mean before a hull with an inside is pushed out of


@dataclasses.dataclass(frozen=True)
class Cloak:
    """How a mask is made: what is maximized, and how the mask follows the gradients."""

    objective: Literal["opom", "fi_uap", "fi_uap_plus"] = "opom"
    """Away from the nearest point of the person's subspace, from the photo's own clean feature, or from all clean features."""
    hull: Hull = "center"
    """OPOM: the subspace that the clean features span: their mean, affine, convex or reduced hull."""
    hull_low: float = 0.0
    """OPOM, reduced hull: least coefficient of a photo."""
    hull_high: float = 0.5
    """OPOM, reduced hull: largest coefficient of a photo."""
    epsilon: Annotated[float, Range(0, 255, above=True)] = 8.0
    """Largest change of a pixel, of 255."""
    step_size: Annotated[float, Positive] = 1.0
    """Change of a pixel in one step, of 255."""
    steps: Annotated[int, AtLeast(0)] = 16
    """Steps of the mask; 100 with momentum and dropout."""
    batch: Annotated[int, AtLeast(0)] = 2
    """Photos in a gradient; 0 takes all of them."""
    accumulate: Annotated[int, AtLeast(1)] = 20
    """Gradients summed into one step (GA-OPOM); 1 makes a plain signed step of every gradient."""
    look_ahead: Annotated[float, NonNegative] = 1.0
    """How far the mask of the next gradient moves ahead within a step, as a share of the step size; at 0 accumulation is no more
    than a larger batch."""
    momentum: Annotated[float, ProperFraction] = 0.0
    """Decay of the accumulated direction, in [0, 1); 0.9 with dropout."""
    dropout: Annotated[float, ProperFraction] = 0.0
    """Share of the surrogate's features that are dropped, others in every gradient (DFANet: 0.1), in [0, 1)."""
    random_start: bool = True
    """Start from the mean of one random mask per photo, as published, instead of from no mask."""
    rederive: bool = False
    """Step as the release of OPOM and FI-UAP does: each photo has its masked image, at which the gradient is taken and from which
    the mask is taken again; it shrinks where images clip. Needs all photos in a step (batch 0, accumulate 1) and no momentum."""

    def check(self, photos: int | None = None) -> None:
        """Raises UserError for a field out of its range, or one that does not suit so many photos."""
        if self.objective not in ("opom", "fi_uap", "fi_uap_plus"):
            raise UserError(f"objective: needs opom, fi_uap or fi_uap_plus, got {self.objective!r}")
        if self.hull not in ("center", "affine", "convex", "reduced"):
            raise UserError(f"hull: needs center, affine, convex or reduced, got {self.hull!r}")
        check_fields(self)
        reduced = self.objective == "opom" and self.hull == "reduced"
        if reduced:
            check_bounds(self.hull_low, self.hull_high, photos)
        if self.rederive and (self.batch, self.accumulate, self.momentum) != (0, 1, 0):
            raise UserError(
                "rederive: needs batch 0, accumulate 1 and momentum 0, "
                f"got {self.batch}, {self.accumulate} and {self.momentum:g}"
            )
        if photos is not None:
            if self.batch > photos:
                raise UserError(f"batch: needs at most the {photos} photos of a person, got {self.batch}")
            if photos < 1 or (self.objective == "opom" and photos < 2):
                raise UserError(
                    f"photos: needs at least {1 + (self.objective == 'opom')} per person, got {photos}"
                )

    def photo_gradients(self, photos: int) -> int:
        """How many photos are differentiated in all, for one person."""
        return self.steps * self.accumulate * (self.batch or photos)


def _fi_uap_objective(adversarial: jax.Array, clean: jax.Array) -> jax.Array:
    """Squared distance of masked features to the photos' own clean ones, over D (FI-UAP, arXiv:2205.11981).

        ℓ_i = 1/D · ‖u_i - F_i‖²

    Args:
      adversarial: u, [B, D] float, unit vectors as published.
      clean: F_i, [B, D], of the same photos; constants.

    Returns:
      [B] float32, to maximize.
    """
    chex.assert_rank([adversarial, clean], 2)
    chex.assert_equal_shape([adversarial, clean])
    u, f = adversarial.astype(jnp.float32), jax.lax.stop_gradient(clean.astype(jnp.float32))
    return jnp.mean(jnp.square(u - f), axis=-1)


def _fi_uap_plus_objective(adversarial: jax.Array, clean: jax.Array) -> jax.Array:
    """Minus the mean cosine of masked features with all clean ones (FI-UAP+, arXiv:2205.11981).

        ℓ_i = -1/N · Σ_j ⟨u_i, F_j⟩

    Args:
      adversarial: u, [B, D] float, unit vectors.
      clean: F, [N, D], unit vectors; constants.

    Returns:
      [B] float32, to maximize.
    """
    chex.assert_rank([adversarial, clean], 2)
    chex.assert_equal_shape_suffix([adversarial, clean], 1)
    u, f = adversarial.astype(jnp.float32), jax.lax.stop_gradient(clean.astype(jnp.float32))
    return -jnp.sum(u * f.mean(axis=0), axis=-1)


def _opom_objective(
    adversarial: jax.Array, clean: jax.Array, *, hull: Hull = "center", low: float = 0.0, high: float = 0.5
) -> jax.Array:
    """Squared distance of masked features to the subspace of the clean ones, over D (OPOM, arXiv:2205.11981).

        ℓ_i = 1/D · ‖u_i - Fᵀ c_i‖²,     c_i = `hull_coefficients`, constants

    Args:
      adversarial: u, [B, D] float, unit vectors.
      clean: F, [N, D], unit vectors; constants.
      hull, low, high: the subspace, as `hull_coefficients` takes it.

    Returns:
      [B] float32, to maximize; 0 with a zero gradient inside a convex or affine hull.
    """
    chex.assert_rank([adversarial, clean], 2)
    chex.assert_equal_shape_suffix([adversarial, clean], 1)
    clean = jax.lax.stop_gradient(clean.astype(jnp.float32))
    c = hull_coefficients(clean, adversarial, kind=hull, low=low, high=high)
    nearest = jnp.matmul(c, clean, precision=jax.lax.Precision.HIGHEST)
    return jnp.mean(jnp.square(adversarial.astype(jnp.float32) - nearest), axis=-1)


def cloak_features(embed: Embed, photos: jax.Array, mask: jax.Array | None, rng: jax.Array) -> jax.Array:
    """Unit features [B, D] float32 of photos [B, H, W, C] under a mask [H, W, C]: f(clip(x + η, 0, 255)) / ‖f‖."""
    masked = photos if mask is None else jnp.clip(photos + mask, 0.0, 255.0)
    return l2_normalize(embed(masked, rng).astype(jnp.float32))


def _accumulated_gradient(
    gradient: Gradient,
    mask: jax.Array,
    batches: jax.Array,
    rng: jax.Array,
    *,
    look_ahead: float,
    epsilon: float,
) -> jax.Array:
    """Sum of the raw gradients of small batches, each taken where the signs of those before have led (arXiv:2308.06015).

        e_1 = η,   g_m = ∇ℓ(e_m; S_m),   e_{m+1} = clip(e_m + a sign g_m, -ε, ε),      G = Σ_m g_m

    The scratch masks e_m are thrown away: only G is returned, and no sign has been taken of any of its terms.

    Args:
      gradient: (mask, rows [b], rng) -> the gradient of the objective, averaged over these photos.
      mask: η, float, any shape.
      batches: S, [M, b] int, the photos of each small batch.
      rng: key; every gradient gets one of its own.
      look_ahead: a ≥ 0, of 255; 0 leaves e_m at η, which is the gradient of a larger batch and no more.
      epsilon: ε > 0, of 255.

    Returns:
      G, float32 like the mask.
    """

    def inner(carry, inputs):
        scratch, total = carry
        rows, key = inputs
        g = gradient(scratch, rows, key).astype(jnp.float32)
        scratch = jnp.clip(scratch + look_ahead * jnp.sign(g), -epsilon, epsilon)
        return (scratch, total + g), None

    keys = jax.random.split(rng, batches.shape[0])
    (_, total), _ = jax.lax.scan(inner, (mask, jnp.zeros_like(mask)), (batches, keys))
    return total


def _signed_step(
    mask: jax.Array,
    velocity: jax.Array,
    direction: jax.Array,
    *,
    step_size: float,
    epsilon: float,
    momentum: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """One signed step of the mask along an accumulated gradient.

        v ← μ v + G / ‖G‖₁   (left alone where G = 0),      η ← clip(η + α sign v, -ε, ε),      sign 0 = 0

    Momentum in the form of arXiv:2308.06015; without it sign v = sign G.

    Returns:
      (η, v), float32 like the mask.
    """
    size = jnp.sum(jnp.abs(direction))
    if momentum:
        scaled = direction / jnp.where(size > 0, size, 1.0)
        velocity = jnp.where(size > 0, momentum * velocity + scaled, velocity)
    else:
        velocity = direction
    return jnp.clip(mask + step_size * jnp.sign(velocity), -epsilon, epsilon), velocity


def _ga_opom_step(
    gradient: Gradient, mask: jax.Array, velocity: jax.Array, batches: jax.Array, rng: jax.Array, cloak: Cloak
) -> tuple[jax.Array, jax.Array]:
    """One step of GA-OPOM: `_signed_step` along `_accumulated_gradient` over batches [M, b], from the old mask.

    With one batch (M = 1) it is a signed step of that batch; a batch of everybody is the full-batch step, bit for bit.

    Returns:
      (η, v), float32 like the mask.
    """
    total = _accumulated_gradient(
        gradient, mask, batches, rng, look_ahead=cloak.look_ahead * cloak.step_size, epsilon=cloak.epsilon
    )
    return _signed_step(
        mask, velocity, total, step_size=cloak.step_size, epsilon=cloak.epsilon, momentum=cloak.momentum
    )


def _opom_step(
    objective: Objective, photos: jax.Array, masked: jax.Array, rng: jax.Array, cloak: Cloak
) -> tuple[jax.Array, jax.Array]:
    """One step of OPOM or FI-UAP as released (arXiv:2205.11981), of a masked image per photo.

        g = mean_i ∂L/∂x'_i,    η = clip(mean_i (x'_i + α sign g - x_i), -ε, ε),    x'_i ← clip(x_i + η, 0, 255)

    The gradient is taken at x'_i, where pixels at 0 and 255 count like others; images that clip shorten the mask.

    Args:
      objective: L, the mean over all photos.
      photos: x, [N, H, W, C]. masked: x', like them; before the first step x + U, which is not clipped.

    Returns:
      (x', η): [N, H, W, C] and [H, W, C] float32.
    """
    g = jax.grad(objective)(masked, jnp.arange(photos.shape[0]), rng).mean(axis=0)
    moved = masked + cloak.step_size * jnp.sign(g)
    mask = jnp.clip((moved - photos).mean(axis=0), -cloak.epsilon, cloak.epsilon)
    return jnp.clip(photos + mask, 0.0, 255.0), mask


def _objective(
    embed: Embed, photos: jax.Array, clean: jax.Array | None, cloak: Cloak, hull: Hull
) -> Objective:
    """The mean objective over some photos; clean features are the given ones, or with dropout computed again."""

    def objective(images, rows, rng):
        masked_key, clean_key = jax.random.split(rng)
        known = jax.lax.stop_gradient(
            cloak_features(embed, photos, None, clean_key) if clean is None else clean
        )
        features = cloak_features(embed, images, None, masked_key)
        if cloak.objective == "fi_uap":
            values = _fi_uap_objective(features, known[rows])
        elif cloak.objective == "fi_uap_plus":
            values = _fi_uap_plus_objective(features, known)
        else:
            values = _opom_objective(features, known, hull=hull, low=cloak.hull_low, high=cloak.hull_high)
        return values.mean()

    return objective


def _mask_gradient(objective: Objective, photos: jax.Array) -> Gradient:
    """The gradient of an objective with respect to the mask of all photos, through the clip to [0, 255]."""
    return jax.grad(lambda mask, rows, rng: objective(jnp.clip(photos[rows] + mask, 0.0, 255.0), rows, rng))


def _small_batches(rng: jax.Array, photos: int, batch: int, count: int) -> jax.Array:
    """[count, batch] int, each row drawn without replacement; all photos in order where a batch holds them all."""
    if batch in (0, photos):
        return jnp.tile(jnp.arange(photos), (count, 1))
    draw = jax.vmap(lambda key: jax.random.permutation(key, photos)[:batch])
    return draw(jax.random.split(rng, count))


def _start_masks(rng: jax.Array, photos: int, shape: tuple[int, int, int], cloak: Cloak) -> jax.Array:
    """U, [N, H, W, C] float32: a uniform draw from [-ε, ε] for each photo, or 0. Their mean is η before the first step."""
    if not cloak.random_start:
        return jnp.zeros((photos, *shape), jnp.float32)
    return jax.random.uniform(rng, (photos, *shape), jnp.float32, -cloak.epsilon, cloak.epsilon)


def make_cloak(embed: Embed, photos: jax.Array, rng: jax.Array, cloak: Cloak) -> jax.Array:
    """The mask of one person.

        η = mean_i U_i (`_start_masks`), then `steps` times `_ga_opom_step`;
        with `rederive` x'_i = x_i + U_i, then `steps` times `_opom_step`

    The features F of the clean photos are those of the network as it is; with dropout they are computed for every gradient. A
    convex or reduced hull is preceded by five steps away from the mean of F: inside the hull the distance and its gradient
    are 0 (as the release does for the convex one; design for the reduced one). Works under jit, vmap over people, and
    `lax.map`, which needs the memory of one person alone.

    Args:
      embed: (images [B, H, W, C] in [0, 255], rng) -> features [B, D], not normalized, such as `surrogate` makes.
      photos: x, [N, H, W, C] in [0, 255], uint8 or float; N ≥ 2 for OPOM.
      rng: key of the start, the small batches and the dropout.
      cloak: all of the rest.

    Returns:
      η, [H, W, C] float32 in [-ε, ε].

    Raises:
      AssertionError: photos that are not [N, H, W, C].
      UserError: a field of `cloak` out of its range or that does not suit so many photos; where the values are known, photos
        outside [0, 255] or not finite.
    """
    chex.assert_rank(photos, 4)
    count = photos.shape[0]
    cloak.check(count)
    if not isinstance(photos, jax.core.Tracer):
        _check_photos(photos)
    photos = jnp.asarray(photos, jnp.float32)
    start_key, clean_key, rng = jax.random.split(rng, 3)
    start = _start_masks(start_key, count, photos.shape[1:], cloak)
    clean = None if cloak.dropout else cloak_features(embed, photos, None, clean_key)

    def run(carry, first: int, last: int, hull: Hull):
        objective = _objective(embed, photos, clean, cloak, hull)

        def step(carry, index):
            draw_key, gradient_key = jax.random.split(jax.random.fold_in(rng, index))
            if cloak.rederive:
                masked, _ = carry
                return _opom_step(objective, photos, masked, gradient_key, cloak), None
            batches = _small_batches(draw_key, count, cloak.batch, cloak.accumulate)
            return _ga_opom_step(
                _mask_gradient(objective, photos), *carry, batches, gradient_key, cloak
            ), None

        return jax.lax.scan(step, carry, jnp.arange(first, last))[0]

    solid = cloak.objective == "opom" and cloak.hull in ("convex", "reduced")
    outside = min(WARM_UP, cloak.steps) if solid else 0
    mask = start.mean(axis=0)
    carry = (photos + start, mask) if cloak.rederive else (mask, jnp.zeros_like(mask))
    if outside:
        carry = run(carry, 0, outside, "center")
    carry = run(carry, outside, cloak.steps, cloak.hull)
    return carry[1] if cloak.rederive else carry[0]


def _check_photos(photos: jax.Array | np.ndarray) -> None:
    """Raises UserError for photos with a value that is not finite or outside [0, 255]."""
    values = np.asarray(photos)
    if values.dtype != np.uint8 and not (
        np.isfinite(values).all() and values.min() >= 0 and values.max() <= 255
    ):
        raise UserError("photos: need finite pixels in [0, 255]")


def apply_cloak(images: jax.Array, mask: jax.Array) -> jax.Array:
    """Photos as they are published: clipped to the range of pixels and cut, not rounded, to whole levels.

        y = ⌊clip(x + η, 0, 255)⌋

    Cutting lowers a masked pixel by half a level on average, as in the release of arXiv:2205.11981.

    Args:
      images: x, [..., H, W, C] uint8. mask: η, [H, W, C] float.

    Returns:
      [..., H, W, C] uint8.

    Example:
      >>> apply_cloak(jnp.array([[[10]], [[250]]], jnp.uint8), jnp.array([[[-20.0]], [[0.5]]])).ravel().tolist()
      [0, 250]
    """
    if images.dtype != jnp.uint8:
        raise ValueError(f"images: need uint8, got {images.dtype}")
    return jnp.clip(images.astype(jnp.float32) + mask, 0.0, 255.0).astype(jnp.uint8)
