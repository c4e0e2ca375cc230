"""How well the score of attentive patch pooling tells an object from what is around it.

Methods: apvit
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import metrics
from jaxface.data.sources.source import Source
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.layers.apvit import app_scores
from jaxface.models import APViT
from jaxface.training.evaluations.needs import check_not_empty
from jaxface.training.map_source import map_source
from jaxface.training.recognition import network_variables
from jaxface.training.step import TrainState


class PatchRanking:
    """Evaluation of a state: does the object have the higher scores?

        ranking/auc     mean over the images of the chance that a patch of the object has a higher Σ_c |F_c| than another patch

    At 0.5 pooling by that score is a random selection. It is measured whether the network pools or not.

    Args:
      model: the network.
      source: records with `box` int32 [4], the object's (y0, x0, y1, x1) in pixels; an image is left out where all patches or
        none of them touch it.
    """

    def __init__(self, model: APViT, source: Source):
        check_not_empty(source)
        self.model, self.source = model, source

    def __call__(self, state: TrainState) -> dict[str, float]:
        variables = network_variables(state.averaged_params["backbone"], state.extra)
        ranked = functools.partial(_ranked, model=self.model, side=self.source.image_shape[0])
        scores, inside = map_source(ranked, self.source, variables, fields=("image", "box"))
        inside = inside.reshape(scores.shape)
        both = inside.any(axis=1) & ~inside.all(axis=1)
        values = [
            metrics.auc(row[is_in], row[~is_in])
            for row, is_in in zip(scores[both], inside[both], strict=True)
        ]
        return {"ranking/auc": float(np.mean(values))} if values else {}


@functools.partial(jax.jit, static_argnames=("model", "side"))
def _ranked(variables, batch, *, model: APViT, side: int) -> tuple[jax.Array, jax.Array]:
    """Scores [B, N] of the patches, and which of them touch the object, [B, h, w]."""
    _, told = model.apply(
        variables,
        normalize_pixels(batch["image"]),
        train=False,
        mutable=["intermediates"],
        capture_intermediates=lambda module, _: module.name == "patches",
    )
    features = told["intermediates"]["patches"]["__call__"][0]
    count, places = features.shape[:2]
    edges = jnp.arange(places + 1) * (side / places)  # of the places, pixels
    y, x = (
        (edges[1:] > ends[:, :1]) & (edges[:-1] < ends[:, 1:])
        for ends in (batch["box"][:, 0::2], batch["box"][:, 1::2])
    )
    return app_scores(features.reshape(count, -1, features.shape[-1])), y[:, :, None] & x[:, None]
