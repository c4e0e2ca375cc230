"""Perceptual attacks on quality models: changes that people cannot see and that move a model's score most (arXiv:2210.00933).

    python -m experiments.launch niqa_attack --workdir runs/niqa
    python -m experiments.programs.niqa_trials export --run runs/niqa --images runs/trials   # then serve, and select
    python -m experiments.launch niqa_attack --preset paper --data.root … --workdir runs/paper # built and typed, not run here

Trains quality models on distorted dead leaves, then attacks each of them under each measure of fidelity. Differs from the paper
in: no observers unless the trials are held, a proxy stands for them; the Chebyshev attack climbs balls, not a penalty; the ladder
is laid around a measured threshold (docs/methods/niqa_attack.md#choices-of-ours).
"""

import dataclasses
import functools
from collections.abc import Generator, Sequence
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxface import attacks, interop, metrics, models, training
from jaxface import data as inputs
from jaxface.attacks.niqa_attack import RELEASED_MULTIPLIERS, Distance
from jaxface.checks import AtLeast, Ordered, Positive, Range
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.training.evaluations.quality_attack import Proxy, QualityAttack, Rater, attack_starts, rated

__all__ = ["Config", "build"]

Model = Literal["nss", "cornia", "cnn", "ma19", "unique"]
Fidelity = Literal["chebyshev", "ssim", "ms_ssim", "lpips", "dists"]
NETWORKS = {"cnn": ("quality_cnn", 1), "ma19": ("gdn_pyramid", 2), "unique": ("bilinear_resnet34", 2)}
"""Quality model -> its registered network, and how many outputs that has, of which the first is the score."""
SMALLEST = 16
"""Side that most models and measures can take; the others refuse what they cannot."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Quality models, and attacks on them."""

    data: inputs.DataSpec = inputs.DistortedLeaves()
    """Images with opinions to train on; starts of attacks are among others."""
    image_size: Annotated[int, AtLeast(SMALLEST)] = 48
    """Side of all images, pixels."""
    models: tuple[Model, ...] = ("cnn", "nss")
    """Quality models: BRISQUE's features with a kernel ridge (nss), words of patches with a linear one (cornia), and networks:
    three convolutions (cnn), divisive normalization with a pyramid (ma19), a ResNet-34 with bilinear pooling (unique)."""
    fidelities: tuple[Fidelity, ...] = ("chebyshev", "ssim")
    """What holds an attack back, one attack on every model for each."""
    attack: attacks.PerceptualAttack = attacks.PerceptualAttack(steps=80, step=3e-4)
    """How images are changed; under the Chebyshev distance by signs."""
    rungs: Annotated[int, AtLeast(2)] = 8
    """Multipliers λ, from a tenth of the measured threshold to ten times it."""
    multipliers: Annotated[tuple[float, ...], Positive] = ()
    """λ to take instead."""
    radii: Annotated[tuple[float, ...], Range(0, 255, above=True)] = (1.0, 2.0, 3.0, 4.0)
    """ε of the balls, of 255, under the Chebyshev distance."""
    starts: Annotated[int, AtLeast(2)] = 12
    """Images that are attacked."""
    start_scores: Annotated[tuple[float, float], Range(0, 10), Ordered()] = (1.5, 8.5)
    """Scores that all models need to give a start: at the ends a score has no slope."""
    proxy: Proxy = Proxy(levels=None, decibels=42.0)
    """What stands for observers."""
    at_a_time: Annotated[int, AtLeast(1)] = 4
    """Starts that are attacked at once."""
    trunk: str | None = None
    """VGG-16 of torchvision for lpips and dists; random weights without, which are distances too."""
    lpips: str | None = None
    """Linear layers of LPIPS, besides the trunk."""
    dists: str | None = None
    """Weights of DISTS, besides the trunk."""
    narrower: Annotated[int, AtLeast(1)] = 8
    """Random weights have this fraction of the trunk's channels."""
    ridge: Annotated[float, Positive] = 1e-2
    """Ridge of the kernel regression on BRISQUE's features."""
    gamma: Annotated[float, Positive] = 0.05
    """Width γ of its kernel."""
    words: Annotated[int, AtLeast(1)] = 100
    """Words of CORNIA's codebook."""
    linear_ridge: Annotated[float, Positive] = 1.0
    """Ridge of the linear regression on them."""
    optimizer: training.Optimizer = training.adam(3e-3)
    """Optimizer of a network."""
    augment: inputs.Augment = inputs.Augment()
    """Random changes of its training images."""
    batch_size: Annotated[int, AtLeast(1)] = 32
    """Images per step over all devices."""
    steps: Annotated[int, AtLeast(0)] = 400
    """Training steps of a network."""
    workers: Annotated[int, AtLeast(0)] = 0
    """Processes that read and augment; 0 uses threads."""
    seed: Annotated[int, AtLeast(0)] = 0
    """Seed of the initialization, the order of the data and the attacks' noise."""
    data_seed: Annotated[int, AtLeast(0)] = 0
    """Seed of drawn images and of the split."""

    @classmethod
    def paper(cls) -> "Config":
        """LIVE, four models under four measures; the released ladder of 32 multipliers, 200 steps of 1e-3 from 12 starts.

        Every tenth image of each rung is kept for the observers. `--data.root`, `--trunk`, `--lpips` and `--dists` say where the
        database and the public weights are.
        """
        return cls(
            data=inputs.LiveIqa(root="live"),
            image_size=384,
            models=("nss", "cornia", "ma19", "unique"),
            fidelities=("chebyshev", "dists", "lpips", "ssim"),
            attack=attacks.PerceptualAttack(),
            multipliers=tuple(sorted(1 / m for m in RELEASED_MULTIPLIERS)),
            radii=tuple(float(level) for level in range(1, 34, 2)),
            proxy=Proxy(),
            at_a_time=1,
            trunk="vgg16-397923af.pth",
            lpips="vgg.pth",
            dists="weights.pt",
            narrower=1,
            words=10_000,
            optimizer=training.adam(1e-4),
            steps=20_000,
            workers=8,
        )


