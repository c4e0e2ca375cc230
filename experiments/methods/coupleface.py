"""CoupleFace: distillation of a face network and of its relations to confusable identities (arXiv:2204.05502).

    python -m experiments.launch coupleface --workdir runs/coupleface    # 4 minutes of CPU time
    python -m experiments.launch coupleface --preset paper --data.root … # built and typed, not trained here
    python -m experiments.reproduce coupleface                           # TAR at FAR 1e-2 0.464, consistency alone 0.454

Differs from the paper in: the formulas, which are our reading of its abstract (docs/methods/coupleface.md#choices-of-ours).
"""

import dataclasses
import functools
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from experiments.recipes.heads import HeadSpec
from experiments.recipes.recognition import (
    Recipe,
    Recognition,
    check_together,
    evaluation,
    load,
    network,
    training_batches,
    with_packs,
)
from experiments.recipes.teachers import TeacherSpec, teacher_stage
from jaxface import axes, losses, metrics, models, training
from jaxface import data as inputs
from jaxface.checks import AtLeast, Fraction, NonNegative
from jaxface.errors import UserError
from jaxface.layers.prototypes import cosines, l2_normalize
from jaxface.metrics.recognition.report import MOST_FOR_ALL
from jaxface.training import class_banks

SHARDING = {name: PartitionSpec(axes.MODEL) for name in ("memory", "neighbors", "prototypes")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    """CoupleFace and what it is compared with: a frozen teacher, and a student that learns from it."""

    teacher: TeacherSpec = TeacherSpec(steps=600)
    """Network to learn from."""
    relations: Literal["mined", "random", "batch", "none"] = "mined"
    """Whom an image is compared with: the identities most similar to its own in the teacher's eyes, random ones, the other images
    of the batch (not CoupleFace: relations between student embeddings), or nobody."""
    neighbors: Annotated[int, AtLeast(1)] = 20
    """Identities K that each identity is compared with, at most all others; 100 at full size."""
    relation_weight: Annotated[float, NonNegative] = 5.0
    """Weight α of the mean difference of the relations; 0 keeps it as a metric alone."""
    norm: Literal["l1", "l2"] = "l1"
    """Difference of two relations: absolute or squared."""
    memory: Literal["replace", "ema", "none"] = "replace"
    """How the newest teacher feature of an identity enters the memory: in place of the last one, averaged with it, or not at all,
    so that the memory keeps the mean features."""
    memory_decay: Annotated[float, Fraction] = 0.9
    """What stays of the last feature in the average, in [0, 1]."""
    classification_weight: Annotated[float, NonNegative] = 0.0
    """Weight β of a margin softmax on the student, with class prototypes of its own; 0 for none."""
    head: HeadSpec = HeadSpec()
    """That margin softmax."""
    steps: int = 600
    """Training steps of the student."""
    pairs: Literal["balanced", "all"] = "balanced"
    """Pairs to verify the student on: ten folds of as many genuine as impostor ones, or all there are."""

    @classmethod
    def paper(cls) -> "Config":
        """MS1MV2, iResNet-100 to MobileFaceNet; batch, schedule and K are the usual ones and ours, not the paper's."""
        optimizer = training.sgd(decay_at=(100 / 180, 140 / 180, 160 / 180))
        head = HeadSpec(scale=64.0, margin=0.5)
        return cls(
            data=inputs.RecordIO(path="ms1mv2", held_out=0.005),
            image_size=112,
            backbone="mobilefacenet",
            embedding=512,
            bfloat16=True,
            teacher=TeacherSpec(
                backbone="iresnet100", embedding=512, head=head, optimizer=optimizer, steps=180_000
            ),
            neighbors=100,
            head=head,
            optimizer=optimizer,
            batch_size=512,
            steps=180_000,
            workers=8,
        )

    @classmethod
    def vectors(cls) -> "Config":
        """The study on synthetic identities in confusable groups: a perceptron too narrow for all that its teacher knows."""
        optimizer = training.adam(2e-3)
        return cls(
            data=inputs.Procedural(),
            augment=inputs.Augment(flip=0.0),
            image_size=8,
            backbone="mlp_8",
            embedding=32,
            teacher=TeacherSpec(
                backbone="mlp_512x512",
                embedding=32,
                head=HeadSpec(scale=24.0),
                optimizer=optimizer,
                steps=1500,
            ),
            optimizer=optimizer,
            batch_size=128,
            steps=1500,
            pairs="all",
        )


def check(config: Config) -> None:
    """Raises UserError for a field of this method out of its range."""
    if config.classification_weight > 0:
        config.head.check()
    if config.relations == "batch":
        check_together(config, "to relate them to each other")


def prototype_stage(config: Config, split: inputs.Split, teacher: training.Teacher) -> training.Stage:
    """One pass over the training images, unchanged, that sums the teacher's directions of every class into the memory.

    An image is embedded with its mirror image where training mirrors. The steps are those of any stage: spread over devices and
    processes, and gone on with where they were interrupted.
    """
    classes, records = len(split.train.class_names), len(split.train)
    size = models.feature_size(teacher.model, split.train.image_shape)
    open_batches = training_batches(config, split.train, augment=None, shuffle=False, drop_remainder=False)

    def init(rng, previous):
        memory = jnp.zeros((training.prototype_rows(classes), size), jnp.float32)
        extra = {**training.statistics(previous.extra), "memory": memory}
        return training.create_state(rng, {"backbone": previous.averaged_params["backbone"]}, extra=extra)

    def step(state, batch):
        frozen = teacher.installed({}, state)
        embed = functools.partial(teacher.embeddings, frozen)
        images, labels = batch["image"], batch["label"]
        mirrored = config.augment.flip > 0
        embeddings = metrics.flip_embeddings(embed, images, unit=False) if mirrored else embed(images)
        # The last batch runs on over the end of the data, into images that were counted already.
        size, first = labels.shape[0], 0
        if axes.bound(axes.DATA):
            first, size = jax.lax.axis_index(axes.DATA) * size, jax.lax.axis_size(axes.DATA) * size
        positions = state.step * size + first + jnp.arange(labels.shape[0])
        counted = jnp.where(positions < records, labels, -1)
        memory = class_banks.update_bank(
            class_banks.add_class_features, state.extra["memory"], embeddings, counted
        )
        norm = axes.mean(jnp.linalg.norm(embeddings, axis=1).mean())
        state = state.replace(step=state.step + 1, extra={**state.extra, "memory": memory})
        return state, {"embedding_norm": norm}

    return training.Stage(
        "prototypes",
        init=init,
        step=step,
        batches=lambda state: open_batches(),
        steps=-(-records // config.batch_size),
        sharding=SHARDING,
    )


@dataclasses.dataclass(frozen=True)
class ClassNumbers:
    """A source of the numbers of all classes, again from 0 after the last."""

    classes: int
    records: int

    def __len__(self) -> int:
        return self.records

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"label": np.int32(index % self.classes)}


def mining_stage(config: Config, split: inputs.Split, *, together: int = 4096) -> training.Stage:
    """Makes the memory of the sums, and finds the neighbors of `together` classes (or a batch, if larger) per step."""
    classes = len(split.train.class_names)
    count = min(config.neighbors, classes - 1)
    batches = min(max(1, together // config.batch_size), -(-classes // config.batch_size))
    per_step = batches * config.batch_size
    steps = -(-classes // per_step)
    numbers = ClassNumbers(classes, steps * per_step)

    def init(rng, previous):
        memory = l2_normalize(previous.extra["memory"])
        extra = {**previous.extra, "memory": memory, "neighbors": jnp.zeros((len(memory), count), jnp.int32)}
        return training.create_state(rng, previous.params, extra=extra)

    def step(state, batch):
        memory = state.extra["memory"]
        valid, searched = jnp.square(memory).sum(axis=1) > 0, memory
        if config.relations == "random":  # neighbors among directions that have nothing to do with faces
            searched = l2_normalize(jax.random.normal(state.rng, memory.shape))
        found = class_banks.mine_neighbors(searched, count, batch["label"], valid=valid)
        neighbors = class_banks.update_bank(
            class_banks.set_rows, state.extra["neighbors"], found, batch["label"]
        )
        state = state.replace(step=state.step + 1, extra={**state.extra, "neighbors": neighbors})
        return state, {"classes": axes.mean(jnp.float32(per_step))}

    def open_batches(state):
        return training_batches(
            config, numbers, batch_size=per_step, augment=None, shuffle=False, workers=0
        )()

    return training.Stage(
        "neighbors", init=init, step=step, batches=open_batches, steps=steps, sharding=SHARDING
    )


def batch_relations(student: jax.Array, teacher: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines [B, B] of every embedding of a batch with all of it, the student's among themselves and the teacher's."""

    def everyone(x):
        return jax.lax.all_gather(x, axes.DATA, tiled=True) if axes.bound(axes.DATA) else x

    return cosines(student, everyone(student)), cosines(teacher, everyone(teacher))


class NearestMean:
    """Evaluation of a student without class prototypes on classes that it was trained on: the nearest mean embedding.

    Args:
      model: the network.
      train: records that the means are of.
      held_out: records to classify.
    """

    def __init__(self, model, train: inputs.Source, held_out: inputs.Source):
        self.model, self.train, self.held_out = model, train, held_out

    def __call__(self, state) -> dict[str, float]:
        backbone = state.averaged_params["backbone"]
        known, asked = (
            training.embed_source(self.model, backbone, state.extra, source, flip=False)
            for source in (self.train, self.held_out)
        )
        means = class_banks.class_prototypes(
            known, np.asarray(self.train.labels), len(self.train.class_names)
        )
        correct = metrics.nearest_prototype_accuracy(asked, np.asarray(means), self.held_out.labels)
        return {"classification/accuracy": correct}


def student_stage(config: Config, split: inputs.Split, teacher: training.Teacher) -> training.Stage:
    """The student learns the teacher's embedding of each image, and its relations."""
    model = network(config)
    classes = len(split.train.class_names)
    head = config.head.build() if config.classification_weight > 0 else None
    recognition = Recognition(config, model, classes, split.train.image_shape, head)
    sizes = [models.feature_size(network, split.train.image_shape) for network in (model, teacher.model)]
    other_size = sizes[0] != sizes[1]
    update = functools.partial(class_banks.update_memory, mode=config.memory, decay=config.memory_decay)

    def loss_fn(params, extra, batch, rng):
        images, labels = batch["image"], batch["label"]
        target = teacher.embeddings(extra, images)
        embeddings, extra = recognition.recognizer.train_embeddings(params, extra, images, rng)
        mapped = embeddings.astype(jnp.float32)
        if other_size:
            mapped = mapped @ params["projection"]
        relations = None
        if config.relations == "batch":
            relations = batch_relations(mapped, target)
        elif config.relations != "none":
            memory, neighbors = extra["memory"], extra["neighbors"]
            relations = class_banks.mined_relations(mapped, target, labels, memory, neighbors)
            extra = {**extra, "memory": class_banks.update_bank(update, memory, target, labels)}
        values, terms = losses.coupleface_loss(
            mapped, target, relations, relation_weight=config.relation_weight, norm=config.norm
        )
        loss, reported = values.mean(), {"consistency": terms.consistency.mean()}
        if relations is not None:
            reported |= {"relation": terms.relation.mean(), "teacher_relation": relations[1].mean()}
        if config.classification_weight > 0:
            classification = recognition.classify(params, embeddings, labels, rng)
            loss += config.classification_weight * classification.loss
            reported |= {"classification": classification.loss, **classification.report()}
        return loss, (extra, reported)

    objective = training.Objective(loss_fn, recognition.optimizer(parts=("projection",)))
    open_batches = training_batches(config, split.train)

    def init(rng, previous):
        params, extra = recognition.init(rng)
        if config.classification_weight == 0:
            params = {"backbone": params["backbone"]}
        if other_size:
            params["projection"] = jax.nn.initializers.orthogonal()(jax.random.fold_in(rng, 1), tuple(sizes))
        banks = {name: previous.extra[name] for name in ("memory", "neighbors") if name in previous.extra}
        extra = teacher.installed({**extra, **banks}, previous)
        return recognition.create_state(rng, params, objective, extra=extra)

    if split.protocol == "classification" and config.classification_weight == 0:
        judged = with_packs(config, model, split, NearestMean(model, split.train, split.held_out))
    elif split.protocol == "verification" and config.pairs == "all":
        every = training.Verification(model, split.held_out, pairs="all", flip=config.augment.flip > 0)
        judged = with_packs(config, model, split, every)
    else:
        judged = evaluation(config, model, split)
    return training.Stage(
        "student",
        description=recognition.description,
        init=init,
        step=recognition.step(objective),
        batches=lambda state: open_batches(),
        steps=config.steps,
        evaluate=judged,
        best=f"{split.protocol}/accuracy",
        sharding=SHARDING,
    )


def build(config: Config) -> list[training.Stage]:
    """The teacher; its prototypes and whom they are near; the student."""
    check(config)
    split = load(config)
    if len(split.train.class_names) < 2:
        raise UserError("data: relations need at least two people to train on, got 1")
    if config.pairs == "all" and len(split.held_out) > MOST_FOR_ALL and split.protocol == "verification":
        raise UserError(
            f"pairs: 'all' needs at most {MOST_FOR_ALL} records to verify, got {len(split.held_out)}; use 'balanced'"
        )
    first, teacher = teacher_stage(config, config.teacher, split)
    stages = [first]
    if config.relations in ("mined", "random"):
        stages += [prototype_stage(config, split, teacher), mining_stage(config, split)]
    return [*stages, student_stage(config, split, teacher)]
