"""Changes of an image that people cannot see and a quality model cannot bear (perceptual attack, arXiv:2210.00933).

For an image x₀, a quality model f and a distance D that stands for what people see, a whole ladder of multipliers λ is climbed in
one compiled program, so that the images go from invisibly to visibly changed; people, or a proxy for them, then say which of them
still look like x₀ (`jaxface.metrics.select_counterexample`). Pixels are in [0, 1].
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxface.checks import AtLeast, NonNegative, Positive, check_fields, check_finite, check_number
from jaxface.errors import UserError

Quality = Callable[[jax.Array], jax.Array]  # image [H, W, C] -> score
Distance = Callable[[jax.Array, jax.Array], jax.Array]  # (image, start), both [H, W, C] -> distance ≥ 0

LEVEL = 1 / 255
"""A gray level: the size of the noise that an attack starts with, and what its images are rounded to."""


@dataclasses.dataclass(frozen=True)
class PerceptualAttack:
    """How images are changed.

    A penalty ascends J = -D(x, x₀) + λ (f(x) - f₀)² (Eq. 2); a ball ascends f alone, or its negative, and keeps every pixel
    within ε. The maximal change of a pixel has no useful penalty: only the farthest pixel would feel it, whatever λ is.
    """

    geometry: Literal["l2", "linf"] = "l2"
    """Steepest ascent along the gradient, or along its signs."""
    constraint: Literal["penalty", "ball"] | None = None
    """What holds the image back; None for a penalty in l2 and a ball in linf. A ball needs linf."""
    steps: Annotated[int, AtLeast(0)] = 200
    """Steps of the ascent."""
    step: Annotated[float, Positive] = 1e-3
    """Length of a step of a penalty; a ball's is 1.5 ε / steps."""
    direction: Literal["both", "free"] = "both"
    """Both: up and down, each with the signed square dir (f - f₀)|f - f₀|. Free: the square as printed, the start decides."""
    step_norm: Literal["rms", "unit"] = "rms"
    """In l2 the step is the root mean square of the change over all values, or its norm as printed, which rounding undoes."""
    optimizer: Literal["steepest", "fresh_adam"] = "steepest"
    """Fresh Adam is what was released: a new state for every step makes it step · g / (|g| + 1e-8) of the unit gradient g."""
    keep_every: Annotated[int, AtLeast(0)] = 10
    """Steps from one image that is kept to the next; 0 keeps the last alone."""
    quantize: bool = True
    """Images are rounded to whole gray levels, as a display has them, before they are scored and returned."""

    @property
    def ball(self) -> bool:
        """Whether rungs are radii ε, else multipliers λ."""
        return self.geometry == "linf" if self.constraint is None else self.constraint == "ball"

    @property
    def images_kept(self) -> int:
        """Images that are kept of every rung, over all directions."""
        each = -(-self.steps // self.keep_every) if self.keep_every else 1
        return max(each, 1) * (2 if self.direction == "both" else 1)

    def check(self) -> None:
        """Raises UserError for a field out of its range, or one that does not suit another."""
        for name, allowed in (
            ("geometry", ("l2", "linf")), ("constraint", ("penalty", "ball", None)), ("direction", ("both", "free")),
            ("step_norm", ("rms", "unit")), ("optimizer", ("steepest", "fresh_adam")),
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"{name}: needs {' or '.join(map(str, allowed))}, got {getattr(self, name)!r}"
                )
        check_fields(self)
        if self.ball and self.geometry != "linf":
            raise UserError("constraint: a ball needs geometry linf, got l2")
        if self.ball and self.optimizer != "steepest":
            raise UserError(f"optimizer: a ball needs steepest, got {self.optimizer}")


class Attacked(NamedTuple):
    """What an attack leaves. The leading axes are those of the starts and of the rungs, where there are some.

    Attributes:
      image: [..., H, W, C] float32 in [0, 1], the last image of the direction that moved the score farther.
      iterates: [..., N, H, W, C], the images that were kept, those of the second direction behind those of the first; uint8
        levels where the attack rounds, else float32 in [0, 1].
      scores, distances: [..., N] float32, f and D of these.
      trace: [..., directions, steps] float32, f of the image before each step.
      finite: [...] bool, False where a gradient was NaN or infinite; there it counted as 0.
    """

    image: jax.Array
    iterates: jax.Array
    scores: jax.Array
    distances: jax.Array
    trace: jax.Array
    finite: jax.Array


def perceptual_attack(
    quality: Quality,
    distance: Distance,
    starts: jax.Array,
    key: jax.Array,
    rungs: jax.typing.ArrayLike,
    attack: PerceptualAttack | None = None,
    *,
    reference: jax.typing.ArrayLike | None = None,
    at_a_time: int | None = None,
) -> Attacked:
    """Attacks a quality model on every start, with every rung of a ladder and in both directions, in one compiled program.

        x ← x₀ + e,  e uniform on {-1, 0, 1} / 255;     `steps` times  x ← clip(x + γ v, 0, 1)

        penalty:  v the steepest ascent of J = -D(x, x₀) + λ dir (f - f₀)|f - f₀|
        ball:     γ v = 1.5 ε / steps · sign(dir ∇f),  and x stays within ε of x₀

    The noise is the same for all rungs of a start. Other rungs, keys, images and parameters of the same shapes compile nothing:
    a model with parameters is `jax.tree_util.Partial(function, parameters)`. Works under jit and vmap.

    Args:
      quality: f, image -> score, differentiable.
      distance: D, (image, start) -> distance; of a ball it is only reported.
      starts: x₀, [H, W, C] or [S, H, W, C] float in [0, 1].
      key: of the noise.
      rungs: λ ≥ 0 or radii ε ≥ 0, a number or [K].
      attack: the rest.
      reference: f₀, such as people's opinion, a number or [S]; f(x₀) unless given.
      at_a_time: starts that are attacked at once, for memory; all of them unless given.

    Returns:
      `Attacked`, with axes [S, K] as far as starts and rungs have them.

    Raises:
      UserError: a field of the attack or a rung out of its range; images outside [0, 1]; a model that has no finite score, or no
        gradient, at the starts.
      AssertionError: starts that are no images, or rungs that are no ladder.

    Example:
      >>> start = jnp.full((2, 2, 3), 0.5)
      >>> attack = PerceptualAttack(geometry="linf", steps=4, keep_every=2)
      >>> told = perceptual_attack(jnp.mean, lambda x, y: jnp.abs(x - y).max(), start, jax.random.key(0), 2 / 255, attack)
      >>> told.iterates.shape, float(jnp.abs(told.image - jnp.round(start * 255) / 255).max() * 255) < 3
      ((4, 2, 2, 3), True)
    """
    attack = attack or PerceptualAttack()
    attack.check()
    starts, rungs = jnp.asarray(starts, jnp.float32), jnp.asarray(rungs, jnp.float32)
    chex.assert_rank([starts, rungs], [{3, 4}, {0, 1}])
    _check_rungs(rungs)
    single, several = starts.ndim == 3, rungs.ndim == 1
    starts = starts[None] if single else starts
    if at_a_time is not None:
        check_number("at_a_time", at_a_time, AtLeast(1))
    scores = check_quality(quality, starts, key)
    if reference is None:
        reference = jax.vmap(quality)(starts) if scores is None else scores
    reference = jnp.broadcast_to(jnp.asarray(reference, jnp.float32), starts.shape[:1])
    told = _attacked(
        _partial(quality), _partial(distance), starts, reference, key, jnp.atleast_1d(rungs), attack=attack,
        at_a_time=at_a_time if at_a_time is None else min(at_a_time, len(starts)),
    )  # fmt: skip
    if not several:
        told = jax.tree.map(lambda leaf: leaf[:, 0], told)
    return jax.tree.map(lambda leaf: leaf[0], told) if single else told


def check_quality(quality: Quality, starts: jax.Array, key: jax.Array) -> jax.Array | None:
    """Refuses a model that cannot be attacked; starts that are traced pass.

    Args:
      quality: f. starts: [S, H, W, C]. key: of the noise, where the gradient is asked.

    Returns:
      [S] f(x₀); None of traced starts.

    Raises:
      UserError: pixels outside [0, 1], a score that is NaN or infinite, a gradient that is, or is 0 at every start.
    """
    if isinstance(starts, jax.core.Tracer):
        return None
    images = np.asarray(starts)
    check_finite("starts", images)
    if images.min() < 0 or images.max() > 1:
        raise UserError(f"starts: needs pixels in [0, 1], got {images.min():g} to {images.max():g}")
    # Of shapes alone first: nothing has been compiled when a model refuses the images.
    told = jax.eval_shape(quality, jax.ShapeDtypeStruct(images.shape[1:], jnp.float32))
    if told.shape != () or not jnp.issubdtype(told.dtype, jnp.floating):
        raise UserError(
            f"quality: needs a floating scalar of an image, got {told.dtype} of shape {told.shape}"
        )
    model, keys = _partial(quality), _keys(key, len(images))
    # One by one, by a program that serves any number of starts.
    told = [_probe(model, jnp.asarray(image), key) for image, key in zip(images, keys, strict=True)]
    scores, slopes = (jnp.stack(values) for values in zip(*told, strict=True))
    for name, values in (("score", np.asarray(scores)), ("gradient", np.asarray(slopes))):
        if not np.isfinite(values).all():
            raise UserError(
                f"quality: needs a finite {name}, got none for start {int(np.argmin(np.isfinite(values)))}"
            )
    if not np.asarray(slopes).any():
        raise UserError(
            "quality: needs a gradient, it is 0 at every start; is there a rounding, a table or a saturated map in the model?"
        )
    return scores


def _check_rungs(rungs: jax.Array) -> None:
    for rung in () if isinstance(rungs, jax.core.Tracer) else np.ravel(rungs):
        check_number("rungs", rung, NonNegative)


def _partial(function: Callable) -> jax.tree_util.Partial:
    """The function as an argument of a compiled one, its parameters as arrays."""
    return function if isinstance(function, jax.tree_util.Partial) else jax.tree_util.Partial(function)


@jax.jit
def _probe(quality, start, key):
    """(f of a start, largest slope of f at the noisy start)."""
    slope = jax.grad(lambda x: quality(x).astype(jnp.float32))(_noisy(start, key))
    return quality(start).astype(jnp.float32), jnp.abs(slope).max()


def _keys(key: jax.Array, count: int) -> jax.Array:
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))


