"""Whether images find their captions, and captions their images, among records that nobody has seen (arXiv:2103.00020).

Methods: intern
"""

import functools

import flax.linen as nn
import jax
import numpy as np

from jaxface.data.sources.source import Source, WithFields
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.data.transforms.text import Tokenizer
from jaxface.layers.prototypes import l2_normalize
from jaxface.models.staged import features as staged
from jaxface.training.evaluations.needs import check_not_empty
from jaxface.training.map_source import map_source
from jaxface.training.recognition import network_variables
from jaxface.training.step import TrainState


class CaptionRetrieval:
    """Evaluation of a state with a backbone, a text tower and heads: the share of images whose own caption is the nearest.

    Args:
      backbone, tower, heads: the networks; parameters are `backbone`, `text` and `heads`.
      tokenizer: of the captions.
      source: records with captions.
      among: captions that each is looked for among, in the order of the source; the last group may be smaller.

    Reports `retrieval/image_to_text` and `retrieval/text_to_image`, the shares, and `retrieval/chance`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        tower: nn.Module,
        heads: nn.Module,
        tokenizer: Tokenizer,
        source: Source,
        *,
        among: int = 100,
    ):
        check_not_empty(source)
        self._tokenizer, self._source, self._among = tokenizer, source, among

        def embed(variables, batch):
            params, extra = variables
            shown = backbone.apply(
                network_variables(params["backbone"], extra),
                normalize_pixels(batch["image"]),
                train=False,
                method=staged,
            )
            of_heads = {"params": params["heads"], "batch_stats": extra["heads_stats"]}
            images = heads.apply(of_heads, shown["pooled"], method="images")
            sentences = tower.apply({"params": params["text"]}, batch["tokens"]).sentences
            return l2_normalize(images), l2_normalize(sentences)

        self._embed = jax.jit(embed)

    @functools.cached_property
    def _records(self) -> Source:
        return WithFields(self._source, tokens=self._tokenizer.encode(self._source.captions))

    def embeddings(self, state: TrainState) -> tuple[np.ndarray, np.ndarray]:
        """Unit features [N, D] of all images and of their captions."""
        extra = {name: state.extra[name] for name in ("batch_stats", "heads_stats") if name in state.extra}
        variables = state.averaged_params, extra
        return map_source(self._embed, self._records, variables, fields=("image", "tokens"))

    def __call__(self, state: TrainState) -> dict[str, float]:
        images, texts = self.embeddings(state)
        found, chance = np.zeros(2), 0.0
        for start in range(0, len(images), self._among):
            rows = slice(start, start + self._among)
            scores = images[rows] @ texts[rows].T
            own = np.arange(len(scores))
            found += [(scores.argmax(axis).astype(int) == own).sum() for axis in (1, 0)]
            chance += 1.0
        shares = found / len(images)
        return {
            "retrieval/image_to_text": float(shares[0]),
            "retrieval/text_to_image": float(shares[1]),
            "retrieval/chance": chance / len(images),
        }
