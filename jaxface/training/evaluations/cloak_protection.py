"""How often people under their masks are not found, by several networks (protocol of arXiv:2205.11981).

Methods: cloak
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxface import attacks, metrics
from jaxface.data.sources.bundled import ArraySource
from jaxface.data.sources.source import Record, Source
from jaxface.data.transforms.pixels import to_bytes
from jaxface.errors import UserError
from jaxface.training import figures
from jaxface.training.recognition import embed_source, statistics
from jaxface.training.stages import Figures
from jaxface.training.step import TrainState

RANKS = (1, 5)
"""Ranks k of the reported PSR@k."""
SHOWN = 6
"""People in the figure of cloaked images."""
DRAWN = ("surrogate/psr@1", "black_box/psr@1")
"""Metrics in the figure of all methods."""


class PeopleSource:
    """A source whose records are people: `image` uint8 [N, H, W, C] and `label`; it goes round to fill whole steps.

    Args:
      source: of the images.
      rows: [I, N] indices into it, the images of each person.
      per_step: people in a step; the next multiple of the devices, and not many more than there are people.
    """

    def __init__(self, source: Source, rows: np.ndarray, per_step: int):
        self._source, self._rows = source, rows
        devices = jax.device_count()
        self.per_step = -(-min(per_step, len(rows)) // devices) * devices
        self._length = -(-len(rows) // self.per_step) * self.per_step
        self.image_shape = source.image_shape
        self.labels = np.arange(self._length, dtype=np.int32) % len(rows)
        self.class_names = [source.class_names[source.labels[row[0]]] for row in rows]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        label = self.labels[index]
        return {"image": _images(self._source, self._rows[label]), "label": label}


def _images(source: Source, rows) -> np.ndarray:
    """[len(rows), H, W, C] uint8, the images of some records."""
    return np.stack([source[int(i)]["image"] for i in rows])


class CloakTrial(NamedTuple):
    """Who is protected, on which photos, and among whom they are looked for.

    Attributes:
      photos: record i holds the photos [N, H, W, C] that the mask of person i is made from, `label` i.
      tests: [I, m, H, W, C] uint8, other photos of the same people.
      distractors: [G, H, W, C] uint8, images of other people.
    """

    photos: PeopleSource
    tests: np.ndarray
    distractors: np.ndarray

    @classmethod
    def divide(
        cls,
        unseen: Source,
        *,
        people: int,
        photos: int,
        tests: int,
        people_per_step: int,
        more_distractors: Source | None = None,
    ) -> "CloakTrial":
        """Divides people that no network has seen into protected ones and distractors.

        The first people with enough photos are protected, in the order of the data: their first photos make the mask, the next
        ones are tested. Everybody else is a distractor.

        Args:
          unseen: labeled images.
          people: I, to protect.
          photos: N, that a mask is made from.
          tests: m, at most; at least two are there.
          people_per_step: as `PeopleSource`.
          more_distractors: besides those that are left over.

        Raises:
          UserError: too few people with enough photos, or too few distractors.
        """
        by_person = [np.flatnonzero(unseen.labels == label) for label in range(len(unseen.class_names))]
        protected = [rows for rows in by_person if len(rows) >= photos + 2][:people]
        if len(protected) < people:
            raise UserError(
                f"people: needs {people} people with at least {photos + 2} photos that are not trained on, "
                f"got {len(protected)} of {len(by_person)}"
            )
        tests = min([tests, *(len(rows) - photos for rows in protected)])
        labels = {unseen.labels[rows[0]] for rows in protected}
        others = [i for label, rows in enumerate(by_person) if label not in labels for i in rows]
        distractors = [_images(unseen, others)] if others else []
        if more_distractors is not None:
            distractors.append(_images(more_distractors, range(len(more_distractors))))
        count = sum(map(len, distractors))
        if count + 1 < max(RANKS):
            raise UserError(
                f"people: PSR@{max(RANKS)} needs at least {max(RANKS) - 1} images of distractors, got {count}; protect fewer "
                "people or give a folder of distractors"
            )
        return cls(
            PeopleSource(unseen, np.stack([rows[:photos] for rows in protected]), people_per_step),
            np.stack([_images(unseen, rows[photos : photos + tests]) for rows in protected]),
            np.concatenate(distractors),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenNetwork:
    """A finished network, on the host: `model` and the `variables` that it is applied with."""

    model: nn.Module
    variables: dict

    def embeddings(self, images: np.ndarray) -> np.ndarray:
        """[..., D] of uint8 images [..., H, W, C], without their mirror images."""
        flat = images.reshape(-1, *images.shape[-3:])
        source = ArraySource(flat, np.zeros(len(flat), np.int32), ["all"])
        embedded = embed_source(
            self.model, self.variables["params"], statistics(self.variables), source, flip=False
        )
        return embedded.reshape(*images.shape[:-3], -1)


class _Gallery(NamedTuple):
    """Embeddings by one network: of the clean test photos [I, m, D], and of the distractors [G, D]."""

    clean: np.ndarray
    distractors: np.ndarray


class CloakProtection:
    """How often the people under masks are not found, by the surrogate and by the black boxes.

        <network>/psr@k                    for surrogate, target1, target2, …
        black_box/psr@k                    mean over the targets
        <…>/clean_psr@k, random_psr@k      floors: no mask, and a mask of random signs of ε for each person

    Args:
      networks: by name, the one called surrogate among them.
      trial: photos to mask and to look among.
      epsilon: of the random masks.
      seed: of the random masks.
    """

    def __init__(self, networks: Mapping[str, FrozenNetwork], trial: CloakTrial, epsilon: float, seed: int):
        self.networks, self.trial, self.epsilon, self.seed = networks, trial, epsilon, seed

    @functools.cached_property
    def _galleries(self) -> dict[str, _Gallery]:
        return {
            name: _Gallery(network.embeddings(self.trial.tests), network.embeddings(self.trial.distractors))
            for name, network in self.networks.items()
        }

    def success(self, masks: np.ndarray) -> dict[str, float]:
        """PSR@k of every network and the mean over the targets, for masks [I, H, W, C]."""
        images = np.asarray(attacks.apply_cloak(self.trial.tests, masks[:, None]))
        report = {}
        for name, network in self.networks.items():
            rates = metrics.protection_success(network.embeddings(images), *self._galleries[name], RANKS)
            report |= {f"{name}/psr@{k}": rate for k, rate in rates.items()}
        targets = [name for name in self.networks if name != "surrogate"]
        for k in RANKS:
            report[f"black_box/psr@{k}"] = float(np.mean([report[f"{name}/psr@{k}"] for name in targets]))
        return report

    @functools.cached_property
    def floors(self) -> dict[str, float]:
        """What no mask and random ones give."""
        shape = (len(self.trial.tests), *self.trial.tests.shape[-3:])
        signs = np.random.default_rng([self.seed, 4]).choice(np.float32([-1, 1]), shape)
        floors = {}
        for kind, masks in (("clean", np.zeros(shape, np.float32)), ("random", self.epsilon * signs)):
            for key, value in self.success(masks).items():
                name, _, rank = key.partition("/")
                if name in ("surrogate", "black_box"):
                    floors[f"{name}/{kind}_{rank}"] = value
        return floors

    def evaluate(self, state: TrainState, cloak: attacks.Cloak) -> dict[str, float]:
        """All of it for the masks of a state, and what they cost."""
        photos = len(self.trial.photos[0]["image"])
        cost = {"photo_gradients": float(cloak.photo_gradients(photos))}
        return self.success(np.asarray(state.params["masks"])) | self.floors | cost

    def figures(self, state: TrainState, earlier: Mapping[str, Mapping[str, float]]) -> Figures:
        """Cloaked images of a few people; the PSR of `earlier` methods, of this state's masks, and of the floors."""
        masks = np.asarray(state.params["masks"])[:SHOWN]
        clean = self.trial.tests[:SHOWN, 0]
        rows = {
            "clean": clean,
            "cloaked": np.asarray(attacks.apply_cloak(clean, masks)),
            f"mask, ±{self.epsilon:g} enlarged": to_bytes(masks / self.epsilon),
        }
        bars = {
            kind: {key: self.floors[key.replace("/", f"/{kind}_")] for key in DRAWN}
            for kind in ("clean", "random")
        }
        latest = {"cloak": self.success(np.asarray(state.params["masks"]))}
        for name, rates in ({**earlier} | latest).items():
            bars[name] = {key: rates[key] for key in DRAWN}
        return {
            "cloaked": functools.partial(figures.save_image_rows, rows),
            "protection": functools.partial(figures.save_bars, bars, xlabel="protection success rate"),
        }
