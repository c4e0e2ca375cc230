"""Synthetic identities as plain vectors: what a claim about embeddings needs, in seconds.

A person is a point of a latent space, near the center of a group of confusable people; a record is that point with noise of
its own, beside nuisance coordinates that say nothing about the person, pushed through a fixed random tanh map.

Methods: ida
"""

import numpy as np

from jaxface.checks import AtLeast, check_number
from jaxface.data.sources.bundled import ArraySource
from jaxface.data.transforms.pixels import to_bytes


def procedural_vectors(
    identities: int,
    per_identity: int,
    *,
    seed: int,
    first_identity: int = 0,
    groups: int = 15,
    latent: int = 16,
    nuisance: int = 12,
    observed: int = 96,
    group_spread: float = 1.0,
    spread: float = 0.7,
    noise: float = 0.6,
) -> ArraySource:
    """Records of synthetic identities.

        x = tanh( A [c_g + u + n ; m] / √(latent + nuisance) )

    with the center of group g, c_g ~ N(0, group_spread²), the identity u ~ N(0, spread²), n ~ N(0, noise²) and the nuisance
    m ~ N(0, 1); A ~ N(0, 1) is [observed, latent + nuisance], the same for everybody under one seed.

    Args:
      identities: people, ≥ 1; person i belongs to group i mod `groups`.
      per_identity: records of each, ≥ 1.
      seed: of the map, the groups and the people.
      first_identity: number of the first person; people with different numbers are different people of one world.
      groups, latent, nuisance, observed: numbers of groups and coordinates, ≥ 1 (nuisance ≥ 0).
      group_spread, spread, noise: standard deviations ≥ 0.

    Returns:
      A source of images uint8 [1, observed, 1]: x in [-1, 1] on 256 levels.

    Raises:
      UserError: a number out of its range.

    Example:
      >>> source = procedural_vectors(3, 2, seed=0)
      >>> len(source), source.labels.tolist()
      (6, [0, 0, 1, 1, 2, 2])
    """
    least = dict(identities=1, per_identity=1, groups=1, latent=1, nuisance=0, observed=1, seed=0)
    values = dict(
        identities=identities, per_identity=per_identity, groups=groups, latent=latent, nuisance=nuisance,
        observed=observed, seed=seed,
    )  # fmt: skip
    for name, low in least.items():
        check_number(name, values[name], AtLeast(low))
    world = np.random.default_rng([seed, 0])
    mixing = world.normal(size=(observed, latent + nuisance)) / np.sqrt(latent + nuisance)
    centers = group_spread * world.normal(size=(groups, latent))
    rows = []
    for person in range(first_identity, first_identity + identities):
        rng = np.random.default_rng([seed, 1, person])
        identity = centers[person % groups] + spread * rng.normal(size=latent)
        hidden = np.concatenate(
            [
                identity + noise * rng.normal(size=(per_identity, latent)),
                rng.normal(size=(per_identity, nuisance)),
            ],
            axis=1,
        )
        rows.append(np.tanh(hidden @ mixing.T))
    pixels = to_bytes(np.concatenate(rows))
    labels = np.repeat(np.arange(identities, dtype=np.int32), per_identity)
    names = [f"person-{first_identity + i}" for i in range(identities)]
    return ArraySource(pixels[:, None, :, None], labels, names)
