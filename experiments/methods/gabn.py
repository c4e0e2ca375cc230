"""GABN: attention that is alike across groups, and faces recognized without their most telling places (arXiv:2304.02284)."""

import dataclasses
import functools
import pathlib
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from experiments.recipes.recognition import (
    Head,
    Recipe,
    evaluation,
    load,
    network,
    recognition_stage,
    training_batches,
)
from jaxface import axes, losses, metrics, models, training
from jaxface import data as inputs
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.layers.prototypes import cosines, l2_normalize
from jaxface.losses.checks import check_range
from jaxface.models import MLP

DIAGNOSED = 900
"""Images of which attention maps are reported."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    """A face network that is asked to look at the same places whatever group a face is of, and at more than one place.

    The abstract of the paper gives the three parts; formulas, weights and the schedule are our reading of it (design).
    """

    data: inputs.DataSpec = inputs.TonedFaces()
    """Faces to learn from, in groups; some of the people are kept for verification."""
    image_size: int = 64
    """Side of the images, pixels."""
    steps: int = 600
    """Training steps."""
    head: Head = Head(loss="cosface", scale=16.0, margin=0.2)
    """Recognition loss, of the images as they are and of the erased ones."""
    attention: losses.AttentionKind = "elementwise"
    """How a gradient becomes a map: by channel averages (gradcam), place by place, or by the image itself (input)."""
    layer: str | None = None
    """Part of the network that gives the feature map; the last with a plane before the head unless given."""
    erase_weight: float = 0.5
    """Weight of the recognition loss of the erased images; 0 erases nothing."""
    erase_phase: tuple[float, float] = (0.0, 1.0)
    """First and last moment of that term, as fractions of the run."""
    cells: int = 4
    """Cells along either side into which an image is cut for erasing; 7 for 112 pixels."""
    erase: int = 2
    """Cells erased of an image, those that draw the most attention."""
    erase_groups: Literal["all", "others"] = "all"
    """Whose images are erased: everybody's, or those of all groups but the reference."""
    fill: Literal["zero", "noise"] = "zero"
    """What erased pixels become: mid-gray, or uniform noise."""
    adversarial_weight: float = 0.1
    """Weight of the term that makes maps alike across groups; 0 trains no discriminator."""
    adversarial_phase: tuple[float, float] = (0.6, 1.0)
    """First and last moment of that term; from the start, beside erasing, it hides attention instead of moving it."""
    ramp: float = 0.125
    """Fraction of the run over which a weight rises from 0 once its phase begins: early maps are noise."""
    adversary: Literal["uniform", "to_reference", "reversal"] = "uniform"
    """What the network wants of the discriminator: no opinion, everybody taken for the reference group, or wrong answers."""
    reference: int = 0
    """Number of the reference group in the order of the data."""
    discriminator_hidden: tuple[int, ...] = (64,)
    """Hidden units of the discriminator, which tells the group from a map."""
    discriminator: training.Optimizer = training.Optimizer(
        name="adam", learning_rate=1e-3, schedule="constant", weight_decay=0.0
    )
    """Its optimizer; it learns throughout, one update per step."""
    packs: tuple[str, ...] = ()
    """Verification packs (.bin), one for each group, on which to report fairness instead; RFW has four."""

    @classmethod
    def paper(cls) -> "Config":
        """BUPT-Balancedface, evaluated on RFW. ArcFace's own spread there, 1.1 points, is what must become smaller."""
        return cls(
            data=inputs.GroupFolders(root="bupt-balancedface", held_out=0.02),
            image_size=112,
            backbone="iresnet34",
            embedding=512,
            head=Head(loss="arcface", scale=64.0, margin=0.5),
            cells=7,
            erase=3,
            reference=2,
            discriminator=training.Optimizer(
                name="adam", learning_rate=1e-4, schedule="constant", weight_decay=0.0
            ),
            packs=tuple(f"rfw/{name}.bin" for name in ("African", "Asian", "Caucasian", "Indian")),
            bfloat16=True,
            batch_size=512,
            steps=20 * (1_300_000 // 512),
            optimizer=training.Optimizer(decay_at=(0.4, 0.7, 0.9)),
            workers=8,
        )

    @classmethod
    def digits(cls) -> "Config":
        """Digits of which one group offers a small shortcut that fails in the test; the premise of the paper in the small."""
        adam = training.Optimizer(name="adam", learning_rate=2e-3, schedule="constant", weight_decay=0.0)
        return cls(
            data=inputs.ShortcutDigits(),
            augment=inputs.Augment(flip=0.0),
            image_size=16,
            backbone="convnet",
            embedding=32,
            optimizer=adam,
            steps=800,
        )


def check(config: Config) -> None:
    """Raises UserError for what can be refused before any data is opened."""
    config.head.check()
    for name in ("erase_weight", "adversarial_weight"):
        check_range(name, getattr(config, name), 0.0, float("inf"))
    check_range("ramp", config.ramp, 0.0, 1.0)
    for name in ("erase_phase", "adversarial_phase"):
        first, last = getattr(config, name)
        if not 0 <= first < last <= 1:
            raise UserError(f"{name}: needs 0 <= first < last <= 1, got {first:g} and {last:g}")
    if config.adversarial_weight > 0:
        config.discriminator.check()


def feature_layer(config: Config, model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[str, tuple]:
    """Name and shape (h, w, C) of the feature map.

    Raises:
      UserError: the network has no such part, or no map in it.
    """
    shapes = models.layer_shapes(model, image_shape)
    maps = {name: shape for name, shape in shapes.items() if len(shape) == 3 and shape[0] * shape[1] > 1}
    known = [name for name in maps if not name.startswith("head")]
    if config.layer is None:
        if not known:
            raise UserError(
                f"backbone: needs a network with a feature map of more than one place, {config.backbone} has none "
                f"for images of {image_shape[0]}x{image_shape[1]}"
            )
        return known[-1], maps[known[-1]]
    if config.layer not in maps:
        raise UserError(
            f"layer: needs a part with a map, one of {', '.join(maps) or 'none'}, got {config.layer!r}"
        )
    return config.layer, maps[config.layer]


def schedule(
    step: jax.Array, steps: int, weight: float, phase: tuple[float, float], ramp: float
) -> jax.Array:
    """Weight of a term at a step: 0 before its phase and after it, a linear rise over `ramp` of the run, then constant."""
    first, last = (round(moment * steps) for moment in phase)
    rise = max(round(ramp * steps), 1) if ramp > 0 else 0
    risen = jnp.clip((step - first) / rise, 0.0, 1.0) if rise else 1.0
    return weight * jnp.where((step >= first) & (step < last), risen, 0.0).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Looks:
    """A recognizer that is asked where it looks.

    Attributes:
      recognizer: network and prototypes.
      layer: part of the network that gives the feature map, of the plane `grid`.
      kind: of the maps.
    """

    recognizer: training.Recognizer
    layer: str
    grid: tuple[int, int]
    kind: losses.AttentionKind

    def __call__(self, params: dict, extra: dict, batch: dict, rng: jax.Array, *, train: bool = True):
        """One pass: (embeddings [B, D], attention, new extra). The maps are differentiable by `params`."""
        variables = training.network_variables(params["backbone"], extra)
        options = dict(layer=self.layer, train=train, rngs={"dropout": rng})
        model, images = self.recognizer.model, batch["image"]
        embeddings, features, updated = models.apply_with_layer(model, variables, images, **options)
        own = l2_normalize(params["prototypes"][batch["label"]])

        def target_cosines(embeddings):
            return jnp.sum(l2_normalize(embeddings) * own, axis=1)

        def tail(features):
            return target_cosines(models.apply_from_layer(model, variables, features, images, **options))

        def whole(images):
            return target_cosines(models.apply_with_layer(model, variables, images, **options)[0])

        if self.kind == "input":
            attention = losses.gradient_attention(whole, images, kind="input", grid=self.grid)
        else:
            attention = losses.gradient_attention(tail, features, kind=self.kind)
        return embeddings, attention, {**extra, **updated}


class AttentionReport:
    """Where the network looks, group by group, in evaluation mode: `attention/…`, and by occlusion, which no term trains.

    Reported of each group are the coverage of the maps, the area that holds half their mass and, where the data has a
    shortcut, the mass on it; of the first two groups how far their mean maps are apart. By occlusion, a map is the drop of the
    target cosine when a cell is erased.

    Args:
      looks: network, layer and kind of the maps.
      source: records of known classes and groups.
      config: of the run.
      region: [H, W] bool, where the shortcut is.
    """

    def __init__(self, looks: Looks, source: inputs.Source, config: Config, region: np.ndarray | None = None):
        chosen = np.arange(0, len(source), -(-len(source) // DIAGNOSED))
        self.looks, self.source, self.region = looks, inputs.Subset(source, chosen), region
        self.groups, self.names = np.asarray(self.source.groups), list(source.group_names)
        self.cells = config.cells

        @jax.jit
        def look(variables, batch):
            (params, extra), labels = variables, batch["label"]
            batch = {"image": normalize_pixels(batch["image"]), "label": labels}
            rng = jax.random.key(0)  # nothing is drawn in evaluation mode
            embeddings, attention, _ = looks(params, extra, batch, rng, train=False)
            own = l2_normalize(params["prototypes"][labels])

            def without(cell):
                mask = jnp.ones((1, self.cells**2)).at[0, cell].set(0.0).reshape(1, self.cells, self.cells)
                repeats = [side // self.cells for side in batch["image"].shape[1:3]]
                mask = jnp.repeat(jnp.repeat(mask, repeats[0], axis=1), repeats[1], axis=2)
                erased = losses.erase(batch["image"], jnp.broadcast_to(mask, batch["image"].shape[:3]))
                variables = training.network_variables(params["backbone"], extra)
                found = looks.recognizer.model.apply(variables, erased, train=False)
                return jnp.sum((l2_normalize(embeddings) - l2_normalize(found)) * own, axis=1)

            drops = jax.lax.map(without, jnp.arange(self.cells**2))
            return attention.maps, jax.nn.relu(drops.T).reshape(-1, self.cells, self.cells)

        self._look = look

    def __call__(self, state: training.TrainState) -> dict[str, float]:
        variables = state.averaged_params, state.extra
        both = training.map_source(self._look, self.source, variables, fields=("image", "label"))
        report = {}
        for name, maps in zip(("attention", "occlusion"), both, strict=True):
            report |= {f"{name}/{key}": value for key, value in self._describe(maps).items()}
        return report

    def _describe(self, maps: np.ndarray) -> dict[str, float]:
        there = maps.any(axis=(1, 2))
        report = {"empty": 1.0 - float(there.mean())}
        maps, groups = maps[there], self.groups[there]
        if set(groups) >= {0, 1}:
            report["gap"] = metrics.attention_gap(maps, groups)
        for group, name in enumerate(self.names):
            own = maps[groups == group]
            if not len(own):
                continue
            report[f"coverage@{name}"] = float(metrics.attention_coverage(own).mean())
            report[f"sensitive_area@{name}"] = float(metrics.sensitive_area(own).mean())
            if self.region is not None:
                report[f"shortcut_mass@{name}"] = float(metrics.attention_mass(own, self.region).mean())
        return report


def evaluations(config: Config, split: inputs.Split, model: nn.Module, looks: Looks) -> training.Evaluations:
    """Everything that is reported of a state.

    Raises:
      UserError: a group that is not among the people to evaluate on, or a pack that cannot be opened.
    """
    flip = config.augment.flip > 0
    if config.packs:
        packs = {
            pathlib.Path(path).stem: inputs.PackSource(path, image_size=config.image_size)
            for path in config.packs
        }
        fair = training.PackFairness(model, packs, flip=flip)
    else:
        fair = training.GroupFairness(
            model, split.held_out, verification=split.protocol == "verification", flip=flip
        )
    region = None
    if isinstance(config.data, inputs.ShortcutDigits):
        region = np.zeros(split.train.image_shape[:2], bool)
        region[inputs.SHORTCUT] = True
    # Unseen people have no prototype to look for: their maps cannot be asked, those of the training people can.
    asked = split.held_out if split.protocol == "classification" else split.train
    report = AttentionReport(looks, asked, config, region)
    return training.Evaluations(evaluation(config, model, split), fair, report)


def build(config: Config) -> list[training.Stage]:
    """One stage, whose step updates the discriminator and then the network; with both weights 0 it is the plain training."""
    check(config)
    split = load(config)
    groups = len(training.source_groups(split.train, "train on")[1])
    if not 0 <= config.reference < groups:
        raise UserError(f"reference: needs a group in [0, {groups}), got {config.reference}")
    height, width, _ = image_shape = split.train.image_shape
    model = network(config)
    layer, shape = feature_layer(config, model, image_shape)
    erase = functools.partial(
        losses.topn_mask, count=config.erase, cells=config.cells, image_shape=(height, width)
    )
    jax.eval_shape(erase, jax.ShapeDtypeStruct((1, *shape[:2]), jnp.float32))  # refuses what does not fit
    if config.attention == "input" and (height % shape[0] or width % shape[1]):
        raise UserError(
            f"attention: input needs images of a multiple of the map's {shape[0]}x{shape[1]}, got {height}x{width}"
        )
    classes = len(split.train.class_names)
    recognizer = training.Recognizer(model, classes, image_shape)
    looks = Looks(recognizer, layer, shape[:2], config.attention)
    judged = evaluations(config, split, model, looks)
    open_batches = training_batches(config, split.train)
    if config.erase_weight == config.adversarial_weight == 0:
        stage = recognition_stage(
            "recognition", config, split, model, config.head, batches=open_batches, evaluate=False
        )
        return [dataclasses.replace(stage, evaluate=judged, best=f"{split.protocol}/accuracy")]
    adversarial = config.adversarial_weight > 0
    discriminator = MLP(embedding=groups, hidden=config.discriminator_hidden)

    def opinions(params, attention):
        """[B, R] of the discriminator; a map of mean 1 is its input, whatever the number of places."""
        maps = attention.maps * np.prod(shape[:2])
        return discriminator.apply({"params": params["discriminator"]}, maps)

    def weights(batch):
        name = axes.DATA if axes.bound(axes.DATA) else None
        return losses.group_weights(batch["group"], groups, axis_name=name)

    def discriminator_fn(params, extra, batch, rng):
        _, attention, _ = looks(params, extra, batch, rng)
        logits = opinions(params, jax.lax.stop_gradient(attention))
        values = losses.discriminator_loss(
            logits, batch["group"], valid=attention.valid, weights=weights(batch)
        )
        correct = logits.argmax(axis=1) == batch["group"]
        return values.mean(), (extra, {"accuracy": correct.mean()})

    def adversarial_loss(params, attention, batch):
        logits, options = opinions(params, attention), dict(valid=attention.valid, weights=weights(batch))
        if config.adversary == "uniform":
            return losses.adversarial_uniform(logits, **options).mean()
        if config.adversary == "reversal":
            return -losses.discriminator_loss(logits, batch["group"], **options).mean()
        return losses.adversarial_to_reference(
            logits, batch["group"], reference=config.reference, **options
        ).mean()

    def erased_loss(params, extra, attention, batch, rng):
        dropout, noise = jax.random.split(rng)
        images, fill = batch["image"], 0.0
        if config.fill == "noise":
            fill = jax.random.uniform(noise, images.shape, minval=-1.0, maxval=1.0)
        erased = losses.erase(images, erase(attention.maps), fill)
        # Erased images have batch statistics of their own, which stay out of the running averages: those are for whole faces.
        similarity, _ = recognizer.train_cosines(params, extra, erased, dropout)
        counts = attention.valid
        if config.erase_groups == "others":
            counts = counts & (batch["group"] != config.reference)
        return jnp.where(counts, config.head(similarity, batch["label"]), 0.0).mean()

    def loss_fn(params, extra, batch, rng):
        step, keys = extra["step"], jax.random.split(rng)
        embeddings, attention, updated = looks(params, extra, batch, keys[0])
        similarity = cosines(embeddings, params["prototypes"][:classes])
        total = config.head(similarity, batch["label"]).mean()
        correct = similarity.argmax(axis=1) == batch["label"]
        report = {"accuracy": correct.mean(), "recognition_loss": total}
        timed = functools.partial(schedule, step, config.steps, ramp=config.ramp)
        if config.erase_weight > 0:
            erased = erased_loss(params, extra, attention, batch, keys[1])
            weight = timed(config.erase_weight, config.erase_phase)
            total = total + weight * erased
            report |= {"erased_loss": erased, "erase_weight": weight}
        if adversarial:
            value = adversarial_loss(params, attention, batch)
            weight = timed(config.adversarial_weight, config.adversarial_phase)
            total = total + weight * value
            report |= {"adversarial_loss": value, "adversarial_weight": weight}
        return total, ({**updated, "step": step + 1}, report)

    network_parts = ("backbone", "prototypes")
    objectives = [
        training.Objective(loss_fn, config.optimizer.build(config.steps), network_parts),
    ]
    if adversarial:
        judge = training.Objective(
            discriminator_fn, config.discriminator.build(config.steps), ("discriminator",), "discriminator"
        )
        objectives.insert(0, judge)

    def init(rng, previous):
        params, extra = recognizer.init(rng)
        if adversarial:
            blank = jnp.zeros((1, *shape[:2]))
            params["discriminator"] = discriminator.init(jax.random.fold_in(rng, 1), blank)["params"]
        return training.create_state(
            rng, params, *objectives, extra={**extra, "step": jnp.zeros((), jnp.int32)}
        )

    return [
        training.Stage(
            name="recognition",
            init=init,
            step=training.gradient_step(*objectives),
            batches=lambda state: open_batches(),
            steps=config.steps,
            evaluate=judged,
            best=f"{split.protocol}/accuracy",
            sharding={"prototypes": PartitionSpec(axes.MODEL)},
        )
    ]
