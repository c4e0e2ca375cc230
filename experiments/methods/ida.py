"""IDA: pair scores corrected by how crowded the neighborhoods of both faces are, after training (arXiv:2103.01559)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recipes import recognition as recipe
from experiments.recipes.recognition import Head, Recipe, Teacher
from jaxface import data as inputs
from jaxface import losses, metrics, models, training
from jaxface.data.sources.source import WithFields
from jaxface.data.synthetic.crowded_embeddings import crowded_embeddings
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.layers.discrepancy import FeatureMapLIDEstimator, LIDEstimator
from jaxface.layers.prototypes import l2_normalize
from jaxface.metrics.analysis import discrepancy as local
from jaxface.models.generative import gan
from jaxface.training import figures

Score = Literal["cosine", "gallery", "generated", "simulated", "learned", "snorm", "oracle"]

FARS = {"1e-2": 1e-2, "1e-3": 1e-3, "1e-4": 1e-4, "1e-5": 1e-5, "1e-6": 1e-6}
SPREAD_FARS = {"1e-2": 1e-2, "1e-3": 1e-3}
MOST_PAIRS = 5_000_000  # of larger sets as many are drawn
_HELD_OUT, _SIMULATED = 1 << 20, (1 << 20) + (1 << 19)  # first numbers of people that nobody trains on


@dataclasses.dataclass(frozen=True)
class Crowd:
    """Synthetic embeddings of people in groups that are crowded to different degrees; no image and no network."""

    identities: int = 600
    """People of the gallery, from whom the estimator and the generator learn."""
    per_identity: int = 6
    """Embeddings of each of them."""
    held_out_identities: int = 300
    """Other people to verify."""
    held_out_per_identity: int = 6
    """Embeddings of each of these."""
    groups: int = 6
    """Groups; group g of G pulls its people together with a strength that rises from 0 to `crowding`."""
    crowding: float = 1.2
    """Strength of the most crowded group, where the spread of people is 1."""
    size: int = 64
    """Size of an embedding."""
    noise: float = 1.0
    """Deviation of the embeddings of one person, where that of people is 1."""
    candidates_crowding: float | None = None
    """Strength of the groups that simulated candidates are drawn from, where it is another: a mismatched generator."""


@dataclasses.dataclass(frozen=True)
class Gan:
    """The compact generator of virtual faces, trained on the images of the run."""

    steps: int = 400
    """Training steps; 0 for no generator."""
    batch_size: int = 32
    """Real images per step, and as many generated ones."""
    latent: int = 64
    """Size of a latent vector."""
    channels: int = 16
    """Channels at full size; they double with every halving of the image, up to 8 times."""
    penalty: float = 1.0
    """Weight γ of the gradient penalty on real images."""
    optimizer: training.Optimizer = training.Optimizer(
        name="adam", learning_rate=2e-3, schedule="constant", momentum=0.0, weight_decay=0.0
    )
    """Optimizer of both networks."""
    ema_decay: float = 0.99
    """Decay per step of the moving average of the generator, which makes the faces."""


@dataclasses.dataclass(frozen=True)
class Estimator:
    """The network that tells the local discrepancy from the embedding alone."""

    neighbors: Literal["images", "centers"] = "images"
    """What the targets are the nearest of: images of the other people, as at test time, or the centers of their classes; a
    center has no noise, so that those targets are larger and correct too much."""
    layer: str | None = None
    """Part of the network whose feature map it looks at, such as stage3_block1; the embedding unless given."""
    hidden: int | None = None
    """Units of its hidden layer; 256 on an embedding and 128 on a feature map unless given."""
    steps: int = 400
    """Training steps; 0 leaves it at the mean of the targets."""
    batch_size: int = 512
    """Embeddings or images per step; no more than there are."""
    optimizer: training.Optimizer = training.Optimizer(
        name="adam", learning_rate=1e-3, schedule="cosine", weight_decay=0.0
    )
    """Its optimizer."""


@dataclasses.dataclass(frozen=True)
class Config(Recipe):
    """A network trained as usual, a generator and an estimator; every way to estimate support sets is reported."""

    head: Head = Head()
    """Loss that the network is trained with."""
    run: str | None = None
    """Work directory of a finished run whose network is used instead of training one."""
    crowd: Crowd | None = None
    """Synthetic embeddings instead of data and a network (the preset `crowded`)."""
    embeddings: str | None = None
    """A .npz of embeddings instead of data and a network: embeddings [N, D] and labels [N] to verify, gallery [T, D] and
    gallery_labels [T] of other people, and if known groups [N] and virtual candidates [M, D]. Rows of unit length."""
    score: Score = "generated"
    """Score that is reported as `verification`: the cosine; aligned by a gallery (the training people), by generated or
    simulated faces, by the learned estimator or by labeled neighbors (oracle); or s-norm with the virtual faces."""
    neighbors: int = 50
    """Size K of a support set, or its largest one where there is a cap."""
    cap: float | None = None
    """Cosine of the cap inside which candidates are neighbors, instead of a fixed number of them."""
    fewest: int = 10
    """With a cap: neighbors that are taken where fewer are inside."""
    weight: float = 1.0
    """Weight λ of the correction; 0 is the cosine."""
    candidates: int = 3000
    """Virtual faces M that are generated, and simulated."""
    gallery: int = 100_000
    """Most images of training people in the gallery, from which the estimator learns too."""
    same_above: float | None = None
    """Similarity above which a virtual face may be the person on an image and does not count for it; none by default."""
    duplicates_above: float = 0.95
    """Similarity with an earlier one above which a virtual face is dropped; 1 keeps all."""
    gan: Gan = Gan()
    """The generator."""
    estimator: Estimator = Estimator()
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
            head=Head(scale=64.0, margin=0.5),
            batch_size=512,
            steps=180_000,
            optimizer=training.Optimizer(decay_at=(100 / 180, 160 / 180), clip_norm=5.0),
            workers=8,
            candidates=10_000,
            same_above=0.6,
            duplicates_above=0.8,
            gan=Gan(steps=100_000, batch_size=64, latent=256, channels=32, ema_decay=0.999),
            estimator=Estimator(neighbors="centers", steps=2_000),
        )

    @classmethod
    def crowded(cls) -> "Config":
        """Synthetic embeddings in crowded groups: everything but the training of a network, in seconds."""
        return cls(
            crowd=Crowd(),
            augment=inputs.Augment(flip=0.0),
            score="simulated",
            duplicates_above=1.0,
            gan=Gan(steps=1000, batch_size=128, latent=32, channels=32, penalty=0.1),
        )


class Vectors:
    """Embeddings as records: `image` [1, D, 1] float32. `virtual` [M, D] are the candidates that a file brings along."""

    virtual: np.ndarray | None = None

    def __init__(self, vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None):
        self.vectors = np.asarray(vectors, np.float32)
        self.labels = np.asarray(labels, np.int32)
        self.class_names = [str(k) for k in range(self.labels.max(initial=-1) + 1)]
        self.image_shape = (1, self.vectors.shape[1], 1)
        if groups is not None:
            self.groups = np.asarray(groups, np.int32)
            self.group_names = [str(k) for k in range(self.groups.max() + 1)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": self.vectors[index][None, :, None], "label": self.labels[index]}


def network(config: Config):
    """The embedding network."""
    return recipe.network(config)


def build(
    config: Config,
    *,
    generator: Callable[[jax.Array], jax.Array] | None = None,
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
    split = _load(config)
    ida = Ida(config, split, generator, detector)
    stages = []
    if ida.model is not None:
        stages.append(ida.recognition_stage)
    if ida.trains_generator:
        stages.append(_gan_stage(ida))
    stages.append(_estimator_stage(ida))
    stages.append(_alignment_stage(ida))
    return stages


def _check(config: Config) -> None:
    """Refuses numbers out of their range before any data is opened."""
    for name, least in (("neighbors", 1), ("fewest", 1), ("candidates", 1), ("gallery", 2)):
        if getattr(config, name) < least:
            raise UserError(f"{name}: needs at least {least}, got {getattr(config, name)}")
    for name in ("cap", "same_above", "duplicates_above"):
        value = getattr(config, name)
        if value is not None and not -1 <= value <= 1:
            raise UserError(f"{name}: needs a cosine in [-1, 1], got {value}")
    if config.cap is not None and config.fewest > config.neighbors:
        raise UserError(f"fewest: needs at most the {config.neighbors} neighbors, got {config.fewest}")
    if not 0 <= config.weight < float("inf"):
        raise UserError(f"weight: needs a finite number from 0, got {config.weight}")
    if config.gan.steps < 0:
        raise UserError(f"gan.steps: needs a number from 0, got {config.gan.steps}")
    if config.gan.steps and min(config.gan.batch_size, config.gan.latent, config.gan.channels) < 1:
        raise UserError("gan: batch_size, latent and channels need at least 1")
    if config.gan.steps and config.gan.batch_size % jax.device_count():
        raise UserError(
            f"gan.batch_size: needs a multiple of the {jax.device_count()} devices, got {config.gan.batch_size}"
        )
    if not config.gan.penalty >= 0:
        raise UserError(f"gan.penalty: needs a number from 0, got {config.gan.penalty}")
    if config.estimator.batch_size < 1:
        raise UserError(f"estimator.batch_size: needs at least 1, got {config.estimator.batch_size}")
    given = [name for name in ("run", "crowd", "embeddings") if getattr(config, name) is not None]
    if len(given) > 1:
        raise UserError(f"{given[0]}: needs to be the only source of embeddings, got {' and '.join(given)}")
    if given and given[0] != "run" and config.estimator.layer is not None:
        raise UserError(f"estimator.layer: needs a network, {given[0]} has none")


def _load(config: Config) -> inputs.Split:
    """Training people (the gallery) and the people to verify, as images or as embeddings."""
    if config.data_seed < 0:
        raise UserError(f"data_seed: needs a number from 0, got {config.data_seed}")
    if config.crowd is not None:
        crowd = config.crowd
        for name in ("held_out_identities", "held_out_per_identity"):
            if getattr(crowd, name) < 2:
                raise UserError(f"{name}: pairs to verify need at least 2, got {getattr(crowd, name)}")
        train = _crowd(config, crowd.identities, crowd.per_identity, 0)
        unseen = _crowd(config, crowd.held_out_identities, crowd.held_out_per_identity, _HELD_OUT)
        return inputs.Split(train, unseen, "crowd", "verification")
    if config.embeddings is not None:
        found = _read_embeddings(config.embeddings)
        train = Vectors(found["gallery"], found["gallery_labels"])
        unseen = Vectors(found["embeddings"], found["labels"], found.get("groups"))
        unseen.virtual = found.get("virtual")
        return inputs.Split(train, unseen, "embeddings", "verification")
    split = recipe.load(config)
    if split.protocol != "verification":
        raise UserError(f"data: needs people to verify who are not trained on, got {split.name}")
    return split


def _crowd(config: Config, identities: int, each: int, first: int, **changes) -> Vectors:
    crowd = config.crowd
    settings = dict(groups=crowd.groups, crowding=crowd.crowding, size=crowd.size, noise=crowd.noise)
    made = crowded_embeddings(
        identities, each, seed=config.data_seed, first_identity=first, **{**settings, **changes}
    )
    return Vectors(*made)


def _read_embeddings(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"embeddings: cannot read {path}: {error}".replace("\n", " ")) from None
    for rows, labels in (("embeddings", "labels"), ("gallery", "gallery_labels")):
        for name in (rows, labels):
            if name not in found:
                raise UserError(f"embeddings: needs an array {name!r}, {path} has {', '.join(sorted(found))}")
        if found[labels].shape != (len(found[rows]),) or found[labels].dtype.kind not in "iu":
            raise UserError(
                f"embeddings: needs one integer of {labels} per row of {rows}, got {found[labels].dtype} "
                f"{found[labels].shape} for {found[rows].shape}"
            )
        # Any integers are labels; what follows counts on 0..C-1.
        found[labels] = np.unique(found[labels], return_inverse=True)[1]
    if "groups" in found and found["groups"].shape != found["labels"].shape:
        raise UserError(f"embeddings: needs one of groups per label, got {found['groups'].shape}")
    sizes = {name: found[name].shape[1:] for name in ("embeddings", "gallery", "virtual") if name in found}
    if len(set(sizes.values())) > 1 or len(sizes["embeddings"]) != 1:
        raise UserError(f"embeddings: need rows of one size, got {sizes}")
    for name in sizes:
        lengths = np.linalg.norm(found[name].astype(np.float64), axis=1)
        if not len(lengths) or not (np.abs(lengths - 1) <= local.UNIT_TOLERANCE).all():
            raise UserError(f"embeddings: {name} in {path} needs rows of unit length")
    return found


class Ida:
    """What the stages share: the data, the frozen network, and where candidates come from."""

    def __init__(self, config: Config, split: inputs.Split, generator, detector):
        self.config, self.split = config, split
        self.generator, self.detector = generator, detector
        self.model = None
        if config.crowd is None and config.embeddings is None:
            self._open_network()
        self.shape = split.train.image_shape
        self.trains_generator = generator is None and config.gan.steps > 0
        if self.trains_generator:
            gan.doublings(self.shape)  # refuses sizes that it cannot make
        # Mirror images only of what has them; the network embeds everything the same way.
        self.flip = self.model is not None and config.augment.flip > 0
        self.augment = inputs.Augment(flip=config.augment.flip if self.flip else 0.0)
        most = -(-len(split.train) // config.gallery)
        chosen = np.arange(0, len(split.train), most)
        self.gallery = split.train if most == 1 else inputs.Subset(split.train, chosen)
        self._kept: tuple = (None, None)
        self._check_score()

    def _open_network(self) -> None:
        config = self.config
        if config.run is None:
            self.model = network(config)
            self.recognition_stage = recipe.recognition_stage(
                "recognition", config, self.split, self.model, config.head
            )
        else:
            stage, teacher = recipe.teacher_stage(config, Teacher(run=config.run), self.split)
            self.model = teacher.model
            self.recognition_stage = dataclasses.replace(stage, name="recognition")
        self.frozen = training.Teacher(self.model)
        layer = config.estimator.layer
        if layer is not None:
            layers = models.layer_shapes(self.model, self.split.train.image_shape)
            maps = [name for name, shape in layers.items() if len(shape) == 3]
            if layer not in maps:
                raise UserError(f"estimator.layer: needs one of {', '.join(maps)}, got {layer!r}")

    def _check_score(self) -> None:
        """Refuses to report what cannot be had."""
        score, config = self.config.score, self.config
        if score == "generated" and not (self.trains_generator or self.generator):
            raise UserError("score: generated faces need a generator, gan.steps is 0")
        if score == "simulated" and self._simulated() is None:
            raise UserError(f"score: simulated faces need a renderer, {self.split.name} has none")
        if score == "snorm" and not (self.trains_generator or self.generator) and self._simulated() is None:
            raise UserError("score: snorm needs virtual faces, gan.steps is 0")
        if score == "oracle" and self.pairs is not None:
            raise UserError(f"score: an oracle needs to know who is who, {self.split.name} has pairs alone")
        others = len(self.split.train.class_names) - 1
        if config.estimator.neighbors == "centers" and others < 1:
            raise UserError(f"data: needs at least two people to learn from, got {others + 1}")

    @property
    def pairs(self):
        """The official pairs of a verification pack; None where every pair of records counts."""
        return getattr(self.split.held_out, "pairs", None)

    def remembered(self, extra: dict, state: training.TrainState) -> dict:
        """`extra` with the network of the first stage."""
        return extra if self.model is None else self.frozen.installed(extra, state)

    def embed(self, extra: dict, source: inputs.Source) -> np.ndarray:
        """Unit embeddings [N, D] of a source, all by the same network in the same state."""
        if self.model is None:
            rows = source.vectors
        else:
            rows = self.frozen.embed(extra, source, flip=self.flip)
        return np.asarray(l2_normalize(jnp.asarray(rows, jnp.float32)))

    def gallery_embeddings(self, extra: dict) -> np.ndarray:
        """`embed` of the gallery, which two stages ask for; kept as long as the network is the same."""
        leaves = jax.tree.leaves(extra.get("teacher", {}))
        key = tuple(float(np.asarray(leaf, np.float64).sum()) for leaf in leaves)
        if self._kept[0] != key:
            self._kept = (key, self.embed(extra, self.gallery))
        return self._kept[1]

    def targets(self, extra: dict) -> np.ndarray:
        """Local discrepancies [T] of the gallery among its own other people."""
        rows, labels = self.gallery_embeddings(extra), self.gallery.labels
        if self.config.estimator.neighbors == "images":
            found = self._support(rows, rows, labels, labels)
            return np.asarray(found.mean)
        present, labels = np.unique(labels, return_inverse=True)
        centers = inputs.class_means(rows, labels, len(present))
        k = min(self.config.neighbors, len(present) - 1)
        return np.asarray(losses.lid_targets(rows, labels, centers, k=k))

    def _support(self, rows, candidates, labels=None, candidate_labels=None, same_above=None):
        config = self.config
        arguments = dict(labels=labels, candidate_labels=candidate_labels, same_above=same_above)
        k = min(config.neighbors, len(candidates))
        if config.cap is None:
            return local.local_discrepancy(rows, candidates, k=k, **arguments)
        return local.local_discrepancy_cap(
            rows, candidates, config.cap, k_min=min(config.fewest, k), k_max=k, **arguments
        )

    def _simulated(self) -> inputs.Source | None:
        """People that nobody has seen, from where the data come; None where that cannot be."""
        config, data = self.config, self.config.data
        count = config.candidates
        if config.crowd is not None:
            crowding = config.crowd.candidates_crowding
            changes = {} if crowding is None else {"crowding": crowding}
            return _crowd(config, count, 1, _SIMULATED, **changes)
        if config.embeddings is not None:
            found = self.split.held_out.virtual
            return None if found is None else Vectors(found, np.zeros(len(found), np.int32))
        rendered = functools.partial(
            inputs.RenderedSource, per_identity=1, image_size=config.image_size, seed=config.data_seed
        )
        if isinstance(data, inputs.RenderedFaces) and data.modality == "rgb":
            return rendered(count, variation=data.variation, first_identity=_SIMULATED)
        if isinstance(data, inputs.TonedFaces):
            each = -(-count // len(data.tones))
            # Every tone has 2^21 numbers of its own, of which the first half is for training and the next for evaluation.
            return inputs.JoinedGroups(
                {
                    str(tone): rendered(
                        each, variation=data.variation, first_identity=_SIMULATED + (group << 21), tone=tone
                    )
                    for group, tone in enumerate(data.tones)
                }
            )
        if isinstance(data, inputs.Procedural):
            return inputs.procedural_vectors(
                count,
                1,
                seed=config.data_seed,
                first_identity=_SIMULATED,
                groups=data.groups,
                noise=data.noise,
            )
        return None

    def generated(self, state: training.TrainState) -> tuple[np.ndarray, int]:
        """(unit embeddings [M', D] of the generated faces that are kept, how many were made)."""
        config = self.config
        generate = self.generator
        if generate is None:
            module = gan.Generator(self.shape, config.gan.channels)
            generate = jax.jit(functools.partial(module.apply, {"params": state.params["generator"]}))
        parts, scores = [], []
        key, size = jax.random.key(config.seed), 256
        for start in range(0, config.candidates, size):
            # Every call has one shape, and face m is the same however many are made.
            latents = jax.random.normal(jax.random.fold_in(key, start), (size, config.gan.latent))
            faces = np.asarray(generate(latents))[: config.candidates - start]
            if faces.shape[1:] != self.shape:
                raise UserError(f"generator: needs faces of shape {self.shape}, got {faces.shape[1:]}")
            if self.detector is not None:
                scores.append(np.asarray(self.detector(faces)))
            labels = np.zeros(len(faces), np.int32)
            if self.model is None:
                source = Vectors(faces.reshape(len(faces), -1), labels)
            else:
                pixels = (
                    faces
                    if faces.dtype == np.uint8
                    else np.rint((faces.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
                )
                source = inputs.ArraySource(pixels, labels, ["made up"])
            parts.append(self.embed(_extra(state), source))
        rows = np.concatenate(parts)
        keep = local.filter_candidates(
            rows, np.concatenate(scores) if scores else None, duplicates_above=config.duplicates_above
        )
        if not keep.any():
            raise UserError(f"generator: all of its {len(rows)} faces were dropped")
        return rows[keep], len(rows)

    def estimator(self, initial: float = 0.0) -> LIDEstimator | FeatureMapLIDEstimator:
        """The estimator's module, whose output starts at a value."""
        settings = self.config.estimator
        kind = LIDEstimator if settings.layer is None else FeatureMapLIDEstimator
        width = {} if settings.hidden is None else {"hidden": settings.hidden}
        return kind(initial=initial, **width)

    def estimate(self, state: training.TrainState, rows: np.ndarray, source: inputs.Source) -> np.ndarray:
        """Estimated local discrepancies [N] of a source with unit embeddings `rows` [N, D]."""
        module = self.estimator()
        variables = {"params": state.params["estimator"], **state.extra["estimator"]}
        if self.config.estimator.layer is None:
            return np.asarray(module.apply(variables, jnp.asarray(rows)))

        @jax.jit
        def estimate(arrays, batch):
            (variables, extra), image = arrays, normalize_pixels(batch["image"])
            views = (image, image[:, :, ::-1]) if self.flip else (image,)
            found = [
                module.apply(variables, self.frozen.layer(extra, view, self.config.estimator.layer))
                for view in views
            ]
            return sum(found) / len(found)

        return training.map_source(estimate, source, (variables, _extra(state)))


def _extra(state: training.TrainState) -> dict:
    """`extra` with the frozen network, also of the last stage, where it is the network of the run."""
    if "backbone" not in state.params:
        return state.extra
    return {**state.extra, "teacher": training.network_variables(state.params["backbone"], state.extra)}


def _gan_stage(ida: Ida) -> training.Stage:
    """A generator and a discriminator on the images of the run."""
    settings = ida.config.gan
    generator = gan.Generator(ida.shape, settings.channels)
    discriminator = gan.Discriminator(ida.shape, settings.channels)

    def made(params, batch, rng):
        latents = jax.random.normal(rng, (len(batch["image"]), settings.latent))
        return generator.apply({"params": params["generator"]}, latents)

    def score(params, images):
        return discriminator.apply({"params": params["discriminator"]}, images)

    def discriminator_fn(params, extra, batch, rng):
        real, fake = batch["image"], jax.lax.stop_gradient(made(params, batch, rng))
        real_logits, fake_logits = score(params, real), score(params, fake)
        loss = losses.gan_discriminator_loss(real_logits, fake_logits).mean()
        penalty = losses.r1_penalty(functools.partial(score, params), real).mean()
        accuracy = ((real_logits > 0).mean() + (fake_logits < 0).mean()) / 2
        return loss + settings.penalty / 2 * penalty, (extra, {"accuracy": accuracy, "gradient": penalty})

    def generator_fn(params, extra, batch, rng):
        return losses.gan_generator_loss(score(params, made(params, batch, rng))).mean(), (extra, {})

    objectives = (
        training.Objective(
            discriminator_fn, settings.optimizer.build(settings.steps), ("discriminator",), "discriminator"
        ),
        training.Objective(
            generator_fn, settings.optimizer.build(settings.steps), ("generator",), "generator"
        ),
    )

    def init(rng, previous):
        first, second = jax.random.split(rng)
        params = {
            "generator": generator.init(first, jnp.zeros((1, settings.latent)))["params"],
            "discriminator": discriminator.init(second, jnp.zeros((1, *ida.shape)))["params"],
        }
        return training.create_state(rng, params, *objectives, extra=ida.remembered({}, previous), ema=True)

    open_batches = recipe.training_batches(
        ida.config, ida.split.train, batch_size=settings.batch_size, augment=ida.augment
    )
    return training.Stage(
        name="gan",
        init=init,
        step=training.gradient_step(*objectives, ema_decay=settings.ema_decay),
        batches=lambda state: open_batches(),
        steps=settings.steps,
    )


def _estimator_stage(ida: Ida) -> training.Stage:
    """Regression of the local discrepancy on the gallery; the network is frozen, so that targets are computed once."""
    config = ida.config
    settings = config.estimator

    def features(extra, image):
        if settings.layer is None:
            return image.reshape(len(image), -1)
        return ida.frozen.layer(extra, image, settings.layer)

    def loss_fn(params, extra, batch, rng):
        variables = {"params": params["estimator"], **extra["estimator"]}
        inside = features(extra, batch["image"])
        if settings.layer is None:
            predicted, updated = ida.estimator().apply(variables, inside), {}
        else:
            predicted, updated = ida.estimator().apply(variables, inside, train=True, mutable=["batch_stats"])
        loss = losses.lid_regression_loss(predicted, batch["target"]).mean()
        return loss, ({**extra, "estimator": dict(updated)}, {})

    objective = training.Objective(loss_fn, settings.optimizer.build(settings.steps))

    def init(rng, previous):
        if ida.trains_generator:  # the stage before, which carries the network
            extra = {**previous.extra, "generator": previous.averaged_params["generator"]}
        else:
            extra = ida.remembered({}, previous)
        start = float(ida.targets(extra).mean())
        image = jnp.zeros((1, *ida.shape)) if settings.layer else jnp.zeros((1, _width(ida, extra)))
        inside = features(extra, image)
        variables = dict(ida.estimator(start).init(rng, inside))
        params = {"estimator": variables.pop("params")}
        return training.create_state(rng, params, objective, extra={**extra, "estimator": variables})

    def batches(state):
        rows, target = ida.gallery_embeddings(state.extra), ida.targets(state.extra).astype(np.float32)
        source = Vectors(rows, ida.gallery.labels) if settings.layer is None else ida.gallery
        return recipe.training_batches(
            config,
            WithFields(source, target=target),
            batch_size=batch_size,
            augment=ida.augment if settings.layer else None,
        )()

    # The largest one that there are records for and that divides over devices and processes.
    replicas = jax.device_count()
    batch_size = min(settings.batch_size, len(ida.gallery)) // replicas * replicas or settings.batch_size
    return training.Stage(
        name="estimator",
        init=init,
        step=training.gradient_step(objective),
        batches=batches if settings.steps else None,
        steps=settings.steps,
        compile_init=False,
    )


def _width(ida: Ida, extra: dict) -> int:
    return ida.gallery_embeddings(extra).shape[1]


def _alignment_stage(ida: Ida) -> training.Stage:
    """No step: the run ends in the network with all that its scores need, and the scores are compared."""

    def init(rng, previous):
        extra = {"estimator": previous.extra["estimator"]}
        params = {"estimator": previous.params["estimator"]}
        if "generator" in previous.extra:
            params["generator"] = previous.extra["generator"]
        if ida.model is not None:
            frozen = dict(previous.extra["teacher"])
            params["backbone"] = frozen.pop("params")
            if "prototypes" in frozen:
                params["prototypes"] = frozen.pop("prototypes")
            extra |= frozen
        return training.create_state(rng, params, extra=extra)

    judged = Comparison(ida)
    return training.Stage("alignment", init=init, evaluate=judged, compile_init=False)


class Comparison:
    """Every score on the people to verify, side by side: `evaluate` and `figures` of a stage."""

    def __init__(self, ida: Ida):
        self.ida = ida

    def __call__(self, state: training.TrainState) -> dict[str, float]:
        ida, config = self.ida, self.ida.config
        source = ida.split.held_out
        rows = ida.embed(_extra(state), source)
        discrepancies, report = self.discrepancies(state, rows)
        pairs = compared_pairs(source.labels, seed=config.seed) if ida.pairs is None else ida.pairs
        first, second = pairs.indices.T
        cosines = metrics.pair_similarities(rows, pairs.indices)
        scores = {"cosine": cosines}
        for name, found in discrepancies.items():
            mean = np.asarray(found.mean)
            scores[name] = np.asarray(
                local.aligned_similarity(cosines, mean[first], mean[second], weight=config.weight)
            )
        virtual = discrepancies.get("generated", discrepancies.get("simulated"))
        if config.score in ("snorm", "simulated") and "simulated" in discrepancies:
            virtual = discrepancies["simulated"]
        if virtual is not None:
            mean, deviation = np.asarray(virtual.mean), np.asarray(virtual.deviation)
            scores["snorm"] = np.asarray(
                local.adaptive_snorm(cosines, mean[first], deviation[first], mean[second], deviation[second])
            )
        groups = getattr(source, "groups", None)
        for name, values in scores.items():
            found = report_scores(values, pairs, groups)
            report |= {f"{name}/{key}": value for key, value in found.items()}
            if name == config.score:
                report |= {f"verification/{key}": value for key, value in found.items()}
        self._last = scores, pairs.same
        return report

    def discrepancies(self, state, rows: np.ndarray) -> tuple[dict[str, local.Discrepancy], dict[str, float]]:
        """Local discrepancies of unit embeddings [N, D] by every kind of support set, and what there is to say about them."""
        ida, config = self.ida, self.ida.config
        source, report = ida.split.held_out, {}
        found = {"gallery": ida._support(rows, ida.gallery_embeddings(_extra(state)))}
        virtual = functools.partial(ida._support, rows, same_above=config.same_above)
        if ida.generator is not None or ida.trains_generator:
            candidates, made = ida.generated(state)
            found["generated"] = virtual(candidates)
            report["generated/kept"] = len(candidates) / made
        if (simulated := ida._simulated()) is not None:
            found["simulated"] = virtual(ida.embed(_extra(state), simulated))
        learned = ida.estimate(state, rows, source)
        found["learned"] = local.Discrepancy(learned, np.zeros_like(learned), np.ones(len(rows), np.int32))
        if ida.pairs is None:
            found["oracle"] = ida._support(rows, rows, source.labels, source.labels)
        for name, one in found.items():
            mean, count = np.asarray(one.mean), np.asarray(one.count)
            if empty := int((count == 0).sum()):
                raise UserError(
                    f"same_above: leaves {empty} of {len(count)} images without a {name} neighbor, got {config.same_above}"
                )
            # Of candidates from the wrong distribution d is nearly constant, and nothing can be gained.
            report[f"{name}/deviation"] = float(mean.std())
            truth = found.get("oracle")
            if name != "oracle" and truth is not None and np.ptp(mean) > 1e-6:
                report[f"{name}/correlation"] = float(np.corrcoef(mean, np.asarray(truth.mean))[0, 1])
        return found, report

    def figures(self, state: training.TrainState) -> training.Figures:
        """ROC curves of all scores."""
        scores, same = self._last

        def draw(path):
            curves = {name: metrics.roc(values[same], values[~same]) for name, values in scores.items()}
            return figures.save_roc(curves, path)

        return {"roc": draw}


def compared_pairs(labels: np.ndarray, *, most: int = MOST_PAIRS, seed: int = 0) -> metrics.Pairs:
    """Every pair of a labeled set; of more than `most` about a tenth genuine and the rest impostors, drawn at random."""
    count = len(labels)
    if count * (count - 1) // 2 <= most:
        return metrics.all_pairs(labels)
    rng, labels = np.random.default_rng(seed), np.asarray(labels)
    order = np.argsort(labels, kind="stable")
    _, starts, number, sizes = np.unique(
        labels[order], return_index=True, return_inverse=True, return_counts=True
    )
    place = rng.integers(count, size=most // 10)
    place = place[sizes[number[place]] > 1]
    size, start = sizes[number[place]], starts[number[place]]
    other = start + (place - start + rng.integers(1, size)) % size
    genuine = np.stack([order[place], order[other]], axis=1)
    drawn = rng.integers(count, size=(most - most // 10, 2))
    impostor = drawn[labels[drawn[:, 0]] != labels[drawn[:, 1]]]
    pairs = np.unique(np.sort(np.concatenate([genuine, impostor]), axis=1), axis=0)
    return metrics.Pairs(pairs.astype(np.int32), labels[pairs[:, 0]] == labels[pairs[:, 1]], folds=1)


def report_scores(scores: np.ndarray, pairs: metrics.Pairs, groups: np.ndarray | None) -> dict[str, float]:
    """TAR at the FARs that the impostor pairs can resolve, and how far the groups' FARs are apart at those thresholds."""
    genuine, impostor = np.sort(scores[pairs.same]), np.sort(scores[~pairs.same])
    points = metrics.tar_at_far(genuine, impostor, list(FARS.values()))
    report = {
        f"tar@{name}": float(tar)
        for name, tar, resolvable in zip(FARS, points.tar, points.resolvable, strict=True)
        if resolvable
    }
    report["eer"] = metrics.equal_error_rate(genuine, impostor).eer
    if groups is not None and len(np.unique(groups)) > 1:
        first, second = (np.asarray(groups)[side] for side in pairs.indices.T)
        inside = ~pairs.same & (first == second)
        for name, far in SPREAD_FARS.items():
            rates = local.group_false_accepts(scores[inside], first[inside], far, pooled=impostor)
            report[f"spread@{name}"] = rates.spread
    return report