def check(config: Config) -> None:
    """Raises UserError for what can be refused before any data is opened."""
    for name, given in (("models", config.models), ("fidelities", config.fidelities)):
        if not given or len(set(given)) < len(given):
            raise UserError(f"{name}: needs some, each once, got {', '.join(given) or 'none'}")
    for fidelity in config.fidelities:
        attack_of(config, fidelity).check()
    if "chebyshev" in config.fidelities and not config.radii:
        raise UserError("radii: needs some under the Chebyshev distance, got none")
    for name in ("lpips", "dists"):
        if name in config.fidelities and (config.trunk is None) != (getattr(config, name) is None):
            raise UserError(f"{name}: needs the trunk and its own weights, or neither; got one of them")


def attack_of(config: Config, fidelity: Fidelity) -> attacks.PerceptualAttack:
    """The attack under a measure of fidelity: by signs in a ball under the Chebyshev distance, else along gradients."""
    geometry = "linf" if fidelity == "chebyshev" else config.attack.geometry
    return dataclasses.replace(config.attack, geometry=geometry)


def distance_of(config: Config, fidelity: Fidelity) -> Distance:
    """D of a changed image and its start, 0 where they are equal."""
    if fidelity in ("chebyshev", "ssim", "ms_ssim"):
        return {"chebyshev": metrics.chebyshev, "ssim": _ssim_distance, "ms_ssim": _ms_ssim_distance}[
            fidelity
        ]
    if config.trunk is None:
        convolutions, linear = metrics.random_trunk_weights(jax.random.key(config.seed), config.narrower)
        everything = jnp.ones(3 + sum(map(len, linear)))
        weights = {
            "lpips": metrics.LpipsWeights(convolutions, linear),
            "dists": metrics.DistsWeights(convolutions, everything, everything),
        }[fidelity]
    elif fidelity == "lpips":
        weights = interop.read_lpips(config.trunk, config.lpips)
    else:
        weights = interop.read_dists(config.trunk, config.dists)
    return jax.tree_util.Partial({"lpips": _lpips_distance, "dists": _dists_distance}[fidelity], weights)


def _ssim_distance(image, start):
    return 1 - metrics.ssim(image, start)


def _ms_ssim_distance(image, start):
    return 1 - metrics.ms_ssim(image[None], start[None])[0]


def _lpips_distance(weights, image, start):
    return metrics.lpips(image, start, weights)


def _dists_distance(weights, image, start):
    return metrics.dists(image, start, weights)


