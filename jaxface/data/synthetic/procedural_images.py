"""Synthetic identities as small gray images: what a claim about changes of pixels needs, in seconds.

A person is a weighting of localized waves; an image adds a weighting of nuisance waves, a light from one side and noise.
"""

import numpy as np

from jaxface.checks import AtLeast, check_number
from jaxface.data.sources.bundled import ArraySource
from jaxface.data.transforms.pixels import fractions_to_bytes


def _waves(rng: np.random.Generator, count: int, side: int) -> np.ndarray:
    """[count, side · side] float: cosines of random direction and phase under Gaussian windows, each of unit energy."""
    y, x = np.mgrid[:side, :side] / (side - 1) - 0.5
    rows = []
    for _ in range(count):
        center_y, center_x = rng.uniform(-0.4, 0.4, 2)
        width, angle = rng.uniform(0.12, 0.3), rng.uniform(0, np.pi)
        frequency, phase = rng.uniform(1, 4), rng.uniform(0, 2 * np.pi)
        window = np.exp(-((y - center_y) ** 2 + (x - center_x) ** 2) / (2 * width**2))
        along = np.cos(angle) * x + np.sin(angle) * y
        wave = (window * np.cos(2 * np.pi * frequency * along + phase)).ravel()
        rows.append(wave / np.linalg.norm(wave))
    return np.stack(rows)


def procedural_images(
    identities: int,
    per_identity: int,
    *,
    seed: int,
    first_identity: int = 0,
    side: int = 16,
    patterns: int = 40,
    nuisance: int = 12,
    identity_spread: float = 0.18,
    nuisance_spread: float = 0.18,
    light: float = 0.07,
    noise: float = 0.04,
) -> ArraySource:
    """Images of synthetic identities.

        x = 1/2 + Pᵀ a + Qᵀ b + l_y y + l_x x + n,     clipped to [0, 1]

    with the fixed waves P [patterns, side²] of identities and Q [nuisance, side²] of all else, each of unit energy, a person's
    weights a ~ N(0, identity_spread²), and for every image b ~ N(0, nuisance_spread²), a light l ~ N(0, light²) over coordinates
    in [-1, 1] and noise n ~ N(0, noise²).

    Args:
      identities: people, ≥ 1.
      per_identity: images of each, ≥ 1.
      seed: of the waves and the people.
      first_identity: number of the first person; people with different numbers are different people of one world.
      side: of an image, pixels, ≥ 2.
      patterns, nuisance: numbers of waves, ≥ 1.
      identity_spread, nuisance_spread, light, noise: standard deviations ≥ 0.

    Returns:
      A source of images uint8 [side, side, 1]: x on 256 levels.

    Raises:
      UserError: a number out of its range.

    Example:
      >>> source = procedural_images(3, 2, seed=0)
      >>> len(source), source[0]["image"].shape
      (6, (16, 16, 1))
    """
    least = dict(identities=1, per_identity=1, seed=0, side=2, patterns=1, nuisance=1)
    values = dict(
        identities=identities, per_identity=per_identity, seed=seed, side=side, patterns=patterns, nuisance=nuisance
    )  # fmt: skip
    for name, low in least.items():
        check_number(name, values[name], AtLeast(low))
    world = np.random.default_rng([seed, 2])
    identity_waves, nuisance_waves = _waves(world, patterns, side), _waves(world, nuisance, side)
    slopes = np.stack([axis.ravel() for axis in np.mgrid[:side, :side]]) / (side - 1) * 2 - 1
    rows = []
    for person in range(first_identity, first_identity + identities):
        rng = np.random.default_rng([seed, 3, person])
        face = identity_spread * rng.normal(size=patterns) @ identity_waves
        other = nuisance_spread * rng.normal(size=(per_identity, nuisance)) @ nuisance_waves
        shade = light * rng.normal(size=(per_identity, 2)) @ slopes
        rows.append(0.5 + face + other + shade + noise * rng.normal(size=other.shape))
    pixels = fractions_to_bytes(np.concatenate(rows))
    labels = np.repeat(np.arange(identities, dtype=np.int32), per_identity)
    names = [f"person-{first_identity + i}" for i in range(identities)]
    return ArraySource(pixels.reshape(-1, side, side, 1), labels, names)
