"""PseCo: a detector that learns from pseudo boxes by what its teacher predicts for proposals (arXiv:2203.16317).

    python -m experiments.launch pseco --workdir runs/pseco     # 3 min on 2 CPU cores: AP 0.65, with labels alone 0.61
    python -m experiments.launch pseco --preset assignment --workdir runs/assignment   # what wrong pseudo boxes do
    python -m experiments.launch pseco --preset paper --data.annotations …             # COCO; built and typed, not trained here
    python -m experiments.reproduce pseco --study scenes

Differs from the paper in: on the laptop a supervised start, a faster teacher and milder views
(docs/methods/pseco.md#choices-of-ours).
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recipes import detection
from jaxface import axes, boxes, inference, losses, metrics, training
from jaxface import data as inputs
from jaxface.checks import AtLeast, Fraction, NonNegative, OpenFraction, Positive, Range
from jaxface.data.sources.source import WithFields
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.models.detection import FasterRCNN, RetinaNet, best_candidates, select_detections
from jaxface.models.detection.faster_rcnn import STDS, RegionSample

Assign = Literal["predictions", "overlap", "overlap_as_few"]
Vote = Literal["agreement", "none", "mean", "score", "steady"]
SecondView = Literal["half", "none", "same"]
SMALL = dict(strides=(4, 8), scales=(3.0,), widths=(16, 32, 32, 32), features=32)
_MILD = dict(scales=(0.75, 1.0), flip=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(detection.DetectorRecipe):
    """A student that learns from few labels and from the detections of its own moving average, which is evaluated."""

    data: inputs.DataSpec = inputs.ObjectScenes(scenes=1600, held_out_scenes=300)
    """Images with objects to learn from; others are kept to evaluate on."""
    percent: Annotated[float, Range(0, 100, above=True)] = 2.0
    """Percentage of the images that have labels: 1, 2, 5 and 10 are published; at 100 there are no others."""
    fold: Annotated[int, AtLeast(0)] = 1
    """Which of the published splits: the seed of the draw."""
    unlabeled_ratio: Annotated[int, AtLeast(1)] = 4
    """Images without labels in a batch for each with labels."""
    views: inputs.TeacherStudentViews = inputs.TeacherStudentViews(
        labeled=inputs.ViewSpec.labeled(**_MILD),
        weak=inputs.ViewSpec(**_MILD),
        strong=inputs.ViewSpec.strong(**_MILD, degrees=15.0),
    )
    """How images are changed for the student and for the teacher; digits are not mirrored."""
    trunk: Literal["small", "resnet50"] = "small"
    """Detector: four convolutions with two levels, for scenes of 32 x 32, or a ResNet-50 with five."""
    assign: Assign = "predictions"
    """Which proposals find a pseudo box: those that the teacher's predictions choose, those that overlap it by half, or the best
    of these, as many as the first rule takes."""
    assign_iou: Annotated[float, OpenFraction] = 0.4
    """predictions: overlap of the teacher's prediction with a pseudo box from which a proposal is its candidate."""
    assign_top: Annotated[int, AtLeast(1)] = losses.pseco.TOP
    """predictions: largest overlaps whose sum is the number of positives."""
    vote: Vote = "agreement"
    """Weight of a pseudo box in the box loss: how far the student's predictions agree with it, none, or for comparison that
    weight's mean over the batch for all, the teacher's scores with as large a sum, or Soft Teacher's: 1 where the teacher finds
    the same box from moved ones, and 0 elsewhere."""
    vote_power: Annotated[float, Positive] = 2.0
    """Exponent of the weights, whose sum stays the same."""
    steady_below: Annotated[float, Positive] = 0.02
    """steady: relative spread of the boxes that the teacher finds, below which a pseudo box counts."""
    background: Literal["equal", "reliable"] = "equal"
    """Weight of background in the classification of images without labels: one for all, or for comparison Soft Teacher's, the
    teacher's score of background."""
    second_view: SecondView = "half"
    """The student's image at half the size, read one level earlier, beside it; none; or for comparison the image itself again."""
    threshold: Annotated[float, Fraction] = 0.5
    """Score above which a detection of the teacher is a pseudo box."""
    unlabeled_weight: Annotated[float, NonNegative] = 2.0
    """Weight of the loss of the images without labels; 0 trains on the others alone."""
    momentum: Annotated[float, Fraction] = 0.99
    """Greatest momentum of the teacher; it is the mean of its students until then. 0.999 is published."""
    start_steps: Annotated[int, AtLeast(0)] = 800
    """Steps on the images with labels alone before; none are published."""
    start_batch: Annotated[int, AtLeast(1)] = 16
    """Images in a batch of these, or as many as have labels where these are fewer."""
    start_optimizer: training.Optimizer = training.adam(3e-3)
    """Optimizer of these steps."""
    optimizer: training.Optimizer = training.adam(1e-3)
    """Optimizer and learning-rate schedule of the steps with both."""
    batch_size: Annotated[int, AtLeast(1)] = 20
    """Images per step over all devices, with labels and without."""
    steps: Annotated[int, AtLeast(0)] = 800
    """Training steps with both."""
    task: Literal["training", "assignment"] = "training"
    """Semi-supervised training, or the measurement of assignments alone, on dense detectors."""
    teacher_steps: Annotated[int, AtLeast(0)] = 900
    """assignment: training steps of the detector that finds the pseudo boxes."""
    student_steps: Annotated[int, AtLeast(0)] = 300
    """assignment: of the one that votes."""
    jitter: Annotated[float, NonNegative] = 0.0
    """assignment: standard deviation of the moves of pseudo boxes, in widths and heights."""

    @classmethod
    def assignment(cls) -> "Config":
        """What becomes of pseudo boxes that are wrong, without any training on them."""
        return cls(
            task="assignment",
            data=inputs.ObjectScenes(scenes=1560, held_out_scenes=300),
            optimizer=training.adam(3e-3),
            batch_size=16,
        )

    @classmethod
    def paper(cls) -> "Config":
        """COCO with 10 % of the labels, fold 1: 36.06 AP is to be reached, 26.90 with these labels alone.

        Eight devices with one image with labels and four without each; `init_from` names the weights to start from.
        """
        reference, steps = detection.coco_reference(0.01), 180_000
        optimizer = dataclasses.replace(reference["optimizer"], decay_at=(120 / 180,), warmup=500 / steps)
        return cls(
            data=reference["data"],
            image_size=1344,
            percent=10.0,
            fold=1,
            views=inputs.TeacherStudentViews(),
            trunk="resnet50",
            momentum=0.999,
            start_steps=0,
            optimizer=optimizer,
            batch_size=40,
            steps=steps,
            bfloat16=True,
            workers=8,
        )


