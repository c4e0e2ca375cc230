"""A generator that says images again in the terms of upstream data: a VQ-GAN, trained on those or of a finished run.

Methods: ota, intern
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.recipes.recognition import Recipe, training_batches
from jaxface import data as inputs
from jaxface import losses, metrics, optimizers, training
from jaxface.checks import AtLeast, Fraction, NonNegative, check_fields
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.layers.vector_quantizer import reseed_dead_codes
from jaxface.models.generative.vqgan import VQGAN, PatchDiscriminator
from jaxface.training.re_representation import encode_images
from jaxface.training.workdir import read_descriptions


def _released_adam(momentum: float, decay: optax.GradientTransformation) -> optimizers.Rule:
    """Adam whose second moment forgets as fast as in the release of the VQ-GAN."""
    return optimizers.Rule([decay, optax.scale_by_adam(b1=momentum, b2=0.9)])


Perceptual = Callable[[Mapping, jax.Array], list[jax.Array]]
"""(extra of the stage, images [B, H, W, C]) -> features [B, …, D] of a frozen network."""


@dataclasses.dataclass(frozen=True)
class VqganSpec:
    """The generator: its networks and their training."""

    run: str | None = None
    """A finished run with a stage that trained a generator; the other fields are not used then."""
    codes: Annotated[int, AtLeast(2)] = 64
    """K, codes of the codebook; 1024 as released for ImageNet."""
    features: Annotated[int, AtLeast(1)] = 4
    """d, numbers of a code; 256."""
    latent: Annotated[int, AtLeast(1)] = 32
    """Channels of encoder and decoder around the codebook; 256."""
    channels: Annotated[int, AtLeast(1)] = 16
    """Channels at full size; 128."""
    multipliers: Annotated[tuple[int, ...], AtLeast(1)] = (1, 2)
    """Of the channels, level by level; each but the last halves the plane: (1, 1, 2, 2, 4)."""
    blocks: Annotated[int, AtLeast(0)] = 0
    """Residual blocks of a level, and one more of the decoder; 2."""
    middle: bool = False
    """Two more of encoder and decoder, with attention between them, where the plane is smallest; True."""
    attention: tuple[int, ...] = ()
    """Levels, from 0, with attention; (4,), where the plane has 16 x 16 positions."""
    groups: Annotated[int, AtLeast(1)] = 8
    """Of the group normalizations; 32."""
    beta: Annotated[float, NonNegative] = 0.25
    """Weight of the encoder's part of the codebook's loss."""
    perceptual: Annotated[float, NonNegative] = 1.0
    """Weight of the distance in the features of the foundation model, which stands in for LPIPS."""
    adversarial: Annotated[float, NonNegative] = 0.8
    """Factor on the adaptive weight of the adversary; 0 trains none."""
    adversary_from: Annotated[float, Fraction] = 0.75
    """Fraction of the steps after which the adversary begins."""
    patch_channels: Annotated[int, AtLeast(1)] = 16
    """Channels of the discriminator's first layer; 64."""
    patch_layers: Annotated[int, AtLeast(1)] = 1
    """Its layers that halve the plane; 3."""
    optimizer: training.Optimizer = training.Optimizer(
        name="adam", learning_rate=1e-3, schedule="constant", momentum=0.5, weight_decay=0.0
    )
    """Optimizer of both networks, whose second-moment decay is 0.9 as released where the rule is adam."""
    batch_size: Annotated[int, AtLeast(1)] = 32
    """Images per step over all devices."""
    steps: Annotated[int, AtLeast(0)] = 600
    """Training steps; 0 leaves the generator untrained, for a control."""
    reseed_every: Annotated[int, AtLeast(1)] = 100
    """Steps from one search for codes that no image uses to the next; they become latents."""
    reseed_images: Annotated[int, AtLeast(1)] = 1024
    """Training images, at most, that codes are searched for in."""
    jitter: Annotated[float, NonNegative] = 0.01
    """How far such a code is moved, in standard deviations of the latents, so that no two are one."""

    @classmethod
    def imagenet(cls) -> "VqganSpec":
        """As released for ImageNet: stride 16, 1024 codes, 256 x 256 pixels, 12 images a device; adversary from step 250,001."""
        batch = 12 * jax.device_count()
        steps = 500_000
        return cls(
            codes=1024,
            features=256,
            latent=256,
            channels=128,
            multipliers=(1, 1, 2, 2, 4),
            blocks=2,
            middle=True,
            attention=(4,),
            groups=32,
            adversary_from=250_001 / steps,
            patch_channels=64,
            patch_layers=3,
            optimizer=dataclasses.replace(cls.optimizer, learning_rate=4.5e-6 * batch),
            batch_size=batch,
            steps=steps,
            reseed_every=5000,
            reseed_images=8192,
        )

    def check(self, argument: str = "generator") -> None:
        """Raises UserError for a field out of its range, or a batch that does not divide over the devices."""
        check_fields(self, f"{argument}.")
        if self.steps and self.batch_size % jax.device_count():
            raise UserError(
                f"{argument}.batch_size: needs a multiple of the {jax.device_count()} devices, got {self.batch_size}"
            )

    def model(self, image_shape: tuple[int, int, int]) -> VQGAN:
        """The generator for images of this shape.

        Raises:
          UserError: groups that do not divide the channels of every level, or a level that there is not.
        """
        if any(level not in range(len(self.multipliers)) for level in self.attention):
            raise UserError(
                f"generator.attention: needs levels from 0 to {len(self.multipliers) - 1}, got {self.attention}"
            )
        return VQGAN(
            colors=image_shape[-1],
            **{
                name: getattr(self, name)
                for name in (
                    "codes",
                    "features",
                    "latent",
                    "beta",
                    "channels",
                    "multipliers",
                    "blocks",
                    "middle",
                    "attention",
                    "groups",
                )
            },
        )


