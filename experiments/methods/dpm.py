"""DPM: anti-spoofing with uncertain labels and uncertain images (arXiv:2204.12685).

    python -m experiments.launch dpm --workdir runs/dpm        # 98 CPU-seconds: NLL of live 0.72 -> 0.48 by its variance
    python -m experiments.launch dpm --preset paper --data.root celeba-spoof --workdir …      # built and typed, not trained here
    python -m experiments.reproduce dpm --study uncertain     # NLL of live 0.392, no semantic labels 0.682, plain ones 0.755

Differs from the paper in: of which the abstract alone could be read; every formula is ours (docs/methods/dpm.md#choices-of-ours).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxface import axes, losses, models, training
from jaxface import data as inputs
from jaxface.checks import AtLeast, NonNegative, Positive, ProperFraction, check_number
from jaxface.data.sources.semantics import FIELD
from jaxface.data.sources.source import InMemory
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.models.dpm import GENERAL, Codes
from jaxface.training.dpm import Correction, applied, cluster_labels, corrected_margins, corrections_start

LARGEST_IN_MEMORY = 1 << 28
"""Bytes of the pixels of a set that is read at once."""
ATTRIBUTES = "attributes"
"""The group whose labels count on live faces alone."""
PSEUDO = "pseudo"
"""The group of clusters that stands for semantic labels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A detector of presentation attacks that learns semantic labels beside, and then how far to trust an image."""

    data: inputs.DataSpec = inputs.AnnotatedPresentations(semantic_noise=0.4)
    """Live faces and attacks with semantic labels and a development set."""
    image_size: Annotated[int, AtLeast(8)] = 32
    """Side of the images, pixels; digits keep their 8."""
    augment: inputs.Augment = inputs.Augment()
    """Random changes of the training images."""
    backbone: str = "plain_stages_wide"
    """Network of the trunk; `jaxface.models.names()` lists them."""
    projection: Annotated[int | None, AtLeast(1)] = None
    """Width of a layer between features and the live classifier; none by default."""
    geometry: str | None = None
    """AENet's geometric heads: layer of the trunk whose map they see, such as stage4_block2. Depth is learned where records have
    it, reflection too."""
    geometry_weight: Annotated[float, NonNegative] = 0.1
    """Weight of their squared errors."""
    lq: Literal["gaussian", "deterministic", "none"] = "gaussian"
    """Semantic labels from samples of Gaussian codes (DPM-LQ); from their means, the divergence kept, the control; or from the
    features themselves, AENet."""
    codes: Codes = "groups"
    """One code for each group, one shared, or general: one that live and attack are told from too, and that needs no labels."""
    dim: Annotated[int, AtLeast(1)] = 32
    """D, dimensions of a code."""
    lam: Annotated[float, NonNegative] = 0.1
    """λ, weight of the semantic groups; 0 learns none of them."""
    lams: tuple[str, ...] = ()
    """Factors on it by group, as spoof_type=0.1."""
    beta: Annotated[float, NonNegative] = 10.0
    """β, weight of the divergence, averaged over dimensions; 30 ends a head."""
    beta_warmup: Annotated[float, ProperFraction] = 0.1
    """Fraction of the run over which β rises from 0."""
    pseudo: Annotated[int, AtLeast(0)] = 0
    """With codes general: clusters of the code within live faces and within attacks, made anew every epoch, as semantic labels;
    0 for none."""
    corrections: tuple[Correction, ...] = ("scaled", "temperature", "refit")
    """What the second stage fits, all on the same draws: DPM-DQ first, and its controls."""
    hidden: Annotated[int, AtLeast(1)] = 24
    """Width of the quality head."""
    joint: bool = False
    """DPM-DQ within the first stage, on bad captures that are new in every step."""
    captures_in_training: bool = False
    """The first stage sees bad captures without DPM-DQ: what the joint form is compared with."""
    captures: inputs.CaptureNoise = inputs.CaptureNoise(share=0.4)
    """Bad captures that quality is learned from, drawn in every step."""
    samples: Annotated[int, AtLeast(1)] = 8
    """T, samples of the sampled loss."""
    quality_steps: Annotated[int, AtLeast(0)] = 500
    """Steps of the second stage."""
    quality_batch: Annotated[int, AtLeast(1)] = 300
    """Images of such a step; the whole development set where it is smaller."""
    quality_rate: Annotated[float, Positive] = 3e-3
    """Learning rate of Adam there."""
    optimizer: training.Optimizer = training.adam(2e-3)
    """Optimizer and learning-rate schedule of the first stage."""
    bfloat16: bool = False
    """The trunk computes in bfloat16."""
    accumulate: Annotated[int, AtLeast(1)] = 1
    """Micro-batches in which a step of the first stage is computed; saves memory."""
    batch_size: Annotated[int, AtLeast(1)] = 64
    """Images per step of the first stage over all devices."""
    steps: Annotated[int, AtLeast(0)] = 600
    """Steps of the first stage."""
    workers: Annotated[int, AtLeast(0)] = 0
    """Processes that decode and augment; 0 uses threads."""
    seed: Annotated[int, AtLeast(0)] = 0
    """Seed of the initialization, the order of the data, its augmentation and the bad captures."""
    data_seed: Annotated[int, AtLeast(0)] = 0
    """Seed of the rendered people, the wrong labels and the test's bad captures."""

    @classmethod
    def paper(cls) -> "Config":
        """CelebA-Spoof at 224 with ResNet-18, codes of 128 dimensions and the weights of AENet's semantic groups."""
        batch, images = 128, 494_405
        epoch = round(0.8 * images) // batch
        return cls(
            data=inputs.CelebaSpoof(root="celeba-spoof"),
            image_size=224,
            augment=inputs.Augment(flip=0.5),
            backbone="resnet18",
            dim=128,
            lam=1.0,
            lams=("attributes=1", "spoof_type=0.1", "illumination=0.01"),
            quality_steps=2000,
            quality_batch=128,
            optimizer=training.sgd(5e-3, decay_at=(0.4, 0.8)),
            bfloat16=True,
            batch_size=batch,
            steps=50 * epoch,
            workers=16,
        )

    @classmethod
    def aenet(cls) -> "Config":
        """The multi-task baseline with geometric heads: labels are learned as they are, margins stay as they are."""
        return cls(
            data=inputs.AnnotatedPresentations(semantic_noise=0.4, depth=True),
            lq="none",
            geometry="conv4",
            corrections=(),
        )

    @classmethod
    def digits(cls) -> "Config":
        """Digits as presentations, noise mixed into the test: what the study of bad captures runs."""
        return cls(
            data=inputs.DigitPresentations(),
            image_size=8,
            augment=inputs.Augment(flip=0.0),
            backbone="mlp_96x64",
            lam=0.0,
            lq="none",
            corrections=("scaled", "temperature", "refit", "refit_unscaled", "mc", "unscaled", "plain"),
            captures=inputs.CaptureNoise.mixed(0.4),
            optimizer=training.adam(2e-3, schedule="constant"),
            batch_size=100,
            steps=700,
        )


