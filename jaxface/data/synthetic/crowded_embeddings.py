"""Synthetic embeddings of people in groups that crowd together to different degrees: what a claim about thresholds needs.

Methods: ida
"""

from typing import NamedTuple

import numpy as np

from jaxface.errors import UserError


class CrowdedEmbeddings(NamedTuple):
    """Embeddings of a synthetic population.

    Attributes:
      embeddings: [N, D] float32, rows of unit length; the images of a person are neighbors.
      labels: [N] int32, people from 0.
      groups: [N] int32 in [0, groups); a higher one is more crowded.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    groups: np.ndarray


def crowded_embeddings(
    identities: int,
    per_identity: int,
    *,
    seed: int,
    first_identity: int = 0,
    groups: int = 6,
    crowding: float = 1.2,
    size: int = 64,
    noise: float = 1.0,
) -> CrowdedEmbeddings:
    """Embeddings of synthetic people, as a network would give that confuses some groups more than others.

        p = (a_g o_g + u) / ‖·‖,   e = (p + n) / ‖·‖,      u ~ N(0, I / D),  n ~ N(0, noise² I / D)
        a_g = crowding · g / (groups - 1)

    with a random unit direction o_g per group: images of two of its people have cosines around a_g² / (1 + a_g²) / (1 + noise²),
    those of one person around 1 / (1 + noise²) in every group.

    Args:
      identities: people, ≥ 1; person i belongs to group i mod `groups`.
      per_identity: images of each, ≥ 1.
      seed: of the groups' directions and of the people, ≥ 0.
      first_identity: number of the first person, ≥ 0; people with different numbers are different people of one world.
      groups: ≥ 1; one group has strength 0, a homogeneous population.
      crowding: strength of the most crowded group, ≥ 0.
      size: D ≥ 1.
      noise: length of the deviation of an image, where that of a person is 1; ≥ 0.

    Raises:
      UserError: a number out of its range.

    Example:
      >>> people = crowded_embeddings(6, 2, seed=0, groups=3)
      >>> people.labels.tolist()
      [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    """
    numbers = dict(
        identities=(identities, 1), per_identity=(per_identity, 1), seed=(seed, 0), first_identity=(first_identity, 0),
        groups=(groups, 1), crowding=(crowding, 0), size=(size, 1), noise=(noise, 0),
    )  # fmt: skip
    for name, (value, least) in numbers.items():
        if not value >= least:
            raise UserError(f"{name}: needs at least {least}, got {value}")
    offsets = np.random.default_rng([seed, 0]).normal(size=(groups, size))
    offsets *= np.linspace(0, crowding, groups)[:, None] / np.linalg.norm(offsets, axis=1, keepdims=True)
    people = []
    for person in range(first_identity, first_identity + identities):
        # The numbers of a person are his own, however many others are drawn.
        draws = np.random.default_rng([seed, 1, person]).normal(size=(1 + per_identity, size)) / np.sqrt(size)
        center = offsets[person % groups] + draws[0]
        people.append(center / np.linalg.norm(center) + noise * draws[1:])
    embeddings = np.concatenate(people)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    labels = np.repeat(np.arange(identities, dtype=np.int32), per_identity)
    return CrowdedEmbeddings(
        embeddings.astype(np.float32), labels, ((labels + first_identity) % groups).astype(np.int32)
    )
