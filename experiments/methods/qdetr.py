"""Q-DETR: set predictors of few bits, whose queries are aligned and learn from a teacher's (arXiv:2304.00253).

    python -m experiments.launch qdetr --workdir runs/qdetr       # 4 min on 2 cores; 2-2-8 bits: AP50 0.81, its teacher 0.95
    python -m experiments.launch qdetr --preset paper --data.annotations …   # DETR-R50 on VOC; built and typed, not run
    python -m experiments.reproduce qdetr --study two-bits

Differs from the paper in: alignments start at the spread of the float queries unless `align_start` is "one", one step for the
input of a layer on the laptop, an object that no box overlaps keeps its best query (docs/methods/qdetr.md#choices-of-ours).
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Literal

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from experiments.recipes import detection as recipe
from experiments.recipes.quantization import StepRate, started_from
from jaxface import data as inputs
from jaxface import inference, losses, training
from jaxface.boxes import normalized_boxes
from jaxface.checks import AtLeast, Fraction, NonNegative, Positive, check_fields
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.layers import calibrate
from jaxface.models.detection import Detr, TrainingPass, init_variables, published_detector
from jaxface.models.detection.detr import query_spreads, with_spreads
from jaxface.paths import user_path
from jaxface.training.recognition import statistics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(recipe.DetectorRecipe):
    """A DETR or SMCA of few bits, which learns from a float one."""

    data: inputs.DataSpec = inputs.ObjectScenes(
        things="shapes", scenes=4000, held_out_scenes=500, objects=(1, 2), sizes=(10, 16), noise=0.1
    )
    """Images with objects to learn from; others are kept to evaluate on."""
    detector: Detr = Detr(weight_bits=2, input_bits=2, align_query="cross")
    """The student, whose classes are those of the data, whatever its `num_classes` says."""
    align_start: Literal["spread", "one"] = "spread"
    """What an alignment's scale starts at: the mean spread of the float network's queries, or 1 as published."""
    calibration: Annotated[int, AtLeast(1)] = 128
    """Training images from which the quantizers get their first steps and signs."""
    step_rate: Annotated[float, Positive] = 5.0
    """Factor on the learning rate of the steps' logarithms."""
    teacher_run: str | None = None
    """The float network: a finished run, a bundle or published weights; trained first on the same data unless given."""
    teacher_backbone: str | None = None
    """Backbone of a teacher that is trained here; the student's unless given, and the student then starts from its teacher."""
    teacher_optimizer: training.Optimizer = training.Optimizer(
        name="adamw", learning_rate=2e-3, schedule="cosine", warmup=0.05, weight_decay=1e-4, clip_norm=1.0
    )
    """Optimizer of the teacher."""
    teacher_steps: Annotated[int, AtLeast(0)] = 3000
    """Steps of the teacher."""
    distillation: Annotated[float, NonNegative] = 2.5
    """Weight λ of the distillation of the co-attended features; 0 leaves it out."""
    tau: Annotated[float, Fraction] = 0.6
    """Share of an object's best overlap from which a query learns from the teacher; 1 distills none."""
    selection: losses.Selection = "foreground"
    """Queries that are distilled: those near an object, matched by their boxes; or, a control, all of them by their place."""
    layers: Literal["last", "all"] = "last"
    """Decoder layers whose features are distilled."""
    normalize: bool = False
    """Divide distances by the length of the teacher's features."""
    backbone_steps: Annotated[int, AtLeast(0)] = 0
    """Steps of a stage before the last in which the backbone alone has few bits, as published; 0 leaves it out."""
    optimizer: training.Optimizer = training.Optimizer(
        name="adamw", learning_rate=3e-3, schedule="cosine", warmup=0.02, weight_decay=1e-4, clip_norm=1.0
    )
    """Optimizer and learning-rate schedule of the student."""
    batch_size: Annotated[int, AtLeast(1)] = 16
    """Images per step over all devices."""
    steps: Annotated[int, AtLeast(0)] = 1000
    """Training steps of the student."""

    @classmethod
    def paper(cls) -> "Config":
        """PASCAL VOC 07+12 in COCO's format, DETR-R50 with 4-4-8 bits taught by DETR-R101, 300 epochs a stage; 82.7 AP50 is to be
        reached on the test images of 2007, 78.0 by LSQ+ alone, 83.3 by the float network."""
        steps = 300 * 16_551 // 16
        rule = training.Optimizer(
            name="adamw",
            learning_rate=1e-4,
            schedule="step",
            decay_at=(2 / 3,),
            weight_decay=1e-4,
            clip_norm=0.1,
            rates=("detector/backbone=0.1",),
        )
        return cls(
            data=inputs.Coco(
                annotations="VOC/annotations/trainval0712.json",
                images="VOC/images",
                evaluation_annotations="VOC/annotations/test2007.json",
                aspects=(0.75, 1.0, 4 / 3),
                max_objects=100,
            ),
            image_size=1344,
            augment=inputs.ObjectAugment(),
            detector=published_detector(
                "detr_resnet50", weight_bits=4, input_bits=4, align_query="cross", granularity="channel"
            ),
            align_start="one",
            step_rate=1.0,
            teacher_backbone="resnet101",
            teacher_optimizer=rule,
            teacher_steps=steps,
            optimizer=rule,
            batch_size=16,
            backbone_steps=steps,
            steps=steps,
            workers=16,
        )

    @classmethod
    def smca(cls) -> "Config":
        """COCO, SMCA-DETR-R50 with 4-4-8 bits taught by SMCA-DETR-R101, 50 epochs a stage; 38.5 AP, the float network 41.0."""
        base = cls.paper()
        steps = 50 * 118_287 // 16
        rule = dataclasses.replace(base.optimizer, decay_at=(0.8,))
        return dataclasses.replace(
            base,
            data=inputs.Coco(
                annotations="coco/annotations/instances_train2017.json",
                images="coco/train2017",
                evaluation_images="coco/val2017",
                evaluation_annotations="coco/annotations/instances_val2017.json",
                aspects=(0.75, 1.0, 4 / 3),
                max_objects=100,
            ),
            detector=published_detector(
                "smca_resnet50", weight_bits=4, input_bits=4, align_query="cross", granularity="channel"
            ),
            teacher_optimizer=rule,
            teacher_steps=steps,
            optimizer=rule,
            backbone_steps=steps,
            steps=steps,
        )