@dataclasses.dataclass(frozen=True)
class Generator:
    """A generator that is only asked.

    Attributes:
      model: its network.
      description: what was written down of it, with the classes that it was trained on.
    """

    model: VQGAN
    description: Mapping[str, Any]


def _plain_fields(model: VQGAN) -> dict[str, Any]:
    names = [
        field.name for field in dataclasses.fields(model) if field.name not in ("parent", "name", "dtype")
    ]
    return json.loads(json.dumps({name: getattr(model, name) for name in names}))


def generator_description(model: VQGAN, source: inputs.Source) -> dict[str, Any]:
    """What a stage writes down of a generator and of what it was trained on (`training.Stage.description`)."""
    return {"vqgan": _plain_fields(model), **inputs.class_record(source.class_names)}


def generator_stage(
    recipe: Recipe,
    spec: VqganSpec,
    source: inputs.Source,
    *,
    name: str = "generator",
    perceptual: Perceptual | None = None,
    carry: Callable[[training.TrainState], dict] = lambda previous: {},
) -> tuple[training.Stage, Generator]:
    """A stage that ends in a generator, whose parameters are `params["generator"]` of its state.

    Args:
      recipe: seed, workers and augmentation of the run.
      spec: the generator; that of a finished run where it names one.
      source: upstream images, and no others; their class names are written down.
      name: of the stage.
      perceptual: features that reconstructions are compared in besides; none unless given.
      carry: state of the stage before -> `extra` of this one, which passes through.

    Raises:
      UserError: a field out of its range; no such run, or one of a generator of other images.
    """
    if spec.run is not None:
        return _finished_generator(spec.run, source.image_shape, name, carry)
    spec.check()
    model = spec.model(source.image_shape)
    discriminator = PatchDiscriminator(spec.patch_channels, spec.patch_layers)
    first = round(spec.adversary_from * spec.steps)  # the step, from 0, at which the adversary begins
    rows = np.unique(np.linspace(0, len(source) - 1, spec.reseed_images).astype(int))
    sample = inputs.Subset(source, rows)

    def logits(params, images):
        return discriminator.apply({"params": params["discriminator"]}, images, mutable=["batch_stats"])[0]

    def distance(extra, images, made):
        """Equation 2 of the source with the features of the foundation model in place of LPIPS."""
        if perceptual is None or spec.perceptual == 0:
            return 0.0
        pairs = zip(perceptual(extra, made), perceptual(extra, images), strict=True)
        flat = [[x.reshape(-1, x.shape[-1]) for x in pair] for pair in pairs]
        return spec.perceptual * sum(losses.mimic_loss(*pair, unit=True).mean() for pair in flat)

    def generator_loss(params, extra, batch, rng):
        images, variables = batch["image"], {"params": params["generator"]}
        quantized = model.apply(variables, model.apply(variables, images, method="encode"), method="quantize")
        features = model.apply(variables, quantized.codes, method="features_of")

        def made_by(kernel, features):
            decoder = params["generator"]["decoder"]
            last = {"decoder": {"conv_out": {**decoder["conv_out"], "kernel": kernel}}}
            return model.apply({"params": last}, features, method="output")

        def reconstruction(made):
            return jnp.abs(images - made).mean() + distance(extra, images, made)

        def adversary(made):
            return losses.hinge_generator_loss(logits(params, made))

        kernel = params["generator"]["decoder"]["conv_out"]["kernel"]
        made = made_by(kernel, features)
        loss, reported = reconstruction(made), {}
        reported["reconstruction_loss"], reported["codebook_loss"] = loss, quantized.loss

        # λ of equation 7, from the gradients of the last kernel alone; they are not differentiated.
        def weighed():
            fixed_kernel, fixed = jax.lax.stop_gradient((kernel, features))

            def gradient(term):
                return jax.grad(lambda kernel: term(made_by(kernel, fixed)))(fixed_kernel)

            weight = losses.adaptive_weight(gradient(reconstruction), gradient(adversary))
            return weight * adversary(made), weight

        total = loss + quantized.loss
        if spec.adversarial:
            begun = extra["taken"] >= first
            term, weight = jax.lax.cond(begun, weighed, lambda: (jnp.zeros(()), jnp.zeros(())))
            total = total + spec.adversarial * term
            reported |= {"adversarial_weight": weight}
        return total, ({**extra, "taken": extra["taken"] + 1}, reported)

    def discriminator_loss(params, extra, batch, rng):
        def hinge():
            images = batch["image"]
            made = jax.lax.stop_gradient(model.apply({"params": params["generator"]}, images)[0])
            return losses.hinge_discriminator_loss(logits(params, images), logits(params, made))

        # The generator's loss has counted this step already.
        begun = extra["taken"] > first
        return jax.lax.cond(begun, hinge, lambda: jnp.zeros(())), (extra, {})

    optimizer = spec.optimizer.build(spec.steps, _released_adam if spec.optimizer.name == "adam" else None)
    objectives = [training.Objective(generator_loss, optimizer, ("generator",), "generator")]
    if spec.adversarial:
        objectives.append(
            training.Objective(discriminator_loss, optimizer, ("discriminator",), "discriminator")
        )

    def init(rng, previous):
        first, second = jax.random.split(rng)
        image = jnp.zeros((1, *source.image_shape))
        params = {"generator": model.init(first, image)["params"]}
        if spec.adversarial:
            params["discriminator"] = discriminator.init(second, image)["params"]
        extra = {**carry(previous), "taken": jnp.zeros((), jnp.int32)}
        return training.create_state(rng, params, *objectives, extra=extra)

    @jax.jit
    def latents_of(params, batch):
        return encode_images(model, params, normalize_pixels(batch["image"]), pad=False)

    reseed = jax.jit(
        lambda codebook, latents, key: reseed_dead_codes(codebook, latents, key, jitter=spec.jitter)
    )

    def refresh(state):
        generator = state.params["generator"]
        latents = training.map_source(latents_of, sample, generator, batch_size=min(128, len(sample)))
        key = jax.random.fold_in(jax.random.fold_in(state.rng, state.step), 2)
        codebook, _ = reseed(generator["quantizer"]["codebook"], latents.reshape(-1, latents.shape[-1]), key)
        changed = {**generator, "quantizer": {"codebook": codebook}}
        return state.replace(params={**state.params, "generator": changed})

    open_batches = None
    if spec.steps:
        open_batches = training_batches(recipe, source, batch_size=spec.batch_size)
    stage = training.Stage(
        name=name,
        description=generator_description(model, source),
        init=init,
        step=training.gradient_step(*objectives),
        batches=None if open_batches is None else lambda state: open_batches(),
        steps=spec.steps,
        refresh=refresh,
        refresh_every=spec.reseed_every,
        evaluate=lambda state: codebook_report(model, state.params["generator"], sample, "upstream"),
    )
    return stage, Generator(model, stage.description)


