"""A generator of faces (or of vectors) that a method trains on the images of its run.

Methods: ida
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recipes.recognition import Recipe, training_batches
from jaxface import data as inputs
from jaxface import losses, metrics, training
from jaxface.checks import AtLeast, NonNegative, ProperFraction
from jaxface.data.transforms.pixels import to_bytes
from jaxface.errors import UserError
from jaxface.models.generative.gan import Discriminator, Generator

Generate = Callable[[jax.Array], jax.Array]
"""Latents [B, latent] float32 from a standard normal distribution -> faces [B, H, W, C] float in [-1, 1]."""


@dataclasses.dataclass(frozen=True)
class GanSpec:
    """The compact generator of virtual faces, trained on the images of the run."""

    steps: Annotated[int, AtLeast(0)] = 400
    """Training steps; 0 for no generator."""
    batch_size: Annotated[int, AtLeast(1)] = 32
    """Real images per step, and as many generated ones."""
    latent: Annotated[int, AtLeast(1)] = 64
    """Size of a latent vector."""
    channels: Annotated[int, AtLeast(1)] = 16
    """Channels at full size; they double with every halving of the image, up to 8 times."""
    penalty: Annotated[float, NonNegative] = 1.0
    """Weight γ of the gradient penalty on real images."""
    optimizer: training.Optimizer = training.Optimizer(
        name="adam", learning_rate=2e-3, schedule="constant", momentum=0.0, weight_decay=0.0
    )
    """Optimizer of both networks."""
    ema_decay: Annotated[float, ProperFraction] = 0.99
    """Decay per step of the moving average of the generator, which makes the faces."""

    def check(self) -> None:
        """Raises UserError for a batch that does not divide over the devices; it is called `gan`."""
        if self.steps and self.batch_size % jax.device_count():
            raise UserError(
                f"gan.batch_size: needs a multiple of the {jax.device_count()} devices, got {self.batch_size}"
            )


def gan_stage(
    recipe: Recipe,
    spec: GanSpec,
    source: inputs.Source,
    *,
    augment: inputs.Augment,
    carry: Callable[[training.TrainState], dict] = lambda previous: {},
) -> training.Stage:
    """A stage that trains a generator and its discriminator; its averaged parameters hold both by name.

    Args:
      recipe: seed and workers of the run.
      spec: the networks and their training.
      source: real images.
      augment: random changes of the real images.
      carry: state of the stage before -> `extra` of this one, which passes through.
    """
    generator = Generator(source.image_shape, spec.channels)
    discriminator = Discriminator(source.image_shape, spec.channels)

    def generated(params, batch, rng):
        latents = jax.random.normal(rng, (len(batch["image"]), spec.latent))
        return generator.apply({"params": params["generator"]}, latents)

    def logits(params, images):
        return discriminator.apply({"params": params["discriminator"]}, images)

    def discriminator_loss(params, extra, batch, rng):
        real, fake = batch["image"], jax.lax.stop_gradient(generated(params, batch, rng))
        real_logits, fake_logits = logits(params, real), logits(params, fake)
        loss = losses.gan_discriminator_loss(real_logits, fake_logits).mean()
        penalty = losses.r1_penalty(functools.partial(logits, params), real).mean()
        accuracy = ((real_logits > 0).mean() + (fake_logits < 0).mean()) / 2
        return loss + spec.penalty / 2 * penalty, (extra, {"accuracy": accuracy, "gradient": penalty})

    def generator_loss(params, extra, batch, rng):
        return losses.gan_generator_loss(logits(params, generated(params, batch, rng))).mean(), (extra, {})

    objectives = [
        training.Objective(loss, spec.optimizer.build(spec.steps), (name,), name)
        for name, loss in (("discriminator", discriminator_loss), ("generator", generator_loss))
    ]

    def init(rng, previous):
        first, second = jax.random.split(rng)
        params = {
            "generator": generator.init(first, jnp.zeros((1, spec.latent)))["params"],
            "discriminator": discriminator.init(second, jnp.zeros((1, *source.image_shape)))["params"],
        }
        return training.create_state(rng, params, *objectives, extra=carry(previous), ema=True)

    open_batches = training_batches(recipe, source, batch_size=spec.batch_size, augment=augment)
    return training.Stage(
        name="gan",
        init=init,
        step=training.gradient_step(*objectives, ema_decay=spec.ema_decay),
        batches=lambda state: open_batches(),
        steps=spec.steps,
    )


def trained_generator(spec: GanSpec, image_shape: tuple[int, int, int], params: Mapping) -> Generate:
    """The generator of `gan_stage` with its parameters, compiled."""
    module = Generator(image_shape, spec.channels)
    return jax.jit(functools.partial(module.apply, {"params": params}))


def virtual_embeddings(
    faces: Iterable[np.ndarray],
    embed: Callable[[inputs.Source], np.ndarray],
    *,
    vectors: bool = False,
    detector: Callable[[np.ndarray], jax.Array] | None = None,
    duplicates_above: float = 1.0,
) -> np.ndarray:
    """Unit embeddings [M, D] of the faces that pass `jaxface.metrics.filter_candidates`.

    Args:
      faces: blocks [B, H, W, C], float in [-1, 1] or uint8.
      embed: source -> unit embeddings.
      vectors: the faces are embeddings themselves.
      detector: faces -> detection scores [B]; all count unless given.
      duplicates_above: as in `filter_candidates`.

    Raises:
      UserError: no face passes.
    """
    embeddings, scores = [], []
    for block in faces:
        labels = np.zeros(len(block), np.int32)
        if vectors:
            source = inputs.VectorSource(block.reshape(len(block), -1), labels)
        elif block.dtype == np.uint8:
            source = inputs.ArraySource(block, labels, ["generated"])
        else:
            source = inputs.ArraySource(to_bytes(block), labels, ["generated"])
        embeddings.append(embed(source))
        if detector is not None:
            scores.append(np.asarray(detector(block)))
    rows = np.concatenate(embeddings)
    passed = metrics.filter_candidates(
        rows, np.concatenate(scores) if scores else None, duplicates_above=duplicates_above
    )
    if not passed.any():
        raise UserError(f"generator: all of its {len(rows)} faces were dropped")
    return rows[passed]


def generated_faces(
    generate: Generate,
    count: int,
    *,
    latent: int,
    image_shape: tuple[int, int, int],
    seed: int,
    block: int = 256,
) -> Iterator[np.ndarray]:
    """`count` faces [B, H, W, C] in blocks; every call of `generate` has one shape, and face m is the same for any count.

    Raises:
      UserError: faces of another shape than `image_shape`.
    """
    key = jax.random.key(seed)
    for start in range(0, count, block):
        latents = jax.random.normal(jax.random.fold_in(key, start), (block, latent))
        faces = np.asarray(generate(latents))[: count - start]
        if faces.shape[1:] != image_shape:
            raise UserError(f"generator: needs faces of shape {image_shape}, got {faces.shape[1:]}")
        yield faces