def network(config: Config, num_classes: int) -> FasterRCNN:
    """The detector: sigmoids and the focal loss in its head, and a level finer than those with anchors for the second view."""
    common = dict(
        num_classes=num_classes,
        finer=1,
        focal=True,
        class_weight=10.0,
        bfloat16=config.bfloat16,
        remat=config.remat,
    )
    if config.trunk == "small":
        return FasterRCNN.small(**SMALL, **common)
    return FasterRCNN(
        **common, strides=(8, 16, 32, 64, 128), scales=(4.0,), extra_from="trunk", caffe=True, pixels="caffe"
    )


class PseudoBoxes(NamedTuple):
    """What a teacher says of images, in the student's views of them.

    Attributes:
      batch: the student's images with pseudo boxes in the place of true ones; `scores` [B, D] besides, and where it is asked for
        the `spread` [B, D] of the boxes that the teacher finds from moved ones.
      regions: [B, N, 4] the teacher's proposals; their areas are 0 where they are none or have left the view.
      predicted: [B, N, 4] the teacher's boxes for them, of their likeliest class.
      scores: [B, N, C].
    """

    batch: dict[str, jax.Array]
    regions: jax.Array
    predicted: jax.Array
    scores: jax.Array


@dataclasses.dataclass(frozen=True)
class Lesson:
    """The losses of a student: on images with labels, and on images for which a teacher has pseudo boxes."""

    config: Config
    detector: FasterRCNN

    def split(self, batch: Mapping[str, jax.Array]) -> tuple[dict, dict]:
        """(images with labels, those without) of a batch of groups of one and `unlabeled_ratio`."""
        group = 1 + self.config.unlabeled_ratio

        def part(rows):
            return {
                name: x.reshape(-1, group, *x.shape[1:])[:, rows].reshape(-1, *x.shape[1:])
                for name, x in batch.items()
            }

        return part(slice(0, 1)), part(slice(1, None))

    def pseudo_boxes(self, teacher: Mapping, batch: Mapping[str, jax.Array], rng: jax.Array) -> PseudoBoxes:
        """The teacher on its own views, and where in the student's views what it finds there is."""
        detector, run = self.detector, partial(self.detector.module.apply, teacher)
        image = normalize_pixels(batch["teacher_image"])
        size = image.shape[1:3]
        levels = detector.anchor_levels(run(image, method="pyramid"))
        found = detector.propose(
            *run(levels, method="proposals"), size, valid_size=batch["teacher_size"], train=True
        )
        logits, deltas = run(levels, found.boxes, method="regions")
        scores = jnp.where(found.valid[..., None], detector.scores(logits), 0.0)
        decoded = detector.decode_regions(found.boxes, deltas)

        # Standard inference, as `detect`; every score that matters is above the threshold.
        best, best_scores, classes = best_candidates(decoded, scores, count=2000)
        detections = select_detections(
            best,
            best_scores,
            classes,
            image_size=size,
            valid_size=batch["teacher_size"],
            score_threshold=0.05,
            iou_threshold=0.5,
            max_outputs=min(100, best.shape[1]),
            candidates=best.shape[1],
        )

        move = partial(
            boxes.transform_boxes,
            matrix=boxes.view_to_view(batch["teacher_matrix"], batch["matrix"]),
            image_size=batch["image_size"],
        )
        pseudo = move(detections.boxes)
        mask = losses.filter_pseudo(
            pseudo, detections.scores, detections.valid, threshold=self.config.threshold
        )
        likeliest = jnp.argmax(scores, axis=-1)[..., None, None]
        predicted = jnp.take_along_axis(decoded, likeliest, axis=2)[..., 0, :]
        nowhere = found.valid[..., None]
        student = {
            **batch,
            "boxes": jnp.where(mask[..., None], pseudo, jnp.array([0.0, 0, 1, 1])),
            "box_mask": mask,
            "box_label": detections.classes,
            "box_crowd": jnp.zeros_like(mask),
            "scores": detections.scores,
        }
        if self.config.vote == "steady":
            student["spread"] = self.spread(teacher, levels, detections, batch["teacher_size"], rng)
        moved = jnp.where(nowhere, move(found.boxes), 0.0), jnp.where(nowhere, move(predicted), 0.0)
        return jax.lax.stop_gradient(PseudoBoxes(student, *moved, scores))

    def spread(
        self, teacher: Mapping, levels, detections, valid_size: jax.Array, rng: jax.Array
    ) -> jax.Array:
        """[B, D]: how far apart the boxes are that the teacher finds for moved copies of each of its detections."""
        detector = self.detector
        moved = losses.jittered_boxes(rng, detections.boxes)  # [T, B, D, 4]
        count, images, each, _ = moved.shape
        regions = jnp.moveaxis(moved, 0, 1).reshape(images, count * each, 4)
        _, deltas = detector.module.apply(teacher, levels, regions, method="regions")
        index = jnp.tile(detections.classes, (1, count))[..., None, None]
        found = detector.decode_regions(regions, jnp.take_along_axis(deltas, index, axis=2))[..., 0, :]
        found = boxes.clip_boxes(found, valid_size[:, None])
        return losses.relative_spread(jnp.moveaxis(found.reshape(images, count, each, 4), 1, 0))

    def assign(self, pseudo: PseudoBoxes) -> jax.Array:
        """[B, N]: which pseudo box each of the teacher's proposals is to find; -1 for one that is not in the student's view."""
        config, batch = self.config, pseudo.batch
        area = boxes.box_area(pseudo.regions)
        truth = batch["boxes"], batch["box_label"], batch["box_mask"]
        by_predictions = jax.vmap(
            partial(losses.pla_assign, iou_threshold=config.assign_iou, top=config.assign_top)
        )(pseudo.predicted, pseudo.scores, area, *truth)
        if config.assign == "predictions":
            assigned = by_predictions
        else:
            assigned = self.detector.region_targets(pseudo.regions, area > 0, batch).assigned
        if config.assign == "overlap_as_few":
            numbers = jnp.arange(1, truth[0].shape[1] + 1)
            counts = jnp.sum(by_predictions[:, None] == numbers[:, None], axis=-1)

            def best(assigned, regions, objects, counts):
                overlap = boxes.paired_iou(regions, boxes.assigned_rows(assigned, objects))
                return losses.limit_assigned(assigned, overlap, counts, most=config.assign_top)

            assigned = jax.vmap(best)(assigned, pseudo.regions, truth[0], counts)
        return jnp.where(area > 0, assigned, -1)

    def sample(self, pseudo: PseudoBoxes, rng: jax.Array) -> tuple[RegionSample, jax.Array]:
        """Proposals to train the head on; pseudo boxes are not among them. Besides the teacher's scores [B, R, C] of them."""
        detector = self.detector

        def of_image(key, assigned, regions, scores, objects, labels):
            drawn = boxes.sample_rois(
                key, assigned, num=detector.region_samples, positive_fraction=detector.region_positives
            )
            assigned, regions = assigned[drawn.indices], regions[drawn.indices]
            deltas = boxes.encode_boxes(regions, boxes.assigned_rows(assigned, objects), stds=STDS)
            sample = RegionSample(
                regions, boxes.assigned_labels(assigned, labels), assigned, deltas, drawn.valid
            )
            return sample, scores[drawn.indices]

        keys, batch = jax.random.split(rng, len(pseudo.regions)), pseudo.batch
        proposed = self.assign(pseudo), pseudo.regions, pseudo.scores
        return jax.vmap(of_image)(keys, *proposed, batch["boxes"], batch["box_label"])

    def weights(self, sample, deltas: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array | None:
        """[B, R] weights of the regions' boxes, from the student's deltas [B, R, C, 4]; None for none."""
        config, positive = self.config, (sample.assigned > 0) & sample.valid
        if config.vote == "none":
            return None
        if config.vote == "steady":
            steady = (batch["spread"] < config.steady_below).astype(jnp.float32)
            return jnp.where(positive, jax.vmap(boxes.assigned_rows)(sample.assigned, steady), 0.0)
        index = jnp.maximum(sample.labels - 1, 0)[..., None, None]
        decoded = jnp.take_along_axis(self.detector.decode_regions(sample.boxes, deltas), index, axis=2)
        agreement = jax.vmap(losses.pcv_weights)(
            decoded[..., 0, :], sample.assigned, batch["boxes"], sample.valid
        )
        if config.vote == "agreement":
            return losses.sharpened_weights(agreement, power=config.vote_power)
        if config.vote == "mean":
            shares = positive.astype(jnp.float32)
        else:
            scores = jax.vmap(boxes.assigned_rows)(sample.assigned, batch["scores"])
            shares = jnp.where(positive, scores, 0.0) ** config.vote_power
        total, sum_of_shares = axes.mean((jnp.sum(agreement), jnp.sum(shares)))
        return shares * total / jnp.maximum(sum_of_shares, 1e-6)

    def unlabeled(
        self, variables: Mapping, teacher: Mapping, batch: Mapping[str, jax.Array], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss on images without labels, summed over the student's views, and what is told of it."""
        config, detector = self.config, self.detector
        run = partial(detector.module.apply, variables)
        anchor_key, region_key = jax.random.split(rng)
        pseudo = self.pseudo_boxes(teacher, batch, jax.random.fold_in(rng, 2))
        sample, scores = self.sample(pseudo, region_key)
        reliability = None
        if config.background == "reliable":
            reliability = losses.reliability_weights(scores, sample.assigned, sample.valid)

        def view(levels, weights=None):
            logits, deltas = run(levels, method="proposals")
            loss, _ = detector.proposal_loss(logits, deltas, pseudo.batch, anchor_key)
            logits, deltas = run(levels, sample.boxes, method="regions")
            if weights is None:
                weights = self.weights(sample, deltas, pseudo.batch)
            more, _ = detector.region_loss(
                logits, deltas, sample, class_weights=reliability, box_weights=weights
            )
            return loss + more, weights

        # View 1, then the same targets at half the size, each map one level earlier.
        levels = run(batch["image"], method="pyramid")
        loss, weights = view(detector.anchor_levels(levels))
        if config.second_view == "half":
            half = losses.halve_nearest(batch["image"], multiple=detector.stride)
            loss += view(run(half, method="pyramid")[detector.finer - 1 : -1], weights)[0]
        elif config.second_view == "same":
            loss *= 2
        positive = jnp.sum((sample.assigned > 0) & sample.valid)
        quality = metrics.pseudo_label_counts(
            *(pseudo.batch[name] for name in ("boxes", "box_label", "box_mask")),
            batch["boxes"],
            batch["box_label"],
            batch["box_mask"] & ~batch["box_crowd"],
        ).report()
        told = {f"pseudo_{name}": value for name, value in quality.items()}
        told["pseudo_positives"] = positive / jnp.maximum(jnp.sum(pseudo.batch["box_mask"]), 1)
        if weights is not None:
            told["vote"] = jnp.sum(weights) / jnp.maximum(positive, 1)
        if reliability is not None:
            told["reliability"] = jnp.sum(reliability) / jnp.maximum(jnp.sum(sample.valid), 1)
        return loss, told


def streams(config: Config, split: inputs.Split, *, unlabeled: bool = True):
    """Opens batches of both streams, or of images with labels alone; refuses what cannot be drawn.

    Raises:
      UserError: no image with labels or none without, or a batch that is not of whole groups.
    """
    source = split.train
    labeled, others = inputs.labeled_split(len(source), config.percent, fold=config.fold)
    if not len(others):
        raise UserError("percent: needs less than 100, some images have to be without labels")
    marked = WithFields(source, labeled=np.isin(np.arange(len(source)), labeled))
    if unlabeled:
        buckets = getattr(source, "buckets", None)
        order = inputs.TwoStreams(labeled, others, ratio=config.unlabeled_ratio, buckets=buckets)
        images, batch_size = marked, config.batch_size
    else:
        images = inputs.Subset(marked, labeled)
        order, batch_size = inputs.bucket_order(images), min(config.start_batch, len(labeled))

    def open_batches():
        return inputs.batches(
            images,
            batch_size=batch_size,
            seed=config.seed,
            augment=config.views,
            shard=(jax.process_index(), jax.process_count()),
            workers=config.workers,
            order=order,
        )

    open_batches()  # reads nothing yet, but refuses what cannot be used
    return open_batches


def check_start(config: Config, detector: FasterRCNN, size: tuple[int, int]) -> None:
    """Raises UserError where `init_from` is a detector of other anchors or classes: it is the first teacher."""
    if config.init_from is None:
        return
    try:
        given = inference.open_detector(config.init_from).detector
    except UserError:
        return  # weights of a trunk; what is nothing at all is refused where it is loaded
    if given.num_classes != detector.num_classes:
        raise UserError(
            f"init_from: needs a teacher of {detector.num_classes} classes, as the data have, got one of {given.num_classes}"
        )
    anchors, wanted = (np.asarray(d.anchors(size)) for d in (given, detector))
    if anchors.shape != wanted.shape or not np.allclose(anchors, wanted):
        raise UserError(
            f"init_from: needs a teacher with the anchors of the student, {len(wanted)} of strides "
            f"{', '.join(map(str, detector.strides))}; it has {len(anchors)} others"
        )


def labels_stage(config: Config, split: inputs.Split, detector: FasterRCNN) -> training.Stage:
    """A start: the student on images with labels alone."""
    plain = detection.detection_stage(
        "start", config, split, detector, steps=config.start_steps, optimizer=config.start_optimizer
    )
    open_batches = streams(config, split, unlabeled=False)
    return dataclasses.replace(plain, batches=lambda state: open_batches())


def lesson_stage(config: Config, split: inputs.Split, detector: FasterRCNN) -> training.Stage:
    """The student on images with labels, and on its teacher's pseudo boxes besides.

    The teacher is the moving average of the student's parameters, from the first step on; it is what is evaluated. The student
    starts from that of the stage before.
    """
    lesson, steps, chosen = Lesson(config, detector), config.steps, config.optimizer
    plain = detection.detection_stage("pseco", config, split, detector)

    def loss_fn(params, extra, batch, rng):
        variables = {"params": params["detector"], **training.statistics(extra)}
        with_labels, without = lesson.split(batch)
        label_key, pseudo_key = jax.random.split(rng)
        trained = detector.training_pass(variables, with_labels, label_key)
        loss, report = trained.loss, {"labeled_loss": trained.loss, **trained.report}
        if config.unlabeled_weight > 0:
            teacher = {**variables, "params": extra["teacher"]["detector"]}
            pseudo, told = lesson.unlabeled(variables, teacher, without, pseudo_key)
            loss += config.unlabeled_weight * pseudo
            report |= {"unlabeled_loss": pseudo, **told}
        return loss, ({**extra, **trained.updated}, report)

    objective = training.Objective(loss_fn, chosen.build(steps, network=("detector", detector.module)))

    def init(rng, previous):
        state = plain.init(rng, None)
        params = state.params if previous is None else previous.params
        return training.create_state(rng, params, objective, extra=state.extra, ema=True)

    open_batches = streams(config, split)
    return dataclasses.replace(
        plain,
        init=init,
        step=training.mean_teacher_step(
            training.gradient_step(objective, accumulate=config.accumulate, frozen=chosen.held),
            partial(losses.teacher_momentum, largest=config.momentum),
        ),
        batches=lambda state: open_batches(),
    )


def assignment_stages(config: Config, split: inputs.Split) -> list[training.Stage]:
    """A dense detector, a smaller one, and what they make of the first one's detections when these are moved."""
    teacher, student = RetinaNet.small(widths=(16, 32, 32)), RetinaNet.small(widths=(4, 8, 8))
    first = detection.detection_stage("teacher", config, split, teacher, steps=config.teacher_steps)
    second = detection.detection_stage("student", config, split, student, steps=config.student_steps)

    def init(rng, previous):
        state = second.init(rng, None)
        guide = {"params": previous.averaged_params["detector"], **training.statistics(previous.extra)}
        return state.replace(extra={**state.extra, "guide": guide})

    noise = training.AssignmentNoise(teacher, student, split.held_out, jitter=config.jitter, seed=config.seed)
    evaluate = training.Evaluations(second.evaluate, noise)
    return [first, dataclasses.replace(second, init=init, evaluate=evaluate)]


def build(config: Config) -> list[training.Stage]:
    """A start on the labels alone, then both; or the two detectors of the measurement."""
    split = detection.load(config)
    if config.task == "assignment":
        return assignment_stages(config, split)
    detector = network(config, len(split.train.class_names))
    check_start(config, detector, split.train.image_shape[:2])
    start = [labels_stage(config, split, detector)] if config.start_steps else []
    return [*start, lesson_stage(config, split, detector)]
