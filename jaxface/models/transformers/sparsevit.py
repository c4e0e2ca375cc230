"""AS-ViT: a vision transformer that keeps the tokens its class token attends to, and as many of them as an image needs."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.checks import AtLeast, check_number
from jaxface.errors import UserError
from jaxface.layers.attention import Attention
from jaxface.layers.sparsevit import COLLECTION, ScoredProduct, SparseEncoder, block_macs
from jaxface.models.registry import MODELS
from jaxface.models.transformers.vit import Block, ViT


class AdaptiveSparseViT(ViT):
    """A `ViT` whose blocks score tokens and whose encoder drops them (arXiv:2209.13802).

    Its parameters are those of the `ViT` of the same fields, `dense_network`, and the thresholds, `encoder/thresholds`.
    `encoder` makes a `SparseEncoder`.
    """

    unit: Callable[..., Any] = partial(Block, attention=partial(Attention, mix=ScoredProduct))
    encoder: Callable[..., Any] = SparseEncoder

    def __post_init__(self):
        if self.pool != "class" or self.distilled:
            got = f"pool {self.pool!r}" if self.pool != "class" else "a distillation token besides"
            raise UserError(f"pool: needs a class token, which scores the others, and no other, got {got}")
        self.encoder(parent=None).check(self.depth)
        super().__post_init__()


def dense_network(network: AdaptiveSparseViT) -> ViT:
    """The network that drops nothing: the teacher, and what the thresholds are added to."""
    fields = {
        field.name: getattr(network, field.name)
        for field in dataclasses.fields(ViT)
        if field.name not in ("unit", "encoder", "parent", "name")
    }
    ratio = mlp_ratio(network)
    return ViT(**fields, unit=Block if ratio == Block.mlp_ratio else partial(Block, mlp_ratio=ratio))


def mlp_ratio(network: ViT) -> float:
    """Hidden units of the perceptrons per channel."""
    return getattr(network.unit, "keywords", {}).get("mlp_ratio", Block.mlp_ratio)


def pruned_macs(network: AdaptiveSparseViT, kept: jax.Array, image_shape: tuple[int, int, int]) -> jax.Array:
    """Multiply-accumulates of images of which tokens were dropped, in 10⁹ (arXiv:2209.13802): patches and blocks, no head.

    Args:
      network: whose sizes and stages count.
      kept: [..., stages], patch tokens left after each stage.
      image_shape: (H, W, C).

    Returns:
      [...] float32, differentiable in `kept`.

    Example:
      >>> from jaxface.models import create
      >>> network = create("sparsevit_small", embedding=1000)
      >>> round(float(pruned_macs(network, jnp.array([137, 96, 67]), (224, 224, 3))), 6)
      3.132152
    """
    stages, mlp_dim = network.encoder(parent=None).stages, round(mlp_ratio(network) * network.dim)
    patches = image_shape[0] * image_shape[1] // network.patch**2
    bounds = (0, *stages, network.depth)
    counts = [jnp.full(kept.shape[:-1], float(patches)), *jnp.moveaxis(kept, -1, 0)]
    total = _patch_macs(network, image_shape)
    for count, first, last in zip(counts, bounds, bounds[1:], strict=False):
        total += (last - first) * block_macs(count + 1, network.dim, mlp_dim)
    return total


def dense_macs(network: ViT, image_shape: tuple[int, int, int]) -> float:
    """What budgets are fractions of, in 10⁹: the patches and every block, at N tokens, as the released code has it.

    Example:
      >>> from jaxface.models import create
      >>> round(dense_macs(create("vit_small"), (224, 224, 3)), 6)  # DeiT-S; with its class token it takes 1.0054 times that
      4.573643
    """
    patches = image_shape[0] * image_shape[1] // network.patch**2
    n, dim, mlp_dim = patches, network.dim, round(mlp_ratio(network) * network.dim)
    block = 1e-9 * (4 * dim**2 * n + 2 * dim * n**2 + 2 * dim * mlp_dim * n)
    return _patch_macs(network, image_shape) + network.depth * block


def _patch_macs(network: ViT, image_shape: tuple[int, int, int]) -> float:
    """Every pixel of every channel meets D filters once."""
    return 1e-9 * image_shape[0] * image_shape[1] * image_shape[2] * network.dim


class Pruned(NamedTuple):
    """What a network says of images, and what it took.

    Attributes:
      output: [B, E] float32.
      kept: [B, stages] float32, patch tokens left after each stage.
      macs: [B] float32, multiply-accumulates in 10⁹.
    """

    output: jax.Array
    kept: jax.Array
    macs: jax.Array


def apply_pruned(network: AdaptiveSparseViT, variables: Mapping, image: jax.Array, **options) -> Pruned:
    """One pass in the mode of the network's encoder; `options` go to `network.apply`."""
    output, seen = network.apply(variables, image, mutable=[COLLECTION], **options)
    (kept,) = seen[COLLECTION]["encoder"]["kept"]
    return Pruned(output, kept, pruned_macs(network, kept, image.shape[1:]))


