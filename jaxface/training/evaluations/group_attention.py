"""Where a network looks, inside its training step and, group by group, in an evaluation.

Methods: gabn
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import losses, metrics, models
from jaxface.data.sources.source import Source, Subset
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.layers.prototypes import l2_normalize
from jaxface.training.map_source import map_source
from jaxface.training.recognition import Recognizer, network_variables
from jaxface.training.step import TrainState


class Look(NamedTuple):
    """What one pass of an `AttentiveRecognizer` gives.

    Attributes:
      embeddings: [B, D], not normalized.
      attention: the maps, differentiable by the parameters.
      extra: after the pass.
    """

    embeddings: jax.Array
    attention: losses.Attention
    extra: dict


@dataclasses.dataclass(frozen=True)
class AttentiveRecognizer:
    """A recognizer that says where it looks: the gradient of the cosine with the labeled class by a feature map.

    Attributes:
      recognizer: network and prototypes.
      layer: part of the network that gives the feature map, of the plane `grid`.
      grid: (h, w).
      kind, score: of the maps (`jaxface.losses.gradient_attention`).
    """

    recognizer: Recognizer
    layer: str
    grid: tuple[int, int]
    kind: losses.AttentionKind = "elementwise"
    score: losses.AttentionScore = "projection"

    def __call__(self, params: dict, extra: dict, batch: dict, rng: jax.Array, *, train: bool = True) -> Look:
        """One pass over `image` [B, H, W, C] in [-1, 1] of the classes `label` [B]."""
        variables = network_variables(params["backbone"], extra)
        options = dict(layer=self.layer, train=train, rngs={"dropout": rng})
        model, images = self.recognizer.model, batch["image"]
        embeddings, features, updated = models.apply_with_layer(model, variables, images, **options)

        def tail(features):
            return models.apply_from_layer(model, variables, features, images, **options)

        def whole(images):
            return models.apply_with_layer(model, variables, images, **options)[0]

        of_image = self.kind == "input"
        attention = losses.gradient_attention(
            whole if of_image else tail,
            images if of_image else features,
            params["prototypes"],
            batch["label"],
            kind=self.kind,
            score=self.score,
            grid=self.grid,
        )
        return Look(embeddings, attention, {**extra, **updated})


class GroupAttention:
    """Where the network looks, group by group, in evaluation mode: `attention/…`, and by `occlusion/…`, which no term trains.

    Reported of each group are the coverage of the maps, the area that holds half their mass and, where the data has a
    shortcut, the mass on it; of the first two groups how far their mean maps are apart; and the share of `empty` maps. By
    occlusion, a map is the drop of the target cosine when a cell is erased.

    Args:
      recognizer: network, layer and kind of the maps.
      source: records of known classes and groups.
      cells: of an image along either side, for the occlusion.
      region: [H, W] bool, where the shortcut is.
      records: how many are looked at, at most, evenly over the source.
    """

    def __init__(
        self,
        recognizer: AttentiveRecognizer,
        source: Source,
        *,
        cells: int,
        region: np.ndarray | None = None,
        records: int = 900,
    ):
        rows = np.arange(0, len(source), -(-len(source) // records))
        self.recognizer, self.source, self.cells, self.region = (
            recognizer,
            Subset(source, rows),
            cells,
            region,
        )
        self.groups, self.names = np.asarray(self.source.groups), list(source.group_names)
        self._maps = jax.jit(self._attention_and_occlusion)

    def _attention_and_occlusion(self, variables, batch):
        """Maps [B, h, w] by gradient and [B, cells, cells] by occlusion."""
        (params, extra), images, labels = variables, batch["image"], batch["label"]
        batch = {"image": normalize_pixels(images), "label": labels}
        rng = jax.random.key(0)  # nothing is drawn in evaluation mode
        look = self.recognizer(params, extra, batch, rng, train=False)
        class_prototypes = l2_normalize(params["prototypes"][labels])

        def drop_without(cell):
            mask = jnp.ones((1, self.cells**2)).at[0, cell].set(0.0).reshape(1, self.cells, self.cells)
            height, width = (side // self.cells for side in images.shape[1:3])
            mask = jnp.repeat(jnp.repeat(mask, height, axis=1), width, axis=2)
            erased = losses.erase(batch["image"], jnp.broadcast_to(mask, images.shape[:3]))
            variables = network_variables(params["backbone"], extra)
            embeddings = self.recognizer.recognizer.model.apply(variables, erased, train=False)
            change = l2_normalize(look.embeddings) - l2_normalize(embeddings)
            return jnp.sum(change * class_prototypes, axis=1)

        drops = jax.lax.map(drop_without, jnp.arange(self.cells**2))
        return look.attention.maps, jax.nn.relu(drops.T).reshape(-1, self.cells, self.cells)

    def __call__(self, state: TrainState) -> dict[str, float]:
        variables = state.averaged_params, state.extra
        both = map_source(self._maps, self.source, variables, fields=("image", "label"))
        report = {}
        for name, maps in zip(("attention", "occlusion"), both, strict=True):
            report |= {f"{name}/{key}": value for key, value in self._describe(maps).items()}
        return report

    def _describe(self, maps: np.ndarray) -> dict[str, float]:
        speaks = maps.any(axis=(1, 2))
        report = {"empty": 1.0 - float(speaks.mean())}
        maps, groups = maps[speaks], self.groups[speaks]
        if set(groups) >= {0, 1}:
            report["gap"] = metrics.attention_gap(maps, groups)
        for group, name in enumerate(self.names):
            members = maps[groups == group]
            if not len(members):
                continue
            report[f"coverage@{name}"] = float(metrics.attention_coverage(members).mean())
            report[f"sensitive_area@{name}"] = float(metrics.sensitive_area(members).mean())
            if self.region is not None:
                report[f"shortcut_mass@{name}"] = float(metrics.attention_mass(members, self.region).mean())
        return report
