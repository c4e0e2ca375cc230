"""RM + PFI: a detector learns its teacher's order of an object's anchors, and its features where predictions differ (2112.04840).

    python -m experiments.launch rm_pfi --workdir runs/rm-pfi                    # digits, half a minute: AP 0.515 ± 0.011
    python -m experiments.launch rm_pfi --preset regression --workdir runs/where # where to imitate, without a detector; seconds
    python -m experiments.launch rm_pfi --preset paper --data.annotations …      # RetinaNet R101 → R50, COCO; not trained here
    python -m experiments.reproduce rm_pfi --study ranks

Differs from the paper in: its equations could not be read, the forms are those of two public implementations
(docs/methods/rm_pfi.md#choices-of-ours).
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from experiments.recipes import detection
from experiments.recipes.locations import Level, LocationSpec, location_stage
from jaxface import data as inputs
from jaxface import inference, losses, training
from jaxface.checks import AtLeast, NonNegative, Positive
from jaxface.errors import UserError
from jaxface.layers import FeatureAdapter
from jaxface.losses.rm_pfi import Adapter, PfiForm, Space, WeightNorm
from jaxface.models.detection import RetinaNet, TrainingPass, published_detector
from jaxface.paths import user_path

Mask = Literal["all", "positive", "negative", "boxes"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(detection.DetectorRecipe):
    """A small RetinaNet beside a larger one, which is trained first on the same scenes and then only asked.

    The optimizer and the steps are the student's. Weights of 0 leave a term out; with all of them 0 the student learns alone.
    """

    student: RetinaNet = RetinaNet.small(widths=(8, 12, 16))
    """The detector that is trained; the classes are those of the data."""
    teacher: RetinaNet = RetinaNet.small(widths=(12, 24, 24))
    """The detector that it learns from, with the same anchors."""
    teacher_run: str | None = None
    """A finished run or a bundle with the teacher, which is then not trained; `teacher` and the next two are not looked at."""
    teacher_steps: Annotated[int, AtLeast(0)] = 900
    """Steps that the teacher is trained for."""
    teacher_optimizer: training.Optimizer = training.Optimizer(
        name="adam", learning_rate=3e-3, schedule="cosine", weight_decay=0.0
    )
    """Its optimizer."""
    teacher_init_from: str | None = None
    """What a teacher that is trained starts from; `init_from` is for the student."""
    teacher_trunk_from: str | None = None
    """ImageNet weights that its trunk starts from; `trunk_from` is for the student's."""
    rank_weight: Annotated[float, NonNegative] = 0.3
    """Weight of rank mimicking, 4 in the paper's preset."""
    rank_boxes: bool = False
    """Whether the order of the boxes' fits is mimicked besides that of the class scores, with the same weight."""
    temperature: Annotated[float, Positive] = 0.1
    """Of both orders; 1 in the paper's preset, where distributions over scores in [0, 1] are nearly flat."""
    rank_space: Space = "sigmoid"
    """Whether class scores or their logits are ordered."""
    rank_sort: bool = False
    """Forget which anchor has which rank, as the last public revision does."""
    pfi_weight: Annotated[float, NonNegative] = 0.5
    """Weight of prediction-guided feature imitation, 1.5 in the paper's preset, whose predictions are logits."""
    pfi_form: PfiForm = "mean"
    """How feature and prediction differences become a number."""
    score_space: Space = "sigmoid"
    """Whether predictions differ in scores or in logits; a weight means something beside a space alone."""
    detach_weight: bool = False
    """Prediction differences weigh the features alone and train no prediction."""
    weight_norm: WeightNorm = "none"
    """mean: weights that are constants of mean 1, so that in total they are those of plain imitation."""
    soft_label_weight: Annotated[float, NonNegative] = 0.0
    """Baseline: weight of soft labels of single positive anchors."""
    imitation_weight: Annotated[float, NonNegative] = 0.0
    """Baseline: weight of plain feature imitation."""
    imitation_mask: Mask = "all"
    """Where: everywhere, in cells with a positive anchor, in the others, or in cells whose center is in an object's box."""
    prediction_weight: Annotated[float, NonNegative] = 0.0
    """Control: weight of the predictions' difference alone."""
    steps: Annotated[int, AtLeast(0)] = 400
    """Training steps of the student."""
    problem: Literal["detector", "locations"] = "detector"
    """locations: no detector, but the regression of `recipes/locations.py`, by the same terms of features and predictions."""
    locations: LocationSpec = LocationSpec()
    """That problem."""

    @classmethod
    def paper(cls) -> "Config":
        """RetinaNet R101 → R50 on COCO, both 2x; a student of 37.4 is to reach about 39.6 with PFI alone.

        `trunk_from` and `teacher_trunk_from` name ImageNet weights, or `teacher_run` a trained teacher (38.9).
        """
        reference = detection.coco_reference(0.01, epochs=24)
        return cls(
            **reference,
            student=published_detector("retinanet_resnet50"),
            teacher=published_detector("retinanet_resnet101"),
            teacher_steps=reference["steps"],
            teacher_optimizer=reference["optimizer"],
            rank_weight=4.0,
            rank_boxes=True,
            temperature=1.0,
            pfi_weight=1.5,
            score_space="logit",
        )

    @classmethod
    def regression(cls) -> "Config":
        """Where features are to be imitated, asked of a problem without a detector."""
        return cls(problem="locations", pfi_weight=15.0, rank_weight=0.0)