def group_weights(config: Config, groups: Mapping[str, int]) -> dict[str, float]:
    """λ of every group.

    Raises:
      UserError: a factor of another form, or of a group that there is not.
    """
    weights = dict.fromkeys(groups, config.lam)
    for item in config.lams:
        name, equals, value = item.partition("=")
        try:
            factor = float(value)
        except ValueError:
            equals, factor = "", 0.0
        if not equals or name not in weights:
            raise UserError(f"lams: needs GROUP=FACTOR of {', '.join(groups) or 'no group'}, got {item!r}")
        check_number(f"lams of {name}", factor, NonNegative)
        weights[name] = config.lam * factor
    return weights


def check(config: Config, groups: Mapping[str, int]) -> None:
    """Raises UserError for what does not go together."""
    if len(set(config.corrections)) < len(config.corrections):
        raise UserError(f"corrections: needs each once, got {', '.join(config.corrections)}")
    if config.pseudo and (config.codes != "general" or config.lq == "none"):
        raise UserError("pseudo: needs codes general, whose code is clustered")
    if config.codes == "general" and config.projection is not None:
        raise UserError("projection: needs codes of groups, the general code is what live is told from")
    if not groups and config.lq != "none" and config.codes != "general":
        raise UserError(
            f"codes: needs general, or lq none, without semantic labels, which these data do not have; got {config.codes}"
        )
    if config.joint and config.captures.share == 0:
        raise UserError(
            "captures.share: needs a positive number in the joint form, or its variance is 0 everywhere"
        )
    group_weights(config, groups)


