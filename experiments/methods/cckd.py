"""CCKD: correlation congruence for knowledge distillation (arXiv:1904.01802).

    python -m experiments.launch cckd --workdir runs/cckd                # 3 minutes of one CPU core
    python -m experiments.launch cckd --preset paper --data.root …       # built and typed, not trained here
    python -m experiments.reproduce cckd --study procedural              # verification 0.945, mimic alone 0.924

Differs from the paper in: the mimic is of directions, β is 10 for unit vectors (docs/methods/cckd.md#choices-of-ours).
"""

import dataclasses
import functools
from typing import Annotated, Literal

import flax.linen as nn
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
)
from experiments.recipes.teachers import TeacherSpec, teacher_stage
from jaxface import axes, losses, metrics, models, training
from jaxface import data as inputs
from jaxface.checks import AtLeast, NonNegative, Positive
from jaxface.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    """A student that learns from its teacher example by example, and from how the examples of a batch relate to each other.

    The instance term is a mimic of the teacher's embeddings, soft targets, labels, or any sum of them.
    """

    steps: int = 500
    """Training steps of the student."""
    teacher: TeacherSpec = TeacherSpec(steps=500)
    """The network to learn from."""
    mimic_weight: Annotated[float, NonNegative] = 1.0
    """Weight of the squared distance to the teacher's embedding; a linear layer maps one size to the other."""
    unit_mimic: bool = True
    """Mimic the direction of the teacher's embedding alone (design); its length makes the term some hundred times larger."""
    soft_target_weight: Annotated[float, NonNegative] = 0.0
    """Weight of the soft targets, 1 - alpha in the paper: softmaxes over each network's own class scores."""
    temperature: Annotated[float, Positive] = 4.0
    """Temperature of the soft targets."""
    label_weight: Annotated[float, NonNegative] = 0.0
    """Weight of the loss on labels, alpha in the paper."""
    head: HeadSpec = HeadSpec(loss="softmax")
    """Loss on labels; its scale turns cosines with prototypes into logits, those of a linear classifier stay as they are."""
    congruence_weight: Annotated[float, NonNegative] = 10.0
    """Weight of the correlation congruence, beta; 0 leaves the instance terms alone. Unit vectors want 10 to 300."""
    kernel: losses.Kernel = "rbf_taylor"
    """What relates two embeddings: a Gaussian, its Taylor expansion, their product, or their distance."""
    gamma: Annotated[float, Positive] = 0.4
    """Width of the Gaussian kernels, > 0."""
    order: Annotated[int, AtLeast(1)] = 2
    """Order P of the Taylor expansion, from 1; inclusive."""
    sampler: Literal["uniform", "class", "superclass"] = "class"
    """What a batch holds: any records, a few of each of some classes, or the same of classes that the teacher finds alike."""
    per_class: Annotated[int, AtLeast(1)] = 4
    """Records of a class in a batch; 2 or 4 in the paper, 8 and more did harm."""
    superclasses: Annotated[int, AtLeast(1)] = 8
    """Groups into which the classes fall for the sampler superclass."""

    @classmethod
    def paper(cls) -> "Config":
        """Faces: an iResNet-50 teaches a MobileFaceNet on MS1MV3. γ, P and k are the paper's, the rest is design."""
        sgd = training.sgd(decay_at=(0.5, 0.75, 0.9))
        return cls(
            data=inputs.RecordIO(path="ms1mv3"),
            image_size=112,
            backbone="mobilefacenet",
            embedding=512,
            teacher=TeacherSpec(
                backbone="iresnet50",
                embedding=512,
                head=HeadSpec(scale=64.0, margin=0.5),
                optimizer=sgd,
                steps=180_000,
            ),
            head=HeadSpec(scale=64.0, margin=0.5),
            bfloat16=True,
            batch_size=512,
            steps=180_000,
            optimizer=sgd,
            workers=8,
        )

    @classmethod
    def cifar100(cls) -> "Config":
        """CIFAR-100, ResNet-110 to ResNet-20; a point over the same run without congruence is the acceptance test."""
        epoch = 50_000 // 64
        sgd = training.sgd(0.05, decay_at=(150 / 240, 180 / 240, 210 / 240))
        return cls(
            data=inputs.Tfds(name="cifar100", test="test"),
            image_size=32,
            augment=inputs.Augment(flip=0.5, shift=4),
            backbone="cifar_resnet20",
            embedding=None,
            teacher=TeacherSpec(
                backbone="cifar_resnet110",
                embedding=None,
                head=HeadSpec(loss="linear"),
                optimizer=sgd,
                steps=240 * epoch,
            ),
            mimic_weight=0.0,
            soft_target_weight=1.0,
            congruence_weight=100.0,
            head=HeadSpec(loss="linear"),
            batch_size=64,
            steps=240 * epoch,
            optimizer=sgd,
            workers=8,
        )

    @classmethod
    def digits(cls) -> "Config":
        """Classification: scikit-learn's digits, and a student with eight hidden units that learns from soft targets."""
        adam = training.adam(2e-3)
        return cls(
            data=inputs.Digits(),
            augment=inputs.Augment(flip=0.0),
            image_size=8,
            backbone="mlp_8",
            embedding=32,
            teacher=TeacherSpec(
                backbone="mlp_256x256",
                embedding=32,
                head=HeadSpec(loss="softmax"),
                optimizer=adam,
                steps=1500,
            ),
            mimic_weight=0.0,
            unit_mimic=False,
            soft_target_weight=1.0,
            congruence_weight=100.0,
            sampler="uniform",
            optimizer=adam,
            steps=1500,
        )

    @classmethod
    def procedural(cls) -> "Config":
        """Recognition of synthetic identities as vectors: the student mimics a teacher of twice its embedding; takes seconds."""
        adam = training.adam(2e-3)
        return cls(
            data=inputs.Procedural(),
            augment=inputs.Augment(flip=0.0),
            backbone="mlp_16",
            embedding=32,
            teacher=TeacherSpec(backbone="mlp_512x256", embedding=64, optimizer=adam, steps=400),
            unit_mimic=False,
            congruence_weight=300.0,
            sampler="uniform",
            optimizer=adam,
            steps=1000,
        )