def feature_terms(
    config: Config,
    student: tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]],
    teacher: tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]],
    adapter: Adapter | None,
    masks: tuple[jax.Array, ...] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(weighted sum, terms) of what is asked of (features, class logits) of every level."""
    total, terms = jnp.float32(0), {}
    if config.pfi_weight > 0:
        terms["pfi_loss"] = losses.pfi_loss(
            student[0],
            teacher[0],
            student[1],
            teacher[1],
            adapter=adapter,
            form=config.pfi_form,
            score_space=config.score_space,
            detach_weight=config.detach_weight,
            weight_norm=config.weight_norm,
        ).mean()
        total += config.pfi_weight * terms["pfi_loss"]
    if config.imitation_weight > 0:
        terms["imitation_loss"] = losses.feature_imitation_loss(
            student[0], teacher[0], masks, adapter=adapter
        ).mean()
        total += config.imitation_weight * terms["imitation_loss"]
    if config.prediction_weight > 0:
        terms["prediction_loss"] = losses.prediction_imitation_loss(
            student[1], teacher[1], score_space=config.score_space
        ).mean()
        total += config.prediction_weight * terms["prediction_loss"]
    return total, terms


@dataclasses.dataclass(frozen=True)
class Distillation:
    """What the teacher asks of the student beside the detector's own loss (an `AddedLoss`).

    The teacher's variables are `teacher` of the constants.
    """

    config: Config
    student: RetinaNet
    teacher: RetinaNet

    @property
    def adapter(self) -> FeatureAdapter | None:
        """From the student's channels to the teacher's; None where they are as many."""
        student, teacher = (
            detector.features or detector.widths[-1] for detector in (self.student, self.teacher)
        )
        return None if student == teacher else FeatureAdapter(teacher)

    def init(self, rng: jax.Array) -> tuple[dict, dict]:
        """An adapter's parameters where there is one."""
        if self.adapter is None:
            return {}, {}
        width = self.student.features or self.student.widths[-1]
        return {"adapter": self.adapter.init(rng, jnp.zeros((1, width)))["params"]}, {}

    def __call__(
        self, params: Mapping, constants: Mapping, trained: TrainingPass, batch: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        config, student, size = self.config, self.student, batch["image"].shape[1:3]
        levels, outputs = jax.lax.stop_gradient(
            self.teacher.module.apply(
                constants["teacher"], batch["image"], train=False, method="levels_and_outputs"
            )
        )
        assigned, labels, _ = student.targets(batch)
        objects = batch["box_mask"] & ~batch["box_crowd"]
        both = trained.outputs["class_logits"], outputs["class_logits"]
        total, terms = jnp.float32(0), {}

        # Rank mimicking: of each object the order of its anchors, by the class score and by the fit of the box.
        if config.rank_weight > 0:
            options = {"temperature": config.temperature, "sort": config.rank_sort}
            own = jnp.maximum(labels - 1, 0)[..., None]
            scores = [jnp.take_along_axis(logits, own, axis=2)[..., 0] for logits in both]
            if config.rank_space == "sigmoid":
                scores = [jax.nn.sigmoid(logits) for logits in scores]
            terms["rank_loss"] = losses.rank_mimic_loss(
                *scores, assigned, objects, space=config.rank_space, **options
            ).mean()
            total += config.rank_weight * terms["rank_loss"]
            if config.rank_boxes:
                decoded = (student.decode(seen, size) for seen in (trained.outputs, outputs))
                terms["rank_box_loss"] = losses.rank_mimic_box_loss(
                    *decoded, batch["boxes"], assigned, objects, **options
                ).mean()
                total += config.rank_weight * terms["rank_box_loss"]
        if config.soft_label_weight > 0:
            terms["soft_label_loss"] = losses.soft_label_loss(*both, assigned).mean()
            total += config.soft_label_weight * terms["soft_label_loss"]

        # Prediction-guided feature imitation, level by level, and what it is compared with.
        logits = [
            tuple(maps.reshape(*maps.shape[:3], -1) for maps in student.split_levels(values, size))
            for values in both
        ]
        linear = self.adapter
        adapter = None if linear is None else lambda level: linear.apply({"params": params["adapter"]}, level)
        masks = self.masks(assigned, batch) if config.imitation_weight > 0 else None
        more, told = feature_terms(config, (trained.levels, logits[0]), (levels, logits[1]), adapter, masks)
        return total + more, {**terms, **told}

    def masks(self, assigned: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, ...] | None:
        """Where plain imitation looks, [B, H, W] of every level; None for everywhere."""
        size = batch["image"].shape[1:3]
        if self.config.imitation_mask == "all":
            return None
        if self.config.imitation_mask == "boxes":
            anchors = jnp.asarray(self.student.anchors(size))
            centers = (anchors[:, :2] + anchors[:, 2:]) / 2
            boxes = batch["boxes"][:, :, None]
            inside = jnp.all((centers >= boxes[..., :2]) & (centers < boxes[..., 2:]), axis=-1)
            chosen = jnp.any(inside & batch["box_mask"][..., None], axis=1)
        else:
            chosen = assigned > 0
        cells = tuple(maps.any(axis=-1) for maps in self.student.split_levels(chosen, size))
        return tuple(~cell for cell in cells) if self.config.imitation_mask == "negative" else cells


def teacher_stage(
    config: Config, split: inputs.Split, teacher: RetinaNet
) -> tuple[training.Stage, RetinaNet]:
    """The stage that ends in the teacher's state, and the teacher: trained here, or of a finished run."""
    if config.teacher_run is None:
        recipe = dataclasses.replace(
            config, init_from=config.teacher_init_from, trunk_from=config.teacher_trunk_from
        )
        stage = detection.detection_stage(
            "teacher", recipe, split, teacher, optimizer=config.teacher_optimizer, steps=config.teacher_steps
        )
        return stage, teacher
    if config.teacher_init_from is not None:
        raise UserError(
            "teacher_init_from: needs a teacher that is trained, teacher_run names a finished one"
        )
    bundle = inference.open_detector(user_path("teacher_run", config.teacher_run))
    if not isinstance(bundle.detector, RetinaNet):
        raise UserError(f"teacher_run: needs a RetinaNet, {config.teacher_run} has another detector")
    names = tuple(split.train.class_names)
    if tuple(bundle.class_names) != names:
        raise UserError(
            f"teacher_run: needs the classes of the data, {', '.join(names)[:80]}; "
            f"{config.teacher_run} has {', '.join(bundle.class_names)[:80]}"
        )

    def init(rng, previous):
        variables = dict(bundle.variables)
        return training.create_state(
            rng, {"detector": variables.pop("params")}, extra=training.statistics(variables)
        )

    stage = training.Stage("teacher", init=init, compile_init=False, description=bundle.description())
    return stage, bundle.detector


def check_pair(student: RetinaNet, teacher: RetinaNet) -> None:
    """Raises UserError where two detectors have other anchors, or maps that one adapter cannot compare."""
    for field in ("strides", "scales", "ratios", "whole_anchors"):
        ours, theirs = getattr(student, field), getattr(teacher, field)
        if ours != theirs:
            raise UserError(f"teacher: needs the student's anchors, whose {field} are {ours}; got {theirs}")
    for name, detector in (("student", student), ("teacher", teacher)):
        if detector.features is None and len(detector.strides) > 1:
            raise UserError(
                f"{name}.features: needs channels that all {len(detector.strides)} levels have, got none"
            )


def build(config: Config) -> list[training.Stage]:
    """The teacher, then the student, which is evaluated alone and by its order of anchors; or the problem without a detector."""
    if config.problem == "locations":

        def imitate(student: Level, teacher: Level, adapter: Adapter):
            pairs = (((level.features,), (level.logits,)) for level in (student, teacher))
            return feature_terms(config, *pairs, adapter)

        return [location_stage(config.locations, imitate)]
    split = detection.load(config)
    shared = {
        "num_classes": len(split.train.class_names),
        "bfloat16": config.bfloat16,
        "remat": config.remat,
    }
    student = dataclasses.replace(config.student, **shared)
    first, teacher = teacher_stage(config, split, dataclasses.replace(config.teacher, **shared))
    check_pair(student, teacher)
    distillation = Distillation(config, student, teacher)
    weights = ("rank", "pfi", "soft_label", "imitation", "prediction")
    asked = any(getattr(config, f"{name}_weight") > 0 for name in weights)
    alone = detection.detection_stage(
        "student", config, split, student, added=distillation if asked else None
    )

    def init(rng, previous):
        state = alone.init(rng, None)
        variables = {"params": previous.averaged_params["detector"], **training.statistics(previous.extra)}
        return state.replace(extra={**state.extra, "added": {"teacher": variables}})

    ranks = training.RankAgreement(
        student, teacher, lambda state: state.extra["added"]["teacher"], split.held_out
    )
    evaluate = training.Evaluations(alone.evaluate, ranks)
    return [first, dataclasses.replace(alone, init=init, evaluate=evaluate)]
