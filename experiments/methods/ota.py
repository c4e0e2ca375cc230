"""OTA: a foundation model adapted and compressed with few images and an upstream generator (arXiv:2111.12386).

    python -m experiments.launch ota --workdir runs/ota       # 110 CPU-seconds: fine-tuned 0.516, its student 0.473
    python -m experiments.launch ota --preset paper --upstream.root … --data.root …   # ImageNet; built, not trained here
    python -m experiments.reproduce ota --seeds 10

Differs from the paper in: only its abstract could be read. The objective of the guided generation, all hyper-parameters and the
protocol on digits are ours (docs/methods/ota.md#choices-of-ours).
"""

import dataclasses
import functools
import math
import warnings
from collections.abc import Generator
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from experiments.recipes import recognition as recipe
from experiments.recipes.heads import HeadSpec
from experiments.recipes.irf import Joined, Mode, Phase, irf_phases
from experiments.recipes.teachers import TeacherSpec, teacher_stage
from experiments.recipes.vqgan import Generator as Upstream
from experiments.recipes.vqgan import VqganSpec, codebook_report, generator_stage
from jaxface import axes, losses, metrics, training
from jaxface import data as inputs
from jaxface.checks import AtLeast, Fraction, NonNegative, Positive
from jaxface.data.pipeline.two_streams import TwoStreams
from jaxface.data.sources.source import InMemory
from jaxface.data.transforms.pixels import normalize_pixels, to_levels
from jaxface.errors import UserError
from jaxface.losses.ota import feature_statistics
from jaxface.models import apply_with_layer, feature_size
from jaxface.training.ota import LEAST_CHANGED, DiggSpec, digg_generate
from jaxface.training.re_representation import (
    ReRepresented,
    decode_codes,
    encode_images,
    re_represent,
    re_represented,
)

