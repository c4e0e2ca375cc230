"""ACW: RGB-D recognition by two frozen networks and the confidence in each, trained on virtual depth (arXiv:2403.06529)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recipes.recognition import Head, Recipe, Teacher, teacher_stage, training_batches
from jaxface import axes, layers, losses, metrics, training
from jaxface import data as inputs
from jaxface.data.transforms.corruption import RGBD_CORRUPTIONS
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.layers.prototypes import cosines, l2_normalize
from jaxface.losses.checks import check_range
from jaxface.training import class_banks

FIXED = ("rgb", "depth", "sum", "max")
"""Fusions without a parameter; every run reports them beside its own."""
TRAINED = ("acw", "acw_probe", "concat")
MODALITIES = ("rgb", "depth")

_PRETRAINED = Teacher(backbone="iresnet_pico", embedding=64, steps=600)


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
    rgb: Teacher = _PRETRAINED
    """RGB network, trained on `rgb_data`, or that of a finished run."""
    depth: Teacher = _PRETRAINED
    """Depth network, trained on `depth_data`, or that of a finished run on depth images (`--data.modality depth`)."""
    depth_augment: inputs.Augment = inputs.Augment(crop=1.0, crop_scale=(0.9, 1.1), crop_shift=0.02)
    """Random changes of the depth images to learn from, on the host; the recipe's `augment` is for photographs."""
    depth_noise: bool = True
    """Depth images to learn from get noise, holes and occlusions (`jaxface.data.augment_depth`); False for what is not depth."""
    fusion: Literal["acw", "acw_probe", "concat", "fixed", "sum", "max", "rgb", "depth"] = "acw"
    """What the third stage learns and is judged by: confidences of both images of a pair, of the probe alone, a linear map of
    both embeddings, one weight for all images, or nothing."""
    hidden: int = 24
    """Width of the confidence network; 128 on real data."""
    features: bool = True
    """Whether the confidence network sees the embeddings."""
    norms: bool = True
    """Whether it sees their lengths."""
    scale: float = 16.0
    """Scale S of the fused class scores; 30 to 64 on real data."""
    prototypes: Literal["images", "weights"] = "images"
    """Prototypes of the people that confidences are learned from: means over their clean images, or the class weights of both
    networks, whose classes must then be those of `data`."""
    leave_one_out: int = 10
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
        head = Head(scale=64.0, margin=0.5)
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
            rgb=Teacher(backbone="iresnet50", embedding=512, head=head, optimizer=sgd, steps=180_000),
            depth=Teacher(
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
        adam = training.Optimizer(name="adam", learning_rate=3e-3, schedule="constant", weight_decay=0.0)
        half = Teacher(
            backbone="mlp_96",
            embedding=24,
            head=Head(loss="cosface", scale=16.0, margin=0.2),
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
    check_range("scale", config.scale, 0.0, np.inf, open_low=True)
    config.rgb.head.check()
    config.depth.head.check()
    if config.hidden < 1:
        raise UserError(f"hidden: needs at least 1, got {config.hidden}")
    if not (config.features or config.norms):
        raise UserError(
            "features: the confidence network needs the embeddings, their lengths or both, got neither"
        )
    if config.leave_one_out < 0:
        raise UserError(f"leave_one_out: needs a number of images from 0, got {config.leave_one_out}")
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


def example_keys(state: training.TrainState, count: int) -> jax.Array:
    """A key for each of the `count` examples of this step that are here; the same however the batch is split over devices."""
    # Far from the folds that the step itself takes.
    step = jax.random.fold_in(jax.random.fold_in(state.rng, state.step), 1 << 16)
    first = jax.lax.axis_index(axes.DATA) * count if axes.bound(axes.DATA) else 0
    return jax.vmap(functools.partial(jax.random.fold_in, step))(first + jnp.arange(count))


class Described(NamedTuple):
    """What both networks say about N images: unit embeddings, and the lengths that they had."""

    rgb: jax.Array  # [N, D_r]
    depth: jax.Array  # [N, D_d]
    rgb_norm: jax.Array  # [N]
    depth_norm: jax.Array  # [N]


class Networks:
    """Both frozen networks, which live in `extra` as "rgb" and "depth", and what they make of corrupted pairs.

    Args:
      config: the configuration.
      rgb, depth: the networks.
    """

    def __init__(self, config: Config, rgb: training.Teacher, depth: training.Teacher):
        self.config, self.rgb, self.depth = config, rgb, depth
        self.kinds = np.array([RGBD_CORRUPTIONS.index(kind) for kind in config.kinds])
        self._described = jax.jit(self._corrupt_and_describe)

    def describe(self, extra: Mapping, images: jax.Array, depth: jax.Array) -> Described:
        """Of images [B, H, W, C] and encoded depth [B, H, W, C'], both float in [-1, 1]."""
        found = [
            network.embeddings(extra, pixels).astype(jnp.float32)
            for network, pixels in ((self.rgb, images), (self.depth, depth))
        ]
        return Described(*map(l2_normalize, found), *(jnp.linalg.norm(x, axis=1) for x in found))

    def corrupt(self, keys: jax.Array, images: jax.Array, depth: jax.Array, kinds: jax.Array | None = None):
        """Pairs, each corrupted by the kind given [B], or by one drawn among the configured ones."""
        keys = jax.vmap(lambda key: jax.random.split(key))(keys)
        if kinds is None:
            draw = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(self.kinds)))(keys[:, 0])
            kinds = jnp.asarray(self.kinds)[draw]
        return inputs.corrupt_rgbd(keys[:, 1], images, depth, kinds, strength=self.config.corruption)

    def _corrupt_and_describe(self, arrays, batch) -> Described:
        extra, kind, seed = arrays
        size = batch["image"].shape[0]
        number = batch["position"][0] // size
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), number), size)
        images, depth = normalize_pixels(batch["image"]), normalize_pixels(batch["depth"])
        kinds = None if kind is None else jnp.full(size, kind)
        return self.describe(extra, *self.corrupt(keys, images, depth, kinds))

    def describe_source(
        self,
        extra: Mapping,
        source: inputs.Source,
        kind: str | None = "none",
        *,
        seed: int = 0,
        size: int = 128,
    ) -> Described:
        """Of every record in order, on the host; corrupted by `kind`, or by one drawn for each where it is None."""
        number = None if kind is None else np.int32(RGBD_CORRUPTIONS.index(kind))
        arrays = extra, number, np.int32(seed)
        return training.map_source(
            self._described, source, arrays, batch_size=size, fields=("image", "depth")
        )