def build(config: Config) -> Generator[training.Stage, training.Outcome, None]:
    """A stage for every quality model, then one for every attack on each of them."""
    check(config)
    split = inputs.load(config.data, image_size=config.image_size, seed=config.data_seed)
    if split.protocol != "quality":
        raise UserError(f"data: needs images with opinions, {split.name} has none")
    shape = tuple(split.train.image_shape)
    if shape[2] != 3 or min(shape[:2]) < SMALLEST:
        raise UserError(f"data: needs color images of at least {SMALLEST} pixels, {split.name} has {shape}")
    stages = {name: model_stage(config, name, split) for name in config.models}
    distances = {fidelity: distance_of(config, fidelity) for fidelity in config.fidelities}
    for distance in distances.values():  # images that a measure cannot take are refused here
        jax.eval_shape(distance, *2 * [jax.ShapeDtypeStruct(shape, jnp.float32)])

    def run():
        # Quality models f, each with a logistic map of its scores to opinions from 0 to 10.
        raters = []
        for name, (stage, rater_of) in stages.items():
            raters.append(Rater(name, rater_of((yield stage).state)))

        # Every model attacked under every measure; the counterexamples scored by all of them.
        starts = choose_starts(config, raters, split.held_out)
        for fidelity, distance in distances.items():
            for number in range(len(raters)):
                yield attack_stage(config, fidelity, distance, raters, number, *starts)

    return run()


def model_stage(config: Config, name: Model, split: inputs.Split):
    """(stage that fits a quality model, state -> image [H, W, C] in [0, 1] -> score from 0 to 10)."""
    if name in NETWORKS:
        return network_stage(config, name, split)
    return features_stage(config, name, split)