def _noisy(start: jax.Array, key: jax.Array) -> jax.Array:
    """clip(x₀ + e, 0, 1): at x₀ itself the squared change of the score has no gradient."""
    return jnp.clip(start + LEVEL * jax.random.randint(key, start.shape, -1, 2), 0, 1)


def _steepest(gradient: jax.Array, attack: PerceptualAttack) -> jax.Array:
    """The direction v of a penalty's step, of the largest product with the gradient among those of its length."""
    if attack.optimizer == "steepest" and attack.geometry == "linf":
        return jnp.sign(gradient)
    # By the largest entry first: squares of a gradient of 1e-25 are 0 in float32.
    largest = jnp.abs(gradient).max()
    scaled = gradient / jnp.where(largest > 0, largest, 1.0)
    norm = jnp.linalg.norm(scaled.ravel())
    unit = scaled / jnp.where(norm > 0, norm, 1.0)
    if attack.optimizer == "fresh_adam":
        return unit / (jnp.abs(unit) + 1e-8)
    return unit * np.sqrt(gradient.size) if attack.step_norm == "rms" else unit


def _objective(quality, distance, start, reference, weight, sign, image):
    """(J, f) of an image; sign 0 is the square as printed."""
    score = quality(image).astype(jnp.float32)
    change = score - reference
    gain = jnp.where(sign == 0, jnp.square(change), sign * change * jnp.abs(change))
    return weight * gain - distance(image, start).astype(jnp.float32), score