STYLE = {"smear": 0.5, "contrast": 0.8, "grain": 0.35}
"""The shift of the digits' downstream style."""
LARGEST_IN_MEMORY = 1 << 28
"""Bytes of the pixels of a set that is read at once."""
_CONSTANT = training.adam(1e-3, schedule="constant")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(recipe.Recipe):
    """Foundation model, generator, two-stage fine-tuning, guided generation, distillation."""

    data: inputs.DataSpec = inputs.StyledDigits(classes=(5, 6, 7, 8, 9), few=inputs.FewData(shots=3), **STYLE)
    """Downstream images, few of them to learn from."""
    upstream: inputs.DataSpec = inputs.StyledDigits(classes=(0, 1, 2, 3, 4), held_out=0.1)
    """What foundation model and generator are trained on; no downstream class may be among its classes."""
    unrelated: inputs.DataSpec = inputs.ProceduralImages(identities=75, held_out_identities=2)
    """What the generator of a control is trained on."""
    augment: inputs.Augment = inputs.Augment(flip=0.0)
    """Random changes of all training images; R sees images as they are."""
    image_size: Annotated[int, AtLeast(8)] = 8
    """Side of the images, pixels, of data that have no size of their own."""
    foundation: TeacherSpec = TeacherSpec(
        backbone="mlp_256x128",
        embedding=None,
        head=HeadSpec(loss="linear"),
        optimizer=_CONSTANT,
        steps=600,
    )
    """The foundation model: trained first on the upstream images, or a finished run."""
    perceptual_layers: tuple[str, ...] = ("hidden1",)
    """Its layers in whose features the generator's reconstructions are compared."""
    generator: VqganSpec = VqganSpec()
    """The generator: trained on the upstream images and no others, or that of a finished run."""
    represent_with: Literal["upstream", "unrelated", "untrained"] = "upstream"
    """Which generator says images again; the other two are controls."""
    first_stage: Literal["re_represented", "blurred"] = "re_represented"
    """What stands in for R(x): R(x), or x blurred until it is as far from x, a control."""
    cache: str | None = None
    """Folder for the images that are said again, so that another run finds them; they stay in memory unless given."""
    mode: Mode = "two_stage"
    """How the foundation model is fine-tuned."""
    share: Annotated[float, Fraction] = 0.5
    """Share of its steps in the first of two stages; 0 is `direct`."""
    task_steps: Annotated[int, AtLeast(0)] = 400
    """Steps of the fine-tuning, both stages together."""
    task_batch_size: Annotated[int, AtLeast(1)] = 15
    """Images per step of it over all devices."""
    task_optimizer: training.Optimizer = training.adam(3e-3, schedule="constant")
    """Its optimizer, fresh in every stage, whose schedule it goes through; --task-optimizer.frozen backbone is a linear probe."""
    images: Literal["digg", "random", "noise", "re_represented", "real"] = "digg"
    """What the student learns from beside the real images: guided generation; codes drawn at random; real ones with noise; R of
    real ones; real ones."""
    generated: Annotated[int, AtLeast(0)] = 500
    """How many of them are made."""
    chunk: Annotated[int, AtLeast(2)] = 100
    """Images that are generated at a time, over all devices, whose statistics guide them; rounded up to a number they divide."""
    digg: DiggSpec = DiggSpec()
    """The guided generation."""
    pixel_noise: Annotated[float, NonNegative] = 0.2
    """Standard deviation of the noise of `noise`, where white is 1."""
    distill: bool = True
    """Whether a student is trained; the run ends with the fine-tuned model otherwise."""
    backbone: str = "mlp_32"
    """The network that is deployed."""
    embedding: None = None
    """It ends in a linear classifier."""
    temperature: Annotated[float, Positive] = 2.0
    """τ of the distillation."""
    feature_weight: Annotated[float, NonNegative] = 0.0
    """Weight of the distance between its features, through a linear layer, and the teacher's; both of unit length."""
    label_weight: Annotated[float, NonNegative] = 0.0
    """Weight of the cross-entropy on real images."""
    optimizer: training.Optimizer = _CONSTANT
    """Optimizer of the student."""
    batch_size: Annotated[int, AtLeast(2)] = 32
    """Images per step of foundation model and student over all devices; half of the student's are real."""
    steps: Annotated[int, AtLeast(0)] = 600
    """Steps of the student."""

    @classmethod
    def paper(cls) -> "Config":
        """ResNet-50 on ImageNet, the generator of the VQ-GAN's release, 10 % of a downstream set, ResNet-18 deployed.

        The paper's own recipe could not be read: the fine-tuning is the linear-probe schedule of the benchmark's repository (SGD
        0.01, 10,000 iterations, drops at 3, 6, 9 thousand), halved between the two stages, the backbone at a tenth of the rate.
        """
        return cls(
            data=inputs.ClassFolders(root="downstream", few=inputs.FewData(fraction=0.1)),
            upstream=inputs.ClassFolders(root="imagenet"),
            unrelated=inputs.RenderedFaces(),
            augment=inputs.Augment(flip=0.5, crop=1.0),
            image_size=224,
            foundation=TeacherSpec(
                backbone="resnet50",
                embedding=None,
                head=HeadSpec(loss="linear"),
                optimizer=training.sgd(0.1, decay_at=(30 / 90, 60 / 90, 80 / 90), weight_decay=1e-4),
                steps=90 * 1_281_167 // 256,
            ),
            perceptual_layers=("stage1_block3", "stage2_block4", "stage3_block6"),
            generator=VqganSpec.imagenet(),
            task_steps=10_000,
            task_batch_size=64,
            task_optimizer=training.sgd(
                0.01, decay_at=(0.3, 0.6, 0.9), weight_decay=1e-3, rates=("backbone=0.1",)
            ),
            generated=20 * 5_000,
            chunk=64,
            backbone="resnet18",
            optimizer=training.sgd(0.1, schedule="cosine", weight_decay=5e-4),
            batch_size=256,
            steps=20_000,
            workers=16,
        )


def network(config: Config):
    """The network that is deployed."""
    return recipe.network(config)


def in_memory(source: inputs.Source) -> inputs.Source:
    """The source, all read at once where it is small: few images are seen again and again."""
    return InMemory(source) if len(source) * math.prod(source.image_shape) < LARGEST_IN_MEMORY else source


