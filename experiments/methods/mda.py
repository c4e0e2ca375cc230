"""MDA: model and data agreement for learning with wrong labels (arXiv:2212.01054).

    python -m experiments.launch mda --workdir runs/mda                    # 20 s: 0.91, half of the labels wrong
    python -m experiments.launch mda --preset paper --data.root …          # CIFAR-100, 80 % wrong; built, not trained here
    python -m experiments.reproduce mda                                    # JoCoR 0.834, global selection alone 0.880

Differs from the released code in: every example is scored, none stays chosen because it missed a batch; all test images count
(docs/methods/mda.md#choices-of-ours).
"""

import dataclasses
import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recipes import recognition as recipe
from jaxface import axes, losses, training
from jaxface import data as inputs
from jaxface.checks import AtLeast, Fraction, NonNegative, ProperFraction
from jaxface.data.sources.source import InMemory
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.models.stacked import Stacked
from jaxface.training.evaluations.noisy_labels import LearningFromNoise

LARGEST_IN_MEMORY = 1 << 30
"""Bytes of the pixels of a set that is read at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(recipe.Recipe):
    """Two networks that learn from labels some of which are wrong."""

    data: inputs.DataSpec = inputs.Digits(mirrored=True, noise=inputs.LabelNoise(rate=0.5))
    """Images of classes to be told apart; `noise` makes some labels wrong."""
    augment: inputs.Augment = inputs.Augment(flip=0.0)
    """Random changes of the training images; none in the paper, and no mirroring where examples are scored on mirror images."""
    image_size: Annotated[int, AtLeast(8)] = 8
    """Side of the images, pixels, of data that have no size of their own."""
    backbone: str = "mlp_256x256"
    """Network, of which there are two; `jaxface.models.names()` lists them."""
    embedding: None = None
    """The networks are as wide as there are classes."""
    selection: Literal["global", "batch", "exchange", "all"] = "global"
    """Whose labels are learned: those of the smallest losses of the whole training set, chosen before an epoch (MDA); of a batch
    (JoCoR); of a batch for the other network (Co-teaching); all (plain training)."""
    mirrored: bool = True
    """Data agreement: choose by the losses of mirror images, which are not learned from; for global selection."""
    score_agreement: Annotated[float, Fraction] = 0.65
    """λ, share of the divergence of the two networks in the losses that examples are chosen by, in [0, 1]; of JoCoR in what it
    learns too."""
    agreement_weight: Annotated[float, NonNegative] = 1.0
    """Model agreement: weight of the mean point ensemble, over all examples; 0 leaves it out."""
    forget: Annotated[float | None, ProperFraction] = None
    """τ, share of the examples that is left out in the end; that of the wrong labels where the data say it."""
    forget_rule: Literal["expected", "half"] = "expected"
    """Where the data say it: all of the wrong labels that are expected, or half the rate of asymmetric noise, as released."""
    gradual: Annotated[int, AtLeast(1)] = 10
    """Epochs over which that share is reached."""
    exponent: Annotated[float, NonNegative] = 1.0
    """c: the share rises to τ^c."""
    freeze: Annotated[float, Fraction] = 0.5
    """Fraction of the epochs after which global selection stays as it is."""
    optimizer: training.Optimizer = training.adam(1e-3, schedule="linear", hold=0.5)
    """Optimizer and learning-rate schedule of both networks."""
    batch_size: Annotated[int, AtLeast(1)] = 100
    """Images per step over all devices."""
    steps: Annotated[int, AtLeast(0)] = 1000
    """Training steps; epochs are as many as they make, without the images that do not fill a batch."""

    @classmethod
    def paper(cls) -> "Config":
        """CIFAR-100 with 80 % symmetric noise, as released: 199 epochs of 97 batches, the selection frozen after the 99th."""
        epochs = 199
        return cls(
            data=inputs.Cifar100(root="cifar-100-python", noise=inputs.LabelNoise(rate=0.8)),
            image_size=32,
            backbone="small_loss_cnn",
            optimizer=training.adam(1e-3, schedule="linear", hold=99 / epochs),
            batch_size=512,
            steps=epochs * (50_000 // 512),
        )

    @classmethod
    def jocor(cls) -> "Config":
        """JoCoR on digits: the smallest joint losses of a batch."""
        return cls(selection="batch", mirrored=False, agreement_weight=0.0)

    @classmethod
    def coteaching(cls) -> "Config":
        """Co-teaching on digits: each network learns what the other finds easy."""
        return cls(selection="exchange", mirrored=False, agreement_weight=0.0)


def forgotten_share(config: Config, train: inputs.Source) -> float:
    """τ.

    Raises:
      UserError: neither the configuration nor the data say it.
    """
    if config.forget is not None:
        return config.forget
    noise = getattr(config.data, "noise", inputs.LabelNoise())
    if config.forget_rule == "half" and noise.kind in ("asymmetric", "superclass"):
        return noise.rate / 2
    if noise.rate > 0:
        return train.expected_rate
    if config.selection == "all":
        return 0.0
    raise UserError(
        "forget: needs the share of wrong labels, which these data do not say: set data.noise.rate or forget"
    )


def in_memory(source: inputs.Source) -> inputs.Source:
    """The source, all read at once where it is small: every epoch goes through it twice."""
    return InMemory(source) if len(source) * math.prod(source.image_shape) < LARGEST_IN_MEMORY else source


def build(config: Config) -> list[training.Stage]:
    """One stage: both networks at once, and before every epoch the choice of what it learns from."""
    recipe.check_no_packs(config, "a classifier tells no pairs")
    if config.init_from is not None:
        raise UserError("init_from: two networks start from weights of their own, one network cannot be both")
    if config.accumulate > 1:
        raise UserError("accumulate: needs 1, examples are chosen among those of a batch")
    by_mirror = config.selection == "global" and config.mirrored
    if by_mirror and config.augment.flip > 0:
        raise UserError(
            "augment.flip: needs 0 where mirror images say what is learned (mirrored), or they are learned too"
        )
    split = recipe.load(config)
    if split.protocol != "classification":
        raise UserError(f"data: needs classes to be told apart, {split.name} is for {split.protocol}")
    classes, image_shape = len(split.train.class_names), split.train.image_shape
    forgotten = forgotten_share(config, split.train)
    indexed = inputs.WithFields(split.train, index=np.arange(len(split.train), dtype=np.int32))
    train, held_out = (in_memory(source) for source in (indexed, split.held_out))
    open_batches = recipe.training_batches(config, train)
    epoch_steps = len(train) // config.batch_size
    epochs = -(-config.steps // epoch_steps)
    last_choice = max(int(config.freeze * epochs), 1)
    model = Stacked(recipe.network(config, embedding=classes), 2)

    # Equation 3: the joint loss of every example, in evaluation mode, on its mirror image.
    def joint_losses(variables, batch):
        images = normalize_pixels(batch["image"])
        logits = model.apply(variables, losses.mirror(images) if by_mirror else images, train=False)
        return losses.jocor_scores(*logits, batch["label"], agreement=config.score_agreement)

    joint_losses = jax.jit(joint_losses)

    def smallest(state, share):
        variables = training.network_variables(state.params["backbone"], state.extra)
        scores = training.map_source(
            joint_losses, train, variables, batch_size=min(512, len(train)), fields=("image", "label")
        )
        if not np.isfinite(scores).all():
            raise training.Diverged(f"the loss of an example is not finite before step {int(state.step) + 1}")
        return losses.small_loss_mask(scores, losses.small_loss_count(len(train), share))

    # What an epoch learns from; the released loop begins with epoch 1.
    def refresh(state):
        epoch = 1 + int(state.step) // epoch_steps
        extra = {**state.extra, **judged.written_down(state)}
        share = losses.forget_rate(epoch, forgotten, gradual=config.gradual, exponent=config.exponent)
        extra["count"] = jnp.int32(losses.small_loss_count(config.batch_size, share))
        if config.selection == "global" and epoch <= last_choice:
            extra["selected"] = smallest(state, share)
        return state.replace(extra=extra)

    judged = LearningFromNoise(
        model,
        held_out,
        split.train,
        steps_per_epoch=epoch_steps,
        choose=lambda state: np.asarray(smallest(state, forgotten)),
    )

    # Equations 6 to 8 for MDA, and the losses of those that it is compared with.
    def supervised(logits, batch, extra):
        labels = batch["label"]
        if config.selection == "batch":
            loss, selected = losses.jocor_loss(
                *logits, labels, extra["count"], agreement=config.score_agreement
            )
            return loss, jnp.stack([selected, selected])
        if config.selection == "exchange":
            loss, selected = losses.coteaching_loss(*logits, labels, extra["count"])
            return loss, jnp.stack(selected)
        selected = extra["selected"][batch["index"]]
        loss, _ = losses.mda_loss(*logits, labels, selected, agreement_weight=0.0)
        return loss, jnp.stack([selected, selected])

    def loss_fn(params, extra, batch, rng):
        variables = training.network_variables(params["backbone"], extra)
        logits, updated = model.apply(
            variables,
            batch["image"],
            train=True,
            mutable=[*variables.keys() - {"params"}],
            rngs={"dropout": rng},
        )
        loss, selected = supervised(logits, batch, extra)
        report = {"supervised_loss": loss, "agreement_loss": losses.mean_point_loss(logits)}
        report["selected"] = selected.mean()
        extra = {**extra, **updated}
        if "true_label" in batch:
            right = batch["label"] == batch["true_label"]
            counts = jnp.stack([(selected & right).sum(), selected.sum(), 2 * right.sum()])
            extra["tally"] += axes.mean(counts.astype(jnp.float32))
        return loss + config.agreement_weight * report["agreement_loss"], (extra, report)

    objective = training.Objective(loss_fn, config.optimizer.build(config.steps, network=("backbone", model)))

    def init(rng, previous):
        variables = dict(model.init(rng, jnp.zeros((1, *image_shape)), train=False))
        params = {"backbone": variables.pop("params")}
        chosen = {"selected": jnp.ones(len(train), bool), "count": jnp.int32(config.batch_size)}
        extra = {**variables, **chosen, **judged.blank(epochs)}
        return training.create_state(rng, params, objective, extra=extra, ema=config.ema_decay is not None)

    return [
        training.Stage(
            name="pair",
            init=init,
            step=training.gradient_step(objective, ema_decay=config.ema_decay, frozen=config.optimizer.held),
            batches=lambda state: open_batches(),
            steps=config.steps,
            refresh=refresh,
            refresh_every=epoch_steps,
            evaluate=judged,
        )
    ]
