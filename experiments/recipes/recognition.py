"""What the experiments on faces share: their common fields, a plain margin-softmax training, and teachers.

A method's `Config` inherits `Recipe`; its `build` takes from here what is not the method.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from experiments.configs import check_images, load_network
from jaxface import axes, losses, models, training
from jaxface import data as inputs
from jaxface.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Data, network, optimizer and length of a run on faces."""

    data: inputs.DataSpec = inputs.RenderedFaces()
    """Faces to learn from; some of the people are kept for verification."""
    image_size: int = 48
    """Side of the images, pixels."""
    augment: inputs.Augment = inputs.Augment()
    """Random changes of the training images."""
    backbone: str = "iresnet_pico"
    """Network; `jaxface.models.names()` lists them, and mlp_512x256 is a perceptron with these hidden widths."""
    embedding: int = 128
    """Size of an embedding."""
    bfloat16: bool = False
    """Compute in bfloat16 (parameters, statistics and the loss stay float32)."""
    optimizer: training.Optimizer = training.Optimizer(
        name="adam", learning_rate=3e-3, schedule="cosine", weight_decay=0.0
    )
    """Optimizer and learning-rate schedule."""
    batch_size: int = 64
    """Images per step over all devices."""
    steps: int = 1000
    """Training steps."""
    workers: int = 0
    """Processes that decode and augment; 0 uses threads, best for rendered faces."""
    seed: int = 0
    """Seed of the initialization, the order of the data and its augmentation."""
    data_seed: int = 0
    """Seed of the rendered people and of the split by identity."""


