"""How a network fares on faces of few pixels: accuracy and gradient norm over the resolution (arXiv:2302.05621).

Methods: lrfr
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import numpy as np
import optax

from jaxface import metrics
from jaxface.checks import AtLeast, check_number
from jaxface.data.sources.source import Source
from jaxface.data.transforms.resolution import LowResolution, check_sizes, low_resolution
from jaxface.errors import UserError
from jaxface.training import figures
from jaxface.training.evaluations.needs import check_not_empty, check_verifiable
from jaxface.training.recognition import embed_source
from jaxface.training.stages import Figures
from jaxface.training.step import Params, TrainState


class CrossResolution:
    """Evaluation of a state at several resolutions: `evaluate` and `figures` of a stage.

    Every image is shrunk to r × r pixels and enlarged again before the network sees it. Reported for each r, and (without @)
    as the mean over them:

        resolution/accuracy@7px   verification with both images of a pair at r, ten-fold; or with `classify` the nearest prototype
        resolution/rank1@7px      identification of a probe at r in a gallery of one full-size image per class; a tie is a miss

    A gallery holds the first image of every class and the other images are its probes; with several galleries the next holds
    the second images, and the rate is the mean over them. A source that comes with its own pairs does not say who is on an
    image, and has no identification.

    Args:
      model: the network.
      source: labeled records with square images.
      sizes: r in [1, side of the images], the curve's points.
      classify: the classes are those of the training: ask for the nearest prototype, not for pairs.
      flip: sum the embeddings of an image and its mirror image.
      galleries: how many, ≥ 1.
      seed: of the pairs drawn.

    Raises:
      UserError: no size or one out of its range, images that are not square, a class with no more images than galleries, too
        few people or pairs of them.
    """

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        sizes: Sequence[int],
        *,
        classify: bool = False,
        flip: bool = True,
        galleries: int = 1,
        seed: int = 0,
    ):
        if not sizes:
            raise UserError("probe_sizes: needs at least one, got none")
        check_sizes(sizes, source.image_shape, name="probe_sizes")
        check_number("galleries", galleries, AtLeast(1))
        self.model, self.source, self.classify, self.flip, self.seed = model, source, classify, flip, seed
        self.pairs = getattr(source, "pairs", None)
        if classify:
            check_not_empty(source)
        else:
            check_verifiable(source, self.pairs, seed=seed)
        self.sources = {size: LowResolution(source, size) for size in sorted(set(sizes))}
        self.galleries = [] if self.pairs else _galleries(np.asarray(source.labels), galleries)

    def __call__(self, state: TrainState) -> dict[str, float]:
        params = state.averaged_params
        embed = functools.partial(embed_source, self.model, params["backbone"], state.extra, flip=self.flip)
        full = embed(self.source) if self.galleries else None
        self._curves = {"accuracy": {}} | ({"rank1": {}} if self.galleries else {})
        for size, source in self.sources.items():
            embeddings = embed(source)
            if self.classify:
                prototypes = np.asarray(params["prototypes"])[: len(self.source.class_names)]
                accuracy = metrics.nearest_prototype_accuracy(embeddings, prototypes, self.source.labels)
            else:
                report = metrics.verify(embeddings, self.source.labels, pairs=self.pairs, seed=self.seed)
                accuracy = report["verification/accuracy"]
            self._curves["accuracy"][size] = accuracy
            if self.galleries:
                self._curves["rank1"][size] = self._rank1(full, embeddings)
        return {
            key: value
            for name, curve in self._curves.items()
            for key, value in {
                f"resolution/{name}": float(np.mean(list(curve.values()))),
                **{f"resolution/{name}@{size}px": accuracy for size, accuracy in curve.items()},
            }.items()
        }

    def _rank1(self, full: np.ndarray, probes: np.ndarray) -> float:
        labels = np.asarray(self.source.labels)
        rates = []
        for rows in self.galleries:
            others = np.setdiff1d(np.arange(len(labels)), rows)
            ranks = metrics.labeled_ranks(probes[others], labels[others], full[rows], labels[rows])
            rates.append((ranks == 1).mean())
        return float(np.mean(rates))

    def figures(self, state: TrainState) -> Figures:
        """Both curves over the resolution, of the state that was evaluated last."""
        names = {
            "accuracy": "classification" if self.classify else "verification",
            "rank1": "rank 1, full-size gallery",
        }
        series = {names[name]: (list(c), list(c.values())) for name, c in self._curves.items()}
        draw = functools.partial(
            figures.save_training_curves,
            series,
            xlabel="side of the image, pixels",
            ylabel="accuracy",
            log_x=True,
        )
        return {"resolution": draw}


def _galleries(labels: np.ndarray, count: int) -> list[np.ndarray]:
    """Rows of the first, second, ... record of every class."""
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    if min(map(len, members)) <= count:
        raise UserError(
            f"galleries: {count} need more than {count} images of every class, one has {min(map(len, members))}"
        )
    return [np.array([rows[k] for rows in members]) for k in range(count)]


def resolution_gradient_norms(
    loss: Callable[[Params, jax.Array, jax.Array], jax.Array],
    params: Params,
    images: jax.Array,
    labels: jax.Array,
    sizes: Sequence[int],
) -> np.ndarray:
    """Norm of the gradient of a loss at every resolution, the difficulty diagnostic of arXiv:2302.05621.

        g(r) = ‖ ∇_θ loss(θ, lr(x, r), y) ‖₂        over all parameters together

    Args:
      loss: (params, images [B, H, W, C], labels [B]) -> scalar, a mean over the batch.
      params: θ.
      images: [B, H, W, C] float in [-1, 1], or uint8.
      labels: [B] integers.
      sizes: r, pixels, each in [1, min(H, W)].

    Returns:
      [len(sizes)] float.

    Raises:
      UserError: a size out of its range.
    """

    @functools.partial(jax.jit, static_argnames="size")
    def norm(params, images, labels, size):
        return optax.tree.norm(jax.grad(loss)(params, low_resolution(images, size), labels))

    return np.array([norm(params, images, labels, size=size) for size in sizes])