def pixels(source: inputs.Source) -> np.ndarray:
    """[N, H, W, C] uint8, the images of few records."""
    return np.stack([np.asarray(source[i]["image"]) for i in range(len(source))])


def blurred(source: inputs.Source, like: inputs.Source) -> inputs.Source:
    """Images of `source` under the one Gaussian blur that leaves them as far from it, on average, as those of `like` are."""
    images, said = (pixels(x).astype(np.float32) for x in (source, like))
    target, low, high = np.abs(said - images).mean(), 0.0, 16.0
    for _ in range(24):
        middle = (low + high) / 2
        made = scipy.ndimage.gaussian_filter(images, (0, middle, middle, 0))
        low, high = (middle, high) if np.abs(made - images).mean() < target else (low, middle)
    return ReRepresented(source, [np.rint(made).astype(np.uint8)])


class Adaptation:
    """What the stages share: the data, the foundation model, and the task model that it becomes."""

    def __init__(self, config: Config):
        self.config = config
        self.split = recipe.load(config)
        upstream = recipe.load(dataclasses.replace(config, data=config.upstream))
        for name, split in (("data", self.split), ("upstream", upstream)):
            if split.protocol != "classification":
                raise UserError(
                    f"{name}: needs classes to be told apart, {split.name} is for {split.protocol}"
                )
        self.train, self.classes = self.split.train, len(self.split.train.class_names)
        self.image_shape = self.train.image_shape
        if upstream.train.image_shape != self.image_shape:
            raise UserError(
                f"upstream: needs images of {self.image_shape}, as data has, got {upstream.train.image_shape}"
            )
        config.generator.check()

        # The foundation model knows upstream classes and no others.
        self.foundation_stage, self.foundation = teacher_stage(config, config.foundation, upstream)
        self.foundation_stage = dataclasses.replace(self.foundation_stage, name="foundation")

        # So does the generator, which is what is released of the upstream data.
        self.upstream = upstream.train
        self.generator_stage, self.generator = generator_stage(
            config,
            config.generator,
            self.upstream,
            perceptual=self.features if config.perceptual_layers else None,
            carry=lambda previous: self.foundation.installed({}, previous),
        )
        argument = "upstream" if config.generator.run is None else "generator.run"
        inputs.check_unseen_classes(self.generator.description, self.train.class_names, argument=argument)
        self.control_stage, self.control = self._control()
        self.model = (self.control or self.generator).model

        # The task model: the foundation model with a linear head for the downstream classes.
        self.task_recipe = dataclasses.replace(
            config,
            backbone=config.foundation.backbone,
            init_from=None,
            optimizer=config.task_optimizer,
            batch_size=recipe.filled_batch_size(self.train, config.task_batch_size),
            steps=config.task_steps,
        )
        self.task = recipe.Recognition(
            self.task_recipe, self.foundation.model, self.classes, self.image_shape, losses.Linear()
        )
        self.judged = training.NearestPrototype(self.foundation.model, self.split.held_out)
        self.teacher = training.Teacher(self.foundation.model)

    def features(self, extra, images: jax.Array) -> list[jax.Array]:
        """The foundation model's features, in which reconstructions are compared."""
        variables = training.network_variables(extra["teacher"]["params"], extra["teacher"])
        return [
            apply_with_layer(self.foundation.model, variables, images, layer=layer)[1]
            for layer in self.config.perceptual_layers
        ]

    def _control(self) -> tuple[training.Stage, Upstream] | tuple[None, None]:
        """Another generator in place of the upstream one: of unrelated images, or untrained."""
        if self.config.represent_with == "upstream":
            return None, None
        config, spec, source = (
            self.config,
            dataclasses.replace(self.config.generator, run=None),
            self.upstream,
        )
        if config.represent_with == "unrelated":
            source = recipe.load(dataclasses.replace(config, data=config.unrelated)).train
            if source.image_shape != self.image_shape:
                raise UserError(
                    f"unrelated: needs images of {self.image_shape}, as data has, got {source.image_shape}"
                )
        else:
            spec = dataclasses.replace(spec, steps=0)
        return generator_stage(
            config,
            spec,
            source,
            name="control_generator",
            perceptual=self.features if config.perceptual_layers else None,
            carry=lambda previous: {"teacher": previous.extra["teacher"]},
        )

    # Image re-representation: R of the few images, and what R leaves of the classes.

    def said_again(self, generator) -> inputs.Source:
        """R of the downstream training images, or the control that stands in for it."""
        made = re_represented(self.model, generator, self.train, folder=self.config.cache)
        return blurred(self.train, made) if self.config.first_stage == "blurred" else made

    def representation_stage(self, name: str, generator: Upstream) -> training.Stage:
        """No step: how many codes the downstream images use, and what the foundation model still tells of them."""

        def evaluate(state):
            model, params = generator.model, state.params["generator"]
            held_out = inputs.Subset(self.split.held_out, np.arange(min(1000, len(self.split.held_out))))
            report = codebook_report(model, params, held_out, "downstream")
            frozen = state.extra["teacher"]
            parts = {
                "original": (self.train, held_out),
                "re_represented": tuple(
                    re_represented(model, params, part) for part in (self.train, held_out)
                ),
            }
            for name, (train, test) in parts.items():
                known, asked = (self.foundation.embed({"teacher": frozen}, part) for part in (train, test))
                means = inputs.class_means(known, train.labels, self.classes)
                right = metrics.nearest_prototype(asked, means) == test.labels
                report[f"probe/{name}"] = float(right.mean())
            return report

        def init(rng, previous):
            params = {"generator": previous.params["generator"]}
            return training.create_state(rng, params, extra={"teacher": previous.extra["teacher"]})

        return training.Stage(name, init=init, evaluate=evaluate)

    # IRF: from the foundation model with a new head, on R(x) and then on x.

    def task_stage(self, phase: Phase, *, first: bool) -> training.Stage:
        """A phase of the fine-tuning."""
        task, optimizer = self.task, self.task_recipe.optimizer

        def loss_fn(params, extra, batch, rng):
            embeddings, extra = task.recognizer.train_embeddings(params, extra, batch["image"], rng)
            classification = task.classify(params, embeddings, batch["label"], rng)
            return classification.loss, (extra, classification.report())

        objective = training.Objective(loss_fn, task.optimizer(optimizer, phase.steps))

        def init(rng, previous):
            params, extra = previous.params, previous.extra
            if first:
                params, _ = task.init(rng)
                frozen = previous.extra["teacher"]
                params["backbone"] = frozen["params"]
                extra = {**training.statistics(frozen), "generator": previous.params["generator"]}
            return task.create_state(rng, params, objective, extra=extra)  # a fresh optimizer

        open_batches = recipe.training_batches(self.task_recipe, in_memory(phase.source))
        return training.Stage(
            name=phase.name,
            description=task.description,
            init=init,
            step=task.step(objective, optimizer=optimizer),
            steps=phase.steps,
            batches=lambda state: training.batches_from(open_batches(), phase.before),
            evaluate=self.judged,
            key="task",
        )

    # DIGG: images for the distillation, near the few and like them to the task model.

    def asked(self, extra, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features and class scores of the task model; a constant, but for the images, which learn from its gradient."""
        known = extra[self.teacher.key]
        features = self.teacher.model.apply(
            training.network_variables(known["params"], known), images, train=False
        )
        return features, training.class_scores(known, features, self.classes)

    def images_stage(self, fine_tuned: training.TrainState) -> training.Stage:
        """A chunk of images in every step, which the state holds."""
        config, model = self.config, self.model
        extra = self.teacher.installed({}, fine_tuned)
        statistics = feature_statistics(jnp.asarray(self.teacher.embed(extra, self.train)))
        chunk = -(-config.chunk // jax.device_count()) * jax.device_count()
        count = -(-config.generated // chunk)
        likely = None
        if config.images == "random":
            likely = self.code_frequencies(fine_tuned.extra["generator"])

        def make(extra, batch, key):
            guides, generator = batch["image"], extra["generator"]
            height, width = guides.shape[1:3]
            unchanged = jnp.zeros(())
            if config.images == "digg":
                order, key = jax.random.split(key)
                order = jax.random.permutation(order, len(guides))
                made = digg_generate(
                    model,
                    generator,
                    functools.partial(self.asked, extra),
                    guides,
                    guides[order],
                    batch["label"] == batch["label"][order],
                    extra["statistics"],
                    key,
                    config.digg,
                )
                return made.images, made.changed
            if config.images == "random":
                index = jax.random.categorical(key, likely, shape=(len(guides), *likely.shape[:-1]))
                codes = generator["quantizer"]["codebook"][index]
                return decode_codes(model, generator, codes, height, width), unchanged
            if config.images == "noise":
                noise = 2 * config.pixel_noise * jax.random.normal(key, guides.shape)
                return jnp.clip(guides + noise, -1, 1), unchanged
            return (
                re_represent(model, generator, guides) if config.images == "re_represented" else guides
            ), unchanged

        def step(state, batch):
            key = jax.random.fold_in(state.rng, state.step)
            if axes.bound(axes.DATA):
                key = jax.random.fold_in(key, jax.lax.axis_index(axes.DATA))
            made, changed = make(state.extra, batch, key)
            if axes.bound(axes.DATA):
                made = jax.lax.all_gather(made, axes.DATA, tiled=True)
            levels = jnp.round(to_levels(made)).astype(jnp.uint8)
            images = jax.lax.dynamic_update_slice_in_dim(
                state.extra["images"], levels, state.step * chunk, axis=0
            )
            changed = axes.mean(changed)
            extra = {**state.extra, "images": images, "changed": state.extra["changed"] + changed / count}
            return state.replace(step=state.step + 1, extra=extra), {"changed_sites": changed}

        def init(rng, previous):
            extra = self.teacher.installed({"generator": previous.extra["generator"]}, previous)
            extra["statistics"] = statistics
            extra["changed"] = jnp.zeros(())
            extra["images"] = jnp.zeros((count * chunk, *self.image_shape), jnp.uint8)
            return training.create_state(rng, {}, extra=extra)

        def evaluate(state):
            changed = float(state.extra["changed"])
            if config.images == "digg" and config.digg.steps and changed < LEAST_CHANGED:
                warnings.warn(
                    f"digg: {changed:.2%} of the codes changed in {config.digg.steps} steps, the images are what the mixed "
                    "latents give; raise digg.reach",
                    stacklevel=2,
                )
            return {"changed_sites": changed}

        # Guides are drawn from the few images as often as there are images to make.
        rows = np.tile(np.arange(len(self.train)), -(-chunk // len(self.train)))
        open_batches = recipe.training_batches(
            config, inputs.Subset(self.train, rows), batch_size=chunk, augment=inputs.Augment(flip=0.0)
        )
        return training.Stage(
            "images",
            init=init,
            step=step,
            steps=count,
            batches=lambda state: open_batches(),
            evaluate=evaluate,
        )

    def code_frequencies(self, generator) -> jax.Array:
        """[h, w, K] log-frequencies of the codes at every site of upstream images, one image more than there is of each code."""
        model, rows = self.model, np.linspace(0, len(self.upstream) - 1, 1024).astype(int)

        @jax.jit
        def index_of(params, batch):
            latents = encode_images(model, params, normalize_pixels(batch["image"]))
            return model.apply({"params": params}, latents, method="quantize").index

        sample = inputs.Subset(self.upstream, np.unique(rows))
        index = training.map_source(index_of, sample, generator)
        counts = (index[..., None] == np.arange(model.codes)).sum(axis=0)
        return jnp.log((counts + 1.0 / model.codes) / (len(sample) + 1.0))

    # Distillation: the deployed network, on real images and on those.

    def student_stage(self, images: np.ndarray) -> training.Stage:
        """The student, on batches half of which are real."""
        config, model = self.config, network(self.config)
        student = recipe.Recognition(config, model, self.classes, self.image_shape, losses.Linear())
        real = inputs.WithFields(self.train, real=np.ones(len(self.train), bool))
        made = inputs.ArraySource(images, np.zeros(len(images), np.int32), self.train.class_names)
        both = Joined(real, inputs.WithFields(made, real=np.zeros(len(images), bool)))
        order = TwoStreams(np.arange(len(real)), np.arange(len(real), len(both)), ratio=1)

        def loss_fn(params, extra, batch, rng):
            features, scores = self.asked(extra, batch["image"])
            embeddings, extra = student.recognizer.train_embeddings(params, extra, batch["image"], rng)
            own = training.class_scores(params, embeddings, self.classes)
            loss = losses.soft_target_loss(own, scores, temperature=config.temperature).mean()
            reported = {"distillation_loss": loss}
            if config.feature_weight:
                mapped = embeddings @ params["regressor"]
                reported["feature_loss"] = losses.mimic_loss(mapped, features, unit=True).mean()
                loss += config.feature_weight * reported["feature_loss"]
            if config.label_weight:
                labels = jnp.where(batch["real"], losses.cross_entropy(own, batch["label"]), 0.0)
                reported["label_loss"] = labels.sum() / jnp.maximum(batch["real"].sum(), 1)
                loss += config.label_weight * reported["label_loss"]
            return loss, (extra, reported)

        parts = ("regressor",) if config.feature_weight else ()
        objective = training.Objective(loss_fn, student.optimizer(parts=parts))

        def init(rng, previous):
            params, extra = student.init(rng)
            if config.feature_weight:
                sizes = [feature_size(net, self.image_shape) for net in (model, self.teacher.model)]
                params["regressor"] = jax.nn.initializers.lecun_normal()(jax.random.fold_in(rng, 1), sizes)
            extra["teacher"] = previous.extra["teacher"]
            return student.create_state(rng, params, objective, extra=extra)

        open_batches = recipe.training_batches(config, in_memory(both), order=order)
        return training.Stage(
            name="student",
            description=student.description,
            init=init,
            step=student.step(objective),
            steps=config.steps,
            batches=lambda state: open_batches(),
            evaluate=training.NearestPrototype(model, self.split.held_out),
            best="classification/accuracy",
        )


def build(config: Config) -> Generator[training.Stage, training.Outcome, None]:
    """Foundation model, generator, what it says of the few images, fine-tuning in one or two stages, images, student."""
    _check(config)
    adaptation = Adaptation(config)

    def stages():
        yield adaptation.foundation_stage
        yield adaptation.generator_stage
        outcome = yield adaptation.representation_stage("representation", adaptation.generator)
        if adaptation.control is not None:
            yield adaptation.control_stage
            outcome = yield adaptation.representation_stage("control_representation", adaptation.control)
        said_again = None
        if config.mode not in ("direct", "restart"):
            said_again = adaptation.said_again(outcome.state.params["generator"])
        phases = irf_phases(config.mode, config.task_steps, config.share, adaptation.train, said_again)
        for number, phase in enumerate(phases):
            outcome = yield adaptation.task_stage(phase, first=number == 0)
        if not config.distill:
            return
        outcome = yield adaptation.images_stage(outcome.state)
        yield adaptation.student_stage(np.asarray(outcome.state.extra["images"])[: config.generated])

    return stages()


def _check(config: Config) -> None:
    """Refuses what cannot be before any data is opened."""
    recipe.check_no_packs(config, "a classifier tells no pairs")
    if config.distill and config.generated < 1:
        raise UserError(
            "generated: needs at least 1 image, got 0; --no-distill ends the run with the fine-tuned model"
        )
    if config.init_from is not None and not config.distill:
        raise UserError("init_from: needs a student that the run trains; with --no-distill there is none")
    if config.distill and config.batch_size % 2:
        raise UserError(
            f"batch_size: needs an even number, half of the images are real, got {config.batch_size}"
        )