@dataclasses.dataclass(frozen=True)
class Head:
    """A margin softmax over class prototypes."""

    loss: Literal["softmax", "cosface", "arcface"] = "arcface"
    """Where the margin is: nowhere, on the cosine, or on the angle."""
    scale: float = 16.0
    """Scale s of the cosines; 64 in long runs."""
    margin: float = 0.3
    """ArcFace: radians; CosFace: cosine."""

    def __call__(self, cosines: jax.Array, labels: jax.Array) -> jax.Array:
        """Losses [B] of cosines [B, C] and labels [B]."""
        loss = {
            "softmax": functools.partial(losses.softmax_loss, scale=self.scale),
            "cosface": functools.partial(losses.cosface_loss, scale=self.scale, margin=self.margin),
            "arcface": functools.partial(losses.arcface_loss, scale=self.scale, margin=self.margin),
        }[self.loss]
        return loss(cosines, labels)

    def check(self) -> None:
        """Raises UserError for a scale or margin out of its range."""
        shapes = jax.ShapeDtypeStruct((1, 2), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
        jax.eval_shape(self, *shapes)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The network to learn from: a finished run, or one trained first on the same data."""

    run: str | None = None
    """Work directory of a finished run of any method with an embedding network; the other fields are not used then."""
    backbone: str = "iresnet_nano"
    """Network of the teacher."""
    embedding: int = 128
    """Size of its embedding."""
    head: Head = Head()
    """Loss that it is trained with."""
    optimizer: training.Optimizer = training.Optimizer(
        name="adam", learning_rate=3e-3, schedule="cosine", weight_decay=0.0
    )
    """Its optimizer."""
    steps: int = 1000
    """Steps that it is trained for."""


def network(recipe: Recipe, *, backbone: str | None = None, embedding: int | None = None, **fields):
    """The embedding network of a recipe, or another one under its data type."""
    return models.create(
        backbone or recipe.backbone,
        embedding=embedding or recipe.embedding,
        dtype=jnp.bfloat16 if recipe.bfloat16 else jnp.float32,
        **fields,
    )


def load(recipe: Recipe) -> inputs.Split:
    """The data of a recipe, split.

    Raises:
      UserError: the data cannot be had or split.
    """
    if recipe.data_seed < 0:
        raise UserError(f"data_seed: needs a number from 0, got {recipe.data_seed}")
    return inputs.load(recipe.data, image_size=recipe.image_size, seed=recipe.data_seed)


def training_batches(recipe: Recipe, source: inputs.Source, **changes) -> Callable[[], inputs.Batches]:
    """A function that opens the training batches of a source; `changes` go to `jaxface.data.batches`.

    Raises:
      UserError: a batch size or seed that cannot be used.
    """
    settings = dict(
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        augment=recipe.augment,
        shard=(jax.process_index(), jax.process_count()),
        workers=recipe.workers,
    )
    open_batches = functools.partial(inputs.batches, source, **{**settings, **changes})
    open_batches()  # reads nothing yet, but refuses what cannot be used
    return open_batches


def evaluation(recipe: Recipe, model, split: inputs.Split, *, identify: bool = False):
    """Verification of unseen people (with the mirror image where training mirrors), or the nearest class prototype.

    With `identify`, unseen people are identified in an open set besides.
    """
    if split.protocol == "verification":
        return training.Verification(model, split.held_out, flip=recipe.augment.flip > 0, identify=identify)
    return training.NearestPrototype(model, split.held_out)


def recognition_stage(
    name: str,
    recipe: Recipe,
    split: inputs.Split,
    model,
    head: Head,
    *,
    optimizer: training.Optimizer | None = None,
    steps: int | None = None,
    batches: Callable[[], inputs.Batches] | None = None,
    evaluate: bool = True,
) -> training.Stage:
    """A stage that trains an embedding network and its class prototypes with a margin softmax, and nothing else.

    The optimizer, the steps and the batches are the recipe's unless given.
    """
    head.check()
    steps = recipe.steps if steps is None else steps
    recognizer = training.Recognizer(model, len(split.train.class_names), split.train.image_shape)

    def loss_fn(params, extra, batch, rng):
        cosines, extra = recognizer.train_cosines(params, extra, batch["image"], rng)
        correct = cosines.argmax(axis=1) == batch["label"]
        return head(cosines, batch["label"]).mean(), (extra, {"accuracy": correct.mean()})

    objective = training.Objective(loss_fn, (optimizer or recipe.optimizer).build(steps))

    def init(rng, previous):
        params, extra = recognizer.init(rng)
        return training.create_state(rng, params, objective, extra=extra)

    open_batches = batches or training_batches(recipe, split.train)
    judged = evaluation(recipe, model, split) if evaluate else None
    return training.Stage(
        name=name,
        init=init,
        step=training.gradient_step(objective),
        batches=lambda state: open_batches(),
        steps=steps,
        evaluate=judged,
        best=f"{split.protocol}/accuracy" if evaluate else None,
        sharding={"prototypes": PartitionSpec(axes.MODEL)},
    )


def teacher_stage(
    recipe: Recipe,
    teacher: Teacher,
    split: inputs.Split,
    *,
    embedding: int | None = None,
    prototypes: bool = False,
) -> tuple[training.Stage, training.Teacher]:
    """The first stage of a distillation, which ends in the teacher's state, and the teacher for the step of the second.

    Args:
      recipe: of the student; the teacher sees the same images.
      teacher: which one.
      split: the data.
      embedding: size that the teacher's embedding must have, where the method needs a certain one.
      prototypes: whether the method asks the teacher for classes, which must then be those of the data.

    Raises:
      UserError: no such run, a network that does not take the images, an embedding of another size, or other classes.
    """
    if teacher.run is None:
        if embedding not in (None, teacher.embedding):
            raise UserError(
                f"teacher.embedding: needs {embedding}, as the student's, got {teacher.embedding}"
            )
        model = network(recipe, backbone=teacher.backbone, embedding=teacher.embedding)
        stage = recognition_stage(
            "teacher", recipe, split, model, teacher.head, optimizer=teacher.optimizer, steps=teacher.steps
        )
        return stage, training.Teacher(model)
    model, backbone, extra, _ = load_network(teacher.run)
    if embedding not in (None, model.embedding):
        raise UserError(
            f"teacher.run: needs an embedding of {embedding}, as the student's, {teacher.run} has {model.embedding}"
        )
    check_images(teacher.run, model, backbone, extra, split.train.image_shape)
    params, extra = training.run_checkpoint(teacher.run)
    classes = len(split.train.class_names)
    known = {name: params[name] for name in ("backbone", "prototypes") if name in params}
    if "prototypes" in known and len(known["prototypes"]) < classes:
        if prototypes:
            there = len(known["prototypes"])
            raise UserError(
                f"teacher.run: needs the {classes} classes of the data, {teacher.run} has {there}"
            )
        del known["prototypes"]
    if prototypes and "prototypes" not in known:
        raise UserError(f"teacher.run: needs class prototypes, {teacher.run} has none")

    def init(rng, previous):
        return training.create_state(rng, known, extra=training.statistics(extra))

    return training.Stage("teacher", init=init, compile_init=False), training.Teacher(model)
