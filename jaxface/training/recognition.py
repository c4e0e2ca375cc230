"""What every recognition experiment shares: an embedding network with class prototypes, and its evaluation."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxface import axes, metrics
from jaxface.data.pipeline.batches import evaluation_batches
from jaxface.data.sources.source import Source
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.layers.prototypes import cosines, init_prototypes
from jaxface.training import figures
from jaxface.training.checkpoints import restore_params
from jaxface.training.prototypes import prototype_rows
from jaxface.training.step import TrainState

Figures = Mapping[str, Callable[[pathlib.Path], pathlib.Path]]


def statistics(extra: Mapping) -> dict:
    """The batch statistics among what `extra` carries: {"batch_stats": …}, or nothing for a network without."""
    return {name: extra[name] for name in ("batch_stats",) if name in extra}


def network_variables(backbone: dict, extra: Mapping) -> dict:
    """What `module.apply` takes of a state's backbone and `extra`."""
    return {"params": backbone, **statistics(extra)}


@dataclasses.dataclass(frozen=True)
class Recognizer:
    """An embedding network and one prototype per class; the parameters are {"backbone", "prototypes"}.

    There are `prototype_rows(classes)` prototypes, those past the last class without a meaning.

    Attributes:
      model: module with `(image [B, H, W, C], train=) -> [B, D]`.
      classes: C, number of prototypes.
      image_shape: (H, W, C) of an image.
      prototype_std: standard deviation of the prototypes' entries at the start.
    """

    model: nn.Module
    classes: int
    image_shape: tuple[int, int, int]
    prototype_std: float = 0.01

    def init(self, rng: jax.Array) -> tuple[dict, dict]:
        """Fresh (params, extra); `extra` holds the batch statistics."""
        backbone_rng, prototype_rng = jax.random.split(rng)
        variables = dict(self.model.init(backbone_rng, jnp.zeros((1, *self.image_shape)), train=False))
        backbone = variables.pop("params")
        rows = prototype_rows(self.classes)
        prototypes = init_prototypes(prototype_rng, rows, self.model.embedding, std=self.prototype_std)
        return {"backbone": backbone, "prototypes": prototypes}, variables

    def train_embeddings(
        self, params: dict, extra: dict, images: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, dict]:
        """Embeddings [B, D] of images in training mode, not normalized, and the new `extra`."""
        variables = network_variables(params["backbone"], extra)
        embeddings, updated = self.model.apply(
            variables, images, train=True, mutable=[*variables.keys() - {"params"}], rngs={"dropout": rng}
        )
        return embeddings, {**extra, **updated}

    def train_cosines(
        self, params: dict, extra: dict, images: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, dict]:
        """Cosines [B, C] of images with the prototypes, in training mode, and the new `extra`."""
        embeddings, extra = self.train_embeddings(params, extra, images, rng)
        return cosines(embeddings, params["prototypes"][: self.classes]), extra


@functools.partial(jax.jit, static_argnames=("model", "flip"))
def _embed(model: nn.Module, backbone, extra, images: jax.Array, flip: bool) -> jax.Array:
    def embed(images):
        return model.apply(network_variables(backbone, extra), images, train=False)

    images = normalize_pixels(images)
    return metrics.flip_embeddings(embed, images, unit=False) if flip else embed(images)


def embed_source(
    model: nn.Module, backbone: dict, extra: dict, source: Source, *, batch_size: int = 128, flip: bool = True
) -> np.ndarray:
    """Embeddings of every record, in order.

    Args:
      model: the network.
      backbone: its parameters; where they live on a mesh, the images are spread over it.
      extra: its other collections (`batch_stats`).
      source: the records.
      batch_size: images at a time; the last batch is padded, so that one compile serves all.
      flip: add the embedding of the mirrored image (un-normalized sum, as the public protocols do).

    Returns:
      [N, D] float32, not normalized.
    """
    home = jax.tree.leaves(backbone)[0]
    sharding = getattr(home, "sharding", None)
    rows = None
    if isinstance(sharding, NamedSharding) and axes.DATA in sharding.mesh.axis_names:
        batch_size = -(-batch_size // sharding.mesh.size) * sharding.mesh.size
        rows = NamedSharding(sharding.mesh, PartitionSpec(sharding.mesh.axis_names))
        everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    parts = []
    for batch in evaluation_batches(source, batch_size):
        images = batch["image"] if rows is None else jax.device_put(batch["image"], rows)
        embedded = _embed(model, backbone, extra, images, flip)
        if rows is not None and jax.process_count() > 1:
            embedded = jax.device_put(embedded, everywhere)
        parts.append((embedded, batch["valid"]))
    return np.concatenate([np.asarray(embedded)[valid] for embedded, valid in parts])


class Verification:
    """Evaluation of a state by verification on people it never saw: `evaluate` and `figures` of a stage.

    Args:
      model: the network.
      source: labeled records.
      pairs: as in `jaxface.metrics.verify`; those that the source comes with (a verification pack) unless given.
      seed: of the pairs drawn.
      flip: sum the embeddings of an image and its mirror image; not for what has no mirror image.
      identify: report open-set identification besides (`jaxface.metrics.open_set`); a verification pack, which does not say
        who is on an image, has none.
    """

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        *,
        pairs=None,
        seed: int = 0,
        flip: bool = True,
        identify: bool = False,
    ):
        identify = identify and getattr(source, "pairs", None) is None
        pairs = getattr(source, "pairs", None) if pairs is None else pairs
        self.model, self.source, self.pairs, self.seed, self.flip = model, source, pairs, seed, flip
        self.identify = identify

    def embeddings(self, state: TrainState) -> np.ndarray:
        """[N, D] of the source."""
        params = state.averaged_params
        return embed_source(self.model, params["backbone"], state.extra, self.source, flip=self.flip)

    def __call__(self, state: TrainState) -> dict[str, float]:
        self._last = self.embeddings(state)
        report = metrics.verify(self._last, self.source.labels, pairs=self.pairs, seed=self.seed)
        if self.identify:
            report |= metrics.open_set(self._last, self.source.labels, seed=self.seed)
        return report

    def figures(self, state: TrainState) -> Figures:
        """ROC curve and similarity histogram of the state that was evaluated last."""
        return verification_figures(self._last, self.source.labels, pairs=self.pairs, seed=self.seed)


