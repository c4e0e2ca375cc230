"""IDA: pair scores corrected by how crowded the neighborhoods of both faces are, after training (arXiv:2103.01559).

    python -m experiments.launch ida --preset crowded --workdir runs/ida   # seconds: TAR at FAR 1e-3 0.758 ± 0.007, cosine 0.555
    python -m experiments.launch ida --workdir runs/faces                  # minutes: a network, a generator, an estimator
    python -m experiments.launch ida --preset paper --data.path …          # iResNet-100 on MS1MV2; built and typed, not run here

Differs from the paper in: the formulas of support sets, correction and estimator are our reading of its abstract, and the
generator is a compact GAN trained on the spot (docs/methods/ida.md).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recipes import gan
from experiments.recipes import recognition as recipe
from experiments.recipes.gan import GanSpec
from experiments.recipes.heads import HeadSpec
from experiments.recipes.recognition import Recipe
from experiments.recipes.teachers import TeacherSpec, teacher_stage
from jaxface import data as inputs
from jaxface import losses, metrics, models, training
from jaxface.checks import AtLeast, Cosine, NonNegative
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.layers import FeatureMapLIDEstimator, LIDEstimator
from jaxface.layers.prototypes import l2_normalize
from jaxface.models.generative.gan import doublings
from jaxface.training.evaluations.aligned_verification import AlignedVerification, SupportSets

Score = Literal["cosine", "gallery", "generated", "simulated", "learned", "snorm", "oracle"]


@dataclasses.dataclass(frozen=True)
class EstimatorSpec:
    """The network that tells the local discrepancy from the embedding alone."""

    neighbors: Literal["images", "centers"] = "images"
    """What the targets are the nearest of: images of the other people, as at test time, or the centers of their classes; a
    center has no noise, so that those targets are larger and correct too much."""
    layer: str | None = None
    """Part of the network whose feature map it looks at, such as stage3_block1; the embedding unless given."""
    hidden: Annotated[int | None, AtLeast(1)] = None
    """Units of its hidden layer; 256 on an embedding and 128 on a feature map unless given."""
    steps: Annotated[int, AtLeast(0)] = 400
    """Training steps; 0 leaves it at the mean of the targets."""
    batch_size: Annotated[int, AtLeast(1)] = 512
    """Embeddings or images per step; no more than there are."""
    optimizer: training.Optimizer = training.adam(1e-3)
    """Its optimizer."""


@dataclasses.dataclass(frozen=True)
class Config(Recipe):
    """A network trained as usual, a generator and an estimator; every way to estimate support sets is reported."""

    head: HeadSpec = HeadSpec()
    """Loss that the network is trained with."""
    run: str | None = None
    """Work directory of a finished run whose network is used instead of training one."""
    crowd: inputs.Crowd | None = None
    """Synthetic embeddings instead of data and a network (the preset `crowded`)."""
    embeddings: str | None = None
    """A .npz of embeddings instead of data and a network: embeddings [N, D] and labels [N] to verify, gallery [T, D] and
    gallery_labels [T] of other people, and if known groups [N] and virtual candidates [M, D]. Rows of unit length."""
    score: Score = "generated"
    """Score that is reported as `verification`: the cosine; aligned by a gallery (the training people), by generated or
    simulated faces, by the learned estimator or by labeled neighbors (oracle); or s-norm with the virtual faces."""
    neighbors: Annotated[int, AtLeast(1)] = 50
    """Size K of a support set, or its largest one where there is a cap."""
    cap: Annotated[float | None, Cosine] = None
    """Cosine of the cap inside which candidates are neighbors, instead of a fixed number of them."""
    fewest: Annotated[int, AtLeast(1)] = 10
    """With a cap: neighbors that are taken where fewer are inside."""
    weight: Annotated[float, NonNegative] = 1.0
    """Weight λ of the correction; 0 is the cosine."""
    candidates: Annotated[int, AtLeast(1)] = 3000
    """Virtual faces M that are generated, and simulated."""
    gallery: Annotated[int, AtLeast(2)] = 100_000
    """Most images of training people in the gallery, from which the estimator learns too."""
    same_above: Annotated[float | None, Cosine] = None
    """Similarity above which a virtual face may be the person on an image and does not count for it; none by default."""
    duplicates_above: Annotated[float, Cosine] = 0.95
    """Similarity with an earlier one above which a virtual face is dropped; 1 keeps all."""
    gan: GanSpec = GanSpec()
    """The generator."""
    estimator: EstimatorSpec = EstimatorSpec()
    """The estimator."""

    @classmethod
    def paper(cls) -> "Config":
        """iResNet-100 on MS1MV2; the task is IJB-C, whose published baseline is 94.27 TAR at FAR 1e-5. Plug in a face GAN."""
        return cls(
            data=inputs.RecordIO(path="faces_emore"),
            image_size=112,
            backbone="iresnet100",
            embedding=512,
            bfloat16=True,
            head=HeadSpec(scale=64.0, margin=0.5),
            batch_size=512,
            steps=180_000,
            optimizer=training.Optimizer(decay_at=(100 / 180, 160 / 180), clip_norm=5.0),
            workers=8,
            candidates=10_000,
            same_above=0.6,
            duplicates_above=0.8,
            gan=GanSpec(steps=100_000, batch_size=64, latent=256, channels=32, ema_decay=0.999),
            estimator=EstimatorSpec(neighbors="centers", steps=2_000),
        )

    @classmethod
    def crowded(cls) -> "Config":
        """Synthetic embeddings in crowded groups: everything but the training of a network, in seconds."""
        return cls(
            crowd=inputs.Crowd(),
            augment=inputs.Augment(flip=0.0),
            score="simulated",
            duplicates_above=1.0,
            gan=GanSpec(steps=1000, batch_size=128, latent=32, channels=32, penalty=0.1),
        )


def network(config: Config):
    """The embedding network."""
    return recipe.network(config)


def build(
    config: Config,
    *,
    generator: gan.Generate | None = None,
    detector: Callable[[jax.Array], jax.Array] | None = None,
) -> list[training.Stage]:
    """Up to four stages: a network, a generator, an estimator, and all scores side by side.

    Args:
      config: the configuration.
      generator: a pretrained one to use instead of training one: latents [B, gan.latent] float32 from a standard normal
        distribution -> faces [B, H, W, C] float in [-1, 1], aligned and sized as those of the run.
      detector: faces [B, H, W, C] float -> detection scores [B]; generated faces below 0.9 are dropped. All count unless given.
    """
    _check(config)
    ida = _Ida(config, generator, detector)
    stages = []
    # The embedding, trained as usual or that of a finished run; none where the data are embeddings.
    if ida.frozen is not None:
        stages.append(ida.recognition_stage)
    # Virtual faces: a generator of people who do not exist.
    if ida.trains_generator:
        stages.append(
            gan.gan_stage(config, config.gan, ida.split.train, augment=ida.augment, carry=ida.installed)
        )
    # The learnable estimation of the local discrepancy.
    stages.append(_estimator_stage(ida))
    # The alignment: every score on people whom nothing was learned from.
    return [*stages, _alignment_stage(ida)]


def _check(config: Config) -> None:
    """Refuses numbers out of their range before any data is opened."""
    if config.cap is not None and config.fewest > config.neighbors:
        raise UserError(f"fewest: needs at most the {config.neighbors} neighbors, got {config.fewest}")
    config.gan.check()
    given = [name for name in ("run", "crowd", "embeddings") if getattr(config, name) is not None]
    if len(given) > 1:
        raise UserError(f"{given[0]}: needs to be the only source of embeddings, got {' and '.join(given)}")
    if given and given[0] != "run" and config.estimator.layer is not None:
        raise UserError(f"estimator.layer: needs a network, {given[0]} has none")


class _Ida:
    """What the stages share: the people, the frozen embedding, and where the candidates of support sets come from."""

    def __init__(self, config: Config, generator: gan.Generate | None, detector):
        file = None if config.embeddings is None else inputs.EmbeddingFile(config.embeddings)
        spec = config.crowd or file or config.data
        self.config, self.generator, self.detector = config, generator, detector
        self.split = recipe.load(dataclasses.replace(config, data=spec))
        if self.split.protocol != "verification":
            raise UserError(f"data: needs people to verify who are not trained on, got {self.split.name}")
        # The training people are the gallery, and those to verify have pairs of their own.
        every = -(-len(self.split.train) // config.gallery)
        rows = np.arange(0, len(self.split.train), every)
        self.gallery = self.split.train if every == 1 else inputs.Subset(self.split.train, rows)
        self.frozen = None
        if spec is config.data:
            self._open_network()
        self.shape = self.split.train.image_shape
        self.trains_generator = generator is None and config.gan.steps > 0
        if self.trains_generator:
            doublings(self.shape)  # refuses sizes that it cannot make
        # Mirror images only of what has them; the network embeds everything the same way.
        self.flip = self.frozen is not None and config.augment.flip > 0
        self.augment = inputs.Augment(flip=config.augment.flip if self.flip else 0.0)
        self.simulated = spec.simulated(
            config.candidates, image_size=config.image_size, seed=config.data_seed
        )
        self._of_gallery: tuple = (None, None)
        self._check_score()

    def _open_network(self) -> None:
        config = self.config
        if config.run is None:
            model = network(config)
            self.recognition_stage = recipe.recognition_stage(
                "recognition", config, self.split, model, config.head.build()
            )
        else:
            stage, teacher = teacher_stage(config, TeacherSpec(run=config.run), self.split)
            model = teacher.model
            self.recognition_stage = dataclasses.replace(stage, name="recognition")
        self.frozen = training.Teacher(model)
        layer = config.estimator.layer
        if layer is not None:
            layers = models.layer_shapes(model, self.split.train.image_shape)
            maps = [name for name, shape in layers.items() if len(shape) == 3]
            if layer not in maps:
                raise UserError(f"estimator.layer: needs one of {', '.join(maps)}, got {layer!r}")
            if math.prod(layers[layer][:2]) * self.estimator_batch_size < 2:
                raise UserError(
                    f"estimator.batch_size: needs at least 2 for the batch normalization of {layer}, got 1"
                )

    @property
    def estimator_batch_size(self) -> int:
        """The largest one that there are records for and that divides over devices and processes."""
        wanted, replicas = self.config.estimator.batch_size, jax.device_count()
        return min(wanted, len(self.gallery)) // replicas * replicas or wanted

    def _check_score(self) -> None:
        """Refuses to report what cannot be had."""
        score, generates = self.config.score, self.trains_generator or self.generator is not None
        if score == "generated" and not generates:
            raise UserError("score: generated faces need a generator, gan.steps is 0")
        if score == "simulated" and self.simulated is None:
            raise UserError(f"score: simulated faces need a renderer, {self.split.name} has none")
        if score == "snorm" and not generates and self.simulated is None:
            raise UserError("score: snorm needs virtual faces, gan.steps is 0")
        if score == "oracle" and hasattr(self.split.held_out, "pairs"):
            raise UserError(f"score: an oracle needs to know who is who, {self.split.name} has pairs alone")
        others = len(self.split.train.class_names) - 1
        if self.config.estimator.neighbors == "centers" and others < 1:
            raise UserError(f"data: needs at least two people to learn from, got {others + 1}")

    def installed(self, state: training.TrainState) -> dict:
        """`extra` of a stage after `state`, the end of the first stage: the network, frozen."""
        return {} if self.frozen is None else self.frozen.installed({}, state)

    def embed(self, extra: dict, source: inputs.Source) -> np.ndarray:
        """Unit embeddings [N, D] of a source, all by the same network in the same state."""
        rows = source.vectors if self.frozen is None else self.frozen.embed(extra, source, flip=self.flip)
        return np.asarray(l2_normalize(jnp.asarray(rows, jnp.float32)))

    def gallery_embeddings(self, extra: dict) -> np.ndarray:
        """`embed` of the gallery, a function of `extra` that two stages ask for; remembered for the same network."""
        leaves = jax.tree.leaves(extra.get("teacher", {}))
        key = tuple(float(np.asarray(leaf, np.float64).sum()) for leaf in leaves)
        if self._of_gallery[0] != key:
            self._of_gallery = (key, self.embed(extra, self.gallery))
        return self._of_gallery[1]

    def discrepancy(self, rows, candidates, **others) -> metrics.Discrepancy:
        """d(x) of unit embeddings among candidates: the K nearest, or those inside a cap."""
        config = self.config
        k = min(config.neighbors, len(candidates))
        if config.cap is None:
            return metrics.local_discrepancy(rows, candidates, k=k, **others)
        k_min = min(config.fewest, k)
        return metrics.local_discrepancy_cap(rows, candidates, config.cap, k_min=k_min, k_max=k, **others)

    def support(self, state: training.TrainState, rows: np.ndarray) -> SupportSets:
        """Local discrepancies of the people to verify, with unit embeddings [N, D], by every kind of support set."""
        held_out, extra = self.split.held_out, _extra(state)
        gallery = self.discrepancy(rows, self.gallery_embeddings(extra))
        generated = simulated = oracle = distinct = None
        if self.generator is not None or self.trains_generator:
            faces, count = self._generated(state)
            generated, distinct = self._virtual("generated", rows, faces), len(faces) / count
        if self.simulated is not None:
            simulated = self._virtual("simulated", rows, self.embed(extra, self.simulated))
        estimate = self._estimate(state, rows)
        learned = metrics.Discrepancy(estimate, np.zeros_like(estimate), np.ones(len(rows), np.int32))
        if not hasattr(held_out, "pairs"):
            labels = held_out.labels
            oracle = self.discrepancy(rows, rows, labels=labels, candidate_labels=labels)
        return SupportSets(gallery, generated, simulated, learned, oracle, distinct)

    def _virtual(self, name: str, rows: np.ndarray, candidates: np.ndarray) -> metrics.Discrepancy:
        limit = self.config.same_above
        discrepancy = self.discrepancy(rows, candidates, same_above=limit)
        empty = int((np.asarray(discrepancy.count) == 0).sum())
        if empty:
            raise UserError(
                f"same_above: leaves {empty} of {len(rows)} images without a {name} neighbor, got {limit}"
            )
        return discrepancy

    def _generated(self, state: training.TrainState) -> tuple[np.ndarray, int]:
        """(unit embeddings [M', D] of the generated faces that pass the filters, how many were made)."""
        config = self.config
        generate = self.generator or gan.trained_generator(
            config.gan, self.shape, state.params.get("generator")
        )
        faces = gan.generated_faces(
            generate, config.candidates, latent=config.gan.latent, image_shape=self.shape, seed=config.seed
        )
        return gan.virtual_embeddings(
            faces,
            functools.partial(self.embed, _extra(state)),
            vectors=self.frozen is None,
            detector=self.detector,
            duplicates_above=config.duplicates_above,
        )

    def estimator(self, initial: float = 0.0) -> LIDEstimator | FeatureMapLIDEstimator:
        """The estimator's module, whose output starts at a value."""
        settings = self.config.estimator
        kind = LIDEstimator if settings.layer is None else FeatureMapLIDEstimator
        width = {} if settings.hidden is None else {"hidden": settings.hidden}
        return kind(initial=initial, **width)

    def features(self, extra: dict, images: jax.Array) -> jax.Array:
        """What the estimator sees of images: a feature map, or the embeddings that they are."""
        layer = self.config.estimator.layer
        return images.reshape(len(images), -1) if layer is None else self.frozen.layer(extra, images, layer)

    def targets(self, extra: dict) -> np.ndarray:
        """d*(x) [T] of the gallery among its own other people."""
        rows, labels = self.gallery_embeddings(extra), self.gallery.labels
        if self.config.estimator.neighbors == "images":
            return np.asarray(self.discrepancy(rows, rows, labels=labels, candidate_labels=labels).mean)
        present, labels = np.unique(labels, return_inverse=True)
        centers = inputs.class_means(rows, labels, len(present))
        k = min(self.config.neighbors, len(present) - 1)
        return np.asarray(losses.lid_targets(rows, labels, centers, k=k))

    def _estimate(self, state: training.TrainState, rows: np.ndarray) -> np.ndarray:
        """h(x) [N] of the people to verify, with unit embeddings [N, D]; with mirror images where these are embedded."""
        variables = {"params": state.params["estimator"], **state.extra["estimator"]}
        estimator, extra = self.estimator(), _extra(state)
        if self.config.estimator.layer is None:
            return np.asarray(estimator.apply(variables, jnp.asarray(rows)))

        @jax.jit
        def estimate(arrays, batch):
            (variables, extra), images = arrays, normalize_pixels(batch["image"])
            views = (images, images[:, :, ::-1]) if self.flip else (images,)
            return sum(estimator.apply(variables, self.features(extra, view)) for view in views) / len(views)

        return training.map_source(estimate, self.split.held_out, (variables, extra))


def _extra(state: training.TrainState) -> dict:
    """`extra` with the frozen network, also of the last stage, where it is the network of the run."""
    if "backbone" not in state.params:
        return state.extra
    return {**state.extra, "teacher": training.network_variables(state.params["backbone"], state.extra)}


def _estimator_stage(ida: _Ida) -> training.Stage:
    """Regression of d* on the gallery; the network is frozen, so that targets are computed once."""
    config, settings = ida.config, ida.config.estimator

    # Loss: the squared error of h(x), whose last layer starts at the mean of the targets.
    def loss_fn(params, extra, batch, rng):
        variables, seen = (
            {"params": params["estimator"], **extra["estimator"]},
            ida.features(extra, batch["image"]),
        )
        if settings.layer is None:
            estimate, updated = ida.estimator().apply(variables, seen), {}
        else:
            estimate, updated = ida.estimator().apply(variables, seen, train=True, mutable=["batch_stats"])
        loss = losses.lid_regression_loss(estimate, batch["target"]).mean()
        return loss, ({**extra, "estimator": dict(updated)}, {})

    objective = training.Objective(loss_fn, settings.optimizer.build(settings.steps))

    def init(rng, previous):
        if ida.trains_generator:  # the stage before, which carries the network
            extra = {**previous.extra, "generator": previous.averaged_params["generator"]}
        else:
            extra = ida.installed(previous)
        size = ida.gallery_embeddings(extra).shape[1]
        image = jnp.zeros((1, *ida.shape) if settings.layer else (1, size))
        module = ida.estimator(float(ida.targets(extra).mean()))
        variables = dict(module.init(rng, ida.features(extra, image)))
        params = {"estimator": variables.pop("params")}
        return training.create_state(rng, params, objective, extra={**extra, "estimator": variables})

    def batches(state):
        rows, target = ida.gallery_embeddings(state.extra), ida.targets(state.extra).astype(np.float32)
        source = ida.gallery if settings.layer else inputs.VectorSource(rows, ida.gallery.labels)
        return recipe.training_batches(
            config,
            inputs.WithFields(source, target=target),
            batch_size=ida.estimator_batch_size,
            augment=ida.augment if settings.layer else None,
        )()

    return training.Stage(
        name="estimator",
        init=init,
        step=training.gradient_step(objective),
        batches=batches if settings.steps else None,
        steps=settings.steps,
        compile_init=False,
    )


def _alignment_stage(ida: _Ida) -> training.Stage:
    """No step: the run ends in the network with all that its scores need, and the scores are compared."""

    def init(rng, previous):
        params, extra = {"estimator": previous.params["estimator"]}, dict(previous.extra)
        if "generator" in extra:
            params["generator"] = extra.pop("generator")
        if ida.frozen is not None:
            frozen = extra.pop("teacher")
            params["backbone"] = frozen["params"]
            if "prototypes" in frozen:
                params["prototypes"] = frozen["prototypes"]
            extra |= training.statistics(frozen)
        return training.create_state(rng, params, extra=extra)

    # S(x1, x2) = ⟨x1, x2⟩ - λ/2 (d(x1) + d(x2)), with d by every kind of support set.
    evaluation = AlignedVerification(
        ida.split.held_out,
        lambda state: ida.embed(_extra(state), ida.split.held_out),
        ida.support,
        score=ida.config.score,
        weight=ida.config.weight,
        seed=ida.config.seed,
    )
    return training.Stage(
        "alignment", init=init, evaluate=evaluation, figures=evaluation.figures, compile_init=False
    )