def float_detector(detector: Detr, **fields) -> Detr:
    """The network of a student without its quantizers and alignments; `fields` of it."""
    return dataclasses.replace(detector, weight_bits=None, align_query="no", **fields)


@dataclasses.dataclass(frozen=True)
class QueryDistillation:
    """The term of equation L = L_GT + λ L_DRD beside a student's own loss; the teacher's variables are its constants."""

    teacher: Detr
    config: Config

    def init(self, rng: jax.Array) -> tuple[Mapping, Mapping]:
        """Nothing that trains; what the student begins with carries the teacher."""
        del rng
        return {}, {}

    def __call__(
        self, params: Mapping, constants: Mapping, trained: TrainingPass, batch: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        del params
        config, image = self.config, batch["image"]
        size = batch["image_size"]
        answers = self.teacher.module.apply(
            constants["teacher"], image, valid_size=size, train=False, attended=True
        )
        answers = jax.lax.stop_gradient(answers)
        objects = normalized_boxes(batch["boxes"], jnp.maximum(size, 1)[:, None])
        mask = batch["box_mask"] & ~batch["box_crowd"]
        layers = range(self.teacher.decoder_layers) if config.layers == "all" else (-1,)
        terms = [
            losses.query_distillation_loss(
                trained.outputs["boxes"][:, i],
                trained.outputs["attended"][:, i],
                answers["boxes"][:, i],
                answers["attended"][:, i],
                objects,
                mask,
                tau=config.tau,
                selection=config.selection,
                normalize=config.normalize,
            )
            for i in layers
        ]
        loss = sum(term.loss for term in terms) / len(terms)
        return config.distillation * loss, {"drd_loss": loss, "distilled": terms[-1].selected}


def finished_teacher(config: Config, student: Detr, split: inputs.Split) -> tuple[Detr, training.Stage]:
    """The float network of `teacher_run`, and a stage without steps that ends in it.

    Raises:
      UserError: no such run, no DETR, a quantized one, or one of other classes, features or images.
    """
    bundle = inference.open_detector(user_path("teacher_run", config.teacher_run))
    detector = bundle.detector
    if not isinstance(detector, Detr) or detector.weight_bits is not None:
        raise UserError(f"teacher_run: needs a float DETR, {config.teacher_run} has another detector")
    names = tuple(split.train.class_names)
    if tuple(bundle.class_names) != names:
        listed = ", ".join(bundle.class_names)[:80]
        raise UserError(
            f"teacher_run: needs the classes of the data ({', '.join(names)[:80]}), {config.teacher_run} has {listed}"
        )
    same = ("dim", "decoder_layers", "focal", "pixels") + ("queries",) * (config.selection == "all")
    for name in same:
        here, there = getattr(student, name), getattr(detector, name)
        if here != there:
            raise UserError(
                f"teacher_run: needs {name} {here}, as the student's, {config.teacher_run} has {there}"
            )

    def init(rng, previous):
        del previous
        return training.create_state(
            rng, {"detector": bundle.variables["params"]}, extra=statistics(bundle.variables)
        )

    return detector, training.Stage(
        "teacher", init=init, compile_init=False, description=bundle.description()
    )


def build(config: Config) -> list[training.Stage]:
    """The float teacher, the student with a backbone of few bits where that is a stage, and the student."""
    split = recipe.load(config)
    classes = len(split.train.class_names)
    student = dataclasses.replace(config.detector, num_classes=classes, bfloat16=config.bfloat16)
    check_fields(student, "detector.")
    most = split.train.max_objects
    if most > student.queries:
        raise UserError(
            f"detector.queries: needs at least the {most} objects of an image, got {student.queries}"
        )
    plain = float_detector(student)
    size = split.train.image_shape[:2]
    given = recipe.pretrained(config, plain, size)

    # The teacher: a float network, which knows the objects alone.
    if config.teacher_run is None:
        teacher = float_detector(student, backbone=config.teacher_backbone or student.backbone)
        first = recipe.detection_stage(
            "teacher",
            dataclasses.replace(config, init_from=None),
            split,
            teacher,
            optimizer=config.teacher_optimizer,
            steps=config.teacher_steps,
        )
    else:
        teacher, first = finished_teacher(config, student, split)

    def begin(detector, before):
        """What a student starts from: the network `before` it, the teacher or one of float decoder, or given weights; its
        quantizers see some images before anything is compiled."""

        def start(rng, previous):
            params, extra = init_variables(detector, rng, size)
            parts = {"params": previous.averaged_params["detector"], **statistics(previous.extra)}
            constants = {"teacher": parts} if before is teacher else previous.extra["added"]
            if before is teacher and given is not None:
                parts = flax.traverse_util.unflatten_dict(given)
            if before is not teacher or given is not None or teacher == plain:
                params, extra = started_from(params, parts["params"]), {**extra, **statistics(parts)}
            if detector.weight_bits is not None:
                count = min(config.calibration, len(split.train))
                records = [split.train[i] for i in range(count)]
                images = normalize_pixels(np.stack([record["image"] for record in records]))
                sizes = np.stack([record["image_size"] for record in records])
                if config.align_start == "spread" and detector.align_query != "no":
                    source = plain if before is teacher else before
                    fresh = jax.eval_shape(lambda rng: init_variables(source, rng, size)[0], rng)
                    floats = {**extra, "params": started_from(fresh, params)}
                    spreads = jax.jit(partial(query_spreads, source.module))(floats, images, sizes)
                    params = with_spreads(params, spreads)
                variables = {**extra, "params": params}
                variables = calibrate(detector.module, variables, images, valid_size=sizes, train=False)
                params, extra = variables["params"], statistics(variables)
            return params, {**extra, "added": constants if config.distillation > 0 else {}}

        return start

    def stage(name, detector, before, steps):
        return recipe.detection_stage(
            name,
            dataclasses.replace(config, init_from=None),
            split,
            detector,
            optimizer=StepRate(config.optimizer, config.step_rate),
            steps=steps,
            added=QueryDistillation(teacher, config) if config.distillation > 0 else None,
            begin=begin(detector, before),
        )

    # Stage 1 of the paper, with the backbone alone of few bits, and stage 2.
    if not config.backbone_steps:
        return [first, stage("student", student, teacher, config.steps)]
    half = dataclasses.replace(student, quantized=("backbone",), align_query="no")
    return [
        first,
        stage("backbone", half, teacher, config.backbone_steps),
        stage("student", student, half, config.steps),
    ]