def congruence_loss(config: Config, student: jax.Array, teacher: jax.Array) -> jax.Array:
    """The configured correlation congruence of the whole batch, as one number."""
    return losses.correlation_congruence_loss(
        student,
        teacher,
        kernel=config.kernel,
        gamma=config.gamma,
        order=config.order,
        axis_name=axes.DATA if axes.bound(axes.DATA) else None,
    )


def check(config: Config) -> None:
    """Raises UserError for fields that do not suit each other; opens nothing."""
    config.head.check()
    embeddings = jax.ShapeDtypeStruct((2, 2), jnp.float32)
    jax.eval_shape(functools.partial(congruence_loss, config), embeddings, embeddings)
    instance = config.mimic_weight + config.soft_target_weight + config.label_weight
    if instance + config.congruence_weight == 0:
        raise UserError("congruence_weight: needs a positive weight where all the others are 0, got 0")
    check_together(config, "to relate them to each other")


class CongruenceError:
    """How far a student's relations between unseen records are from its teacher's, by `metrics.congruence_error`.

    Args:
      model: the student.
      teacher: its teacher.
      source: records.
      most: how many to look at, evenly spread.
    """

    def __init__(
        self, model: nn.Module, teacher: training.Teacher, source: inputs.Source, *, most: int = 4000
    ):
        self.model, self.teacher = model, teacher
        self.source = inputs.Subset(source, np.arange(0, len(source), -(-len(source) // most)))

    def __call__(self, state: training.TrainState) -> dict[str, float]:
        backbone = state.averaged_params["backbone"]
        student = training.embed_source(self.model, backbone, state.extra, self.source, flip=False)
        teacher = self.teacher.embed(state.extra, self.source)
        return {"congruence/error": metrics.congruence_error(student, teacher)}


def superclasses(
    config: Config, source: inputs.Source, teacher: training.Teacher, extra: dict, *, most: int = 16
) -> np.ndarray:
    """Groups [C] of the classes by the teacher's mean embedding of up to `most` records of each."""
    by_class = np.argsort(source.labels, kind="stable")
    labels = np.asarray(source.labels)[by_class]
    rank = np.arange(len(labels)) - np.searchsorted(labels, labels)
    some = inputs.Subset(source, by_class[rank < most])
    means = inputs.class_means(teacher.embed(extra, some), some.labels, len(source.class_names))
    return inputs.superclasses(means, config.superclasses, seed=config.seed)


def student_batches(config: Config, source: inputs.Source, teacher: training.Teacher):
    """The `batches` of the student's stage. The superclasses are the teacher's, so they are a function of the state.

    Raises:
      UserError: batches that the sampler cannot draw.
    """
    each = config.per_class
    if config.sampler == "uniform":
        open_batches = training_batches(config, source)
        return lambda state: open_batches()
    if config.sampler == "class":
        open_batches = training_batches(
            config, source, order=inputs.ClassUniform(source.labels, per_class=each)
        )
        return lambda state: open_batches()
    classes = len(source.class_names)
    if not 1 <= config.superclasses <= classes:
        raise UserError(
            f"superclasses: needs a number from 1 to the {classes} classes, got {config.superclasses}"
        )

    def order(groups):
        return inputs.SuperclassUniform(source.labels, groups, per_class=each)

    # Refuses what no superclasses can make possible.
    open_batches = training_batches(config, source, order=order(np.zeros(classes, np.int32)))
    return lambda state: open_batches(order=order(superclasses(config, source, teacher, state.extra)))


def build(config: Config) -> list[training.Stage]:
    """Two stages: the teacher, and the student that learns from it."""
    check(config)
    split = load(config)
    by_class = config.soft_target_weight + config.label_weight > 0
    if split.protocol == "classification" and not by_class:
        raise UserError(
            "soft_target_weight: needs to be positive (or label_weight) for data whose classes are to be told apart, got 0"
        )
    first, teacher = teacher_stage(config, config.teacher, split, prototypes=config.soft_target_weight > 0)
    batches = student_batches(config, split.train, teacher)
    model = network(config)
    classes = len(split.train.class_names)
    recognition = Recognition(config, model, classes, split.train.image_shape, config.head.build())
    sizes = [models.feature_size(network, split.train.image_shape) for network in (model, teacher.model)]
    projection = nn.Dense(sizes[1]) if config.mimic_weight > 0 and sizes[0] != sizes[1] else None

    def loss_fn(params, extra, batch, rng):
        target = teacher.embeddings(extra, batch["image"])
        embeddings, extra = recognition.recognizer.train_embeddings(params, extra, batch["image"], rng)
        congruence = congruence_loss(config, embeddings, target)
        total, report = config.congruence_weight * congruence, {"congruence_loss": congruence}
        if config.mimic_weight > 0:
            mapped = embeddings
            if projection is not None:
                mapped = projection.apply({"params": params["projection"]}, embeddings)
            mimic = losses.mimic_loss(mapped, target, unit=config.unit_mimic).mean()
            total, report["mimic_loss"] = total + config.mimic_weight * mimic, mimic
        if by_class:
            labels = recognition.classify(params, embeddings, batch["label"], rng)
            report |= labels.report()
        if config.label_weight > 0:
            total, report["label_loss"] = total + config.label_weight * labels.loss, labels.loss
        if config.soft_target_weight > 0:  # over all classes: [B, C] of student and teacher
            scores = training.class_scores(params, embeddings, classes, scale=config.head.scale)
            answers = teacher.class_scores(extra, target, classes, scale=config.head.scale)
            soft = losses.soft_target_loss(scores, answers, temperature=config.temperature).mean()
            total, report["soft_target_loss"] = total + config.soft_target_weight * soft, soft
        return total, (extra, report)

    objective = training.Objective(loss_fn, recognition.optimizer(parts=("projection",)))

    def init(rng, previous):
        params, extra = recognition.init(rng)
        if not by_class:
            params = {"backbone": params["backbone"]}
        if projection is not None:
            params["projection"] = projection.init(rng, jnp.zeros((1, sizes[0])))["params"]
        return recognition.create_state(rng, params, objective, extra=teacher.installed(extra, previous))

    parts = [evaluation(config, model, split), CongruenceError(model, teacher, split.held_out)]
    if split.protocol == "classification":
        parts.append(training.Verification(model, split.held_out, pairs="all", flip=False))
    evaluate = training.Evaluations(*parts)
    student = training.Stage(
        name="student",
        description=recognition.description,
        init=init,
        step=recognition.step(objective),
        batches=batches,
        steps=config.steps,
        evaluate=evaluate,
        best=f"{split.protocol}/accuracy",
        sharding={"prototypes": PartitionSpec(axes.MODEL)},
    )
    return [first, student]