class Fusion:
    """The third stage: its parameters, its loss, and the scores of probes with a gallery under any fusion.

    `extra` holds, besides both networks, `sums` of the unit features of each class in each modality (directions of the
    prototypes), `spread` of the impostor scores, and the `weight` of a fixed fusion.

    Args:
      config: the configuration.
      networks: both frozen networks.
      source: pairs to learn from.
    """

    def __init__(self, config: Config, networks: Networks, source: inputs.Source):
        self.config, self.networks, self.source = config, networks, source
        self.classes = len(source.class_names)
        self.net = layers.ConfidenceNet(config.hidden, features=config.features, norms=config.norms)
        self.own: dict[str, np.ndarray] = {}
        labels = np.asarray(source.labels)
        counts = np.bincount(labels, minlength=self.classes)
        self.left_out = counts[labels] < config.leave_one_out
        if config.prototypes == "weights":
            self.left_out[:] = False
            return
        lonely = counts < (2 if config.leave_one_out > 1 else 1)
        if lonely.any():
            first = int(lonely.argmax())
            raise UserError(
                f"data: a prototype needs an image of everybody besides the one left out, "
                f"{source.class_names[first]} has {counts[first]} in all"
            )

    def prepare(self, extra: dict) -> dict:
        """`extra` with what is computed once from the clean training pairs, and their shares of the prototypes kept aside."""
        config, labels = self.config, np.asarray(self.source.labels)
        clean = self.networks.describe_source(extra, self.source)
        sums, spread = {}, []
        for name in MODALITIES:
            unit = getattr(clean, name)
            if not np.isfinite(unit).all():
                raise UserError(f"{name}: needs finite embeddings, the network gives NaN")
            if config.prototypes == "weights":
                weights = extra[name]["prototypes"][: self.classes]
                sums[name] = l2_normalize(jnp.asarray(weights, jnp.float32))
            else:
                zeros = jnp.zeros((self.classes, unit.shape[1]))
                sums[name] = class_banks.add_class_features(zeros, unit, labels)
            self.own[f"own_{name}"] = np.where(self.left_out[:, None], unit, 0).astype(np.float32)
            spread.append(metrics.impostor_spread(unit, labels) if config.equalize else 1.0)
        extra = {**extra, "sums": jax.device_get(sums), "spread": np.float32(spread)}
        weight = self.best_weight(extra) if config.fusion == "fixed" else 0.5
        return {**extra, "weight": np.float32(weight)}

    def best_weight(self, extra: Mapping) -> float:
        """The one weight of RGB with which most corrupted training images are recognized."""
        labels = np.asarray(self.source.labels)
        seen = self.networks.describe_source(extra, self.source, None, seed=self.config.seed + 1)
        rgb, depth = (np.asarray(x) for x in self.class_cosines(extra, seen, labels, self.own))
        weights = np.linspace(0, 1, 41)
        right = [((w * rgb + (1 - w) * depth).argmax(axis=1) == labels).mean() for w in weights]
        best = np.flatnonzero(np.isclose(right, max(right)))
        return float(weights[best[np.abs(weights[best] - 0.5).argmin()]])

    def class_cosines(self, extra: Mapping, seen: Described, labels, own: Mapping):
        """Equalized cosines [B, C] with the prototypes of both modalities, an image's own share left out."""
        scores = (
            losses.leave_one_out_cosines(
                getattr(seen, name), labels, extra["sums"][name], own.get(f"own_{name}")
            )
            for name in MODALITIES
        )
        return self.equalized(extra, *scores)

    def equalized(self, extra: Mapping, rgb: jax.Array, depth: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Scores of both modalities with one spread."""
        ratio = jnp.sqrt(extra["spread"][1] / extra["spread"][0])
        return rgb * ratio, depth / ratio

    def batches(self):
        """Training pairs, each with its share of the prototypes; corruption is all the augmentation there is."""
        source = inputs.WithFields(self.source, **self.own) if self.own else self.source
        return training_batches(self.config, source, augment=None)()

    def init(self, rng: jax.Array, extra: Mapping) -> dict:
        """Fresh parameters; none for a fusion that learns nothing."""
        if self.config.fusion not in TRAINED:
            return {}
        rgb, depth = (jnp.asarray(extra["sums"][name]) for name in MODALITIES)
        if self.config.fusion == "concat":
            # From the plain concatenation, whose cosine is the sum of both.
            both = jnp.concatenate([l2_normalize(rgb), l2_normalize(depth)], axis=1)
            return {"projection": jnp.eye(both.shape[1]), "prototypes": both}
        ones = jnp.ones(rgb.shape[0])
        return {"confidence": self.net.init(rng, rgb, depth, ones, ones)["params"]}

    def logits(self, params: Mapping, seen: Described) -> jax.Array:
        """Confidence logits [B, 2]."""
        return self.net.apply({"params": params["confidence"]}, *seen)

    def loss(self, params, extra, batch, rng):
        """The training loss; only the parameters of the fusion receive a gradient."""
        seen = self.networks.describe(extra, batch["image"], batch["depth"])
        labels = batch["label"]
        if self.config.fusion == "concat":
            both = jnp.concatenate([seen.rgb, seen.depth], axis=1) @ params["projection"]
            scores = cosines(both, params["prototypes"])
            value = losses.softmax_loss(scores, labels, scale=self.config.scale)
            return value.mean(), (extra, {"accuracy": (scores.argmax(axis=1) == labels).mean()})
        own = {name: batch[name] for name in ("own_rgb", "own_depth") if name in batch}
        rgb, depth = self.class_cosines(extra, seen, labels, own)
        logits = self.logits(params, seen)
        value = losses.acw_loss(logits, rgb, depth, labels, scale=self.config.scale)
        trust = jax.nn.sigmoid(logits[:, :1] - logits[:, 1:])
        correct = (trust * rgb + (1 - trust) * depth).argmax(axis=1) == labels
        return value.mean(), (extra, {"accuracy": correct.mean(), "confidence_rgb": trust.mean()})

    def confidence(self, params: Mapping, seen: Described) -> jax.Array:
        """a [N] of `metrics.confidence_logit`; 0 where nothing is learned about confidence."""
        if "confidence" not in params:
            return jnp.zeros(len(seen.rgb))
        return metrics.confidence_logit(self.logits(params, seen))

    def class_gallery(self, extra: Mapping) -> Described:
        """The classes themselves as a gallery, which trusts both modalities alike."""
        rgb, depth = (np.asarray(l2_normalize(jnp.asarray(extra["sums"][name]))) for name in MODALITIES)
        return Described(rgb, depth, np.ones(len(rgb)), np.ones(len(rgb)))

    def scores(
        self,
        name: str,
        params: Mapping,
        extra: Mapping,
        probes: Described,
        gallery: Described,
        *,
        classes: bool,
    ) -> np.ndarray:
        """[Q, G] scores of a fusion; `classes` where the gallery is the classes themselves."""
        if name == "concat":
            map_of = lambda seen: jnp.concatenate([seen.rgb, seen.depth], axis=1) @ params["projection"]  # noqa: E731
            stored = params["prototypes"] if classes else map_of(gallery)
            return np.asarray(cosines(map_of(probes), stored))
        if name in ("acw", "acw_probe"):
            stored = jnp.zeros(len(gallery.rgb)) if classes else self.confidence(params, gallery)
            templates = [
                metrics.RgbdTemplates(seen.rgb, seen.depth, logit)
                for seen, logit in ((probes, self.confidence(params, probes)), (gallery, stored))
            ]
            spread = tuple(np.asarray(extra["spread"]).tolist())
            return np.asarray(
                metrics.fused_similarities(*templates, probe_only=name == "acw_probe", spread=spread)
            )
        rgb, depth = (
            metrics.similarity_matrix(getattr(probes, part), getattr(gallery, part)) for part in MODALITIES
        )
        rgb, depth = self.equalized(extra, rgb, depth)
        if name == "max":
            return np.asarray(jnp.maximum(rgb, depth))
        weight = {"rgb": 1.0, "depth": 0.0, "sum": 0.5, "fixed": extra["weight"]}[name]
        return np.asarray(weight * rgb + (1 - weight) * depth)


class Identification:
    """Rank-1 identification of clean and corrupted probes: the evaluation of the third stage.

    People that nobody has seen are enrolled with one clean image each, the other images are the probes; where the classes are
    those of the training, the gallery is the class prototypes. Reports `rank1@<kind>` of the configured fusion for each kind of
    corruption and their mean `rank1`; the same as `<fusion>/rank1...` for every fusion without parameters;
    `confidence@<kind>`, the mean confidence in RGB; `rank1@no_rgb` and `@no_depth`, of clean probes with one modality; and
    `tar@1e-3` over all probes where there are enough impostors.

    Args:
      fusion: what is judged.
      split: the pairs.
      block: probes at a time.
    """

    def __init__(self, fusion: Fusion, split: inputs.Split, *, block: int = 2048):
        self.fusion, self.block = fusion, block
        labels = np.asarray(split.held_out.labels)
        self.classes = split.protocol == "classification"
        if self.classes:
            self.probes, self.gallery, self.gallery_labels = (
                split.held_out,
                None,
                np.arange(len(split.train.class_names)),
            )
        else:
            self.gallery_labels, first = np.unique(labels, return_index=True)
            rest = np.setdiff1d(np.arange(len(labels)), first)
            if not rest.size:
                raise UserError("data: identification needs somebody to evaluate on with two images")
            self.gallery, self.probes = (inputs.Subset(split.held_out, rows) for rows in (first, rest))

    def __call__(self, state: training.TrainState) -> dict[str, float]:
        fusion, config = self.fusion, self.fusion.config
        params, extra = state.averaged_params, state.extra
        gallery = (
            fusion.class_gallery(extra)
            if self.classes
            else fusion.networks.describe_source(extra, self.gallery)
        )
        host = {name: jax.device_get(extra[name]) for name in ("sums", "spread", "weight")}
        params = jax.device_get(params)
        names = list(dict.fromkeys((config.fusion, *FIXED)))
        found = {name: {} for name in names}
        report, histogram = {}, metrics.ScoreHistogram(low=-8.0, high=8.0)
        for number, kind in enumerate(config.kinds):
            seen = fusion.networks.describe_source(extra, self.probes, kind, seed=1 + number)
            for name in names:
                keep = histogram if name == config.fusion else None
                found[name][kind] = self._rank1(name, params, host, seen, gallery, keep)
            if config.fusion in ("acw", "acw_probe"):
                trust = jax.nn.sigmoid(fusion.confidence(params, seen))
                report[f"confidence@{kind}"] = float(trust.mean())
            if kind == "none":
                report |= self._missing(params, host, seen, gallery)
        for name, rates in found.items():
            for prefix in [""] * (name == config.fusion) + [f"{name}/"] * (name in FIXED):
                report[f"{prefix}rank1"] = float(np.mean(list(rates.values())))
                report |= {f"{prefix}rank1@{kind}": rate for kind, rate in rates.items()}
        tar = histogram.tar_at_far(1e-3)
        if tar.resolvable:
            report["tar@1e-3"] = float(tar.tar)
        if config.fusion == "fixed":
            report["weight"] = float(host["weight"])
        return report

    def _rank1(self, name, params, extra, seen: Described, gallery: Described, histogram=None) -> float:
        right = 0
        for start in range(0, len(seen.rgb), self.block):
            part = Described(*(x[start : start + self.block] for x in seen))
            labels = np.asarray(self.probes.labels)[start : start + self.block]
            scores = self.fusion.scores(name, params, extra, part, gallery, classes=self.classes)
            right += metrics.rank1(scores, labels, self.gallery_labels) * len(labels)
            if histogram is not None:
                same = labels[:, None] == self.gallery_labels
                scores = np.clip(scores, histogram.low, histogram.high)
                histogram.add(genuine=scores[same], impostor=scores[~same])
        return right / len(seen.rgb)

    def _missing(self, params, extra, seen: Described, gallery: Described) -> dict[str, float]:
        """Clean probes of which one modality is not there."""
        if "confidence" not in params:
            return {}
        stored = np.zeros(len(gallery.rgb)) if self.classes else self.fusion.confidence(params, gallery)
        known = metrics.RgbdTemplates(gallery.rgb, gallery.depth, stored)
        whole = metrics.RgbdTemplates(seen.rgb, seen.depth, self.fusion.confidence(params, seen))
        spread = tuple(np.asarray(extra["spread"]).tolist())
        report, every, labels = {}, np.ones(len(seen.rgb), bool), np.asarray(self.probes.labels)
        for name, there in (("no_rgb", (~every, every)), ("no_depth", (every, ~every))):
            probes = metrics.missing_modality(whole, *there)
            _, nearest = metrics.fused_search(
                probes,
                known,
                probe_only=self.fusion.config.fusion == "acw_probe",
                spread=spread,
                block=self.block,
            )
            found = self.gallery_labels[np.asarray(nearest)[:, 0]]
            report[f"rank1@{name}"] = float((found == labels).mean())
        return report


def pretraining(config: Config, split: inputs.Split) -> tuple[list[training.Stage], Networks]:
    """The stages that train both networks, each alone; the state of the second carries the first."""
    weights = config.prototypes == "weights"
    stages, teachers, classes = [], [], len(split.train.class_names)
    for name in MODALITIES:
        spec = getattr(config, name)
        augment = config.augment if name == "rgb" else config.depth_augment
        recipe = dataclasses.replace(config, augment=augment)
        own = split
        if spec.run is None:
            own = inputs.load(
                getattr(config, f"{name}_data"), image_size=config.image_size, seed=config.data_seed
            )
            if weights and list(own.train.class_names) != list(split.train.class_names):
                raise UserError(
                    f"prototypes: class weights need the classes of data, {classes}, in {name}_data, "
                    f"which has {len(own.train.class_names)}"
                )
        stage, teacher = teacher_stage(recipe, spec, own, prototypes=weights)
        step = stage.step
        if name == "depth" and config.depth_noise and step is not None:
            step = functools.partial(_with_depth_noise, step)
        stages.append(dataclasses.replace(stage, name=name, step=step))
        teachers.append(dataclasses.replace(teacher, key=name))
    rgb, depth = teachers
    first = stages[1]

    def init(rng, previous):
        state = first.init(rng, None)
        return state.replace(extra=rgb.installed(state.extra, previous))

    stages[1] = dataclasses.replace(first, init=init)
    return stages, Networks(config, rgb, depth)


def _with_depth_noise(step, state, batch):
    """`step` on depth images with noise, holes and occlusions."""
    images = batch["image"]
    keys = example_keys(state, images.shape[0])
    return step(state, {**batch, "image": inputs.augment_depth(keys, images)})


def build(config: Config) -> list[training.Stage]:
    """Three stages: the RGB network, the depth network on virtual depth, and the confidences on both frozen."""
    check(config)
    if config.data_seed < 0:
        raise UserError(f"data_seed: needs a number from 0, got {config.data_seed}")
    split = inputs.load(config.data, image_size=config.image_size, seed=config.data_seed)
    stages, networks = pretraining(config, split)
    fusion = Fusion(config, networks, split.train)
    fusion.batches()  # refuses a batch size that cannot be
    trains = config.fusion in TRAINED
    objective = training.Objective(fusion.loss, config.optimizer.build(max(config.steps, 1)))
    step = training.gradient_step(objective)

    def init(rng, previous):
        extra = networks.depth.installed({"rgb": previous.extra["rgb"]}, previous)
        extra = fusion.prepare(extra)
        return training.create_state(rng, fusion.init(rng, extra), objective, extra=extra)

    def corrupted_step(state, batch):
        keys = example_keys(state, batch["image"].shape[0])
        images, depth = networks.corrupt(keys, batch["image"], normalize_pixels(batch["depth"]))
        return step(state, {**batch, "image": images, "depth": depth})

    last = training.Stage(
        name="fusion",
        init=init,
        step=corrupted_step if trains else None,
        batches=(lambda state: fusion.batches()) if trains else None,
        steps=config.steps if trains else 0,
        evaluate=Identification(fusion, split),
        best="rank1",
        compile_init=False,
    )
    return [*stages, last]
