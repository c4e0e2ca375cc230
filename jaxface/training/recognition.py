"""What every recognition experiment shares: an embedding network with class prototypes, its embeddings and checkpoints."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxface import metrics
from jaxface.data.sources.ijb import TemplateSource
from jaxface.data.sources.source import Source
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.layers.prototypes import cosines, init_prototypes
from jaxface.layers.quantization import QUANTIZATION
from jaxface.models import feature_size
from jaxface.training.checkpoints import restore_params
from jaxface.training.map_source import map_source
from jaxface.training.prototypes import prototype_rows
from jaxface.training.workdir import stage_folders


def statistics(extra: Mapping) -> dict:
    """What a network needs beside its parameters, among what `extra` carries: batch statistics, first steps of quantizers."""
    return {name: extra[name] for name in ("batch_stats", QUANTIZATION) if name in extra}


def network_variables(backbone: dict, extra: Mapping) -> dict:
    """What `module.apply` takes of a state's backbone and `extra`."""
    return {"params": backbone, **statistics(extra)}


def class_scores(
    weights: Mapping, embeddings: jax.Array, classes: int | None = None, *, scale: float = 1.0
) -> jax.Array:
    """What a network says of every class: scaled cosines with the prototypes, or ⟨x, w_j⟩ + b_j where there is a bias.

    Args:
      weights: {"prototypes": [R, D]} with R ≥ C, and {"bias": [R]} of a linear classifier.
      embeddings: [B, D] float.
      classes: C; R unless given.
      scale: of the cosines alone.

    Returns:
      [B, C] float32.
    """
    prototypes = weights["prototypes"][:classes]
    if "bias" not in weights:
        return scale * cosines(embeddings, prototypes)
    products = jnp.matmul(embeddings, prototypes.T, precision=jax.lax.Precision.HIGHEST)
    return products.astype(jnp.float32) + weights["bias"][:classes]


@dataclasses.dataclass(frozen=True)
class Recognizer:
    """An embedding network and one prototype per class; the parameters are {"backbone", "prototypes"}, and "bias" if linear.

    There are `prototype_rows(classes)` prototypes, those past the last class without a meaning.

    Attributes:
      model: module with `(image [B, H, W, C], train=) -> [B, D]`.
      classes: C, number of prototypes.
      image_shape: (H, W, C) of an image.
      prototype_std: standard deviation of the prototypes' entries at the start.
      linear: whether the prototypes are a linear layer's weights, whose bias starts at 0.
    """

    model: nn.Module
    classes: int
    image_shape: tuple[int, int, int]
    prototype_std: float = 0.01
    linear: bool = False

    def init(self, rng: jax.Array) -> tuple[dict, dict]:
        """Fresh (params, extra); `extra` holds the batch statistics."""
        backbone_rng, prototype_rng = jax.random.split(rng)
        variables = dict(self.model.init(backbone_rng, jnp.zeros((1, *self.image_shape)), train=False))
        backbone = variables.pop("params")
        rows = prototype_rows(self.classes)
        size = feature_size(self.model, self.image_shape)
        prototypes = init_prototypes(prototype_rng, rows, size, std=self.prototype_std)
        params = {"backbone": backbone, "prototypes": prototypes}
        return params | ({"bias": jnp.zeros(rows)} if self.linear else {}), variables

    def train_embeddings(
        self, params: dict, extra: dict, images: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, dict]:
        """Embeddings [B, D] of images in training mode, not normalized, and the new `extra`."""
        variables = network_variables(params["backbone"], extra)
        embeddings, updated = self.model.apply(
            variables, images, train=True, mutable=[*variables.keys() - {"params"}], rngs={"dropout": rng}
        )
        return embeddings, {**extra, **updated}


@functools.partial(jax.jit, static_argnames=("model", "flip"))
def _embed(variables, batch, *, model: nn.Module, flip: bool) -> jax.Array:
    def embed(images):
        return model.apply(variables, images, train=False)

    images = normalize_pixels(batch["image"])
    return metrics.flip_embeddings(embed, images, unit=False) if flip else embed(images)


def embed_source(
    model: nn.Module, backbone: dict, extra: dict, source: Source, *, batch_size: int = 128, flip: bool = True
) -> np.ndarray:
    """Embeddings of every record, in order (`map_source`).

    Args:
      model: the network.
      backbone: its parameters; where they live on a mesh, the images are spread over it.
      extra: its other collections (`batch_stats`).
      source: the records.
      batch_size: images at a time.
      flip: add the embedding of the mirrored image (un-normalized sum, as the public protocols do).

    Returns:
      [N, D] float32, not normalized.
    """
    embed = functools.partial(_embed, model=model, flip=flip)
    return map_source(embed, source, network_variables(backbone, extra), batch_size=batch_size)


def embed_templates(
    model: nn.Module, backbone: dict, extra: dict, source: TemplateSource, *, flip: bool = True
) -> np.ndarray:
    """Unit embeddings [T, D] of the templates of a source, in the order of their ids (`jaxface.metrics.aggregate_templates`).

    The images' embeddings count with their lengths and their records' `weight`. Other arguments are those of `embed_source`.

    Raises:
      UserError: a template none of whose images can be read.
    """

    def embed(variables, batch):
        return _embed(variables, {"image": batch["image"]}, model=model, flip=flip), batch["weight"]

    features, weights = map_source(
        embed, source, network_variables(backbone, extra), fields=("image", "weight")
    )
    return metrics.aggregate_templates(features, source.template_ids, source.media_ids, weights).embeddings


def run_checkpoint(workdir: str | pathlib.Path, *, best: bool = False) -> tuple[dict, dict]:
    """(parameters by part, extra) of the last stage of a run with an embedding network, as numpy arrays.

    Raises:
      UserError: no such run, no checkpoint in it, or a network without a part named `backbone`.
    """
    stages = stage_folders(workdir)
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


def check_backbone(source: str, variables: Mapping, recognizer: Recognizer) -> None:
    """Refuses variables {"params", "batch_stats"} of `source` that are of another network than a recognizer's.

    Raises:
      UserError: they are; names the first leaf that differs.
    """
    params, expected = jax.eval_shape(recognizer.init, jax.random.key(0))
    flat = [
        {jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(leaf) for path, leaf in leaves}
        for leaves in map(
            jax.tree_util.tree_leaves_with_path,
            (
                {"backbone": variables["params"], **statistics(variables)},
                {"backbone": params["backbone"], **statistics(expected)},
            ),
        )
    ]
    for name in sorted(flat[0].keys() | flat[1].keys()):
        saved, wanted = (leaves.get(name, "nothing") for leaves in flat)
        if saved != wanted:
            raise UserError(
                f"init_from: {source} has another network: {name} is {saved} there and {wanted} here"
            )