def _step(quality, distance, start, reference, rung, sign, attack, image):
    """One step: (image, f before it, whether the gradient was finite)."""
    if attack.ball:
        score, gradient = jax.value_and_grad(lambda x: quality(x).astype(jnp.float32))(image)
        up = jnp.where(sign == 0, jnp.sign(score - reference), sign)
    else:
        objective = functools.partial(_objective, quality, distance, start, reference, rung, sign)
        (_, score), gradient = jax.value_and_grad(objective, has_aux=True)(image)
    finite = jnp.isfinite(gradient)
    gradient = jnp.where(finite, gradient, 0.0)
    if attack.ball:
        image = image + 1.5 * rung / max(attack.steps, 1) * jnp.sign(up * gradient)
        image = jnp.clip(image, start - rung, start + rung)
    else:
        image = image + attack.step * _steepest(gradient, attack)
    return jnp.clip(image, 0, 1), score, finite.all()


def _rounded(image: jax.Array) -> jax.Array:
    return jnp.round(image * 255) / 255


def _ascent(quality, distance, start, reference, key, rung, sign, attack):
    """One start, rung and direction: (last image, kept images, their f and D, trace of f, whether all was finite)."""
    noisy = _noisy(start, key)
    if attack.ball:
        noisy = jnp.clip(noisy, start - rung, start + rung)

    def walk(image, count):
        def body(image, _):
            image, score, finite = _step(quality, distance, start, reference, rung, sign, attack, image)
            return image, (score, finite)

        return jax.lax.scan(body, image, length=count)

    def shown(image):
        return _rounded(image) if attack.quantize else image

    def kept(image):
        image = shown(image)
        scores = quality(image).astype(jnp.float32), distance(image, start).astype(jnp.float32)
        return (jnp.round(image * 255).astype(jnp.uint8) if attack.quantize else image), *scores

    def block(image, _):
        image, told = walk(image, attack.keep_every)
        return image, (*kept(image), *told)

    blocks, rest = divmod(attack.steps, attack.keep_every) if attack.keep_every else (0, attack.steps)
    image, (iterates, scores, distances, trace, finite) = jax.lax.scan(block, noisy, length=blocks)
    trace, finite = trace.reshape(-1), finite.all()
    if rest or not blocks:
        image, (more, fine) = walk(image, rest)
        last = kept(image)
        iterates, scores, distances = (
            jnp.concatenate([old, new[None]])
            for old, new in zip((iterates, scores, distances), last, strict=True)
        )
        trace, finite = jnp.concatenate([trace, more]), finite & fine.all()
    return shown(image), iterates, scores, distances, trace, finite


