"""Downstream image-guided generation (DIGG): an upstream generator, steered by a few downstream images (arXiv:2111.12386).

That downstream images steer the upstream generator is the source's; the objective is ours.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxface.checks import AtLeast, Fraction, NonNegative, check_fields
from jaxface.errors import UserError
from jaxface.layers.vector_quantizer import code_radius, nearest_codes, vq_quantize
from jaxface.losses.distillation import soft_target_loss
from jaxface.losses.ota import FeatureStatistics, mode_seeking_loss, proximity_loss, statistics_loss
from jaxface.models.generative.vqgan import VQGAN
from jaxface.training.re_representation import decode_codes, encode_images

Asked = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""Images [B, H, W, C] float in [-1, 1] -> (features [B, D], class scores [B, K]) of the task model in evaluation mode."""

LEAST_CHANGED = 0.01
"""Fraction of sites with another code after the optimization below which it did nothing worth its time."""


@dataclasses.dataclass(frozen=True)
class DiggSpec:
    """How latents are mixed and then optimized."""

    steps: Annotated[int, AtLeast(0)] = 30
    """T, steps of Adam on the latents; 0 leaves them as they are mixed."""
    mixing: Annotated[float, Fraction] = 0.3
    """ρ, probability that a site is taken from the second guide, in [0, 1]."""
    noise: Annotated[float, NonNegative] = 0.2
    """σ, standard deviation of the noise on latents, in deviations of the codebook by dimension."""
    reach: Annotated[float, NonNegative] = 6.0
    """How far all steps together may go, in radii of a code's cell: the step is reach · r / (T √d)."""
    statistics: Annotated[float, NonNegative] = 1.0
    """Weight of the statistics of features over the batch."""
    proximity: Annotated[float, NonNegative] = 6.4
    """Weight of the distance to the first guide."""
    task: Annotated[float, NonNegative] = 0.0
    """Weight of the divergence of the classes that the task model sees from the guide's, where both guides are of one class."""
    diversity: Annotated[float, NonNegative] = 0.0
    """Weight of the mode-seeking term."""


class Guided(NamedTuple):
    """What `digg_generate` makes.

    Attributes:
      images: [n, H, W, C] float32 in [-1, 1].
      changed: [] float32, fraction of sites whose code the optimization changed.
      losses: [T] float32, the objective before every step.
    """

    images: jax.Array
    changed: jax.Array
    losses: jax.Array


def mixed_latents(
    latents: jax.Array, others: jax.Array, codebook: jax.Array, key: jax.Array, *, mixing: float, noise: float
) -> jax.Array:
    """Latents [n, h, w, d], every site that of `others` with probability `mixing`, and noise in the codebook's units."""
    taken, noisy = jax.random.split(key)
    swap = jax.random.bernoulli(taken, mixing, latents.shape[:-1])[..., None]
    mixed = jnp.where(swap, others, latents)
    return mixed + noise * codebook.std(axis=0) * jax.random.normal(noisy, latents.shape)


def descend(
    loss: Callable[[jax.Array], jax.Array],
    latents: jax.Array,
    *,
    steps: int,
    learning_rate: jax.Array | float,
) -> tuple[jax.Array, jax.Array]:
    """`steps` steps of Adam on latents: (latents, losses [steps] before every step)."""
    optimizer = optax.scale_by_adam()

    def step(carry, _):
        z, moments = carry
        value, gradient = jax.value_and_grad(loss)(z)
        direction, moments = optimizer.update(gradient, moments)
        return (z - learning_rate * direction, moments), value

    (latents, _), losses = jax.lax.scan(step, (latents, optimizer.init(latents)), length=steps)
    return latents, losses


def digg_generate(
    generator: VQGAN,
    params: Mapping,
    asked: Asked,
    guides: jax.Array,
    others: jax.Array,
    same_class: jax.Array,
    statistics: FeatureStatistics,
    key: jax.Array,
    spec: DiggSpec = DiggSpec(),
) -> Guided:
    """Images near downstream ones that look to the task model, as a batch, like the downstream data.

        z = mix(Enc(x_a), Enc(x_b), ρ) + σ sd(E) ε
        z <- T steps of Adam on  l_s L_stat(g) + l_p ‖g - x_a‖² + l_t KL(M(x_a) ‖ M(g)) + l_d L_div(g, z),   g = Dec(quantize(z))

    The step is 6 r / (T √d), r the radius of a cell (`layers.vector_quantizer.code_radius`): the loss changes only where a latent
    crosses into another code's cell, and steps that never reach one leave the mixed latents as they are (`Guided.changed`).

    Args:
      generator, params: the upstream generator; a constant.
      asked: the task model; a constant.
      guides: x_a [n, H, W, C] float in [-1, 1]. others: x_b, of the same shape.
      same_class: [n] bool, whether both are of one class.
      statistics: of the task model's features over the downstream images.
      key: of mixing and noise.
      spec: the weights and steps.

    Raises:
      UserError: no guide; one alone where statistics or diversity count; a field of `spec` out of its range.
    """
    check_fields(spec, "digg.")
    if guides.shape != others.shape or not len(guides):
        raise UserError(f"guides: needs two of each, at least one, got {guides.shape} and {others.shape}")
    height, width = guides.shape[1:3]
    params = jax.lax.stop_gradient(params)
    codebook = params["quantizer"]["codebook"]
    latents, second = (encode_images(generator, params, x) for x in (guides, others))
    latents = mixed_latents(latents, second, codebook, key, mixing=spec.mixing, noise=spec.noise)
    scores = asked(guides)[1] if spec.task else None

    def objective(z):
        images = decode_codes(generator, params, vq_quantize(z, codebook)[0], height, width)
        loss = jnp.zeros(())
        if spec.statistics or spec.task:
            features, classes = asked(images)
        if spec.statistics:
            loss += spec.statistics * statistics_loss(features, statistics)
        if spec.proximity:
            loss += spec.proximity * proximity_loss(images, guides).mean()
        if spec.task:
            apart = soft_target_loss(classes, scores, temperature=1.0)
            loss += spec.task * jnp.mean(jnp.where(same_class, apart, 0.0))
        if spec.diversity:
            loss += spec.diversity * mode_seeking_loss(images, z)
        return loss

    before = nearest_codes(latents, codebook)
    losses = jnp.zeros(0)
    if spec.steps:
        rate = spec.reach * code_radius(codebook) / (spec.steps * codebook.shape[1] ** 0.5)
        latents, losses = descend(objective, latents, steps=spec.steps, learning_rate=rate)
    after = nearest_codes(latents, codebook)
    images = decode_codes(generator, params, codebook[after], height, width)
    return Guided(*jax.lax.stop_gradient((images, jnp.mean(before != after), losses)))