class Compacted:
    """A trained network that computes the tokens that an image keeps and no others, whatever the batch.

    Tokens of a batch are packed, [T, D]. After each stage the host reads how many there are and takes the next size of a
    ladder for T and for the padded attention, so that a few compiled programs serve all batches.

    Args:
      network: any mode.
      variables: its variables.
      steps: T is a multiple of one part in `steps` of the dense batch.
      step: the padded length is a multiple of this.

    Called with images [B, H, W, C] float it returns `Pruned`, equal to that of the mode "exact".

    Raises:
      UserError: a selection whose choice depends on more than the image, or steps below 1.
    """

    def __init__(self, network: AdaptiveSparseViT, variables: Mapping, *, steps: int = 64, step: int = 8):
        check_number("steps", steps, AtLeast(1))
        check_number("step", step, AtLeast(1))
        self.network, self.variables, self.steps, self.step = network, variables, steps, step

    def __call__(self, image: jax.Array) -> Pruned:
        network = self.network
        batch, height, width = image.shape[:3]
        dense = height * width // network.patch**2 + 1
        part, stages = max(-(-batch * dense // self.steps), 1), len(network.encoder(parent=None).stages)
        kept, state, sizes = [], None, None
        for segment in range(stages + 1):
            output, state, counts, lengths = _segment(
                self.variables, image, state, network=network, segment=segment, sizes=sizes
            )
            if segment:
                kept.append(counts)
            if segment < stages:
                lengths = np.asarray(lengths)  # waits for the device
                rows, room = (
                    -(-int(count) // unit) * unit
                    for count, unit in ((lengths.sum(), part), (lengths.max(), self.step))
                )
                sizes = (min(rows, batch * dense), min(room, dense))
        kept = jnp.stack(kept, axis=1)
        return Pruned(output, kept, pruned_macs(network, kept, image.shape[1:]))


@partial(jax.jit, static_argnames=("network", "segment", "sizes"))
def _segment(variables, image, state, *, network, segment, sizes):
    """(output of the network after the last segment, what the next one takes, kept patch tokens, tokens that go on)."""
    encoder = network.encoder(parent=None)
    stages = len(encoder.stages)
    room = {} if sizes is None else {"rows": (sizes[0],) * stages, "capacities": (sizes[1],) * stages}
    part = network.clone(encoder=partial(network.encoder, mode="packed", segment=segment, **room))
    given = {**variables} if state is None else {**variables, "packed": {"encoder": {"state": state}}}
    output, seen = part.apply(given, image, mutable=["packed", COLLECTION])
    carried = seen["packed"]["encoder"]
    counts = seen[COLLECTION]["encoder"]["kept"][0][:, 0] if segment else None
    return output if segment == stages else None, carried["state"], counts, carried.get("lengths")


MODELS.update(
    {
        "sparsevit_tiny": AdaptiveSparseViT,  # of any sizes, those of DeiT-T unless given
        "sparsevit_small": partial(AdaptiveSparseViT, dim=384, depth=12, heads=6),
        "sparsevit_base": partial(AdaptiveSparseViT, dim=768, depth=12, heads=12),
    }
)