def _signs(attack: PerceptualAttack) -> jax.Array:
    return jnp.float32([1, -1] if attack.direction == "both" else [0])


@functools.partial(jax.jit, static_argnames=("attack", "at_a_time"))
def _attacked(quality, distance, starts, reference, key, rungs, *, attack, at_a_time) -> Attacked:
    def one(start, reference, key):
        def rung_of(rung):
            ascent = jax.vmap(
                lambda sign: _ascent(quality, distance, start, reference, key, rung, sign, attack)
            )
            images, iterates, scores, distances, trace, finite = ascent(_signs(attack))
            # The direction that moved the score farther at its end.
            image = images[jnp.argmax(jnp.abs(scores[:, -1] - reference))]
            flat = (leaf.reshape(-1, *leaf.shape[2:]) for leaf in (iterates, scores, distances))
            return Attacked(image, *flat, trace, finite.all())

        return jax.vmap(rung_of)(rungs)

    arguments = (starts, reference, _keys(key, len(starts)))
    if at_a_time is None:
        return jax.vmap(one)(*arguments)
    return jax.lax.map(lambda three: one(*three), arguments, batch_size=at_a_time)


def critical_weight(
    quality: Quality,
    distance: Distance,
    start: jax.Array,
    key: jax.Array,
    attack: PerceptualAttack | None = None,
    *,
    low: float = 1e-8,
    high: float = 1e4,
    halvings: int = 12,
) -> float:
    """λ_c, below which the penalty draws the image back to the start and above which the attack gets away from it.

    Near x₀ both terms of J are quadratic in the change, so that the whole ladder has one threshold, the largest ratio of the
    two curvatures. It is found by halving [low, high] in logarithms: an attack got away if its J ends above 0, the J of x₀.

    Args:
      quality, distance: f and D. start: x₀, [H, W, C] in [0, 1]. key: of the noise.
      attack: how; a penalty.
      low, high: 0 < low < high, where it is looked for.
      halvings: ≥ 1; the answer is right within the range's (1 / 2^halvings)-th part.

    Raises:
      UserError: a ball, a range that is none, as `perceptual_attack`, or no λ up to `high` that suffices.
    """
    attack = attack or PerceptualAttack()
    attack.check()
    if attack.ball:
        raise UserError("attack: needs a penalty, a ball has no multiplier")
    check_number("low", low, Positive)
    check_number("halvings", halvings, AtLeast(1))
    if not low < high < np.inf:
        raise UserError(f"high: needs a finite number above low, {low:g}, got {high:g}")
    start = jnp.asarray(start, jnp.float32)
    chex.assert_rank(start, 3)
    check_quality(quality, start[None], key)
    ends = jnp.log(jnp.float32([low, high]))
    weight, gets_away = _threshold(
        _partial(quality), _partial(distance), start, key, ends, halvings, attack=attack
    )
    if not gets_away:
        raise UserError(f"high: needs a multiplier that moves the score, {high:g} does not")
    return float(weight)