def verification_figures(embeddings: np.ndarray, labels: np.ndarray, *, pairs=None, seed: int = 0) -> Figures:
    """Name -> function that draws it to a path: the ROC curve and the genuine and impostor similarities."""
    scores, same = metrics.verification_scores(embeddings, labels, pairs, seed=seed)
    genuine, impostor = scores[same], scores[~same]
    equal = metrics.equal_error_rate(genuine, impostor)
    return {
        "roc": functools.partial(figures.save_roc, {"verification": metrics.roc(genuine, impostor)}),
        "similarity": functools.partial(
            figures.save_score_histogram, genuine, impostor, threshold=float(equal.threshold)
        ),
    }


class Evaluations:
    """Several evaluations of one state as one: their metrics and figures together, in `parts` one by one."""

    def __init__(self, *parts):
        self.parts = parts

    def __call__(self, state: TrainState) -> dict[str, float]:
        return {key: value for part in self.parts for key, value in part(state).items()}

    def figures(self, state: TrainState) -> Figures:
        """The figures of all parts."""
        return {name: draw for part in self.parts for name, draw in part.figures(state).items()}


class NearestPrototype:
    """Evaluation of a state by closed-set classification: the class whose prototype is nearest.

    Args:
      model: the network.
      source: labeled records of the training classes.
    """

    def __init__(self, model: nn.Module, source: Source):
        self.model, self.source = model, source

    def __call__(self, state: TrainState) -> dict[str, float]:
        params = state.averaged_params
        embeddings = embed_source(self.model, params["backbone"], state.extra, self.source, flip=False)
        correct = metrics.nearest_prototype_accuracy(
            embeddings, np.asarray(params["prototypes"])[: len(self.source.class_names)], self.source.labels
        )
        return {"classification/accuracy": correct}

    def figures(self, state: TrainState) -> Figures:
        """None: one number says it all."""
        return {}


def run_checkpoint(workdir: str | pathlib.Path, *, best: bool = False) -> tuple[dict, dict]:
    """(parameters by part, extra) of the last stage of a run with an embedding network, as numpy arrays.

    Raises:
      UserError: no such run, no checkpoint in it, or a network without a part named `backbone`.
    """
    folder = pathlib.Path(workdir).expanduser() / "checkpoints"
    stages = sorted(path for path in folder.glob("*") if path.is_dir()) if folder.is_dir() else []
    if not stages:
        raise UserError(f"checkpoint: {workdir} holds no checkpoints; give the work directory of a run")
    saved = restore_params(stages[-1], best=best)
    if "backbone" not in saved["params"]:
        raise UserError(f"checkpoint: the run in {workdir} has no backbone, only {sorted(saved['params'])}")
    return saved["params"], saved["extra"]


def backbone_checkpoint(workdir: str | pathlib.Path, *, best: bool = False) -> tuple[dict, dict]:
    """`run_checkpoint` without the other parts: (backbone parameters, extra)."""
    params, extra = run_checkpoint(workdir, best=best)
    return params["backbone"], extra


def pretrained_backbone(workdir: str | pathlib.Path, recognizer: Recognizer) -> tuple[dict, dict]:
    """`backbone_checkpoint` for a given network.

    Raises:
      UserError: as there; or the checkpoint is of another network: names the first leaf that differs.
    """
    backbone, extra = backbone_checkpoint(workdir)
    params, expected = jax.eval_shape(recognizer.init, jax.random.key(0))
    flat = [
        {jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(leaf) for path, leaf in leaves}
        for leaves in map(
            jax.tree_util.tree_leaves_with_path,
            (
                {"backbone": backbone, **statistics(extra)},
                {"backbone": params["backbone"], **statistics(expected)},
            ),
        )
    ]
    for name in sorted(flat[0].keys() | flat[1].keys()):
        there, here = (leaves.get(name, "nothing") for leaves in flat)
        if there != here:
            raise UserError(
                f"init_from: {workdir} has another network: {name} is {there} there and {here} here"
            )
    return backbone, statistics(extra)