@jax.jit(static_argnames="model")
def _reconstruction(params, batch, *, model: VQGAN):
    images = normalize_pixels(batch["image"])
    latents = encode_images(model, params, images)
    quantized = model.apply({"params": params}, latents, method="quantize")
    made = model.apply({"params": params}, quantized.codes, method="decode")
    error = jnp.abs(jnp.clip(made[:, : images.shape[1], : images.shape[2]], -1, 1) - images) / 2
    return quantized.index, error.mean(axis=(1, 2, 3))


def codebook_report(model: VQGAN, params: Mapping, source: inputs.Source, name: str) -> dict[str, float]:
    """How a generator says these images again: `<name>/perplexity` of its codes, and `<name>/error`, the mean absolute one where
    white is 1."""

    def reconstruct(params, batch):
        return _reconstruction(params, batch, model=model)

    index, error = training.map_source(reconstruct, source, params, batch_size=min(128, len(source)))
    perplexity = metrics.codebook_perplexity(index, model.codes)
    return {f"{name}/perplexity": perplexity, f"{name}/error": float(error.mean())}


def _finished_generator(run: str, image_shape, name: str, carry) -> tuple[training.Stage, Generator]:
    """That of a run, which is read and not trained."""
    trained = [each for each in read_descriptions(run, argument="generator.run") if "vqgan" in each[1]]
    if not trained:
        raise UserError(f"generator.run: needs a run that trained a generator, {run} holds none")
    folder, description = trained[-1]
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in description["vqgan"].items()}
    try:
        model = VQGAN(**fields)
    except TypeError:
        raise UserError(
            f"generator.run: {run} describes a generator that this version does not know"
        ) from None
    if model.colors != image_shape[-1]:
        raise UserError(
            f"generator.run: needs a generator of images of {image_shape[-1]} channels, that of {run} has {model.colors}"
        )
    params = {"generator": training.restore_params(folder)["params"]["generator"]}

    def init(rng, previous):
        return training.create_state(rng, params, extra=carry(previous))

    stage = training.Stage(name, init=init, compile_init=False, description=description)
    return stage, Generator(model, description)
