"""Search of a MetaNet: the space of its stages, drawn and changed architectures, a reward, and evolution (arXiv:2111.08687).

The report's controller learns by policy gradients; an evolution takes its place here. What was found is `metanet_b4`.

Methods: intern
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxface.checks import AtLeast, Fraction, Positive, check_number
from jaxface.errors import UserError
from jaxface.models.registry import MODELS
from jaxface.models.transformers.metanet import DOWNSAMPLING, OPERATORS, MetaNet

Space = Mapping[str, tuple]
"""Name of a choice -> its options; `<name><i>` is that of stage i from 1."""


class Architecture(NamedTuple):
    """A point of a space: (name, option) of every choice, in the order of the space."""

    choices: tuple[tuple[str, Any], ...]

    def fields(self) -> dict[str, Any]:
        """The fields of `MetaNet` that it stands for.

        Example:
          >>> space = search_space()
          >>> sorted(sample_arch(jax.random.key(0), space).fields())
          ['channels', 'downsampling', 'expansions', 'operators', 'repeats', 'stem', 'strides']
        """
        chosen = dict(self.choices)
        stages = range(1, 1 + sum(name.startswith("operator") for name in chosen))
        names = {
            "operators": "operator",
            "channels": "width",
            "repeats": "repeats",
            "expansions": "expansion",
            "downsampling": "downsampling",
            "strides": "stride",
        }
        fields = {field: tuple(chosen[f"{name}{i}"] for i in stages) for field, name in names.items()}
        return {"stem": chosen["stem"], **fields}

    def network(self, **fields: Any) -> MetaNet:
        """The network, with other fields of `MetaNet` as given."""
        return MODELS["metanet_tiny"](**{**self.fields(), **fields})


def search_space(
    *,
    widths: tuple[int, ...] = (16, 24, 32, 48, 48, 64),
    factors: tuple[float, ...] = (1.0, 1.5, 2.0),
    repeats: tuple[int, ...] = (1, 2, 3),
    expansions: tuple[int, ...] = (2, 4, 6),
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2),
    operators: tuple[str, ...] = tuple(OPERATORS),
    attend_from: int = 4,
    head_dim: int = 16,
) -> dict[str, tuple]:
    """A choice of operator, width, depth, expansion and down-sampling for every stage.

    Args:
      widths: of the stages; choices are their multiples by `factors`, rounded to multiples of `head_dim` where a stage or the one
        behind it may attend, else of 8.
      repeats, expansions: options of every stage.
      strides: of the stages.
      operators: options of every stage from `attend_from` on; before it of those that convolve.
      attend_from: first stage, from 1, that may attend or mix tokens: before it there are too many.
      head_dim: channels of a head.

    Raises:
      UserError: an unknown operator, or lists of different lengths.
    """
    if unknown := [name for name in operators if name not in OPERATORS]:
        raise UserError(f"operators: needs some of {', '.join(OPERATORS)}, got {unknown[0]!r}")
    if len(widths) != len(strides):
        raise UserError(f"strides: needs one for each of {len(widths)} stages, got {len(strides)}")
    space: dict[str, tuple] = {"stem": (16,)}
    convolving = tuple(name for name in operators if name in ("mbconv", "fused"))
    for i, (width, stride) in enumerate(zip(widths, strides, strict=True), start=1):
        unit = head_dim if i >= attend_from - 1 else 8
        space[f"operator{i}"] = operators if i >= attend_from else convolving
        space[f"width{i}"] = tuple(dict.fromkeys(max(unit, round(width * f / unit) * unit) for f in factors))
        space[f"repeats{i}"] = repeats
        space[f"expansion{i}"] = expansions
        space[f"stride{i}"] = (stride,)
        attends = i >= attend_from and stride > 1
        space[f"downsampling{i}"] = tuple(DOWNSAMPLING) if attends else ("block",)
    return space


def sample_arch(key: jax.Array, space: Space) -> Architecture:
    """An architecture of independent uniform choices; the same for the same key."""
    draws = np.asarray(jax.random.uniform(key, (len(space),)))
    return Architecture(
        tuple(
            (name, options[int(u * len(options))])
            for u, (name, options) in zip(draws, space.items(), strict=True)
        )
    )


def mutate(key: jax.Array, architecture: Architecture, space: Space, *, rate: float = 0.1) -> Architecture:
    """An architecture of which every choice is drawn again with probability `rate`, and one at least of those that have options.

    Raises:
      UserError: a rate outside [0, 1].
    """
    check_number("rate", rate, Fraction)
    which, again = jax.random.split(key)
    changed = np.array(jax.random.uniform(which, (len(space),)) < rate)
    free = [i for i, options in enumerate(space.values()) if len(options) > 1]
    if free and not changed[free].any():
        changed[free[int(jax.random.randint(jax.random.fold_in(which, 1), (), 0, len(free)))]] = True
    others = sample_arch(again, space).choices
    pairs = zip(changed, architecture.choices, others, strict=True)
    return Architecture(tuple(other if change else own for change, own, other in pairs))


def reward(accuracy: float, flops: float, target: float, *, power: float = -0.07) -> float:
    """accuracy · (flops / target)^power (arXiv:1807.11626).

    Example:
      >>> reward(0.8, 2e9, 2e9), round(reward(0.8, 4e9, 2e9), 4)
      (0.8, 0.7621)
    """
    check_number("flops", flops, Positive)
    check_number("target", target, Positive)
    return accuracy * (flops / target) ** power


@dataclasses.dataclass(frozen=True)
class Evolution:
    """Regularized evolution (arXiv:1802.01548): the best of a few drawn ones is changed, and the oldest dies.

    Attributes:
      population: architectures alive. rounds: children. tournament: drawn for each child. rate: of `mutate`.
    """

    population: int = 16
    rounds: int = 48
    tournament: int = 4
    rate: float = 0.1

    def __post_init__(self):
        for name, least in (("population", 2), ("rounds", 0), ("tournament", 1)):
            check_number(name, getattr(self, name), AtLeast(least))
        check_number("rate", self.rate, Fraction)


class Judged(NamedTuple):
    """An architecture and its reward."""

    architecture: Architecture
    reward: float


def evolve(
    key: jax.Array,
    judge: Callable[[Architecture], float],
    space: Space,
    spec: Evolution = Evolution(),
    *,
    known: Mapping[Architecture, float] | None = None,
) -> list[Judged]:
    """Every architecture that an evolution judges, in order; `max(…, key=lambda one: one.reward)` is what it found.

    Args:
      key: of all choices, so that a search that was stopped goes on by `known`, with the same ones.
      judge: architecture -> reward, such as that of a short training on a proxy; an architecture is judged once.
      space: of `search_space`.
      spec: sizes.
      known: rewards of architectures that were judged before.
    """
    known, history = dict(known or {}), []

    def judged(architecture):
        if architecture not in known:
            known[architecture] = float(judge(architecture))
        history.append(Judged(architecture, known[architecture]))
        return history[-1]

    alive = [judged(sample_arch(jax.random.fold_in(key, i), space)) for i in range(spec.population)]
    for number in itertools.count(spec.population):
        if number == spec.population + spec.rounds:
            return history
        draw, change = jax.random.split(jax.random.fold_in(key, number))
        rows = jax.random.permutation(draw, len(alive))[: spec.tournament]
        parent = max((alive[int(row)] for row in rows), key=lambda one: one.reward)
        child = judged(mutate(change, parent.architecture, space, rate=spec.rate))
        alive = [*alive[1:], child]
