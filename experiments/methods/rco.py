"""RCO: route-constrained optimization, a student that follows its teacher's training route (arXiv:1904.09149)."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from experiments.recipes import recognition as recipe
from experiments.recipes.recognition import network
from jaxface import axes, losses, models, training
from jaxface import data as inputs
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.layers.prototypes import cosines
from jaxface.losses.checks import check_range

__all__ = ["Config", "build", "network"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(recipe.Recipe):
    """A teacher that is recorded as it trains, and a student that learns from one record after the other."""

    steps: int = 300
    """Steps of a student's run; with `restart` every anchor has a run of its own."""
    teacher: recipe.Teacher = recipe.Teacher()
    """Whose route; of a finished run (`teacher.run`), all checkpoints that it kept (`--cadence.keep`)."""
    recorded: int = 8
    """Points of the teacher's training that are recorded, at equal intervals, its end included."""
    recorded_at: tuple[int, ...] = ()
    """Steps of the teacher to record instead, increasing, the last of them its last."""
    selection: Literal["equal", "greedy", "given", "final"] = "equal"
    """Anchors among the records: at equal intervals, by greedy search, `given`, or each time the final teacher (a control)."""
    anchors: int = 4
    """Number of anchors at equal intervals, or of runs on the final teacher; 1 is plain distillation."""
    given: tuple[int, ...] = ()
    """Steps of the records to learn from, increasing, where they are given."""
    threshold: float = 1.3
    """Greedy search: largest hardness ratio that the student is thought able to follow, > 0; depends on the student."""
    restart: bool = True
    """A fresh optimizer and schedule for every anchor; else one run in which the anchor is exchanged at equal intervals."""
    form: Literal["mimic", "logits", "hint"] = "mimic"
    """What is distilled: embeddings, tempered class scores, or the output of an inner layer."""
    weight: float = 1.0
    """Weight of the distillation loss, ≥ 0; in the hint form of the mean square over the elements."""
    label_weight: float = 0.0
    """Weight of the labels' loss, ≥ 0; 0 is mimic alone, as for the paper's faces; 1 for the other forms."""
    temperature: float = 4.0
    """Temperature T of the class scores."""
    unit: bool = True
    """Mimic: of normalized embeddings."""
    hint_layers: tuple[str, str] = ("", "")
    """Hint: layer of the student and layer of the teacher, by their names in the network, such as stage2_block1."""
    head: recipe.Head = recipe.Head()
    """Loss on labels; class scores are its scale times the cosines with prototypes, for student and teacher."""
    validation: float = 0.1
    """Fraction of the training images set aside, from teacher and student, to measure hardness on; 0 for none."""

    @classmethod
    def paper(cls) -> "Config":
        """CIFAR-100, ResNet-50 to MobileNetV2 x 0.5; +2.14 points over plain distillation of one run is the acceptance test.

        Classes are read from cosines with prototypes, not from a linear layer.
        """
        epoch = 50_000 // 64
        return cls(
            data=inputs.Tfds(name="cifar100", test="test"),
            image_size=32,
            augment=inputs.Augment(flip=0.5, crop=1.0, crop_scale=(1.0, 1.0), crop_shift=4 / 32),
            backbone="mobilenet_v2_half",
            embedding=512,
            form="logits",
            label_weight=1.0,
            head=recipe.Head(loss="softmax"),
            teacher=recipe.Teacher(
                backbone="cifar_resnet50",
                embedding=512,
                head=recipe.Head(loss="softmax"),
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
            teacher=recipe.Teacher(
                backbone="iresnet50",
                embedding=512,
                head=recipe.Head(scale=64.0, margin=0.5),
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
    check_range("temperature", config.temperature, 0.0, np.inf, open_low=True)
    check_range("threshold", config.threshold, 0.0, np.inf, open_low=True)
    check_range("weight", config.weight, 0.0, np.inf)
    check_range("label_weight", config.label_weight, 0.0, np.inf)
    config.head.check()
    if not 0 <= config.validation < 1:
        raise UserError(f"validation: needs a fraction in [0, 1), got {config.validation}")
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
    if config.anchors < 1:
        raise UserError(f"anchors: needs at least 1, got {config.anchors}")
    if config.steps < 1:
        raise UserError(f"steps: needs at least 1, got {config.steps}")


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
    kept, aside = (inputs.Subset(split.train, np.sort(part)) for part in (order[count:], order[:count]))
    return split._replace(train=kept), aside


def record(config: Config, stage: training.Stage) -> tuple[list[training.Stage], tuple[int, ...]]:
    """The teacher's stage cut where it is recorded, and the steps there."""
    if config.recorded_at:
        training.check_steps(config.recorded_at, last=stage.steps, name="recorded_at")
        points = config.recorded_at
    elif not 1 <= config.recorded <= stage.steps:
        raise UserError(
            f"recorded: needs a number from 1 to the teacher's {stage.steps} steps, got {config.recorded}"
        )
    else:
        points = training.equal_epoch_anchors(stage.steps, config.recorded)
    names = [*(f"teacher_{step}" for step in points[:-1]), "teacher"]
    return training.cut_stage(stage, points, names), points


def chosen(config: Config, points: Sequence[int]) -> list[int] | None:
    """Which records the student learns from, in order; None where a search decides as it goes."""
    if config.selection == "greedy":
        return None
    if config.selection == "final":
        return [len(points) - 1] * config.anchors
    if config.selection == "equal":
        return [i - 1 for i in training.equal_epoch_anchors(len(points), config.anchors)]
    if unknown := set(config.given) - set(points):
        known = ", ".join(map(str, points))
        raise UserError(
            f"given: the teacher is recorded at steps {known}, got {', '.join(map(str, sorted(unknown)))}"
        )
    return [points.index(step) for step in config.given]


class Distillation:
    """What student and anchor say about images, and how far apart that is, in the configured form.

    Args:
      config: the configuration.
      model: the student's network.
      teacher: the anchors' network.
      classes: number of classes.
      image_shape: (H, W, C).
      anchor: shapes of an anchor's state.
    """

    def __init__(self, config: Config, model, teacher: training.Teacher, classes: int, image_shape, anchor):
        self.config, self.model, self.teacher, self.classes = config, model, teacher, classes
        self.recognizer = training.Recognizer(model, classes, image_shape)
        self._hint = self._hint_channels(image_shape, anchor) if config.form == "hint" else None
        self.init, self.judge = jax.jit(self._init), jax.jit(self._judge)

    def _hint_channels(self, image_shape, anchor) -> tuple[int, int]:
        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)

        def layers(anchor, images):
            params, extra = self.recognizer.init(jax.random.key(0))
            variables = training.network_variables(params["backbone"], extra)
            mine, theirs = self.config.hint_layers
            feature = models.apply_with_layer(self.model, variables, images, layer=mine)[1]
            return feature, self.teacher.layer(self.teacher.installed({}, anchor), images, theirs)

        shapes = [leaf.shape for leaf in jax.eval_shape(layers, anchor, images)]
        if shapes[0][:-1] != shapes[1][:-1]:
            planes = [" x ".join(map(str, shape[1:-1])) or "none" for shape in shapes]
            raise UserError(f"hint_layers: need planes of one size, got {planes[0]} and {planes[1]}")
        return shapes[0][-1], shapes[1][-1]

    def _init(self, rng: jax.Array) -> tuple[dict, dict]:
        """A fresh student: (params, extra)."""
        params, extra = self.recognizer.init(rng)
        if self.config.form != "logits" and self.config.label_weight == 0:
            del params["prototypes"]  # nothing would train them
        if self._hint:
            kernel = jax.nn.initializers.lecun_normal()(jax.random.fold_in(rng, 1), self._hint)
            params["regressor"] = {"kernel": kernel, "bias": jnp.zeros(self._hint[1])}
        return params, extra

    def outputs(self, params, extra, images: jax.Array, *, rng: jax.Array | None = None):
        """(what the student says, what the anchor says, the student's embeddings, the new `extra`); `rng` in training mode."""
        train = rng is not None
        variables = training.network_variables(params["backbone"], extra)
        if self.config.form == "hint":
            mine, theirs = self.config.hint_layers
            embeddings, feature, updated = models.apply_with_layer(
                self.model,
                variables,
                images,
                layer=mine,
                train=train,
                rngs={"dropout": rng} if train else None,
            )
            regressor = params["regressor"]
            regressed = feature.astype(jnp.float32) @ regressor["kernel"] + regressor["bias"]
            return regressed, self.teacher.layer(extra, images, theirs), embeddings, {**extra, **updated}
        if train:
            embeddings, updated = self.recognizer.train_embeddings(params, extra, images, rng)
        else:
            embeddings, updated = self.model.apply(variables, images, train=False), extra
        theirs = self.teacher.embeddings(extra, images)
        if self.config.form == "mimic":
            return embeddings, theirs, embeddings, updated
        scale = self.config.head.scale
        student = scale * cosines(embeddings, params["prototypes"][: self.classes])
        anchor = scale * cosines(theirs, self.teacher.prototypes(extra)[: self.classes])
        return student, anchor, embeddings, updated

    def loss(self, student: jax.Array, anchor: jax.Array) -> jax.Array:
        """Distillation losses [B]."""
        if self.config.form == "logits":
            return losses.soft_target_loss(student, anchor, temperature=self.config.temperature)
        if self.config.form == "mimic":
            return losses.mimic_loss(student, anchor, unit=self.config.unit)
        return losses.hint_loss(student, anchor) / anchor[0].size

    def objective(self, params, extra, batch, rng):
        """The training loss: labels and anchor together."""
        config = self.config
        student, anchor, embeddings, extra = self.outputs(params, extra, batch["image"], rng=rng)
        distilled = self.loss(student, anchor).mean()
        value, reported = config.weight * distilled, {"distillation": distilled}
        if "prototypes" in params:
            scores = cosines(embeddings, params["prototypes"][: self.classes])
            reported["accuracy"] = (scores.argmax(axis=1) == batch["label"]).mean()
            if config.label_weight:
                value = value + config.label_weight * config.head(scores, batch["label"]).mean()
        return value, (extra, reported)

    def _judge(self, variables, batch) -> jax.Array:
        """Distillation loss and hardness [B, 2] of images, the means over the batch for each of them."""
        student, anchor, _, _ = self.outputs(*variables, normalize_pixels(batch["image"]))
        valid = batch["valid"]
        mean = jnp.sum(self.loss(student, anchor) * valid) / jnp.sum(valid)
        # Embeddings and features have no class scores: their distance itself says how hard they are (design).
        hard = losses.hardness(student, anchor, where=valid) if self.config.form == "logits" else mean
        return jnp.broadcast_to(jnp.stack([mean, hard]), (len(valid), 2))


class Hardness:
    """Evaluation of a student on images that nobody learned from: how far it is from its anchor and from those ahead.

    Reports `congruence`, the distillation loss to its own anchor; `hardness/<step>` of its own anchor and of every later
    one; and `ratio/<step>`, a row of the matrix r_ij.

    Args:
      distillation: of the student.
      source: the images.
      anchors: its own, and those ahead.
    """

    def __init__(self, distillation: Distillation, source, anchors: Sequence[training.Anchor]):
        self.distillation, self.source, self.anchors = distillation, source, anchors

    def __call__(self, state: training.TrainState) -> dict[str, float]:
        judged = [self._judge(state, anchor) for anchor in self.anchors]
        hard = np.array([value for _, value in judged])
        ratios = losses.hardness_ratios(hard, 0)
        report = {"congruence": judged[0][0]}
        for anchor, value, ratio in zip(self.anchors, hard, np.asarray(ratios), strict=True):
            report |= {f"hardness/{anchor.step}": float(value), f"ratio/{anchor.step}": float(ratio)}
        return report

    def _judge(self, state, anchor: training.Anchor) -> np.ndarray:
        extra = self.distillation.teacher.installed(training.statistics(state.extra), anchor.load())
        variables = state.averaged_params, extra
        return training.map_source(self.distillation.judge, self.source, variables).mean(
            axis=0, dtype=np.float64
        )


def build(config: Config):
    """The teacher in as many stages as it is recorded at, then the student in one stage per anchor."""
    check(config)
    split, aside = set_aside(config, recipe.load(config))
    if config.form == "mimic" and config.label_weight == 0 and split.protocol == "classification":
        raise UserError(
            "label_weight: needs a positive number where the classes of images are evaluated, got 0"
        )
    stage, teacher = recipe.teacher_stage(
        config,
        config.teacher,
        split,
        embedding=config.embedding if config.form == "mimic" else None,
        prototypes=config.form == "logits",
    )
    if config.teacher.run is None:
        parts, points = record(config, stage)
        known = []
        anchor_shapes = jax.eval_shape(stage.init, jax.eval_shape(lambda: jax.random.key(0)), None)
    else:
        parts, known = [], training.run_anchors(config.teacher.run)
        points = [anchor.step for anchor in known]
        anchor_shapes = jax.eval_shape(known[-1].load)
    order = chosen(config, points)

    model = network(config)
    classes, image_shape = len(split.train.class_names), split.train.image_shape
    distillation = Distillation(config, model, teacher, classes, image_shape, anchor_shapes)
    objective = training.Objective(distillation.objective, config.optimizer.build(config.steps))
    open_batches = recipe.training_batches(config, split.train)
    lengths = [config.steps] * len(order or ())
    if order and not config.restart:
        lengths = np.diff([0, *training.equal_epoch_anchors(config.steps, len(order))]).tolist()

    def start(anchor: training.Anchor, first: bool):
        """`init` of a stage; it may read files, and an anchor compiled into it would be compiled anew for each."""

        def init(rng, previous):
            taught = functools.partial(teacher.installed, state=installable(anchor))
            if first:
                params, extra = distillation.init(rng)
                return training.create_state(rng, params, objective, extra=taught(extra))
            extra = taught(training.statistics(previous.extra))
            if not config.restart:
                return previous.replace(extra=extra)
            return training.create_state(rng, previous.params, objective, extra=extra)

        return init

    def installable(anchor: training.Anchor) -> training.TrainState:
        state = anchor.load()
        training.check_same_network(state, anchor_shapes)
        return state

    # Every stage has this one step, whose anchor is an argument: it is compiled once.
    step = training.gradient_step(objective)

    def first_step(rng, anchor, batch):
        params, extra = distillation.init(rng)
        return step(
            training.create_state(rng, params, objective, extra=teacher.installed(extra, anchor)), batch
        )

    # A shape that the networks cannot take is refused here, not after the teacher has trained.
    jax.eval_shape(
        first_step,
        jax.eval_shape(lambda: jax.random.key(0)),
        anchor_shapes,
        {
            "image": jax.ShapeDtypeStruct((2, *image_shape), jnp.float32),
            "label": jax.ShapeDtypeStruct((2,), jnp.int32),
        },
    )

    def student(number: int, anchors: Sequence[training.Anchor], steps: int, before: int, last: bool):
        """The stage that learns from `anchors[0]`; `before` steps were taken on others."""
        parts = [recipe.evaluation(config, model, split, identify=True)]
        if aside is not None:
            parts.append(Hardness(distillation, aside, anchors))
        evaluate = training.Evaluations(*parts)
        return training.Stage(
            name="student" if last else f"student{number}_on_{anchors[0].step}",
            init=start(anchors[0], number == 1),
            step=step,
            batches=lambda state: training.batches_from(open_batches(), before),
            steps=steps,
            evaluate=evaluate,
            figures=None if last else training.no_figures,
            best=f"{split.protocol}/accuracy",
            sharding={"prototypes": PartitionSpec(axes.MODEL)},
            compile_init=False,
        )

    return walk(parts, points, known, order, lengths, config, student)


def walk(
    parts: Sequence[training.Stage],
    points: Sequence[int],
    known: Sequence[training.Anchor],
    order: Sequence[int] | None,
    lengths: Sequence[int],
    config: Config,
    student: Callable[..., training.Stage],
) -> Iterator[training.Stage]:
    """The stages, one by one: the teacher's, which become anchors, then the student's on those that are chosen."""
    anchors = list(known)
    for part, point in zip(parts, points, strict=False):
        outcome = yield part
        state = training.host_state(outcome.state)
        anchors.append(training.Anchor(point, lambda state=state: state))
    if order is not None:
        before = 0
        for number, (index, steps) in enumerate(zip(order, lengths, strict=True), start=1):
            yield student(number, anchors[index:], steps, before, number == len(order))
            before += steps
        return
    index, number = 0, 1
    while True:
        last = index == len(anchors) - 1
        outcome = yield student(number, anchors[index:], config.steps, (number - 1) * config.steps, last)
        if last:
            return
        ahead = [outcome.metrics[f"ratio/{anchor.step}"] for anchor in anchors[index:]]
        index, number = index + training.greedy_next_anchor(ahead, 0, config.threshold), number + 1
