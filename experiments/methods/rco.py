"""RCO: route-constrained optimization, a student that follows its teacher's training route (arXiv:1904.09149).

    python -m experiments.launch rco --workdir runs/rco
    python -m experiments.launch rco --preset paper --workdir runs/rco    # CIFAR-100; built and compiled, not trained here
    python -m experiments.reproduce rco --study classes                   # accuracy 0.811 ± 0.023, final teacher 0.814 ± 0.028

A run trains the teacher and then four students, of 300 steps each. Differs from the paper in: the threshold of the greedy search,
1.3, which is not published (docs/methods/rco.md#choices-of-ours).
"""

import dataclasses
import functools
import itertools
from collections.abc import Generator, Sequence
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from experiments.recipes import recognition as recipe
from experiments.recipes.distillation import Answers, Form, Pair
from experiments.recipes.heads import HeadSpec
from experiments.recipes.recognition import network
from experiments.recipes.teachers import TeacherSpec, teacher_stage
from jaxface import axes, losses, training
from jaxface import data as inputs
from jaxface.checks import AtLeast, NonNegative, Positive, ProperFraction
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError

__all__ = ["Config", "build", "network"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(recipe.Recipe):
    """A teacher that is recorded as it trains, and a student that learns from one record after the other."""

    steps: Annotated[int, AtLeast(1)] = 300
    """Steps of a student's run; with `restart` every anchor has a run of its own."""
    teacher: TeacherSpec = TeacherSpec()
    """Whose route; of a finished run (`teacher.run`), all checkpoints that it kept (`--cadence.keep`)."""
    recorded: int = 8
    """Points of the teacher's training that are recorded, at equal intervals, its end included."""
    recorded_at: tuple[int, ...] = ()
    """Steps of the teacher to record instead, increasing, the last of them its last."""
    selection: Literal["equal", "greedy", "given", "final"] = "equal"
    """Anchors among the records: at equal intervals, by greedy search, `given`, or each time the final teacher (a control)."""
    anchors: Annotated[int, AtLeast(1)] = 4
    """Number of anchors at equal intervals, or of runs on the final teacher; 1 is plain distillation."""
    given: tuple[int, ...] = ()
    """Steps of the records to learn from, increasing, where they are given."""
    threshold: Annotated[float, Positive] = 1.3
    """Greedy search: largest hardness ratio that the student is thought able to follow, > 0; depends on the student."""
    restart: bool = True
    """A fresh optimizer and schedule for every anchor; else one run in which the anchor is exchanged at equal intervals."""
    form: Form = "mimic"
    """What is distilled: embeddings, tempered class scores, or the output of an inner layer."""
    weight: Annotated[float, NonNegative] = 1.0
    """Weight of the distillation loss, ≥ 0; in the hint form of the mean square over the elements."""
    label_weight: Annotated[float, NonNegative] = 0.0
    """Weight of the labels' loss, ≥ 0; 0 is mimic alone, as for the paper's faces; 1 for the other forms."""
    temperature: Annotated[float, Positive] = 4.0
    """Temperature T of the class scores."""
    unit: bool = True
    """Mimic: of normalized embeddings."""
    hint_layers: tuple[str, str] = ("", "")
    """Hint: layer of the student and layer of the teacher, by their names in the network, such as stage2_block1."""
    head: HeadSpec = HeadSpec()
    """Loss on labels; class scores are its scale times the cosines with prototypes, or those of a linear layer."""
    validation: Annotated[float, ProperFraction] = 0.1
    """Fraction of the training images set aside, from teacher and student, to measure hardness on; 0 for none."""

    @classmethod
    def paper(cls) -> "Config":
        """CIFAR-100, ResNet-50 to MobileNetV2 x 0.5; +2.14 points over plain distillation of one run is the acceptance test."""
        epoch = 50_000 // 64
        return cls(
            data=inputs.Tfds(name="cifar100", test="test"),
            image_size=32,
            augment=inputs.Augment(flip=0.5, shift=4),
            backbone="mobilenet_v2_half",
            embedding=None,
            form="logits",
            label_weight=1.0,
            head=HeadSpec(loss="linear"),
            teacher=TeacherSpec(
                backbone="cifar_resnet50",
                embedding=None,
                head=HeadSpec(loss="linear"),
                optimizer=training.Optimizer(learning_rate=0.05, decay_at=(150 / 240, 180 / 240, 210 / 240)),
                steps=240 * epoch,
            ),
            recorded=4,
            validation=0.0,
            optimizer=training.Optimizer(learning_rate=0.01, decay_at=(150 / 240, 180 / 240, 210 / 240)),
            batch_size=64,
            steps=240 * epoch,
            workers=8,
        )

    @classmethod
    def faces(cls) -> "Config":
        """Mimic on a large face set with the paper's student of 0.8 million parameters; the rest of the recipe is ours."""
        return cls(
            data=inputs.RecordIO(path="faces_emore"),
            image_size=112,
            backbone="mobilenet_v2_half",
            embedding=512,
            bfloat16=True,
            unit=False,
            teacher=TeacherSpec(
                backbone="iresnet50",
                embedding=512,
                head=HeadSpec(scale=64.0, margin=0.5),
                optimizer=training.Optimizer(decay_at=(0.5, 0.75, 0.9)),
                steps=180_000,
            ),
            recorded=4,
            validation=0.002,
            optimizer=training.Optimizer(learning_rate=0.02, decay_at=(0.5, 0.75, 0.9)),
            batch_size=512,
            steps=180_000,
            workers=8,
        )


def check(config: Config) -> None:
    """Raises UserError for what can be refused before any data is opened."""
    config.head.check()
    if config.form == "mimic" and config.embedding is None:
        raise UserError(
            "embedding: needs a size, which the teacher's must have, where embeddings are mimicked; got None"
        )
    if config.weight == config.label_weight == 0:
        raise UserError("weight: needs a positive number where label_weight is 0, got 0")
    if config.form == "hint" and config.label_weight == 0:
        raise UserError(
            "label_weight: needs a positive number, layers behind the hint learn from labels alone; got 0"
        )
    if config.form == "hint" and not all(config.hint_layers):
        raise UserError(
            f"hint_layers: needs a layer of the student and one of the teacher, got {config.hint_layers}"
        )
    if config.selection == "given":
        training.check_steps(config.given, name="given")
    if config.selection == "greedy" and not config.restart:
        raise UserError(
            "restart: greedy search needs a run for every anchor, it does not know how many there will be"
        )
    if config.selection == "greedy" and config.validation == 0:
        raise UserError("validation: greedy search needs images to measure hardness on, got 0")


def set_aside(config: Config, split: inputs.Split) -> tuple[inputs.Split, inputs.Subset | None]:
    """The split without the images on which hardness is measured, and those."""
    count = round(config.validation * len(split.train))
    if config.validation > 0 and not 1 <= count < len(split.train):
        raise UserError(
            f"validation: needs a fraction that sets some of the {len(split.train)} images aside, got {config.validation}"
        )
    if not count:
        return split, None
    order = np.random.default_rng([config.data_seed, 1]).permutation(len(split.train))
    train, aside = (inputs.Subset(split.train, np.sort(rows)) for rows in (order[count:], order[:count]))
    return split._replace(train=train), aside


def teacher_route(config: Config, stage: training.Stage) -> training.Route:
    """The route of the teacher that `stage` trains, or of the run that it comes from."""
    if config.teacher.run is not None:
        return training.Route.of_run(config.teacher.run)
    if config.recorded_at:
        training.check_steps(config.recorded_at, last=stage.steps, name="recorded_at")
        return training.Route.of_stage(stage, config.recorded_at)
    if not 1 <= config.recorded <= stage.steps:
        raise UserError(
            f"recorded: needs a number from 1 to the teacher's {stage.steps} steps, got {config.recorded}"
        )
    return training.Route.of_stage(stage, training.equal_epoch_anchors(stage.steps, config.recorded))


def anchor_order(config: Config, steps: Sequence[int]) -> list[int]:
    """Which of the anchors at `steps` the student learns from, in order; of a greedy search the first alone."""
    if config.selection == "greedy":
        return [0]
    if config.selection == "final":
        return [len(steps) - 1] * config.anchors
    if config.selection == "equal":
        return [i - 1 for i in training.equal_epoch_anchors(len(steps), config.anchors)]
    if unknown := set(config.given) - set(steps):
        known = ", ".join(map(str, steps))
        raise UserError(
            f"given: the teacher is recorded at steps {known}, got {', '.join(map(str, sorted(unknown)))}"
        )
    return [steps.index(step) for step in config.given]


class Distillation:
    """The loss L_KD(W, C) of a student W under an anchor C, which its `extra` carries.

    Args:
      config: the configuration.
      recognizer: the student.
      teacher: the anchors' network.
      anchor: shapes of an anchor's state.
    """

    def __init__(self, config: Config, recognition: recipe.Recognition, teacher: training.Teacher, anchor):
        self.config, self.recognition = config, recognition
        self.pair = Pair(
            recognition,
            teacher,
            config.form,
            scale=config.head.scale,
            hint_layers=config.hint_layers,
            teacher_state=anchor,
        )
        prototypes = config.form == "logits" or config.label_weight > 0
        self.init = jax.jit(functools.partial(self.pair.init, prototypes=prototypes))
        self.distance = jax.jit(self._distance)

    def loss(self, answers: Answers) -> jax.Array:
        """Distillation losses [B]."""
        student, anchor = answers.student, answers.teacher
        if self.config.form == "logits":
            return losses.soft_target_loss(student, anchor, temperature=self.config.temperature)
        if self.config.form == "mimic":
            return losses.mimic_loss(student, anchor, unit=self.config.unit)
        return losses.hint_loss(student, anchor) / anchor[0].size

    def objective(self, params, extra, batch, rng):
        """The training loss, w L_KD + w_labels L_labels."""
        config = self.config
        answers = self.pair.answers(params, extra, batch["image"], rng=rng)
        distilled = self.loss(answers).mean()
        value, reported = config.weight * distilled, {"distillation": distilled}
        if "prototypes" in params:
            labels = self.recognition.classify(params, answers.embeddings, batch["label"], rng)
            reported |= labels.report()
            if config.label_weight:
                value = value + config.label_weight * labels.loss
        return value, (answers.extra, reported)

    def _distance(self, variables, batch) -> jax.Array:
        """Distillation loss and hardness [B, 2] of images: the means over the batch, for each of them."""
        answers, valid = self.pair.answers(*variables, normalize_pixels(batch["image"])), batch["valid"]
        mean = jnp.sum(self.loss(answers) * valid) / jnp.sum(valid)
        hard = mean  # without class scores the distance itself says how hard an image is (design)
        if self.config.form == "logits":
            hard = losses.hardness(answers.student, answers.teacher, where=valid)
        return jnp.broadcast_to(jnp.stack([mean, hard]), (len(valid), 2))


def build(config: Config) -> Generator[training.Stage, training.Outcome, None]:
    """The teacher in as many stages as it is recorded at, then the student in one stage per anchor."""
    check(config)
    split, aside = set_aside(config, recipe.load(config))
    if config.form == "mimic" and config.label_weight == 0 and split.protocol == "classification":
        raise UserError(
            "label_weight: needs a positive number where the classes of images are evaluated, got 0"
        )

    # Anchor points: the teacher is stored along its training.
    last_stage, teacher = teacher_stage(
        config,
        config.teacher,
        split,
        embedding=config.embedding if config.form == "mimic" else None,
        prototypes=config.form == "logits",
    )
    route = teacher_route(config, last_stage)
    order = anchor_order(config, route.steps)

    # L_KD: one step for all anchors, which are arguments of it; exchanging them compiles nothing.
    model, image_shape = network(config), split.train.image_shape
    recognition = recipe.Recognition(
        config, model, len(split.train.class_names), image_shape, config.head.build()
    )
    distillation = Distillation(config, recognition, teacher, route.shapes)
    objective = training.Objective(distillation.objective, recognition.optimizer(parts=("regressor",)))
    step = recognition.step(objective)
    open_batches = recipe.training_batches(config, split.train)
    judged = recipe.evaluation(config, model, split, identify=True)
    lengths = itertools.repeat(config.steps)
    if not config.restart:
        lengths = np.diff([0, *training.equal_epoch_anchors(config.steps, len(order))]).tolist()

    def first_step(rng, anchor, batch):
        params, extra = distillation.init(rng)
        state = recognition.create_state(rng, params, objective, extra=teacher.installed(extra, anchor))
        return step(state, batch)

    # A shape that the networks cannot take is refused here, not after the teacher has trained.
    image = jax.ShapeDtypeStruct((config.batch_size, *image_shape), jnp.float32)
    batch = {"image": image, "label": jax.ShapeDtypeStruct(image.shape[:1], jnp.int32)}
    jax.eval_shape(first_step, jax.eval_shape(lambda: jax.random.key(0)), route.shapes, batch)

    def student_stage(
        number: int, ahead: Sequence[training.Anchor], steps: int, steps_before: int, *, last: bool
    ) -> training.Stage:
        """The stage that learns from `ahead[0]`; `steps_before` were taken on the anchors before."""

        def init(rng, previous):
            anchor = ahead[0].load()
            training.check_same_network(anchor, route.shapes)
            if number == 1:
                params, extra = distillation.init(rng)
            else:
                params, extra = previous.params, training.statistics(previous.extra)
            extra = teacher.installed(extra, anchor)
            if number > 1 and not config.restart:
                return previous.replace(extra=extra)
            return recognition.create_state(rng, params, objective, extra=extra)  # a fresh optimizer

        evaluations = [judged]
        if aside is not None:
            evaluations.append(training.RouteHardness(distillation.distance, teacher, aside, ahead))
        evaluate = training.Evaluations(*evaluations)
        return training.Stage(
            name="student" if last else f"student{number}_on_{ahead[0].step}",
            description=recognition.description,
            init=init,
            step=step,
            batches=lambda state: training.batches_from(open_batches(), steps_before),
            steps=steps,
            evaluate=evaluate,
            figures=None if last else training.no_figures,
            best=f"{split.protocol}/accuracy",
            sharding={"prototypes": PartitionSpec(axes.MODEL)},
            compile_init=False,  # it may read a file
            key="student" if number == 1 else f"student{number}",  # whatever it learns from
        )

    def stages():
        anchors = list(route.anchors)
        for stage, teacher_step in zip(route.stages, route.steps, strict=False):
            outcome = yield stage
            anchors.append(training.Anchor.recorded(teacher_step, outcome.state))

        # Algorithm 1: student W_i starts from W_{i-1} and learns from anchor C_i, until the route ends.
        to_visit, steps_before = list(order), 0
        for number, steps in enumerate(lengths, start=1):
            current = to_visit.pop(0)
            ahead = anchors[current:]
            searching = config.selection == "greedy" and len(ahead) > 1
            last = not (searching or to_visit)
            outcome = yield student_stage(number, ahead, steps, steps_before, last=last)
            if last:
                return
            if searching:
                # Greedy search: on to the hardest anchor that this student can follow, r_ij ≤ δ.
                ratios = [outcome.metrics[f"ratio/{anchor.step}"] for anchor in ahead]
                to_visit = [current + training.greedy_next_anchor(ratios, 0, config.threshold)]
            steps_before += steps

    return stages()
