"""Embeddings instead of images: synthetic ones of crowded groups, and those of a file.

Methods: ida
"""

import dataclasses
from typing import Annotated

import numpy as np

from jaxface.checks import AtLeast, NonNegative
from jaxface.data.sources.source import Source
from jaxface.data.sources.vectors import VectorSource, read_embeddings
from jaxface.data.specs.base import FIRST_HELD_OUT, FIRST_SIMULATED, KINDS, DataSpec, Split
from jaxface.data.synthetic.crowded_embeddings import crowded_embeddings


@KINDS.register("crowd")
@dataclasses.dataclass(frozen=True)
class Crowd(DataSpec):
    """Synthetic embeddings of people in groups that are crowded to different degrees; no image and no network."""

    identities: Annotated[int, AtLeast(2)] = 600
    """People of the gallery, from whom the estimator and the generator learn."""
    per_identity: Annotated[int, AtLeast(1)] = 6
    """Embeddings of each of them."""
    held_out_identities: Annotated[int, AtLeast(2)] = 300
    """Other people to verify."""
    held_out_per_identity: Annotated[int, AtLeast(2)] = 6
    """Embeddings of each of these."""
    groups: Annotated[int, AtLeast(1)] = 6
    """Groups; group g of G pulls its people together with a strength that rises from 0 to `crowding`."""
    crowding: float = 1.2
    """Strength of the most crowded group, where the spread of people is 1."""
    size: Annotated[int, AtLeast(1)] = 64
    """Size of an embedding."""
    noise: Annotated[float, NonNegative] = 1.0
    """Deviation of the embeddings of one person, where that of people is 1."""
    candidates_crowding: float | None = None
    """Strength of the groups that simulated candidates are drawn from, where it is another: a mismatched generator."""

    @property
    def title(self) -> str:
        return "crowd"

    def _people(
        self, identities: int, per_identity: int, seed: int, *, first: int = 0, crowding: float | None = None
    ) -> VectorSource:
        return VectorSource(
            *crowded_embeddings(
                identities,
                per_identity,
                seed=seed,
                first_identity=first,
                groups=self.groups,
                crowding=self.crowding if crowding is None else crowding,
                size=self.size,
                noise=self.noise,
            )
        )

    def source(self, *, image_size: int, seed: int) -> Source:
        return self._people(self.identities, self.per_identity, seed)

    def divide(self, *, image_size: int, seed: int) -> Split:
        train = self.source(image_size=image_size, seed=seed)
        unseen = self._people(
            self.held_out_identities, self.held_out_per_identity, seed, first=FIRST_HELD_OUT
        )
        return Split(train, unseen, self.title, "verification")

    def simulated(self, count: int, *, image_size: int, seed: int) -> Source:
        return self._people(count, 1, seed, first=FIRST_SIMULATED, crowding=self.candidates_crowding)


@KINDS.register("embeddings")
@dataclasses.dataclass(frozen=True)
class EmbeddingFile(DataSpec):
    """A .npz of embeddings (`jaxface.data.read_embeddings`): people to verify, a gallery, and perhaps virtual candidates."""

    embeddings: str
    """The file: embeddings [N, D] and labels [N] to verify, gallery [T, D] and gallery_labels [T] of other people."""

    @property
    def title(self) -> str:
        return "embeddings"

    def source(self, *, image_size: int, seed: int) -> Source:
        """The gallery."""
        arrays = read_embeddings(self.embeddings)
        return VectorSource(arrays["gallery"], arrays["gallery_labels"])

    def divide(self, *, image_size: int, seed: int) -> Split:
        arrays = read_embeddings(self.embeddings)
        train = VectorSource(arrays["gallery"], arrays["gallery_labels"])
        unseen = VectorSource(arrays["embeddings"], arrays["labels"], arrays.get("groups"))
        return Split(train, unseen, self.title, "verification")

    def simulated(self, count: int, *, image_size: int, seed: int) -> Source | None:
        """The candidates of the file, all of them."""
        virtual = read_embeddings(self.embeddings).get("virtual")
        return None if virtual is None else VectorSource(virtual, np.zeros(len(virtual), np.int32))