@functools.partial(jax.jit, static_argnames="attack")
def _threshold(quality, distance, start, key, ends, halvings, *, attack):
    reference = quality(start).astype(jnp.float32)
    quick = dataclasses.replace(attack, keep_every=0, quantize=False)

    def gets_away(weight):
        def one(sign):
            image = _ascent(quality, distance, start, reference, key, weight, sign, quick)[0]
            return _objective(quality, distance, start, reference, weight, sign, image)[0] > 0

        return jax.vmap(one)(_signs(attack)).any()

    def halve(_, ends):
        middle = ends.mean()
        away = gets_away(jnp.exp(middle))
        return jnp.where(away, ends.at[1].set(middle), ends.at[0].set(middle))

    found = jax.lax.fori_loop(0, halvings, halve, ends)
    # The upper end has moved only if an attack got away; else it has not been tried.
    weight = jnp.exp(found[1])
    return weight, (found[1] < ends[1]) | gets_away(weight)


def ladder_around(weight: float, rungs: int = 8, *, factor: float = 10.0) -> np.ndarray:
    """Multipliers from weight / factor to weight · factor, evenly in logarithms.

    Args:
      weight: λ_c > 0 (`critical_weight`). rungs: K ≥ 2. factor: > 1.

    Returns:
      [K] float32.

    Raises:
      UserError: a number out of its range.

    Example:
      >>> [round(float(x), 3) for x in ladder_around(1.0, 3)]
      [0.1, 1.0, 10.0]
    """
    check_number("weight", weight, Positive)
    check_number("rungs", rungs, AtLeast(2))
    if not factor > 1:
        raise UserError(f"factor: needs a number above 1, got {factor:g}")
    return (weight * np.geomspace(1 / factor, factor, rungs)).astype(np.float32)


RELEASED_MULTIPLIERS = (
    0.2, 0.4, 0.6, 0.8, 1, 3, 5, 7, 9, 20, 40, 60, 80, 100, 300, 500, 700, 900, 2e3, 4e3, 6e3, 8e3, 1e4, 3e4, 5e4, 7e4, 9e4, 2e5,
    6e5, 1e6, 5e6, 9e6,
)  # fmt: skip
"""Of the released code, which multiplies the similarity: λ is 1 over these."""


def eigen_distortion(quality: Quality, image: jax.Array) -> jax.Array:
    """The change of unit length that a model notices most, ∇f / |∇f|; to first order it notices none that is orthogonal to it.

    Args:
      quality: f. image: [H, W, C] float.

    Returns:
      [H, W, C] float32; 0 where there is no gradient.

    Example:
      >>> print(eigen_distortion(lambda x: 3 * x[0] + 4 * x[1], jnp.zeros(2)))
      [0.6 0.8]
    """
    gradient = jax.grad(lambda x: quality(x).astype(jnp.float32))(image)
    norm = jnp.linalg.norm(gradient.ravel())
    return gradient / jnp.where(norm > 0, norm, 1.0)