def network(config: Config, groups: Mapping[str, int], *, dq: bool = False) -> models.DPM:
    """The network of a configuration; with `dq` as it is deployed, the quality head of the correction `scaled` in it."""
    trunk = models.create(
        config.backbone, embedding=None, dtype=jnp.bfloat16 if config.bfloat16 else jnp.float32
    )
    return models.DPM(
        trunk,
        tuple(groups.items()),
        lq="none" if config.lq == "none" else config.codes,
        dq=dq,
        dim=config.dim,
        hidden=config.hidden,
        projection=config.projection,
        geometry=config.geometry,
    )


def labeled(source: inputs.Source) -> inputs.Source:
    """A source whose records say what they know: nothing but live or attack where it has no semantic labels."""
    return source if hasattr(source, "semantic_names") else inputs.WithSemantics(source, {}, {})


def gathered(source: inputs.Source, augment: inputs.Augment) -> inputs.Source:
    """The source, all read at once where it is small and nothing changes its images."""
    small = len(source) * math.prod(source.image_shape) < LARGEST_IN_MEMORY
    return InMemory(source) if small and not augment.active else source


def build(config: Config) -> list[training.Stage]:
    """The detector with its semantic groups, and then, frozen, how far to trust each image."""
    split = inputs.load(config.data, image_size=config.image_size, seed=config.data_seed)
    training.check_spoofing(split)
    split = split._replace(**{part: labeled(getattr(split, part)) for part in ("train", "development")})
    train = split.train
    groups = {name: len(words) for name, words in train.semantic_names.items()}
    check(config, groups)
    lams = group_weights(config, groups)
    several = {name for name, values in train.semantics.items() if values.ndim == 2}
    if config.pseudo:
        for kind, there in (("live faces", train.labels == 0), ("attacks", train.labels != 0)):
            if there.sum() < config.pseudo:
                raise UserError(f"pseudo: needs at most the {there.sum()} {kind}, got {config.pseudo}")
        groups, lams = groups | {PSEUDO: 2 * config.pseudo}, lams | {PSEUDO: config.lam}
        train = inputs.WithFields(train, index=np.arange(len(train), dtype=np.int32))
    model, image_shape = network(config, groups), split.train.image_shape

    # L = CE(z, y) + Σ_k λ_k [ℓ_k + β KL_k], and with `joint` the loss of the moderated margin.
    def semantic_loss(outputs, labels, masks, weights, rng):
        if config.lq == "none":
            total, report = jnp.zeros(()), {}
            for name in groups:
                report[f"{name}_loss"] = losses.masked_label_loss(
                    outputs["semantics"][name], labels[name], masks.get(name)
                )
                total += weights["lam"][name] * report[f"{name}_loss"]
            return total, report
        return losses.lq_loss(
            rng,
            outputs["heads"],
            labels,
            masks,
            lam=weights["lam"],
            beta=weights["beta"],
            sample=config.lq == "gaussian",
        )

    def geometry_loss(outputs, batch, live):
        total = jnp.zeros(())
        for name, real in (("depth", live), ("reflection", ~live)):
            if name in batch:
                truth = (normalize_pixels(batch[name]) + 1) / 2
                truth = truth if truth.ndim == 4 else truth[..., None]
                small = jax.image.resize(truth, outputs[name].shape, "bilinear") * real[:, None, None, None]
                total += jnp.mean((outputs[name] - small) ** 2)
        return total

    def loss_fn(params, extra, batch, rng):
        keys, images, live = jax.random.split(rng, 4), batch["image"], batch["label"] == 0
        if config.joint or config.captures_in_training:
            images, _ = inputs.bad_captures(keys[0], images, config.captures)
        variables = {"params": params["backbone"], **training.statistics(extra)}
        outputs, updated = model.apply(
            variables,
            images,
            train=True,
            mutable=[*variables.keys() - {"params"}],
            rngs={"dropout": keys[1]},
        )
        known = batch["known"]
        labels = {name: batch[FIELD + name] for name in groups if name != PSEUDO}
        masks = {name: live & known for name in several if name == ATTRIBUTES}
        if config.pseudo:
            labels[PSEUDO] = extra["pseudo"][batch["index"]]
        ramp = config.beta_warmup * config.steps * config.accumulate
        rise = jnp.minimum(extra["taken"] / ramp, 1.0) if ramp else 1.0
        weights = extra["weights"] | {"beta": extra["weights"]["beta"] * rise}
        if GENERAL in outputs["heads"]:
            labels[GENERAL], masks[GENERAL] = live.astype(jnp.int32), known
            weights["lam"] = weights["lam"] | {GENERAL: 1.0}
            classified = jnp.zeros(())
        else:
            rows = optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], live.astype(jnp.int32))
            # Over as many as are labeled in a batch on average.
            classified = jnp.sum(rows * known) / (len(rows) * extra["weights"]["known"])
        semantic, report = semantic_loss(outputs, labels, masks, weights, keys[2])
        loss = classified + semantic
        extra = {**extra, **updated, "taken": extra["taken"] + 1}
        margin = models.live_margin(outputs["logits"])
        if config.geometry is not None:
            report["geometry"] = geometry_loss(outputs, batch, live)
            loss += config.geometry_weight * report["geometry"]
        if config.joint:
            seen = jax.lax.stop_gradient(losses.quality_stats(outputs["features"], margin))
            moved = optax.incremental_update(seen, losses.QualityStats(*extra["quality_stats"]), 0.1)
            extra["quality_stats"] = axes.mean(tuple(moved))
            (_, variance), *_ = corrected_margins(
                ("scaled",), params["quality"], outputs["features"], margin, moved
            ).values()
            report["quality_loss"] = losses.dq_loss(margin, variance, live).mean()
            loss += report["quality_loss"]
        report["accuracy"] = jnp.sum(((margin > 0) == live) * known) / jnp.maximum(known.sum(), 1)
        return loss, (extra, report)

    first = training.Objective(loss_fn, config.optimizer.build(config.steps, network=("backbone", model)))
    key, image = (
        jax.eval_shape(lambda: jax.random.key(0)),
        jax.ShapeDtypeStruct((1, *image_shape), jnp.float32),
    )
    outputs, shapes = jax.eval_shape(model.init_with_output, key, image)
    config.optimizer.check_groups({"backbone": shapes["params"]})
    feature_size = outputs["features"].shape[1]

    def quality_params(rng, names):
        return corrections_start(rng, names, feature_size, hidden=config.hidden)

    def init(rng, previous):
        variables = dict(model.init(rng, jnp.zeros((1, *image_shape))))
        params = {"backbone": variables.pop("params")}
        weights = {
            # In the state, so that other weights are no other program.
            "lam": {name: jnp.float32(lam) for name, lam in lams.items()},
            "beta": jnp.float32(config.beta),
            "known": jnp.float32(split.train.known.mean()),
        }
        extra = {**variables, "weights": weights, "taken": jnp.zeros((), jnp.int32)}
        if config.joint:
            params["quality"] = quality_params(rng, ("scaled",))
            extra["quality_stats"] = (jnp.zeros(feature_size), jnp.ones(feature_size), jnp.ones(()))
        if config.pseudo:
            extra["pseudo"] = jnp.zeros(len(train), jnp.int32)
        return training.create_state(rng, params, first, extra=extra)

    def seen_as(params, extra, images):
        """What the frozen network says of images: features, margin, semantic logits, means of codes."""
        outputs = model.apply({"params": params["backbone"], **training.statistics(extra)}, images)
        return outputs["features"], models.live_margin(outputs["logits"]), outputs["semantics"], outputs["mu"]

    def answer_with(corrections):
        def answer(variables, images):
            params, extra = variables
            features, margin, semantics, _ = seen_as(params, extra, normalize_pixels(images))
            margins, variance = {"raw": margin}, None
            if corrections:
                stats = losses.QualityStats(*extra["quality_stats"])
                made = corrected_margins(corrections, params["quality"], features, margin, stats)
                margins |= {name: applied(*pair) for name, pair in made.items()}
                variance = next((v for _, v in made.values() if v is not None), None)
            return {"margins": margins, "semantics": semantics} | (
                {} if variance is None else {"variance": variance}
            )

        return answer

    def variables_of(state):
        names = state.extra.keys() & {"batch_stats", "quality_stats"}
        return state.averaged_params, {name: state.extra[name] for name in names}

    @jax.jit
    def code(variables, batch):
        return seen_as(*variables, normalize_pixels(batch["image"]))[3][GENERAL]

    def refresh(state):
        codes = training.map_source(code, split.train, variables_of(state))
        labels = cluster_labels(codes, split.train.labels == 0, config.pseudo, seed=config.seed)
        return state.replace(extra={**state.extra, "pseudo": jnp.asarray(labels)})

    def open_batches(source=train, size=config.batch_size, augment=config.augment, seed=config.seed):
        return inputs.batches(
            source,
            batch_size=size,
            seed=seed,
            augment=augment,
            shard=(jax.process_index(), jax.process_count()),
            workers=config.workers,
        )

    open_batches()  # reads nothing yet, but refuses what cannot be used
    evaluated = ("scaled",) if config.joint else ()
    stages = [
        training.Stage(
            name="liveness",
            init=init,
            step=training.gradient_step(first, accumulate=config.accumulate, frozen=config.optimizer.held),
            batches=lambda state: open_batches(gathered(train, config.augment)),
            steps=config.steps,
            refresh=refresh if config.pseudo else None,
            refresh_every=max(len(train) // config.batch_size, 1),
            evaluate=training.LivenessConfidence(answer_with(evaluated), variables_of, split),
            best="development/auc",
        )
    ]
    if not config.corrections or config.joint:
        return stages

    # Stage B: trunk and classifier are constants; every correction learns from the same images, captured badly anew.
    def quality_loss(params, extra, batch, rng):
        keys = jax.random.split(rng)
        live = batch["label"] == 0
        images, _ = inputs.bad_captures(keys[0], batch["image"], config.captures)
        features, margin, *_ = jax.lax.stop_gradient(seen_as(params, extra, images))
        stats = losses.QualityStats(*extra["quality_stats"])
        made = corrected_margins(config.corrections, params["quality"], features, margin, stats)
        report = {}
        for name, (corrected, variance) in made.items():
            if name == "mc":
                logits = jnp.stack([jnp.zeros_like(margin), margin], axis=1)
                report[name] = losses.dq_mc_loss(
                    keys[1], logits, jnp.sqrt(variance / 2), live.astype(jnp.int32), samples=config.samples
                )
            elif variance is not None:
                report[name] = losses.dq_loss(corrected, variance, live).mean()
            else:
                report[name] = jax.nn.softplus(jnp.where(live, -corrected, corrected)).mean()
        return sum(report.values()), (extra, report)

    rate = training.adam(config.quality_rate, schedule="constant")
    second = training.Objective(quality_loss, rate.build(config.quality_steps), trains=("quality",))
    size = min(config.quality_batch, len(split.development)) // jax.device_count() * jax.device_count()

    def init_quality(rng, previous):
        params, extra = variables_of(previous)

        @jax.jit
        def seen(variables, batch):
            params, extra, key = variables
            keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch["position"])
            images, _ = inputs.bad_captures(keys, normalize_pixels(batch["image"]), config.captures)
            return seen_as(params, extra, images)[:2]

        found = training.map_source(seen, split.development, (params, extra, jax.random.fold_in(rng, 3)))
        stats = tuple(losses.quality_stats(*map(jnp.asarray, found)))
        params = {"backbone": params["backbone"], "quality": quality_params(rng, config.corrections)}
        return training.create_state(rng, params, second, extra={**extra, "quality_stats": stats})

    still = inputs.Augment(flip=0.0)
    open_batches(split.development, size, still)
    return [
        *stages,
        training.Stage(
            name="quality",
            init=init_quality,
            step=training.gradient_step(second),
            batches=lambda state: open_batches(
                gathered(split.development, still), size, still, config.seed + 1
            ),
            steps=config.quality_steps,
            evaluate=training.LivenessConfidence(answer_with(config.corrections), variables_of, split),
            compile_init=False,  # it goes through the development set
        ),
    ]


def deployed(config: Config, state: training.TrainState, groups: Mapping[str, int]) -> tuple[nn.Module, dict]:
    """The network with its quality head inside, and its variables, of a finished run: `apply(variables, image)["v"]`."""
    variables = {"params": {**state.params["backbone"], "quality": state.params["quality"]["scaled"]}}
    variables["quality_stats"] = dict(
        zip(("mean", "std", "scale"), state.extra["quality_stats"], strict=True)
    )
    return network(config, groups, dq=True), variables | training.statistics(state.extra)
