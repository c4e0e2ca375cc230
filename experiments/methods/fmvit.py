"""FM-ViT: one transformer that tells live faces from attacks with whatever sensors there are (arXiv:2305.03277).

    python -m experiments.launch fmvit --workdir runs/fmvit
    python -m experiments.launch fmvit --preset paper --data.root casia-surf --workdir …     # built and typed, not trained here
    python -m experiments.reproduce fmvit --study single      # ACER with one sensor 0.165, a ViT for each 0.169

Differs from the paper in: of which the abstract alone could be read; formulas, the solo term and the sum of the others' maps are
ours (docs/methods/fmvit.md#choices-of-ours).
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxface import data as inputs
from jaxface import inference, losses, models, training
from jaxface.checks import AtLeast, ProperFraction, Range
from jaxface.errors import UserError
from jaxface.layers import partner_matrix
from jaxface.layers.remat import Remat
from jaxface.models.transformers.fmvit import BlockKind, Partners
from jaxface.paths import user_path
from jaxface.training.evaluations.presentation_detection import check_modalities


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A branch for each sensor, trained together and tested with every subset of them."""

    data: inputs.DataSpec = inputs.Presentations()
    """Live faces and attacks with a development set, as color, depth and infrared."""
    image_size: Annotated[int, AtLeast(8)] = 32
    """Side of the images, pixels."""
    augment: inputs.Augment = inputs.Augment()
    """Random changes of the training images: geometric ones are the same for all sensors, others are of the photograph alone."""
    modalities: tuple[str, ...] = ("rgb", "depth", "infrared")
    """Sensors, each with a branch: rgb, depth, infrared."""
    blocks: tuple[BlockKind, ...] = ("self", "cross", "self", "cross")
    """Blocks of a branch: ordinary ones, and those in which branches look at each other."""
    dim: Annotated[int, AtLeast(1)] = 48
    """Size of a token."""
    heads: Annotated[int, AtLeast(1)] = 4
    """Attention heads, a divisor of it."""
    patch: Annotated[int, AtLeast(1)] = 8
    """Side of a patch, a divisor of the images' side."""
    guide: Literal["other", "union", "intersection", "none", "random"] = "other"
    """Whose informative patches a class token sees in mutual attention; none masks nothing, random is the control."""
    combine: Literal["sum", "or"] = "sum"
    """How the maps of several other sensors become one set: by their sum, or the union of their sets."""
    alone: Literal["all", "own"] = "all"
    """What a class token sees without other sensors: every patch, or its own informative ones."""
    fraction: Annotated[float, Range(0, 1, above=True)] = 0.5
    """Fraction ρ of the patches that are informative."""
    threshold: Annotated[float | None, Range(0, 1, above=True)] = None
    """Informative instead is what reaches this fraction λ of the largest relevance."""
    partners: Partners = "others"
    """Whom a branch looks at: the other sensors, or itself always, which makes networks of their own, the control."""
    share_branches: bool = False
    """One set of parameters for all branches, but for patches, class token and positions."""
    solo: Literal["all", "sampled", "none"] = "all"
    """What of missing sensors the training sees: every batch also with each sensor alone; instead one subset a step, drawn, at
    half the cost; or nothing."""
    unseen_subsets: Literal["apart", "together"] = "apart"
    """In the test of a subset that solo "all" never trained on, two sensors of three: each branch is asked as if it were alone,
    and their mean is the score; or they look at each other."""
    fusion: Literal["branches", "sum"] = "branches"
    """A loss for each branch, and the mean of those available in the test; or one loss of the branches' summed logits, in which a
    missing sensor is an image of zeros, the late fusion to compare with."""
    dropout: Annotated[float, ProperFraction] = 0.0
    """Dropout of the branches."""
    drop_path: Annotated[float, ProperFraction] = 0.0
    """Stochastic depth of the branches."""
    bfloat16: bool = False
    """Compute in bfloat16 (parameters, softmax, heads and the loss stay float32)."""
    remat: Remat = "none"
    """What of the network the backward pass computes again instead of storing it: nothing, or each block; saves memory."""
    init_from: str | None = None
    """A ViT that every branch starts from: a finished run, a bundle, or published weights; what crosses starts afresh."""
    optimizer: training.Optimizer = training.Optimizer(
        name="adamw", learning_rate=1.5e-3, schedule="cosine", weight_decay=0.05
    )
    """Optimizer and learning-rate schedule."""
    accumulate: Annotated[int, AtLeast(1)] = 1
    """Micro-batches in which a step is computed; saves memory."""
    ema_decay: Annotated[float | None, ProperFraction] = None
    """Decay per step of a moving average of the parameters, which is then evaluated; none by default."""
    batch_size: Annotated[int, AtLeast(1)] = 32
    """Presentations per step over all devices."""
    steps: Annotated[int, AtLeast(0)] = 400
    """Training steps."""
    workers: Annotated[int, AtLeast(0)] = 0
    """Processes that decode and augment; 0 uses threads, best for rendered faces."""
    seed: Annotated[int, AtLeast(0)] = 0
    """Seed of the initialization, the order of the data and its augmentation."""
    data_seed: Annotated[int, AtLeast(0)] = 0
    """Seed of the rendered people."""

    @classmethod
    def paper(cls) -> "Config":
        """CASIA-SURF at 224, a ViT-S/16 for each sensor in four stages of two ordinary blocks and one that crosses.

        What the paper trains with could not be read; the optimizer is that of the benchmark of flexible modalities.
        """
        batch, epochs = 64, 30
        steps = epochs * (29_266 // batch)
        return cls(
            data=inputs.CasiaSurf(root="casia-surf"),
            image_size=224,
            augment=inputs.Augment(flip=0.5, crop=1.0, crop_scale=(0.8, 1.0), cutout=0.5, color=0.5),
            blocks=("self", "self", "cross") * 4,
            dim=384,
            heads=6,
            patch=16,
            bfloat16=True,
            batch_size=batch,
            optimizer=training.Optimizer(
                name="adamw", learning_rate=1e-4, schedule="cosine", weight_decay=0.05
            ),
            steps=steps,
            workers=16,
        )


def network(config: Config) -> models.FMViT:
    """The network of a configuration."""
    shared = {field.name for field in dataclasses.fields(models.FMViT)}
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(Config) if f.name in shared}
    return models.FMViT(**fields, dtype=jnp.bfloat16 if config.bfloat16 else jnp.float32)