def features_stage(config: Config, name: Literal["nss", "cornia"], split: inputs.Split):
    """Features that nobody trained and a regression in closed form: what is fitted is fitted in `init`."""
    rating = FeatureRating(name)

    def init(rng, previous):
        opinions, codebook = split.train.opinions, {}
        if name == "cornia":
            count = len(split.train)
            images = (split.train[i]["image"].astype(np.float32) / 255 for i in range(count))
            patches = max(100, -(-10 * config.words // count))
            fitted = metrics.fit_codebook(images, words=config.words, patches=patches, seed=config.seed)
            codebook = fitted._asdict()

        def described(params, batch):
            return jax.lax.map(
                functools.partial(rating.features, params), batch["image"].astype(jnp.float32) / 255
            )

        features = training.map_source(
            jax.jit(described), split.train, codebook, batch_size=min(100, len(split.train))
        )
        if name == "nss":
            regression = metrics.fit_kernel_ridge(features, opinions, gamma=config.gamma, ridge=config.ridge)
        else:
            regression = metrics.fit_linear_ridge(features, opinions, ridge=config.linear_ridge)
        params = {"codebook": codebook, "regression": regression._asdict()}
        told = np.asarray(rating.scores(params, jnp.asarray(features)))
        return training.create_state(rng, params | {"map": _fitted_map(told, opinions)})

    def rater_of(state):
        return jax.tree_util.Partial(rating, jax.tree.map(np.asarray, state.params))

    return training.Stage(
        name=name, init=init, compile_init=False, evaluate=_agreement(name, rater_of, split.held_out)
    ), rater_of


@dataclasses.dataclass(frozen=True)
class FeatureRating:
    """(parameters, image [H, W, C] in [0, 1]) -> score of a regression; equal ones are one function to the compiler."""

    name: Literal["nss", "cornia"]

    def __call__(self, params, image):
        return metrics.logistic_map(
            self.scores(params, self.features(params["codebook"], image)), *params["map"]
        )

    def features(self, codebook, image):
        """BRISQUE's 36, or the answers of the words."""
        if self.name == "nss":
            return metrics.brisque_features(image)
        return metrics.cornia_features(image, metrics.Codebook(**codebook))

    def scores(self, params, features):
        """Of the regression, before the logistic map."""
        if self.name == "nss":
            return metrics.kernel_scores(metrics.KernelRegression(**params["regression"]), features)
        return metrics.linear_scores(metrics.LinearRegression(**params["regression"]), features)


def _fitted_map(scores: np.ndarray, opinions: np.ndarray) -> jax.Array:
    """[2]: the parameters of the logistic map."""
    return jnp.float32(metrics.fit_logistic(scores, opinions))


def network_stage(config: Config, name: Model, split: inputs.Split):
    """A network that learns opinions by least squares, standardized."""
    registered, outputs = NETWORKS[name]
    model = models.create(registered, embedding=outputs)
    mean, spread = float(split.train.opinions.mean()), float(split.train.opinions.std())

    def loss_fn(params, extra, batch, rng):
        variables = {"params": params["network"], **extra}
        told, changed = model.apply(
            variables, batch["image"], train=True, mutable=["batch_stats"], rngs={"dropout": rng}
        )
        error = told[:, 0] - (batch["opinion"] - mean) / spread
        return jnp.square(error).mean(), (dict(changed), {})

    objective = training.Objective(loss_fn, config.optimizer.build(max(config.steps, 1)))

    def fresh(rng):
        return dict(model.init(rng, jnp.zeros((1, *split.train.image_shape)), train=False))

    jax.eval_shape(fresh, jax.random.key(0))  # images that the network cannot take are refused here

    def init(rng, previous):
        variables = fresh(rng)
        return training.create_state(rng, {"network": variables.pop("params")}, objective, extra=variables)

    def open_batches():
        return inputs.batches(
            split.train,
            batch_size=config.batch_size,
            seed=config.seed,
            augment=config.augment,
            shard=(jax.process_index(), jax.process_count()),
            workers=config.workers,
        )

    def rater_of(state):
        variables = {"params": state.averaged_params["network"], **state.extra}
        variables = jax.tree.map(np.asarray, variables)
        told = training.map_source(
            functools.partial(_network_scores, model=model), split.train, variables, batch_size=100
        )
        fitted = _fitted_map(told, split.train.opinions)
        return jax.tree_util.Partial(NetworkRating(model), {"variables": variables, "map": fitted})

    open_batches()  # reads nothing yet, but refuses what cannot be used
    return training.Stage(
        name=name,
        init=init,
        step=training.gradient_step(objective),
        batches=lambda state: open_batches(),
        steps=config.steps,
        evaluate=_agreement(name, rater_of, split.held_out),
    ), rater_of


@functools.partial(jax.jit, static_argnames="model")
def _network_scores(variables, batch, *, model: nn.Module):
    return model.apply(variables, normalize_pixels(batch["image"]), train=False)[:, 0]


@dataclasses.dataclass(frozen=True)
class NetworkRating:
    """(parameters, image [H, W, C] in [0, 1]) -> score; equal ones are one function to the compiler."""

    model: nn.Module

    def __call__(self, params, image):
        score = self.model.apply(params["variables"], 2 * image[None] - 1, train=False)[0, 0]
        return metrics.logistic_map(score, *params["map"])


def _agreement(name, rater_of, source):
    """Evaluation of a quality model: SRCC and PLCC of its scores with held-out opinions."""

    def evaluate(state):
        images = np.stack([source[i]["image"] for i in range(len(source))])
        scores = rated(Rater(name, rater_of(state)), images)
        return {
            "srcc": metrics.srcc(scores, source.opinions),
            "plcc": metrics.plcc(scores, source.opinions, mapped=False),
        }

    return evaluate


def choose_starts(
    config: Config, raters: Sequence[Rater], source: inputs.RatedSource
) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 [S, H, W, C], opinions [S]): the first held-out images that all models score inside the range."""
    images = np.stack([source[i]["image"] for i in range(len(source))])
    scores = np.stack([rated(rater, images) for rater in raters])
    low, high = config.start_scores
    rows = np.flatnonzero(((scores >= low) & (scores <= high)).all(0))[: config.starts]
    if len(rows) < config.starts:
        raise UserError(
            f"starts: needs {config.starts} held-out images that every model scores from {low:g} to {high:g}, "
            f"{len(rows)} of {len(source)} are"
        )
    return images[rows], np.asarray(source.opinions)[rows]


def attack_stage(
    config: Config,
    fidelity: Fidelity,
    distance: Distance,
    raters: Sequence[Rater],
    number: int,
    starts: np.ndarray,
    opinions: np.ndarray,
) -> training.Stage:
    """One model attacked under one measure; the state holds the images and all models' scores of them."""
    rater, attack = raters[number], attack_of(config, fidelity)
    name, names = f"{fidelity}_on_{rater.name}", [rater.name for rater in raters]

    def init(rng, previous):
        of_ladder, of_attack = jax.random.split(rng)
        if attack.ball:
            rungs = np.asarray(config.radii) / 255
        elif config.multipliers:
            rungs = np.asarray(config.multipliers)
        else:
            first = starts[0].astype(np.float32) / 255
            weight = attacks.critical_weight(rater.rate, distance, first, of_ladder, attack)
            rungs = attacks.ladder_around(weight, config.rungs)
        told = attack_starts(
            raters, number, distance, starts, opinions, rungs, attack, config.proxy, of_attack, at_a_time=config.at_a_time
        )  # fmt: skip
        return training.create_state(rng, jax.tree.map(jnp.asarray, told))

    return training.Stage(
        name=name,
        init=init,
        compile_init=False,
        evaluate=QualityAttack(names, number),
        description={
            "kind": "perceptual_attack",
            "name": name,
            "model": rater.name,
            "models": names,
            "fidelity": fidelity,
        },
    )
