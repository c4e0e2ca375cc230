"""ACW: RGB-D recognition by two frozen networks and the confidence in each, trained on virtual depth (arXiv:2403.06529).

    python -m experiments.launch acw --preset digits --workdir runs/digits   # seconds: rank-1 0.740 ± 0.008, sum 0.714 ± 0.008
    python -m experiments.launch acw --workdir runs/acw                      # minutes: rendered people with depth
    python -m experiments.launch acw --preset paper --data.root …            # Lock3DFace; built and typed, not run here

Differs from the paper in: its confidence network, loss and tables were not available, those parts are ours; the scores of both
modalities get one spread before they are blended (docs/methods/acw.md).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recipes.heads import HeadSpec
from experiments.recipes.recognition import Recipe, training_batches
from experiments.recipes.teachers import TeacherSpec, teacher_stage
from jaxface import data as inputs
from jaxface import layers, losses, metrics, training
from jaxface.checks import AtLeast, Positive
from jaxface.data.transforms.corruption import RGBD_CORRUPTIONS
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.layers.prototypes import cosines, l2_normalize
from jaxface.training import RgbdClasses, RgbdFeatures, RgbdNetworks, class_banks

BASELINES = ("rgb", "depth", "sum", "max")
"""Fusions without a parameter; every run reports them beside its own."""
TRAINED = ("acw", "acw_probe", "concat")
MODALITIES = ("rgb", "depth")

_PRETRAINED = TeacherSpec(backbone="iresnet_pico", embedding=64, steps=600)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    """Two networks, each trained on people of its own, and a small one that learns which of them to believe."""

    data: inputs.DataSpec = inputs.RenderedFaces(
        identities=80,
        per_identity=12,
        held_out_identities=60,
        held_out_per_identity=12,
        modality="rgbd",
        first_identity=400_000,
    )
    """Photographs with depth, to learn confidences from and to evaluate on people never seen; `--data.modality rgbd`."""
    rgb_data: inputs.DataSpec = inputs.RenderedFaces(
        identities=160, per_identity=12, held_out_identities=60, held_out_per_identity=12
    )
    """Photographs for the RGB network; ignored with `rgb.run`."""
    depth_data: inputs.DataSpec = inputs.RenderedFaces(
        identities=160,
        per_identity=12,
        held_out_identities=60,
        held_out_per_identity=12,
        modality="depth",
        first_identity=200_000,
    )
    """Virtual depth of other people for the depth network; ignored with `depth.run`."""
    image_size: int = 32
    """Side of the images, pixels."""
    rgb: TeacherSpec = _PRETRAINED
    """RGB network, trained on `rgb_data`, or that of a finished run."""
    depth: TeacherSpec = _PRETRAINED
    """Depth network, trained on `depth_data`, or that of a finished run on depth images (`--data.modality depth`)."""
    depth_augment: inputs.Augment = inputs.Augment(crop=1.0, crop_scale=(0.9, 1.1), crop_shift=0.02)
    """Random changes of the depth images to learn from, on the host; the recipe's `augment` is for photographs."""
    depth_noise: bool = True
    """Depth images to learn from get noise, holes and occlusions (`jaxface.data.augment_depth`); False for what is not depth."""
    fusion: Literal["acw", "acw_probe", "concat", "fixed", "sum", "max", "rgb", "depth"] = "acw"
    """What the third stage learns and is judged by: confidences of both images of a pair, of the probe alone, a linear map of
    both embeddings, one weight for all images, or nothing."""
    hidden: Annotated[int, AtLeast(1)] = 24
    """Width of the confidence network; 128 on real data."""
    features: bool = True
    """Whether the confidence network sees the embeddings."""
    norms: bool = True
    """Whether it sees their lengths."""
    scale: Annotated[float, Positive] = 16.0
    """Scale S of the fused class scores; 30 to 64 on real data."""
    prototypes: Literal["images", "weights"] = "images"
    """Prototypes of the people that confidences are learned from: means over their clean images, or the class weights of both
    networks, whose classes must then be those of `data`."""
    leave_one_out: Annotated[int, AtLeast(0)] = 10
    """An image is left out of its own prototype where its class has fewer images than this; 0 for never."""
    equalize: bool = True
    """Give the scores of both modalities one spread, as measured on impostors of the training data, before they are blended."""
    corruption: inputs.RgbdCorruption = inputs.RgbdCorruption()
    """How bad a bad photograph and bad depth are."""
    kinds: tuple[str, ...] = RGBD_CORRUPTIONS
    """What may happen to a pair, drawn afresh each step; the evaluation has a subset for each."""
    steps: int = 400
    """Steps of the third stage; the networks have their own."""
    optimizer: training.Optimizer = training.Optimizer(
        name="adamw", learning_rate=3e-3, schedule="cosine", weight_decay=1e-2
    )
    """Optimizer of the third stage."""

    @classmethod
    def paper(cls) -> "Config":
        """Lock3DFace with 340 people to learn confidences from and 169 to identify; most of the recipe is ours (design).

        Virtual depth: 10,000 people x 50 images, 45 GB of memory as rendered.
        """
        sgd = training.Optimizer(schedule="cosine")
        head = HeadSpec(scale=64.0, margin=0.5)
        return cls(
            data=inputs.RgbdFolder(root="lock3dface", held_out=169 / 509),
            rgb_data=inputs.RecordIO(path="faces_emore"),
            depth_data=inputs.RenderedFaces(
                identities=10_000,
                per_identity=50,
                variation=inputs.Variation(yaw=60.0, pitch=30.0, roll=15.0),
                modality="depth",
            ),
            image_size=112,
            bfloat16=True,
            batch_size=512,
            rgb=TeacherSpec(backbone="iresnet50", embedding=512, head=head, optimizer=sgd, steps=180_000),
            depth=TeacherSpec(
                backbone="iresnet50",
                embedding=512,
                head=head,
                optimizer=sgd,
                steps=20 * (500_000 // 512),
            ),
            hidden=128,
            scale=64.0,
            steps=1000,
            workers=8,
        )

    @classmethod
    def digits(cls) -> "Config":
        """The mechanism: left and right halves of digits as two modalities, uniform noise as what goes wrong; takes seconds."""
        adam = training.adam(3e-3, schedule="constant")
        half = TeacherSpec(
            backbone="mlp_96",
            embedding=24,
            head=HeadSpec(loss="cosface", scale=16.0, margin=0.2),
            optimizer=adam,
            steps=600,
        )
        still = inputs.Augment(flip=0.0)
        return cls(
            data=inputs.DigitHalves(),
            rgb_data=inputs.DigitHalves(modality="rgb"),
            depth_data=inputs.DigitHalves(modality="depth"),
            image_size=8,
            augment=still,
            depth_augment=still,
            depth_noise=False,
            rgb=half,
            depth=half,
            prototypes="weights",
            equalize=False,
            corruption=inputs.RgbdCorruption.mixed((0.5, 0.9)),
            kinds=("none", "rgb", "depth", "both"),
            steps=400,
        )


def check(config: Config) -> None:
    """Raises UserError for what can be refused before any data is opened."""
    config.rgb.head.check()
    config.depth.head.check()
    if not (config.features or config.norms):
        raise UserError(
            "features: the confidence network needs the embeddings, their lengths or both, got neither"
        )
    unknown = set(config.kinds) - set(RGBD_CORRUPTIONS)
    if not config.kinds or unknown or len(set(config.kinds)) < len(config.kinds):
        raise UserError(
            f"kinds: needs some of {', '.join(RGBD_CORRUPTIONS)}, each once, got {', '.join(config.kinds) or 'none'}"
        )
    for name, wanted in (("data", "rgbd"), ("rgb_data", "rgb"), ("depth_data", "depth")):
        has = getattr(getattr(config, name), "modality", "rgb")
        used = name == "data" or getattr(config, wanted).run is None
        if used and has != wanted:
            raise UserError(
                f"{name}: needs images of modality {wanted}, got {getattr(config, name).title} of modality {has}"
            )


def build(config: Config) -> list[training.Stage]:
    """Three stages: the RGB network, the depth network on virtual depth, and the confidences on both frozen."""
    check(config)
    split = inputs.load(config.data, image_size=config.image_size, seed=config.data_seed)
    # Two recognizers, each trained alone, the second on virtual depth of other people.
    stages, networks = pretraining(config, split)
    # Confidences, learned on pairs of which either image may be bad.
    return [*stages, fusion_stage(config, Fusion(config, networks, split.train), split)]


def pretraining(config: Config, split: inputs.Split) -> tuple[list[training.Stage], RgbdNetworks]:
    """The stages that train both networks, each alone; the state of the second carries the first."""
    weights = config.prototypes == "weights"
    stages, teachers, classes = [], [], list(split.train.class_names)
    for name in MODALITIES:
        spec = getattr(config, name)
        recipe = dataclasses.replace(
            config, augment=config.augment if name == "rgb" else config.depth_augment
        )
        people = split
        if spec.run is None:
            people_data = getattr(config, f"{name}_data")
            people = inputs.load(people_data, image_size=config.image_size, seed=config.data_seed)
            if weights and list(people.train.class_names) != classes:
                raise UserError(
                    f"prototypes: class weights need the classes of data, {len(classes)}, in {name}_data, "
                    f"which has {len(people.train.class_names)}"
                )
        stage, teacher = teacher_stage(recipe, spec, people, prototypes=weights)
        step = stage.step
        if name == "depth" and config.depth_noise and step is not None:
            step = functools.partial(_with_depth_noise, step)
        stages.append(dataclasses.replace(stage, name=name, step=step))
        teachers.append(dataclasses.replace(teacher, key=name))
    rgb, depth = teachers
    depth_init = stages[1].init

    def init(rng, previous):
        state = depth_init(rng, None)
        return state.replace(extra=rgb.installed(state.extra, previous))

    stages[1] = dataclasses.replace(stages[1], init=init)
    return stages, RgbdNetworks(rgb, depth, kinds=config.kinds, strength=config.corruption)


def _with_depth_noise(step, state, batch):
    """`step` on depth images with noise, holes and occlusions."""
    images = batch["image"]
    keys = training.example_keys(state, images.shape[0])
    return step(state, {**batch, "image": inputs.augment_depth(keys, images)})


class Fusion:
    """The confidences in both modalities, or another fusion that learns: prototypes, parameters, pairs and loss.

    Args:
      config: the configuration.
      networks: both frozen networks.
      source: pairs to learn from.
    """

    def __init__(self, config: Config, networks: RgbdNetworks, source: inputs.Source):
        self.config, self.networks, self.source, self.name = config, networks, source, config.fusion
        self.net = layers.ConfidenceNet(config.hidden, features=config.features, norms=config.norms)
        labels = np.asarray(source.labels)
        counts = np.bincount(labels, minlength=len(source.class_names))
        self.left_out = (counts[labels] < config.leave_one_out) & (config.prototypes == "images")
        if config.equalize and (counts > 0).sum() < 2:
            raise UserError(
                "data: the spread of impostor scores needs at least two people to learn from, got 1"
            )
        lonely = counts < (2 if config.leave_one_out > 1 else 1)
        if config.prototypes == "images" and lonely.any():
            first = int(lonely.argmax())
            raise UserError(
                f"data: a prototype needs an image of everybody besides the one left out, "
                f"{source.class_names[first]} has {counts[first]} in all"
            )

    # Prototypes: the mean of each person's clean images, without the image itself where there are few; and the spread of
    # the impostor scores, by which both modalities are made equal.

    def classes(self, extra: Mapping) -> RgbdClasses:
        """What is computed once from the clean training pairs."""
        config, labels = self.config, np.asarray(self.source.labels)
        clean = self.networks.describe_source(extra, self.source)
        sums, spread, count = [], [], len(self.source.class_names)
        for name in MODALITIES:
            unit = getattr(clean, name)
            if not np.isfinite(unit).all():
                raise UserError(f"{name}: needs finite embeddings, the network gives NaN")
            if config.prototypes == "weights":
                sums.append(l2_normalize(jnp.asarray(extra[name]["prototypes"][:count], jnp.float32)))
            else:
                zeros = jnp.zeros((count, unit.shape[1]))
                sums.append(class_banks.add_class_features(zeros, unit, labels))
            spread.append(metrics.impostor_spread(unit, labels) if config.equalize else 1.0)
        classes = RgbdClasses(*jax.device_get(sums), np.float32(spread), np.float32(0.5))
        if config.fusion == "fixed":
            classes = classes._replace(
                weight=np.float32(self._best_weight(extra, classes, self._shares(clean)))
            )
        return classes

    def _shares(self, clean: RgbdFeatures) -> dict[str, np.ndarray]:
        """What each image put into the prototypes and does not see of them: its clean embeddings, or zeros."""
        rows = self.left_out[:, None]
        return {
            f"share_{name}": np.where(rows, getattr(clean, name), 0).astype(np.float32) for name in MODALITIES
        }

    def _best_weight(self, extra: Mapping, classes: RgbdClasses, shares: Mapping) -> float:
        """The one weight of RGB with which most corrupted training images are recognized."""
        labels = np.asarray(self.source.labels)
        features = self.networks.describe_source(extra, self.source, None, seed=self.config.seed + 1)
        rgb, depth = (np.asarray(x) for x in self._class_cosines(classes, features, labels, shares))
        weights = np.linspace(0, 1, 41)
        correct = [
            (metrics.combine_scores(rgb, depth, float(w)).argmax(axis=1) == labels).mean() for w in weights
        ]
        best = np.flatnonzero(np.isclose(correct, max(correct)))
        return float(weights[best[np.abs(weights[best] - 0.5).argmin()]])

    def _class_cosines(self, classes: RgbdClasses, features: RgbdFeatures, labels, shares: Mapping):
        """Equalized cosines [B, C] with the prototypes of both modalities, an image's share of its own left out."""
        rgb, depth = (
            losses.leave_one_out_cosines(
                getattr(features, name), labels, getattr(classes, name), shares[f"share_{name}"]
            )
            for name in MODALITIES
        )
        return metrics.equalize(rgb, depth, classes.spread)

    # Training: both networks frozen, one image of a pair or both corrupted afresh in every step.

    def batches(self, state: training.TrainState) -> inputs.Batches:
        """Training pairs, each with its share of the prototypes; corruption is all the augmentation there is."""
        clean = self.networks.describe_source(state.extra, self.source)
        source = inputs.WithFields(self.source, **self._shares(clean))
        return training_batches(self.config, source, augment=None)()

    def init(self, rng: jax.Array, classes: RgbdClasses) -> dict:
        """Fresh parameters; none for a fusion that learns nothing."""
        if self.name not in TRAINED:
            return {}
        rgb, depth = jnp.asarray(classes.rgb), jnp.asarray(classes.depth)
        if self.name == "concat":
            # From the plain concatenation, whose cosine is the sum of both.
            both = jnp.concatenate([l2_normalize(rgb), l2_normalize(depth)], axis=1)
            return {"projection": jnp.eye(both.shape[1]), "prototypes": both}
        ones = jnp.ones(rgb.shape[0])
        return {"confidence": self.net.init(rng, rgb, depth, ones, ones)["params"]}

    def logits(self, params: Mapping, features: RgbdFeatures) -> jax.Array:
        """Confidence logits [B, 2]."""
        return self.net.apply({"params": params["confidence"]}, *features)

    def loss(self, params, extra, batch, rng):
        """The training loss; only the parameters of the fusion receive a gradient."""
        features, labels = self.networks.describe(extra, batch["image"], batch["depth"]), batch["label"]
        if self.name == "concat":
            scores = cosines(training.projected(params, features), params["prototypes"])
            value = losses.softmax_loss(scores, labels, scale=self.config.scale)
            return value.mean(), (extra, {"accuracy": (scores.argmax(axis=1) == labels).mean()})
        rgb, depth = self._class_cosines(extra["classes"], features, labels, batch)
        logits = self.logits(params, features)
        value = losses.acw_loss(logits, rgb, depth, labels, scale=self.config.scale)
        trust = jax.nn.sigmoid(logits[:, :1] - logits[:, 1:])
        correct = metrics.combine_scores(rgb, depth, trust).argmax(axis=1) == labels
        return value.mean(), (extra, {"accuracy": correct.mean(), "confidence_rgb": trust.mean()})


def fusion_stage(config: Config, fusion: Fusion, split: inputs.Split) -> training.Stage:
    """The third stage; without a step where the fusion learns nothing."""
    networks, trains = fusion.networks, config.fusion in TRAINED
    objective = training.Objective(fusion.loss, config.optimizer.build(max(config.steps, 1)))
    step = training.gradient_step(objective)
    training_batches(config, split.train, augment=None)  # refuses a batch size that cannot be

    def init(rng, previous):
        extra = networks.depth.installed({"rgb": previous.extra["rgb"]}, previous)
        classes = fusion.classes(extra)
        params = fusion.init(rng, classes)
        return training.create_state(rng, params, objective, extra={**extra, "classes": classes})

    def corrupted_step(state, batch):
        keys = training.example_keys(state, batch["image"].shape[0])
        images, depth = networks.corrupt(keys, batch["image"], normalize_pixels(batch["depth"]))
        return step(state, {**batch, "image": images, "depth": depth})

    # Testing: a modality counts where it is good in both images of a pair.
    evaluation = training.RgbdIdentification(
        networks,
        split,
        fusion.logits,
        fusion=config.fusion,
        kinds=config.kinds,
        baselines=BASELINES,
    )
    return training.Stage(
        name="fusion",
        init=init,
        step=corrupted_step if trains else None,
        batches=fusion.batches if trains else None,
        steps=config.steps if trains else 0,
        evaluate=evaluation,
        best="rank1",
        compile_init=False,
    )
