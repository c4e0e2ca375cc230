"""IDA: pair scores corrected by how crowded the neighborhoods of both faces are, after training (arXiv:2103.01559).

    python -m experiments.launch ida --preset crowded --workdir runs/ida   # seconds: TAR at FAR 1e-3 0.758 ± 0.007, cosine 0.555
    python -m experiments.launch ida --workdir runs/faces                  # minutes: a network on rendered people, an estimator
    python -m experiments.reproduce ida --study rendered                   # 32 pixels, 400 steps: 0.132 ± 0.013, cosine 0.119
    python -m experiments.launch ida --preset paper --data.path …          # iResNet-100 on MS1MV2; built and typed, not run here

Differs from the paper in: the formulas of support sets, correction and estimator are our reading of its abstract, the weight of
the correction is fitted, and the default neighbors are the training people (docs/methods/ida.md).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Literal

import jax
import numpy as np

from experiments.recipes import gan
from experiments.recipes import recognition as recipe
from experiments.recipes.embedding import FrozenEmbedding, frozen_extra, unfrozen
from experiments.recipes.estimator import Estimator, EstimatorSpec
from experiments.recipes.gan import GanSpec
from experiments.recipes.heads import HeadSpec
from experiments.recipes.recognition import Recipe
from jaxface import data as inputs
from jaxface import losses, metrics, training
from jaxface.checks import AtLeast, Cosine, NonNegative
from jaxface.errors import UserError
from jaxface.models.generative.gan import doublings

Score = Literal[
    "cosine", "gallery", "mixed", "gaussian", "generated", "simulated", "learned", "snorm", "oracle"
]


@dataclasses.dataclass(frozen=True)
class Config(Recipe):
    """A network trained as usual, an estimator, perhaps a generator; every way to find neighbors is reported."""

    head: HeadSpec = HeadSpec()
    """Loss that the network is trained with."""
    run: str | None = None
    """Work directory of a finished run whose network is used instead of training one."""
    crowd: inputs.Crowd | None = None
    """Synthetic embeddings instead of data and a network (the preset `crowded`)."""
    embeddings: str | None = None
    """A .npz of embeddings instead of data and a network: embeddings [N, D] and labels [N] to verify, gallery [T, D] and
    gallery_labels [T] of other people, and if known groups [N] and virtual candidates [M, D]. Rows of unit length."""
    templates: str | None = None
    """A folder in the layout of IJB-B and IJB-C, whose pairs of templates are verified instead of people of `data`."""
    score: Score = "gallery"
    """Score that is reported as `verification`: the cosine; aligned by neighbors among the training people (gallery), mixtures of
    two of them or draws from their normal distribution (mixed, gaussian), generated or simulated faces, or labeled people of the
    test (oracle); by the learned estimator; or the s-norm of the gallery."""
    neighbors: Annotated[int, AtLeast(1)] = 50
    """Size K of a support set, or its largest one where there is a cap."""
    cap: Annotated[float | None, Cosine] = None
    """Cosine of the cap inside which candidates are neighbors, instead of a fixed number of them."""
    fewest: Annotated[int, AtLeast(1)] = 10
    """With a cap: neighbors that are taken where fewer are inside."""
    weight: Annotated[float | None, NonNegative] = None
    """Weight λ of every correction; 0 is the cosine. Unless given it is fitted to labeled training people for each kind of
    candidates, and 1 for the gallery and the oracle, which are labeled."""
    candidates: Annotated[int, AtLeast(1)] = 3000
    """Virtual people M of each kind."""
    gallery: Annotated[int, AtLeast(2)] = 100_000
    """Most images of training people in the gallery, from which the estimator learns too."""
    same_above: Annotated[float | None, Cosine] = None
    """Similarity above which a virtual face may be the person on an image and does not count for it; none by default."""
    duplicates_above: Annotated[float, Cosine] = 0.95
    """Similarity with an earlier one above which a generated face is dropped; 1 keeps all."""
    gan: GanSpec = GanSpec(steps=0)
    """The generator; none by default."""
    estimator: EstimatorSpec = EstimatorSpec()
    """The estimator of the local discrepancy."""
    targets: Literal["images", "centers"] = "images"
    """What its targets are the nearest of: gallery images of the other people, as at test time, or the centers of the other
    classes, which are the network's prototypes, or the means of all training images where it has none of these people."""

    @classmethod
    def paper(cls) -> "Config":
        """iResNet-100 by ArcFace on MS1MV2 as its public release trains it, whose IJB-C baseline is TAR 94.27 at FAR 1e-5, and
        neighbors from generated faces.

        What the sources say and what this does stand side by side in docs/methods/ida.md#choices-of-ours. Unlike them it
        clips the gradient of the prototypes with that of the network; the generator is a compact one: plug yours in.
        """
        return cls(
            data=inputs.RecordIO(path="faces_emore", verification="faces_emore/lfw.bin"),
            templates="IJBC",
            image_size=112,
            backbone="iresnet100",
            embedding=512,
            bfloat16=True,
            head=HeadSpec(scale=64.0, margin=0.5),
            batch_size=1024,
            steps=20 * (5_822_653 // 1024),
            optimizer=training.sgd(schedule="linear", clip_norm=5.0),
            workers=8,
            score="generated",
            candidates=10_000,
            same_above=0.6,
            duplicates_above=0.8,
            gan=GanSpec(steps=100_000, batch_size=64, latent=256, channels=32, ema_decay=0.999),
            estimator=EstimatorSpec(steps=2_000),
            targets="centers",
        )

    @classmethod
    def crowded(cls) -> "Config":
        """Synthetic embeddings in crowded groups: everything but the training of a network, in seconds."""
        return cls(crowd=inputs.Crowd(), augment=inputs.Augment(flip=0.0), duplicates_above=1.0)


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
    neighbors = _Neighbors(config, generator, detector)
    stages = []
    # The embedding, trained as usual or that of a finished run; none where the data are embeddings.
    if neighbors.frozen.stage is not None:
        stages.append(neighbors.frozen.stage)
    # Virtual faces: a generator of people who do not exist.
    if neighbors.trains_generator:
        stages.append(
            gan.gan_stage(
                config,
                config.gan,
                neighbors.split.train,
                augment=neighbors.augment,
                carry=neighbors.frozen.installed,
            )
        )
    # The learnable estimation of the local discrepancy.
    stages.append(neighbors.estimator.stage(neighbors.targets, neighbors.carried))
    # The alignment: every score on people whom nothing was learned from.
    return [*stages, _alignment_stage(neighbors)]


def _check(config: Config) -> None:
    """Refuses what cannot be before any data is opened."""
    if config.cap is not None and config.fewest > config.neighbors:
        raise UserError(f"fewest: needs at most the {config.neighbors} neighbors, got {config.fewest}")
    config.gan.check()
    given = [name for name in ("run", "crowd", "embeddings") if getattr(config, name) is not None]
    if len(given) > 1:
        raise UserError(f"{given[0]}: needs to be the only source of embeddings, got {' and '.join(given)}")
    if given:
        recipe.check_no_packs(config, f"{given[0]} gives the embeddings")
    vectors = given and given[0] != "run"
    if vectors and config.estimator.layer is not None:
        raise UserError(f"estimator.layer: needs a network, {given[0]} has none")
    if config.templates is not None and (vectors or config.estimator.layer is not None):
        other = given[0] if vectors else "estimator.layer"
        raise UserError(f"templates: needs a network and an estimator on embeddings, got {other}")


class _Neighbors:
    """What the stages share: the people, the frozen embedding, and where the candidates of support sets come from."""

    def __init__(self, config: Config, generator: gan.Generate | None, detector):
        file = None if config.embeddings is None else inputs.EmbeddingFile(config.embeddings)
        spec = config.crowd or file or config.data
        vectors = spec is not config.data
        self.config, self.generator, self.detector = config, generator, detector
        self.split = recipe.load(dataclasses.replace(config, data=spec))
        if self.split.protocol != "verification":
            raise UserError(f"data: needs people to verify who are not trained on, got {self.split.name}")
        self.held_out = self.split.held_out
        if config.templates is not None:
            self.held_out = inputs.TemplateSource(config.templates, image_size=config.image_size)
        # The training people are the gallery, and those to verify have pairs of their own.
        every = -(-len(self.split.train) // config.gallery)
        rows = np.arange(0, len(self.split.train), every)
        self.gallery = self.split.train if every == 1 else inputs.Subset(self.split.train, rows)
        self.frozen = FrozenEmbedding(config, self.split, config.head, run=config.run, vectors=vectors)
        self.shape = self.split.train.image_shape
        self.trains_generator = generator is None and config.gan.steps > 0
        if self.trains_generator:
            doublings(self.shape)  # refuses sizes that it cannot make
        # Mirror images only of what has them; the network embeds everything the same way.
        self.augment = inputs.Augment(flip=config.augment.flip if self.frozen.flip else 0.0)
        self.simulated = spec.simulated(
            config.candidates, image_size=config.image_size, seed=config.data_seed
        )
        self.estimator = Estimator(config, config.estimator, self.frozen, self.gallery)
        self._check()

    def _check(self) -> None:
        """Refuses to report what cannot be had."""
        config, generates = self.config, self.trains_generator or self.generator is not None
        if config.score == "generated" and not generates:
            raise UserError("score: generated faces need a generator, gan.steps is 0")
        if config.score == "simulated" and self.simulated is None:
            raise UserError(f"score: simulated faces need a renderer, {self.split.name} has none")
        if config.score == "oracle" and hasattr(self.held_out, "pairs"):
            raise UserError(f"score: an oracle needs to know who is who, {self.split.name} has pairs alone")
        if len(np.unique(self.gallery.labels)) < 2:
            raise UserError("data: needs at least two people to learn from, got 1")

    def carried(self, previous: training.TrainState) -> dict:
        """`extra` of the estimator's stage after the one before: the network, and the generator."""
        if self.trains_generator:
            return {**previous.extra, "generator": previous.averaged_params["generator"]}
        return self.frozen.installed(previous)

    def gallery_embeddings(self, extra: dict) -> np.ndarray:
        """Unit embeddings [T, D] of the gallery."""
        return self.frozen.embed_once(extra, self.gallery)

    # Support set and local discrepancy: d(x) among candidates, the K nearest or those inside a cap.

    def discrepancy(self, rows, candidates, **others) -> metrics.Discrepancy:
        config = self.config
        k = min(config.neighbors, len(candidates))
        if config.cap is None:
            return metrics.local_discrepancy(rows, candidates, k=k, **others)
        k_min = min(config.fewest, k)
        return metrics.local_discrepancy_cap(rows, candidates, config.cap, k_min=k_min, k_max=k, **others)

    def labeled(self, rows: np.ndarray, labels: np.ndarray) -> metrics.Discrepancy:
        """d*(x) of labeled images [N, D] among the other people on them."""
        return self.discrepancy(rows, rows, labels=labels, candidate_labels=labels)

    def targets(self, extra: dict) -> np.ndarray:
        """d*(x) [T] of the gallery that the estimator learns: among images, or among the centers of all classes."""
        rows, labels = self.gallery_embeddings(extra), self.gallery.labels
        if self.config.targets == "images":
            return np.asarray(self.labeled(rows, labels).mean)
        train = self.split.train
        people = np.unique(train.labels)
        if self.config.run is None and "prototypes" in extra.get("teacher", {}):
            centers = np.asarray(extra["teacher"]["prototypes"])
        else:
            centers = inputs.class_means(
                self.frozen.embed(extra, train), train.labels, len(train.class_names)
            )
        k = min(self.config.neighbors, len(people) - 1)
        return np.asarray(losses.lid_targets(rows, np.searchsorted(people, labels), centers[people], k=k))

    # Support set estimation: candidates that are nobody's, and the estimator.

    def candidates(self, state: training.TrainState) -> dict[str, np.ndarray]:
        """Unit embeddings [M, D] of virtual people by kind."""
        config, extra = self.config, frozen_extra(state)
        gallery, count = self.gallery_embeddings(extra), config.candidates
        kinds = {
            "mixed": inputs.mixed_people(gallery, self.gallery.labels, count, seed=config.seed),
            "gaussian": inputs.gaussian_people(gallery, count, seed=config.seed),
        }
        if self.generator is not None or self.trains_generator:
            made = self.generator or gan.trained_generator(
                config.gan, self.shape, state.params.get("generator")
            )
            kinds["generated"] = gan.virtual_embeddings(
                gan.generated_faces(
                    made, count, latent=config.gan.latent, image_shape=self.shape, seed=config.seed
                ),
                functools.partial(self.frozen.embed, extra),
                vectors=self.frozen.teacher is None,
                detector=self.detector,
                duplicates_above=config.duplicates_above,
            )
        if self.simulated is not None:
            kinds["simulated"] = self.frozen.embed(extra, self.simulated)
        return kinds

    # The weight λ of each kind of candidates, from training people, of whom d* is known.

    def support(self, state: training.TrainState, rows: np.ndarray) -> dict[str, training.SupportSet]:
        """Local discrepancies of what is verified, with unit embeddings [N, D], by kind of candidates."""
        config, gallery = self.config, self.gallery_embeddings(frozen_extra(state))
        known = self.labeled(gallery, self.gallery.labels).mean
        fitted = functools.partial(training.fitted_support, labeled=known, weight=config.weight)
        labeled_weight = 1.0 if config.weight is None else config.weight
        facts = {"pair_cosine": metrics.mean_pair_cosine(gallery)}
        kinds = {"gallery": training.SupportSet(self.discrepancy(rows, gallery), labeled_weight, facts)}
        for name, candidates in self.candidates(state).items():
            of_rows, of_gallery = (
                self.discrepancy(x, candidates, same_above=config.same_above) for x in (rows, gallery)
            )
            empty = int((np.asarray(of_rows.count) == 0).sum())
            if empty:
                raise UserError(
                    f"same_above: leaves {empty} of {len(rows)} images without a {name} neighbor, got {config.same_above}"
                )
            kinds[name] = fitted(of_rows, on_gallery=of_gallery.mean, candidates=candidates)
            if name == "generated":
                kinds[name].facts["passed"] = len(candidates) / config.candidates
        estimate, on_gallery = (
            self.estimator.estimate(state.params["estimator"], frozen_extra(state), *images)
            for images in ((self.held_out, rows), (self.gallery, gallery))
        )
        learned = metrics.Discrepancy(estimate, np.zeros_like(estimate), np.ones(len(rows), np.int32))
        kinds["learned"] = fitted(learned, on_gallery=on_gallery)
        if not hasattr(self.held_out, "pairs"):
            kinds["oracle"] = training.SupportSet(self.labeled(rows, self.held_out.labels), labeled_weight)
        return kinds


def _alignment_stage(neighbors: _Neighbors) -> training.Stage:
    """No step: the run ends in the network with all that its scores need, and the scores are compared."""

    def init(rng, previous):
        params, extra = unfrozen(previous.extra)
        params["estimator"] = previous.params["estimator"]
        if "generator" in extra:
            params["generator"] = extra.pop("generator")
        return training.create_state(rng, params, extra=extra)

    # S(x1, x2) = ⟨x1, x2⟩ - λ/2 (d(x1) + d(x2)), with d and λ of every kind of candidates.
    evaluation = training.AlignedVerification(
        neighbors.held_out,
        lambda state: neighbors.frozen.embed(frozen_extra(state), neighbors.held_out),
        neighbors.support,
        score=neighbors.config.score,
        seed=neighbors.config.seed,
    )
    return training.Stage(
        "alignment", init=init, evaluate=evaluation, figures=evaluation.figures, compile_init=False
    )