def check(config: Config) -> None:
    """Raises UserError for what can be refused before any data is opened."""
    check_modalities(config.modalities)
    network(config)
    if config.image_size % config.patch:
        raise UserError(
            f"image_size: needs a multiple of the patch, which has {config.patch} pixels, got {config.image_size}"
        )
    if config.fusion == "sum" and ("cross" in config.blocks or config.solo == "all"):
        raise UserError("fusion: sum needs blocks self alone, and solo none or sampled")


def initial_images(config: Config) -> dict[str, jax.Array]:
    """One blank image of each sensor."""
    return {name: jnp.zeros((1, config.image_size, config.image_size, 3)) for name in config.modalities}


def started_from(path: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of the branches [M, ...], or their shapes, with those of a ViT for each where it has them.

    Raises:
      UserError: no network there, or another one: names the first parameter that differs.
    """
    bundle = inference.open_recognizer(user_path("init_from", path))
    bundle.check_plain("init_from")
    given = flax.traverse_util.flatten_dict(dict(bundle.variables["params"]), sep="/")
    result = {}
    for group, tree in params.items():
        flat = flax.traverse_util.flatten_dict(tree, sep="/")
        for name, leaf in flat.items():
            if "/select/" in name or name.startswith("head_dense/"):
                continue
            shape = leaf.shape[1:] if group == "branches" else leaf.shape
            if name not in given or given[name].shape != shape:
                has = "none" if name not in given else f"one of shape {given[name].shape}"
                raise UserError(f"init_from: needs a ViT with {name} of shape {shape}, {path} has {has}")
            flat[name] = np.broadcast_to(np.asarray(given[name], leaf.dtype), leaf.shape)
        result[group] = flax.traverse_util.unflatten_dict(flat, sep="/")
    return result


def tested_partners(config: Config, available: jax.Array) -> jax.Array:
    """Whom each branch looks at in the test, [M, M] bool: the others that are `available` [M], if training saw that subset."""
    together = partner_matrix(available)
    if config.solo != "all" or config.unseen_subsets == "together":
        return together
    # Training saw all sensors and each alone.
    return jnp.where(available.all(), together, jnp.eye(len(available), dtype=bool))


def build(config: Config) -> list[training.Stage]:
    """One stage: all branches together, tested with every subset of the sensors."""
    check(config)
    model, names = network(config), config.modalities
    count = len(names)
    split = inputs.load(config.data, image_size=config.image_size, seed=config.data_seed)

    def drawn_subset(rng):
        """[M] bool, each but the empty one as likely."""
        return (jax.random.randint(rng, (), 1, 2**count) >> jnp.arange(count)) & 1 == 1

    def logits_of(params, images, rng, **options):
        keys = dict(zip(("dropout", "guide"), jax.random.split(rng), strict=True))
        outputs = model.apply({"params": params["backbone"]}, images, train=True, rngs=keys, **options)
        return jnp.stack([outputs[name] for name in names])  # [M, B]

    # Late fusion to compare with: one loss of the sum, zeros for what is missing.
    def fused_loss(params, images, live, rng):
        keys = jax.random.split(rng)
        if config.solo == "sampled":
            images = _zeroed(images, names, drawn_subset(keys[0]))
        logits = logits_of(params, images, keys[1]).sum(axis=0)
        return optax.sigmoid_binary_cross_entropy(logits, live.astype(jnp.float32)), {}

    # L = Σ_m BCE(o_m with all sensors) + Σ_m BCE(o_m with sensor m alone)
    def branches_loss(params, images, live, rng):
        keys = jax.random.split(rng)
        if config.solo == "sampled":
            there = drawn_subset(keys[0])
            logits = logits_of(params, images, keys[1], available=there)
            return losses.branch_loss(logits, live, there), {}
        together, itself = partner_matrix(jnp.ones(count, bool)), jnp.eye(count, dtype=bool)
        apart = config.partners == "itself" or "cross" not in config.blocks or count == 1
        if config.solo == "none" or apart:
            full = losses.branch_loss(logits_of(params, images, keys[1], partners=together), live)
            return (full if config.solo == "none" else 2 * full), {}  # each is alone already
        # One call for both: the batch twice, with other partners the second time.
        size = live.shape[0]
        twice = {name: jnp.concatenate([image, image]) for name, image in images.items()}
        partners = jnp.repeat(jnp.stack([together, itself]), size, axis=0)
        logits = logits_of(params, twice, keys[1], partners=partners)
        full, solo = (losses.branch_loss(part, live) for part in (logits[:, :size], logits[:, size:]))
        return full + solo, {"full": full.mean(), "solo": solo.mean()}

    def loss_fn(params, extra, batch, rng):
        images, live = training.sensor_images(batch, names), batch["spoof"] == 0
        terms = fused_loss if config.fusion == "sum" else branches_loss
        loss, report = terms(params, images, live, rng)
        return loss.mean(), (extra, report)

    def score(variables, images, there):
        if config.fusion == "sum":
            outputs = model.apply(variables, _zeroed(images, names, there))
            return jax.nn.sigmoid(sum(outputs[name] for name in names))
        outputs = model.apply(variables, images, available=there, partners=tested_partners(config, there))
        return models.liveness(jnp.stack([outputs[name] for name in names]), there)

    objective = training.Objective(loss_fn, config.optimizer.build(config.steps, network=("backbone", model)))
    evaluate = training.PresentationDetection(score, split, names)
    shapes = jax.eval_shape(model.init, jax.random.key(0), initial_images(config))["params"]
    config.optimizer.check_groups({"backbone": shapes})
    if config.init_from is not None:
        started_from(config.init_from, shapes)  # refuses another network

    def init(rng, previous):
        params = model.init(rng, initial_images(config))["params"]
        if config.init_from is not None:
            params = started_from(config.init_from, params)
        return training.create_state(
            rng, {"backbone": params}, objective, extra={}, ema=config.ema_decay is not None
        )

    def open_batches():
        return inputs.batches(
            split.train,
            batch_size=config.batch_size,
            seed=config.seed,
            augment=config.augment,
            shard=(jax.process_index(), jax.process_count()),
            workers=config.workers,
        )

    open_batches()  # reads nothing yet, but refuses what cannot be used
    return [
        training.Stage(
            name="branches",
            init=init,
            step=training.gradient_step(
                objective,
                accumulate=config.accumulate,
                ema_decay=config.ema_decay,
                frozen=config.optimizer.held,
            ),
            batches=lambda state: open_batches(),
            steps=config.steps,
            evaluate=evaluate,
            best="development/auc",
            compile_init=config.init_from is None,
        )
    ]


def _zeroed(
    images: Mapping[str, jax.Array], names: tuple[str, ...], there: jax.Array
) -> dict[str, jax.Array]:
    """Images of zeros for the sensors that are not there."""
    return {name: images[name] * there[index] for index, name in enumerate(names)}
