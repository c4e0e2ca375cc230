"""Quality models attacked with the images of a perceptual attack: counterexamples, what they do to every model, and controls.

Methods: niqa_attack
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import attacks, metrics
from jaxface.attacks.niqa_attack import Distance
from jaxface.checks import Fraction, NonNegative, Range
from jaxface.training import figures
from jaxface.training.stages import Figures
from jaxface.training.step import TrainState

DRAWS = 10
"""Random changes of each counterexample."""
AMPLIFIED = 32
"""Times that the differences in a sheet are enlarged."""
HIGHEST, LOWEST = 10.0, 0.0  # scores after the logistic map
_SHOWN = 12
_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Proxy:
    """What has to hold of an image that is taken for its original, as a stand-in for observers (`metrics.jnd_proxy`)."""

    levels: Annotated[float | None, NonNegative] = 4.0
    """Largest change of a value, of 255; None for no bound."""
    similarity: Annotated[float, Fraction] = 0.985
    """Least SSIM, in [0, 1]."""
    decibels: Annotated[float | None, Range(0, 100)] = None
    """Least PSNR in dB; None for no bound."""


class Rater(NamedTuple):
    """A quality model: `rate` is image [H, W, C] in [0, 1] -> score from 0 to 10, a `jax.tree_util.Partial` of its parameters."""

    name: str
    rate: jax.tree_util.Partial


@functools.partial(jax.jit, static_argnames="at_once")
def _rated(rate, images, *, at_once):
    return jax.lax.map(lambda image: rate(image.astype(jnp.float32) / 255), images, batch_size=at_once)


def rated(rater: Rater, images: np.ndarray) -> np.ndarray:
    """Scores [...] float32 of images uint8 [..., H, W, C], some at a time."""
    flat = images.reshape(-1, *images.shape[-3:])
    scores = _rated(rater.rate, flat, at_once=min(_AT_ONCE, len(flat)))
    return np.asarray(scores).reshape(images.shape[:-3])


@functools.partial(jax.jit, static_argnames="at_once")
def _looked_at(images, starts, *, at_once):
    def one(pair):
        image, start = (x.astype(jnp.float32) / 255 for x in pair)
        decibels = metrics.psnr(image[None], start[None])[0]
        return metrics.chebyshev(image, start), metrics.ssim(image, start), decibels

    return jax.lax.map(one, (images, starts), batch_size=at_once)


def passing(images: np.ndarray, starts: np.ndarray, proxy: Proxy) -> np.ndarray:
    """Which of the images uint8 [S, N, H, W, C] the proxy takes for their starts [S, H, W, C]: [S, N] bool."""
    flat = images.reshape(-1, *images.shape[-3:])
    beside = np.repeat(starts, images.shape[1], axis=0)
    told = _looked_at(flat, beside, at_once=min(_AT_ONCE, len(flat)))
    change, similarity, decibels = (np.asarray(x).reshape(images.shape[:2]) for x in told)
    return metrics.jnd_proxy(
        change,
        similarity,
        decibels,
        largest=None if proxy.levels is None else proxy.levels / 255,
        least_similarity=proxy.similarity,
        least_decibels=proxy.decibels,
    )


def attack_starts(
    raters: Sequence[Rater],
    attacked: int,
    distance: Distance,
    starts: np.ndarray,
    opinions: np.ndarray,
    rungs: np.ndarray,
    attack: attacks.PerceptualAttack,
    proxy: Proxy,
    key: jax.Array,
    *,
    at_a_time: int | None = None,
) -> dict[str, np.ndarray]:
    """A ladder of attacks on one model, the counterexamples by the proxy, all models' scores of them and of random changes.

    Args:
      raters: M models. attacked: the place of the attacked one among them.
      distance: D of the attack.
      starts: uint8 [S, H, W, C]. opinions: [S], from 0 to 10.
      rungs: [K]. attack, proxy, at_a_time: as they are.
      key: of the attack's noise and the random changes.

    Returns:
      starts; opinions; rungs; `images` uint8 [S, N, H, W, C], all that were kept of the rungs, and their `distances` [S, N];
      `last` [N] bool, those that end a rung; `below` [S, N] bool, those that the proxy takes for their start; `chosen` [S] int32,
      the counterexample or -1; `start_scores` [M, S]; `scores` [M, S, N]; `random_scores` [M, S, 10], of changes of the root mean
      square and maximum of the counterexample, and `random_below` [S, 10] (a start's own score, and False, where it has none).
    """
    fractions = jnp.asarray(starts, jnp.float32) / 255
    start_scores = np.stack([rated(rater, starts) for rater in raters])
    of_attack, of_chance = jax.random.split(key)
    told = attacks.perceptual_attack(
        raters[attacked].rate, distance, fractions, of_attack, rungs, attack, at_a_time=at_a_time
    )
    count, kept = len(starts), told.iterates.shape[2]
    images = np.asarray(told.iterates).reshape(count, -1, *starts.shape[1:])
    if images.dtype != np.uint8:
        images = np.rint(images * 255).astype(np.uint8)
    distances = np.asarray(told.distances).reshape(count, -1)
    scores = np.stack([rated(rater, images) for rater in raters])
    below = passing(images, starts, proxy)
    directions = told.trace.shape[2]
    last = np.arange(images.shape[1]) % (kept // directions) == kept // directions - 1
    chosen = np.full(count, -1, np.int32)
    for s in range(count):
        place, _ = metrics.select_counterexample(
            scores[attacked, s], start_scores[attacked, s], below[s], distances[s]
        )
        chosen[s] = -1 if place is None else place
    counterexamples = np.stack([starts[s] if k < 0 else images[s, k] for s, k in enumerate(chosen)])
    drawn = jax.vmap(functools.partial(attacks.shuffled_changes, draws=DRAWS))(
        jnp.asarray(counterexamples, jnp.float32) / 255, fractions, jax.random.split(of_chance, count)
    )
    drawn = np.rint(np.asarray(drawn) * 255).astype(np.uint8)
    found = chosen >= 0
    return {
        "starts": starts,
        "opinions": np.asarray(opinions, np.float32),
        "rungs": np.asarray(rungs, np.float32),
        "images": images,
        "distances": distances,
        "last": last,
        "below": below,
        "chosen": chosen,
        "start_scores": start_scores,
        "scores": scores,
        "random_scores": np.stack([rated(rater, drawn) for rater in raters]),
        "random_below": passing(drawn, starts, proxy) & found[:, None],
    }


class QualityAttack:
    """What an attack on one model did, by the arrays of `attack_starts` as a state's parameters.

        found                     starts with a counterexample; below the share of all kept images that the proxy passes
        rms, max                  of their changes, gray levels; random_below the share of the random changes that it passes too
        <model>/srcc              of the opinions with the scores of the starts and of their counterexamples, which inherit them;
                                  a start without a counterexample counts twice
        <model>/srcc_starts       of the starts alone, each twice
        <model>/srcc_random       mean over ten random changes of each counterexample's size
        <model>/srcc_random_best  of those of the ten that move the score most: the floor of an attack that tries much
        <model>/change            mean |f(x*) - f(x)| of the found; change_random, change_random_best
        <model>/robustness        R of the found
        <model>/srcc_ends         where the model is the attacked one: only the end of each rung could be chosen

    Args:
      names: of the models, in the order of the arrays.
      attacked: the place of the attacked one.
      attack: of several in one run, which; for the name of the sheet.
    """

    def __init__(self, names: Sequence[str], attacked: int, attack: str = "attack"):
        self.names, self.attacked, self.attack = tuple(names), attacked, attack

    def __call__(self, state: TrainState) -> dict[str, float]:
        told = {name: np.asarray(value) for name, value in state.params.items()}
        chosen, opinions = told["chosen"], told["opinions"]
        found, rows = chosen >= 0, np.arange(len(chosen))
        change = _counterexamples(told).astype(np.float64) - told["starts"]
        report = {
            "found": float(found.sum()),
            "below": float(told["below"].mean()),
            "random_below": float(told["random_below"][found].mean()) if found.any() else 0.0,
            "rms": _mean(np.sqrt(np.square(change).mean((1, 2, 3)))[found]),
            "max": _mean(np.abs(change).max((1, 2, 3))[found]),
        }
        for m, name in enumerate(self.names):
            start, random = told["start_scores"][m], told["random_scores"][m]
            after = np.where(found, told["scores"][m, rows, chosen], start)
            best = random[rows, np.abs(random - start[:, None]).argmax(1)]
            moved = np.abs(random - start[:, None])[found]
            report |= {
                f"{name}/srcc": _agreement(start, after, opinions),
                f"{name}/srcc_starts": _agreement(start, start, opinions),
                f"{name}/srcc_random": float(np.mean([_agreement(start, r, opinions) for r in random.T])),
                f"{name}/srcc_random_best": _agreement(start, best, opinions),
                f"{name}/change": _mean(np.abs(after - start)[found]),
                f"{name}/change_random": _mean(moved),
                f"{name}/change_random_best": _mean(moved.max(1)) if found.any() else 0.0,
            }
            if found.any():
                report[f"{name}/robustness"] = metrics.robustness_r(
                    start[found], after[found], highest=HIGHEST, lowest=LOWEST
                )
        name = self.names[self.attacked]
        report[f"{name}/srcc_ends"] = self._ends(told)
        return report

    def _ends(self, told: Mapping[str, np.ndarray]) -> float:
        start = told["start_scores"][self.attacked]
        after = start.copy()
        for s, before in enumerate(start):
            below = told["below"][s] & told["last"]
            scores = told["scores"][self.attacked, s]
            place, _ = metrics.select_counterexample(scores, before, below, told["distances"][s])
            after[s] = before if place is None else scores[place]
        return _agreement(start, after, told["opinions"])

    def figures(self, state: TrainState) -> Figures:
        """A sheet of starts, their counterexamples and the differences."""
        told = {name: np.asarray(value)[:_SHOWN] for name, value in state.params.items() if name != "scores"}
        counterexamples = _counterexamples(told)
        difference = counterexamples.astype(np.float32) - told["starts"]
        rows = {
            "start": told["starts"],
            f"counterexample of {self.names[self.attacked]} (a start again where none was found)": counterexamples,
            f"difference, {AMPLIFIED} times": np.clip(128 + AMPLIFIED * difference, 0, 255).astype(np.uint8),
        }
        return {f"counterexamples_{self.attack}": functools.partial(figures.save_image_rows, rows)}


def _counterexamples(told: Mapping[str, np.ndarray]) -> np.ndarray:
    """uint8 [S, H, W, C], a start again where it has none."""
    return np.stack(
        [s if k < 0 else i[k] for s, i, k in zip(told["starts"], told["images"], told["chosen"], strict=True)]
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _agreement(start: np.ndarray, after: np.ndarray, opinions: np.ndarray) -> float:
    return metrics.srcc(np.concatenate([start, after]), np.concatenate([opinions, opinions]))
