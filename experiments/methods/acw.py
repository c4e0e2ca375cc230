"""ACW: RGB-D recognition by two frozen networks and the confidence in each, trained on virtual depth (arXiv:2403.06529).

    python -m experiments.launch acw --preset digits --workdir runs/digits   # seconds: rank-1 0.759 ± 0.014, sum 0.718 ± 0.014
    python -m experiments.launch acw --workdir runs/acw                      # minutes: rendered people with depth
    python -m experiments.launch acw --preset paper --data.root …            # Lock3DFace; built and typed, not run here

Differs from the paper in: its confidence network, loss and tables were not available, those parts are ours; the scores of both
modalities get one spread before they are blended (docs/methods/acw.md).
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from experiments.recipes.heads import HeadSpec
from experiments.recipes.recognition import Recipe, check_no_packs, filled_batch_size, training_batches
from experiments.recipes.teachers import TeacherSpec, teacher_stage
from jaxface import data as inputs
from jaxface import layers, losses, metrics, training
from jaxface.checks import AtLeast, Positive
from jaxface.data.transforms.corruption import RGBD_CORRUPTIONS
from jaxface.errors import UserError
from jaxface.layers.prototypes import cosines, l2_normalize
from jaxface.training import RgbdClasses, RgbdFeatures, RgbdNetworks, RgbdPairs
from jaxface.training.rgbd import MODALITIES

BASELINES = ("rgb", "depth", "sum", "max", "fixed")
"""Fusions that learn nothing, or one weight; every run reports them beside its own."""
TRAINED = ("acw", "acw_probe", "concat")
LOCK3DFACE = ("NU", "FE", "PS", "OC", "TM")
"""Its subsets: neutral, expression, pose, occlusion, time lapse."""

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
    batch_size: Annotated[int, AtLeast(1)] = 64
    """Images per step of both networks, over all devices."""
    fusion_batch_size: Annotated[int, AtLeast(1)] = 256
    """Pairs per step of the third stage, over all devices; the whole set where it has fewer."""
    steps: Annotated[int, AtLeast(0)] = 1000
    """Steps of the third stage; the networks have their own."""
    optimizer: training.Optimizer = training.Optimizer(
        name="adamw", learning_rate=3e-3, schedule="constant", weight_decay=1e-2
    )
    """Optimizer of the third stage, whatever it trains."""

    @classmethod
    def paper(cls) -> "Config":
        """Lock3DFace with 340 people to learn confidences from and 169 to identify, by its subsets and with nothing corrupted.

        The paper has its depth from BFM 2019, this from the renderer's head model: 10,000 people x 50 images, 45 GB of memory.
        Networks, their training, confidences and split are not known of the paper but ours (design); docs/methods/acw.md has a
        table.
        """
        sgd = training.Optimizer(schedule="cosine")
        head = HeadSpec(scale=64.0, margin=0.5)
        return cls(
            data=inputs.RgbdFolder(root="lock3dface", held_out=169 / 509, subsets=LOCK3DFACE),
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
        )


def check(config: Config) -> None:
    """Raises UserError for what can be refused before any data is opened."""
    config.rgb.head.check()
    config.depth.head.check()
    check_no_packs(config, "acw trains one on photographs and one on depth, to compare")
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
    pairs = RgbdPairs(networks, split.train, config.prototypes, config.leave_one_out, config.equalize)
    return [*stages, fusion_stage(config, Fusion(config, pairs), split)]


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
        start = config.init_from if name == "rgb" else None
        stage, teacher = teacher_stage(recipe, spec, people, prototypes=weights, init_from=start)
        step = stage.step
        if name == "depth" and config.depth_noise and step is not None:
            step = training.with_depth_noise(step)
        # The run is opened as a recognizer of photographs.
        described = stage.description if name == "rgb" else None
        stages.append(dataclasses.replace(stage, name=name, step=step, description=described))
        teachers.append(dataclasses.replace(teacher, key=name))
    rgb, depth = teachers
    depth_init = stages[1].init

    def init(rng, previous):
        state = depth_init(rng, None)
        return state.replace(extra=rgb.installed(state.extra, previous))

    stages[1] = dataclasses.replace(stages[1], init=init)
    return stages, RgbdNetworks(rgb, depth, kinds=config.kinds, strength=config.corruption)


class Fusion:
    """The confidences in both modalities, or another fusion that learns: its parameters and its loss.

    Args:
      config: the configuration.
      pairs: the pairs to learn from, and both frozen networks.
    """

    def __init__(self, config: Config, pairs: RgbdPairs):
        self.config, self.pairs, self.name = config, pairs, config.fusion
        self.net = layers.ConfidenceNet(config.hidden, features=config.features, norms=config.norms)

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
        """L = CE(S (c_r cos_r + c_d cos_d), y); only the parameters of the fusion receive a gradient."""
        features = self.pairs.networks.describe(extra, batch["image"], batch["depth"])
        labels, scale = batch["label"], self.config.scale
        if self.name == "concat":
            scores = cosines(training.projected(params, features), params["prototypes"])
            value = losses.softmax_loss(scores, labels, scale=scale)
            return value.mean(), (extra, {"accuracy": (scores.argmax(axis=1) == labels).mean()})
        # The cosines of an image leave out what it put into its own prototype itself.
        rgb, depth = extra["classes"].cosines(features, labels, batch)
        logits = self.logits(params, features)
        value = losses.acw_loss(logits, rgb, depth, labels, scale=scale)
        trust = jax.nn.sigmoid(logits[:, :1] - logits[:, 1:])
        correct = metrics.combine_scores(rgb, depth, trust).argmax(axis=1) == labels
        return value.mean(), (extra, {"accuracy": correct.mean(), "confidence_rgb": trust.mean()})


def fusion_stage(config: Config, fusion: Fusion, split: inputs.Split) -> training.Stage:
    """The third stage; without a step where the fusion learns nothing."""
    pairs, networks, trains = fusion.pairs, fusion.pairs.networks, config.fusion in TRAINED
    objective = training.Objective(fusion.loss, config.optimizer.build(max(config.steps, 1)))
    size = filled_batch_size(split.train, config.fusion_batch_size)
    if trains:
        training_batches(
            config, split.train, batch_size=size, augment=None
        )  # refuses what cannot be, before any training

    def init(rng, previous):
        extra = networks.depth.installed({"rgb": previous.extra["rgb"]}, previous)
        # Prototypes: the mean of each person's clean images; and the spread of impostor scores, made equal.
        classes = pairs.classes(extra, seed=config.seed + 1)
        params = fusion.init(rng, classes)
        return training.create_state(rng, params, objective, extra={**extra, "classes": classes})

    def batches(state):
        """A function of the state alone: what an image put into the prototypes is worked out again."""
        source = pairs.with_shares(state.extra)
        return training_batches(config, source, batch_size=size, augment=None)()

    # Testing: a modality counts where it is good in both images of a pair.
    evaluation = training.RgbdIdentification(
        networks,
        split,
        fusion.logits,
        fusion=config.fusion,
        kinds=config.kinds,
        baselines=BASELINES + ("acw_probe",) * (config.fusion == "acw"),
    )
    return training.Stage(
        name="fusion",
        init=init,
        step=networks.corrupted(training.gradient_step(objective)) if trains else None,
        batches=batches if trains else None,
        steps=config.steps if trains else 0,
        evaluate=evaluation,
        best="rank1",
        compile_init=False,
    )
