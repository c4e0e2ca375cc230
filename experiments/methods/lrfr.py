"""LRFR: multi-resolution augmentation and the LogExp distance for low-resolution faces (arXiv:2302.05621).

    python -m experiments.launch lrfr --workdir runs/lrfr                # 2 min on 2 CPU cores
    python -m experiments.launch lrfr --preset paper --data.root …       # built and typed, not trained here
    python -m experiments.reproduce lrfr --study digits                  # accuracy over 2 to 8 px 0.835, full size only 0.671

Differs from the paper in: sizes of 6, 10 and 16 pixels for images of 48 (docs/methods/lrfr.md#choices-of-ours).
"""

import dataclasses
import functools
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from experiments.recipes.heads import HeadSpec
from experiments.recipes.recognition import Recipe, Recognition, evaluation, load, network, training_batches
from jaxface import axes, losses, training
from jaxface import data as inputs
from jaxface.checks import AtLeast, NonNegative, Range
from jaxface.data.transforms.resolution import check_probabilities, check_sizes
from jaxface.errors import UserError
from jaxface.layers.prototypes import l2_normalize

__all__ = ["Config", "build", "network"]

DIAGNOSED = 64
"""Training images whose gradient is measured at every resolution."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    """A face network trained on every image twice: as it is, and shrunk to a few pixels and enlarged again."""

    sizes: tuple[int, ...] = (6, 10, 16)
    """Sides in pixels to which the copies are shrunk, one drawn for each image; none trains on the images as they are alone."""
    probabilities: tuple[float, ...] = (0.5, 0.3, 0.2)
    """Probability of each size; the paper gives the smallest most."""
    head: HeadSpec = HeadSpec(loss="cosface", scale=16.0, margin=0.2)
    """Loss of either copy over the class prototypes that they share."""
    distance: Literal["logexp", "l1", "l2", "none"] = "logexp"
    """What draws the embeddings of the two copies together; l1 and l2 are LogExp's limits for small errors at power 1 and 2."""
    power: Annotated[float, Range(1)] = 1.0
    """LogExp: power p of an error, at least 1; at 1 the push does not vanish at zero error."""
    reduction: Literal["per_sample", "batch_log"] = "per_sample"
    """LogExp: a logarithm for each pair, as the paper writes it, or one over the batch, as its code has it. A pair's gradient
    is then D S_pair / S_batch times as long, S = 1 + Σ (exp(d^p) - 1): about D / B away from equal copies, D near them."""
    weight: Annotated[float, NonNegative] = 1.0
    """Weight of the distance."""
    probe_sizes: tuple[int, ...] = (4, 6, 8, 10, 13, 16, 24, 48)
    """Sides in pixels at which to evaluate."""
    galleries: Annotated[int, AtLeast(1)] = 1
    """Galleries of one full-size image per person; identification is the mean over them."""

    @classmethod
    def paper(cls) -> "Config":
        """CASIA-WebFace, the paper's recipe; LFW at 7 pixels near 0.93 and within half a point of HR only at 112 is the test."""
        return cls(
            data=inputs.Folder(root="casia-webface", held_out=0.02),
            image_size=112,
            backbone="face_resnet34",
            embedding=512,
            sizes=(7, 14, 20),
            head=HeadSpec(loss="cosface", scale=48.0, margin=0.4),
            prototype_std=(2 / (10_572 + 512)) ** 0.5,  # that of Xavier's uniform initialization
            probe_sizes=(5, 7, 9, 11, 14, 18, 28, 112),
            batch_size=256,
            steps=29 * (490_000 // 256),
            optimizer=training.sgd(decay_at=(16 / 29, 24 / 29)),
            workers=8,
        )

    @classmethod
    def digits(cls) -> "Config":
        """scikit-learn's digits of 8 x 8 pixels, shrunk to 4, 3 and 2."""
        return cls(
            data=inputs.Digits(),
            augment=inputs.Augment(flip=0.0),
            image_size=8,
            backbone="mlp",
            embedding=32,
            sizes=(4, 3, 2),
            probabilities=(0.2, 0.3, 0.5),
            probe_sizes=(2, 3, 4, 5, 8),
            galleries=5,
            optimizer=training.sgd(decay_at=(0.55, 0.83)),
            steps=40 * (1000 // 64),
        )


def distance_loss(config: Config, first: jax.Array, second: jax.Array) -> jax.Array:
    """The configured distance between unit embeddings [B, D] of the two copies, as one number."""
    if config.distance == "logexp":
        return losses.logexp_loss(first, second, power=config.power, reduction=config.reduction)
    return losses.power_distance(first, second, power={"l1": 1.0, "l2": 2.0}[config.distance]).mean()


class GradientNorms:
    """The paper's difficulty diagnostic of a state: the gradient norm of the classification at every resolution.

    Args:
      recognition: network, prototypes and loss of the classification, asked in evaluation mode.
      source: training images, of which `DIAGNOSED` are taken, evenly spread.
      sizes: sides in pixels.
    """

    def __init__(self, recognition: Recognition, source: inputs.Source, sizes):
        self.recognition, self.source, self.sizes = recognition, source, sorted(set(sizes))
        self.rows = np.unique(np.linspace(0, len(source) - 1, DIAGNOSED).astype(int))

    def __call__(self, state) -> dict[str, float]:
        records = [self.source[int(row)] for row in self.rows]
        images, labels = (np.stack([record[key] for record in records]) for key in ("image", "label"))

        def loss(params, images, labels):
            variables = training.network_variables(params["backbone"], state.extra)
            embeddings = self.recognition.model.apply(variables, images, train=False)
            return self.recognition.classify(params, embeddings, labels, jax.random.key(0)).loss

        norms = training.resolution_gradient_norms(loss, state.averaged_params, images, labels, self.sizes)
        self._norms = dict(zip(self.sizes, norms.tolist(), strict=True))
        return {f"gradient_norm@{size}px": norm for size, norm in self._norms.items()}

    def figures(self, state) -> training.Figures:
        """Gradient norm over the resolution, of the state that was evaluated last."""
        draw = functools.partial(
            training.figures.save_training_curves,
            {"classification": (list(self._norms), list(self._norms.values()))},
            xlabel="side of the image, pixels",
            ylabel="gradient norm",
            log_x=True,
        )
        return {"gradient_norm": draw}


def check(config: Config) -> None:
    """Raises UserError for what can be refused before any data is opened."""
    config.head.check()
    check_sizes(config.sizes)
    if config.sizes or config.probabilities:
        check_probabilities(config.probabilities, len(config.sizes))


def build(config: Config) -> list[training.Stage]:
    """One stage: train on both copies, evaluate over the resolution."""
    check(config)
    split = load(config)
    height, width, _ = split.train.image_shape
    if height != width:
        raise UserError(f"data: low resolutions need square images, got {height}x{width}")
    check_sizes(config.sizes, split.train.image_shape)
    model = network(config)
    classes, image_shape = len(split.train.class_names), split.train.image_shape
    recognition = Recognition(config, model, classes, image_shape, config.head.build())
    # Either copy is mirrored for itself, after it was shrunk: the pipeline mirrors neither.
    open_batches = training_batches(
        config, split.train, augment=dataclasses.replace(config.augment, flip=0.0)
    )

    def classify(params, extra, images, labels, dropout, rng):
        """One forward pass in training mode: the classification, unit embeddings and the new statistics."""
        embeddings, extra = recognition.recognizer.train_embeddings(params, extra, images, dropout)
        classification = recognition.classify(params, embeddings, labels, rng)
        return classification, l2_normalize(embeddings.astype(jnp.float32)), extra

    def loss_fn(params, extra, batch, rng):
        images, labels, flip = batch["image"], batch["label"], config.augment.flip
        mirror_full, mirror_low, degrade, dropout_full, dropout_low = jax.random.split(rng, 5)
        full = inputs.mirror_some(mirror_full, images, flip)
        of_full, full_unit, extra = classify(params, extra, full, labels, dropout_full, rng)
        if not config.sizes:
            return of_full.loss, (extra, of_full.report())
        low, _ = inputs.degrade_resolution(
            degrade, images, sizes=config.sizes, probabilities=config.probabilities
        )
        low = inputs.mirror_some(mirror_low, low, flip)
        # A pass of its own, after the full-size one: each has its batch statistics, and both move the running averages.
        of_low, low_unit, extra = classify(params, extra, low, labels, dropout_low, rng)
        total = 0.5 * (of_full.loss + of_low.loss)
        reported = of_full.report() | of_low.report("_low")
        reported |= {"loss_full": of_full.loss, "loss_low": of_low.loss}
        if config.distance != "none":
            distance = distance_loss(config, full_unit, low_unit)
            total = total + config.weight * distance
            reported["distance"] = distance
        return total, (extra, reported)

    objective = training.Objective(loss_fn, recognition.optimizer())

    def init(rng, previous):
        params, extra = recognition.init(rng)
        return recognition.create_state(rng, params, objective, extra=extra)

    evaluate = training.Evaluations(
        evaluation(config, model, split),
        training.CrossResolution(
            model,
            split.held_out,
            config.probe_sizes,
            classify=split.protocol == "classification",
            flip=split.protocol == "verification" and config.augment.flip > 0,
            galleries=config.galleries,
        ),
        GradientNorms(recognition, split.train, config.probe_sizes),
    )
    return [
        training.Stage(
            name="recognition",
            description=recognition.description,
            init=init,
            step=recognition.step(objective),
            batches=lambda state: open_batches(),
            steps=config.steps,
            evaluate=evaluate,
            best="resolution/accuracy",
            sharding={"prototypes": PartitionSpec(axes.MODEL)},
        )
    ]
