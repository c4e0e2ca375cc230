"""Perceptual attacks on quality models: changes that people cannot see and that move a model's score most (arXiv:2210.00933).

    python -m experiments.launch niqa_attack --workdir runs/niqa   # 300 CPU-seconds: SRCC, nss 0.95 → -0.19, cnn 0.81 → 0.51
    python -m experiments.programs.niqa_trials export --run runs/niqa --images runs/trials   # then serve, and select
    python -m experiments.launch niqa_attack --preset paper --data.root … --workdir runs/paper # built and typed, not run here

Trains quality models on distorted dead leaves, then attacks each of them under each measure of fidelity. Differs from the paper
in: no observers unless the trials are held, a proxy stands for them; the Chebyshev attack climbs balls, not a penalty; the ladder
is laid around a measured threshold (docs/methods/niqa_attack.md#choices-of-ours).
"""

import dataclasses
from collections.abc import Generator, Sequence
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recipes.quality import QualityRecipe, load, model_stage
from jaxface import attacks, interop, metrics, training
from jaxface import data as inputs
from jaxface.attacks.niqa_attack import RELEASED_MULTIPLIERS, Distance
from jaxface.checks import AtLeast, Ordered, Positive, Range
from jaxface.errors import UserError
from jaxface.training.evaluations.quality_attack import Proxy, QualityAttack, Rater, attack_starts, rated

__all__ = ["Config", "build"]

Fidelity = Literal["chebyshev", "ssim", "ms_ssim", "lpips", "dists"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(QualityRecipe):
    """Quality models, and attacks on them."""

    fidelities: tuple[Fidelity, ...] = ("chebyshev", "ssim")
    """What holds an attack back, one attack on every model for each."""
    attack: attacks.PerceptualAttack = attacks.PerceptualAttack(steps=40, step=6e-4, keep_every=5)
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
            crop=None,
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
    split = load(config)
    shape = tuple(split.train.image_shape)
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
        evaluate=QualityAttack(names, number, name),
        description={
            "kind": "perceptual_attack",
            "name": name,
            "model": rater.name,
            "models": names,
            "fidelity": fidelity,
        },
    )
