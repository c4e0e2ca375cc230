"""Evaluation of a network that drops tokens: what it says, what it keeps and what that costs.

Methods: sparsevit
"""

import functools

import jax
import numpy as np

from jaxface.data.sources.source import Source
from jaxface.data.transforms.drawing import draw_tokens
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.layers.sparsevit import COLLECTION
from jaxface.models.transformers.sparsevit import AdaptiveSparseViT, dense_macs, pruned_macs
from jaxface.training import figures
from jaxface.training.evaluations.needs import check_not_empty
from jaxface.training.map_source import map_source
from jaxface.training.recognition import class_scores, network_variables
from jaxface.training.stages import Figures
from jaxface.training.step import TrainState

_DRAWN = 8


class TokenPruning:
    """Accuracy of a classifier that drops tokens, the tokens that it keeps and its work, by masks (modes masked and exact).

    Reported are `classification/accuracy`; `tokens/ratio` and `tokens/gmac`, the mean work over the dense network's and in
    10⁹ multiply-accumulates; per stage `tokens/kept1` …, mean patch tokens left, and `tokens/threshold1` …, in units of the
    mean score; `tokens/dead`, thresholds outside the scores that they see; `tokens/weighting`, mean |s - mean_h A| / mean A.
    Where records have a `scale`, `scale1/accuracy` and `scale1/kept` … are those of each, the latter after the last stage.

    Args:
      model: the network, in a mode that has masks.
      source: labeled records of the training classes.
      batch_size: images at a time, which a selection over a batch sees together.
    """

    def __init__(self, model: AdaptiveSparseViT, source: Source, *, batch_size: int = 100):
        check_not_empty(source)
        self.model, self.source, self.batch_size = model, source, batch_size
        self.fields = ("image", *(("scale",) if "scale" in source[0] else ()))

    def __call__(self, state: TrainState) -> dict[str, float]:
        params = state.averaged_params
        variables = {
            "network": network_variables(params["backbone"], state.extra),
            "head": {name: params[name] for name in ("prototypes", "bias") if name in params},
        }
        asked = functools.partial(_ask, model=self.model, classes=len(self.source.class_names))
        answers = map_source(asked, self.source, variables, batch_size=self.batch_size, fields=self.fields)
        self._policies = answers["policy"][:_DRAWN]
        correct = answers["class"] == self.source.labels
        kept, shape = answers["kept"], self.source.image_shape
        macs = np.asarray(pruned_macs(self.model, kept, shape))
        low, high, thresholds = answers["low"].min(0), answers["high"].max(0), answers["thresholds"].mean(0)
        report = {
            "classification/accuracy": correct.mean(),
            "tokens/ratio": macs.mean() / dense_macs(self.model, shape),
            "tokens/gmac": macs.mean(),
            "tokens/weighting": answers["weighting"].mean(),
            "tokens/dead": ((thresholds < low) | (thresholds > high)).sum(),
        }
        for stage, (count, threshold) in enumerate(zip(kept.mean(0), thresholds, strict=True), start=1):
            report |= {f"tokens/kept{stage}": count, f"tokens/threshold{stage}": threshold}
        for scale in np.unique(answers.get("scale", [])):
            rows = answers["scale"] == scale
            report |= {
                f"scale{scale}/accuracy": correct[rows].mean(),
                f"scale{scale}/kept": kept[rows, -1].mean(),
            }
        return {name: float(value) for name, value in report.items()}

    def figures(self, state: TrainState) -> Figures:
        """Some images with the tokens that they keep after each stage, of the state that was evaluated last."""
        images = [self.source[i]["image"] for i in range(len(self._policies))]
        grid = tuple(side // self.model.patch for side in self.source.image_shape[:2])
        whole = np.ones_like(self._policies[:, :1])
        stages = ("all", *(f"from block {block + 1}" for block in self.model.encoder(parent=None).stages))
        policies = np.moveaxis(np.concatenate([whole, self._policies], axis=1), 1, 0)
        rows = {
            name: np.stack([draw_tokens(image, row, grid) for image, row in zip(images, rows, strict=True)])
            for name, rows in zip(stages, policies, strict=True)
        }
        return {"tokens": functools.partial(figures.save_image_rows, rows)}


@functools.partial(jax.jit, static_argnames=("model", "classes"))
def _ask(variables, batch, *, model, classes):
    """What is said of each image; what is known of the batch alone is said for each."""
    images = normalize_pixels(batch["image"])
    features, seen = model.apply(variables["network"], images, train=False, mutable=[COLLECTION])
    seen = {name: values[0] for name, values in seen[COLLECTION]["encoder"].items()}
    scores = class_scores(variables["head"], features, classes)
    per_batch = {
        "thresholds": seen["thresholds"],
        "low": seen["extremes"][:, 0],
        "high": seen["extremes"][:, 1],
        "weighting": seen["weighting"],
    }
    spread = {name: jax.numpy.broadcast_to(row, (len(images), *row.shape)) for name, row in per_batch.items()}
    answers = {"class": scores.argmax(axis=1), "kept": seen["kept"], "policy": seen["policy"], **spread}
    return answers | ({"scale": batch["scale"]} if "scale" in batch else {})