def maximum_differentiation(
    mover: Quality,
    holder: Quality,
    start: jax.Array,
    *,
    up: bool = True,
    steps: int = 100,
    step: float = 1e-3,
) -> jax.Array:
    """The image that one model finds best or worst while another finds it as good as the start (MAD competition, Wang 2008).

        x ← clip(x + γ √M g⊥ / |g⊥|, 0, 1),   g⊥ = ±∇f₁ less its part along ∇f₂;
        then x ← clip(x - (f₂(x) - f₂(x₀)) ∇f₂ / |∇f₂|², 0, 1), back to the level set

    Args:
      mover, holder: f₁, which changes, and f₂, which is held.
      start: x₀, [H, W, C] float in [0, 1].
      up: raise f₁, else lower it.
      steps: ≥ 0. step: γ > 0, root mean square of a step.

    Returns:
      [H, W, C] float32 in [0, 1].

    Raises:
      UserError: a number out of its range.

    Example:
      >>> x = maximum_differentiation(lambda x: x[0, 0, 0], jnp.sum, jnp.full((1, 2, 1), 0.5), steps=10, step=0.01)
      >>> [round(float(pixel), 3) for pixel in x.ravel()]
      [0.6, 0.4]
    """
    check_number("steps", steps, AtLeast(0))
    check_number("step", step, Positive)
    start = jnp.asarray(start, jnp.float32)
    sign = jnp.float32(1 if up else -1)
    return _differentiated(_partial(mover), _partial(holder), start, sign, jnp.float32(step), steps=steps)


@functools.partial(jax.jit, static_argnames="steps")
def _differentiated(mover, holder, start, sign, step, *, steps):
    level = holder(start)
    unit = PerceptualAttack()

    def along(values, direction):
        square = jnp.vdot(direction, direction)
        return jnp.vdot(values, direction) / jnp.where(square > 0, square, 1.0) * direction

    def body(image, _):
        gradient, held = sign * jax.grad(mover)(image), jax.grad(holder)(image)
        image = jnp.clip(image + step * _steepest(gradient - along(gradient, held), unit), 0, 1)
        score, held = jax.value_and_grad(holder)(image)
        square = jnp.vdot(held, held)
        return jnp.clip(image - (score - level) / jnp.where(square > 0, square, 1.0) * held, 0, 1), None

    return jax.lax.scan(body, start, length=steps)[0]


def shuffled_changes(images: jax.Array, start: jax.Array, key: jax.Array, draws: int = 10) -> jax.Array:
    """Random changes with the root mean square and the maximum of given ones: the control of an attack.

    The changes of an image's values are drawn without replacement to other places and with other signs; one that would leave
    [0, 1] keeps its size and turns round. An image in whole gray levels gives others.

    Args:
      images: [H, W, C] float in [0, 1], changed.
      start: [H, W, C], what they were changed from.
      key: of the draws. draws: ≥ 1.

    Returns:
      [draws, H, W, C] float32 in [0, 1].

    Raises:
      UserError: no draws.

    Example:
      >>> start = jnp.full((2, 2, 1), 0.5)
      >>> changed = start.at[0, 0, 0].add(0.25)
      >>> drawn = shuffled_changes(changed, start, jax.random.key(0), 3)
      >>> jnp.abs(drawn - start).max(axis=(1, 2, 3)).tolist()
      [0.25, 0.25, 0.25]
    """
    check_number("draws", draws, AtLeast(1))
    images, start = jnp.asarray(images, jnp.float32), jnp.asarray(start, jnp.float32)
    sizes = jnp.abs(images - start).ravel()

    def draw(key):
        of_place, of_sign = jax.random.split(key)
        change = jax.random.permutation(of_place, sizes).reshape(start.shape)
        change = jnp.where(jax.random.bernoulli(of_sign, shape=start.shape), change, -change)
        moved = start + change
        # Half a thousandth of a level: a sum that rounds beyond 1 is no way out.
        outside = (moved < -LEVEL / 2000) | (moved > 1 + LEVEL / 2000)
        return jnp.clip(jnp.where(outside, start - change, moved), 0, 1)

    return jax.vmap(draw)(jax.random.split(key, draws))
