"""A network on any source, by the protocol that the source has, and on verification packs while it trains."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxface import metrics
from jaxface.data.sources.ijb import TemplateSource
from jaxface.data.sources.packs import PackSource
from jaxface.data.sources.source import Source
from jaxface.metrics.recognition.report import PairChoice, check_verification
from jaxface.metrics.recognition.verification import Flip, check_flip
from jaxface.training.map_source import map_source
from jaxface.training.recognition import embed_source
from jaxface.training.step import TrainState

Embed = Callable[[Any, jax.Array], jax.Array]
"""(variables, images [B, H, W, C] uint8) -> embeddings [B, D], not normalized; pure and hashable."""


@functools.partial(jax.jit, static_argnames=("embed", "flip", "unit"))
def _features(variables, images, *, embed: Embed, flip: Flip, unit: bool) -> jax.Array:
    return metrics.flip_embeddings(functools.partial(embed, variables), images, flip=flip, unit=unit)


def check_source(source: Source, pairs: PairChoice = None, *, seed: int = 0) -> None:
    """Refuses what `evaluate_source` refuses of these arguments, before anything is embedded.

    Raises:
      ValueError, UserError: as there.
    """
    if not hasattr(source, "report"):
        check_verification(source.labels, pairs, seed=seed)


def evaluate_source(
    embed: Embed,
    variables: Any,
    source: Source,
    *,
    flip: Flip = "sum",
    pairs: PairChoice = None,
    seed: int = 0,
    batch_size: int = 128,
) -> tuple[dict[str, float], tuple[np.ndarray, np.ndarray] | None]:
    """What a network is worth on a source, and the scores behind it.

    A benchmark's source has a protocol of its own (`report`); any other is verified, by the pairs given
    (`jaxface.metrics.verify`). With `flip="concat"` the views of an image are concatenated at unit length, except in templates,
    where lengths count.

    Args:
      embed: the network.
      variables: its first argument; where they live on a mesh, the images are spread over it.
      source: the records.
      flip: how mirror images take part (`jaxface.metrics.flip_embeddings`).
      pairs, seed: of verification.
      batch_size: images at a time.

    Returns:
      (metrics by name, what `jaxface.metrics.verification_scores` says; None of a benchmark).

    Raises:
      UserError: pairs that the source does not have, or another `flip`.
    """
    check_flip(flip)
    check_source(source, pairs, seed=seed)
    judged = hasattr(source, "report")
    unit = flip == "concat" and not isinstance(source, TemplateSource)

    def look(variables, batch):
        features = _features(variables, batch["image"], embed=embed, flip=flip, unit=unit)
        return features, batch["weight"] if judged else jnp.ones(len(features))

    fields = ("image", "weight") if judged else ("image",)
    features, weights = map_source(look, source, variables, batch_size=batch_size, fields=fields)
    if judged:
        return source.report(features, weights), None
    report = metrics.verify(features, source.labels, pairs=pairs, seed=seed)
    return report, metrics.verification_scores(features, source.labels, pairs, seed=seed)


class PackVerification:
    """Evaluation of a state on verification packs: for every one what `jaxface.metrics.verify` says of its own pairs.

    Reported as "packs/<name>/accuracy", "packs/<name>/tar@1e-3" and so on.

    Args:
      model: the network.
      packs: by name (`jaxface.data.open_packs`).
      flip: sum the embeddings of an image and its mirror image, as the public protocols do.
    """

    def __init__(self, model: nn.Module, packs: Mapping[str, PackSource], *, flip: bool = True):
        self.model, self.packs, self.flip = model, packs, flip

    def __call__(self, state: TrainState) -> dict[str, float]:
        report = {}
        for name, pack in self.packs.items():
            backbone = state.averaged_params["backbone"]
            embeddings = embed_source(self.model, backbone, state.extra, pack, flip=self.flip)
            of_pack = metrics.verify(embeddings, None, pairs=pack.pairs)
            report |= {f"packs/{name}/{key.partition('/')[2]}": value for key, value in of_pack.items()}
        return report
