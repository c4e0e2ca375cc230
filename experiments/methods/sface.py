"""SFace: sigmoid-constrained hypersphere loss for robust face recognition (arXiv:2205.12010)."""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from experiments.recipes.recognition import Recipe, load, network, training_batches
from jaxface import axes, losses, metrics, optimizers, training
from jaxface import data as inputs
from jaxface.errors import UserError
from jaxface.layers.prototypes import l2_normalize
from jaxface.training import figures
from pallas_kernels import margin_softmax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    """SFace and the losses it is compared with: one network, one recipe, four losses."""

    label_noise: float = 0.0
    """Fraction of the training labels replaced by another class, uniformly, as `data_seed` draws them."""
    loss: Literal["sface", "softmax", "cosface", "arcface"] = "sface"
    """Loss over the cosines between embeddings and class prototypes."""
    scale: float = 64.0
    """Scale s of the loss."""
    sharpness: float = 30.0
    """SFace: slope k of both sigmoids, per radian; the paper's 80 wants long runs, few classes and short runs want less."""
    intra_angle: float = 0.87
    """SFace: angle a to the own class below which the pull fades, radians."""
    inter_angle: float = 1.1
    """SFace: angle b to another class above which the push fades, radians."""
    margin: float = 0.5
    """ArcFace: angular margin in radians; CosFace: cosine margin."""
    sample_rate: float = 1.0
    """Fraction of the classes that take part in a step (PartialFC), in (0, 1]; those of the batch always do."""
    unsampled: Literal["move", "stay"] = "move"
    """Prototypes that a step did not sample: momentum and weight decay move them, or they and their momentum stay as they are."""
    accumulate: int = 1
    """Micro-batches in which a step is computed; saves memory."""
    ema_decay: float | None = None
    """Decay per step of a moving average of the parameters, which is then evaluated; none by default."""
    init_from: str | None = None
    """Work directory of a finished run whose network to start from (fine-tuning); prototypes start afresh."""
    steps: int = 2000
    """Training steps."""

    @classmethod
    def paper(cls) -> "Config":
        """CASIA-WebFace, column 1 of the paper's recipe; a comparison to ArcFace under it is the acceptance test."""
        return cls(
            data=inputs.Folder(root="casia-webface", held_out=0.02),
            image_size=112,
            backbone="iresnet50",
            embedding=512,
            sharpness=80.0,
            inter_angle=1.2,
            bfloat16=True,
            batch_size=256,
            steps=180_000,
            optimizer=training.Optimizer(decay_at=(100 / 180, 140 / 180, 160 / 180)),
            workers=8,
        )

    @classmethod
    def digits(cls) -> "Config":
        """The label-noise study on scikit-learn's digits: a small perceptron, a second per run."""
        return cls(
            data=inputs.Digits(),
            augment=inputs.Augment(flip=0.0),
            image_size=8,
            backbone="mlp",
            embedding=32,
            sharpness=80.0,
            intra_angle=1.2,
            inter_angle=1.3,
            batch_size=128,
            optimizer=training.Optimizer(
                name="adam", learning_rate=1e-3, schedule="constant", weight_decay=0.0
            ),
            steps=15 * (1000 // 128),
        )


LARGE = 16_384
"""From so many classes on, or with sampled ones, the loss makes no [B, C]; below, whole cosines are faster."""


def large_head(config: Config) -> margin_softmax.Head:
    """The configured loss for `training.prototype_loss`."""
    return {
        "sface": margin_softmax.SFace(config.scale, config.sharpness, config.intra_angle, config.inter_angle),
        "softmax": margin_softmax.softmax(config.scale),
        "cosface": margin_softmax.cosface(config.scale, config.margin),
        "arcface": margin_softmax.arcface(config.scale, config.margin),
    }[config.loss]


def per_example_loss(config: Config):
    """(cosines [B, C], labels [B]) -> losses [B] of the configured loss."""
    scale = config.scale
    return {
        "sface": functools.partial(
            losses.sface_loss,
            scale=scale,
            sharpness=config.sharpness,
            intra_angle=config.intra_angle,
            inter_angle=config.inter_angle,
        ),
        "softmax": functools.partial(losses.softmax_loss, scale=scale),
        "cosface": functools.partial(losses.cosface_loss, scale=scale, margin=config.margin),
        "arcface": functools.partial(losses.arcface_loss, scale=scale, margin=config.margin),
    }[config.loss]


class WrongLabels:
    """Angles between training images and the prototypes of the labels they were given, right or wrong.

    A loss is robust where the wrong ones stay at larger angles: the network was not bent to fit them.

    Args:
      model: the network.
      source: training images.
      labels: [N] int32 as given to the training.
      flipped: [N] bool, which of them are wrong; at least one of each kind.
      most: how many images to look at, evenly spread.
    """

    def __init__(self, model, source, labels: np.ndarray, flipped: np.ndarray, *, most: int = 2000):
        chosen = np.arange(0, len(source), -(-len(source) // most))
        self.model, self.source = model, inputs.Subset(source, chosen)
        self.labels, self.flipped = labels[chosen], flipped[chosen]

    def __call__(self, state) -> dict[str, float]:
        params = state.averaged_params
        embeddings = training.embed_source(
            self.model, params["backbone"], state.extra, self.source, flip=False
        )
        given = np.asarray(params["prototypes"])[self.labels]
        cosine = np.sum(np.asarray(l2_normalize(embeddings)) * np.asarray(l2_normalize(given)), axis=1)
        angles = np.arccos(np.clip(cosine, -1, 1))
        self._right, self._wrong = angles[~self.flipped], angles[self.flipped]
        return {
            "label_noise/angle_right": float(self._right.mean()),
            "label_noise/angle_wrong": float(self._wrong.mean()),
            "label_noise/auc": metrics.auc(self._wrong, self._right),
        }

    def figures(self, state) -> training.Figures:
        """Both distributions of the state that was evaluated last."""
        draw = functools.partial(
            figures.save_score_histogram,
            self._wrong,
            self._right,
            names=("wrong label", "right label"),
            xlabel="angle to the prototype of the given label, radians",
        )
        return {"wrong_labels": draw}


def training_stage(config: Config, classes: int, image_shape: tuple[int, int, int]) -> training.Stage:
    """How to train the embedding network and its prototypes: the stage of `build` without its data and evaluation.

    Args:
      config: the experiment; of its fields those of the data count for nothing here.
      classes: C, labels being int32 in [0, C).
      image_shape: (H, W, channels).
    """
    loss = per_example_loss(config)
    model = network(config)
    optimizer = config.optimizer.build(config.steps)
    if config.unsampled == "stay":
        optimizer = optimizers.sampled_rows(optimizer, {"backbone": False, "prototypes": True})
    recognizer = training.Recognizer(model, classes, image_shape)

    def large_loss_fn(params, extra, batch, rng):
        embeddings, extra = recognizer.train_embeddings(params, extra, batch["image"], rng)
        value, terms = training.prototype_loss(
            embeddings.astype(model.dtype),
            params["prototypes"],
            batch["label"],
            large_head(config),
            classes=classes,
            rate=config.sample_rate,
            rng=jax.random.fold_in(rng, 1),
        )
        return value, (extra, {"target_cosine": terms.target_cosines.mean()})

    def loss_fn(params, extra, batch, rng):
        cosines, extra = recognizer.train_cosines(params, extra, batch["image"], rng)
        values = loss(cosines, batch["label"])
        target = jnp.take_along_axis(cosines, batch["label"][:, None], axis=1)
        correct = cosines.argmax(axis=1) == batch["label"]
        return values.mean(), (extra, {"accuracy": correct.mean(), "target_cosine": target.mean()})

    large = classes >= LARGE or config.sample_rate < 1
    objective = training.Objective(large_loss_fn if large else loss_fn, optimizer)
    start = None if config.init_from is None else training.pretrained_backbone(config.init_from, recognizer)

    def init(rng, previous):
        params, extra = recognizer.init(rng)
        if start is not None:
            params["backbone"], extra = start
        return training.create_state(rng, params, objective, extra=extra, ema=config.ema_decay is not None)

    return training.Stage(
        name="recognition",
        init=init,
        step=training.gradient_step(objective, accumulate=config.accumulate, ema_decay=config.ema_decay),
        steps=config.steps,
        sharding={"prototypes": PartitionSpec(axes.MODEL)},
    )


def build(config: Config) -> list[training.Stage]:
    """One stage: train the embedding network and its prototypes, verify on people it never saw."""
    if not 0 < config.sample_rate <= 1:
        raise UserError(f"sample_rate: needs a fraction in (0, 1], got {config.sample_rate}")
    if config.unsampled == "stay" and config.sample_rate == 1:
        raise UserError("unsampled: 'stay' needs sample_rate below 1; got 1, which samples every class")
    # Refuses a scale, slope, angle or margin out of its range before any data is opened.
    jax.eval_shape(
        per_example_loss(config),
        jax.ShapeDtypeStruct((1, 2), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    )
    split = load(config)
    classes = len(split.train.class_names)
    labels, flipped = inputs.corrupt_labels(
        split.train.labels, config.label_noise, classes, seed=config.data_seed
    )
    batches = training_batches(config, split.train, label_override=labels)
    stage = training_stage(config, classes, split.train.image_shape)

    model = network(config)
    protocol = training.Verification if split.protocol == "verification" else training.NearestPrototype
    evaluations = [protocol(model, split.held_out)]
    if 0 < flipped.sum() < len(flipped):
        evaluations.append(WrongLabels(model, split.train, labels, flipped))
    evaluate = training.Evaluations(*evaluations)
    return [
        dataclasses.replace(
            stage,
            batches=lambda state: batches(),
            evaluate=evaluate,
            best=f"{split.protocol}/accuracy",
        )
    ]
