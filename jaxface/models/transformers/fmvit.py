"""FM-ViT: one transformer for several sensors, of which any may be missing (arXiv:2305.03277)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.checks import check_number
from jaxface.errors import UserError
from jaxface.layers.attention import Attention
from jaxface.layers.fmvit import (
    BRANCHES,
    KEPT,
    Alone,
    ClassFusion,
    Combine,
    Guide,
    MutualDotProduct,
    partner_matrix,
)
from jaxface.layers.remat import Remat, run_block
from jaxface.models.transformers.vit import Block, ViT

BlockKind = Literal["self", "cross"]
"""An ordinary block of a branch, or one in which branches look at each other."""
Partners = Literal["others", "itself"]
_OF_A_BRANCH = ("patches", "class_token", "positions")  # what `share_branches` leaves to each


class BranchEncoder(nn.Module):
    """Takes the tokens of a branch through its blocks; those that cross get the partners as their mask."""

    crossing: tuple[bool, ...]

    @nn.compact
    def __call__(
        self,
        blocks: Sequence[nn.Module],
        tokens: jax.Array,
        *,
        mask: jax.Array,
        remat: Remat = "none",
        train: bool,
    ) -> jax.Array:
        for block, crosses in zip(blocks, self.crossing, strict=True):
            options = {"mask": mask} if crosses else {}
            tokens = run_block(block, tokens, remat=remat, train=train, **options)
            tokens = tokens[0] if isinstance(tokens, tuple) else tokens
        return tokens


class FMViT(nn.Module):
    """A ViT for each modality, of one shape; in blocks that cross, class tokens look at the other branches.

        z1 = z + MutualAttention(LN z);   z2 = z1 + FusionAttention(LN z1) in row 0;   z3 = z2 + MLP(LN z2)      block "cross"
        logit of a branch = Dense(LN z_class)

    All branches read what the others had before the attention: their order does not matter. Parameters of the branches are
    stacked on a first axis of length M and mapped over; those of one are those of a `ViT`.

    Args:
      modalities: names, M of them.
      blocks: kind of each block.
      dim, heads, patch, dropout, drop_path, remat: of each branch, as in `ViT`.
      guide, combine, alone, fraction, threshold: of the mutual attention, as in `jaxface.layers.guidance_mask`.
      partners: whom a branch looks at in a block that crosses: the other modalities, or never but itself, which makes M networks
        of their own, the control.
      share_branches: one set of parameters for all, but for patches, class token and positions.

    Call: images, {modality: [B, H, W, 3], or gray [B, H, W] or [B, H, W, 1]} float, all of one size -> {modality: logit [B]
    float32}, above 0 for live. What is available is None (everything), a tuple of names (static; the others cost nothing and need
    no image), or bool [M] or [B, M] (one compilation for all subsets; logits of what is missing mean nothing). `partners` [M, M]
    or [B, M, M] instead says of each branch whom it looks at (`jaxface.layers.partner_matrix`).

    Raises:
      UserError: no modality or an unknown one, images of different sizes, an image size that the patch does not divide, heads
        that do not divide D, a fraction outside (0, 1], or an unknown option.
    """

    modalities: tuple[str, ...] = ("rgb", "depth", "infrared")
    blocks: tuple[BlockKind, ...] = ("self", "cross", "self", "cross")
    dim: int = 48
    heads: int = 4
    patch: int = 8
    dropout: float = 0.0
    drop_path: float = 0.0
    guide: Guide = "other"
    combine: Combine = "sum"
    alone: Alone = "all"
    fraction: float = 0.5
    threshold: float | None = None
    partners: Partners = "others"
    share_branches: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    def __post_init__(self):
        if not self.modalities or len(set(self.modalities)) < len(self.modalities):
            raise UserError(f"modalities: needs different names, one at least, got {self.modalities}")
        unknown = [kind for kind in self.blocks if kind not in get_args(BlockKind)]
        if unknown or not self.blocks:
            raise UserError(f"blocks: needs self and cross, got {', '.join(self.blocks) or 'none'}")
        for name, options in (("guide", Guide), ("combine", Combine), ("alone", Alone), ("partners", Partners)):  # fmt: skip
            if getattr(self, name) not in get_args(options):
                raise UserError(
                    f"{name}: needs one of {', '.join(get_args(options))}, got {getattr(self, name)!r}"
                )
        check_number("fraction", self.fraction, KEPT)
        if self.threshold is not None:
            check_number("threshold", self.threshold, KEPT)
        if self.dim % self.heads:
            raise UserError(f"dim: needs a multiple of heads, {self.heads}, got {self.dim}")
        super().__post_init__()

    def branch(self) -> ViT:
        """The network of a branch, which runs inside the mapped axis."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        mix = partial(
            MutualDotProduct,
            guide=self.guide,
            combine=self.combine,
            alone=self.alone,
            fraction=self.fraction,
            threshold=self.threshold,
        )
        crossing = partial(
            Block, attention=partial(Attention, mix=mix), select=partial(ClassFusion, self.heads, **types)
        )
        return ViT(
            embedding=1,
            dim=self.dim,
            depth=len(self.blocks),
            heads=self.heads,
            patch=self.patch,
            dropout=self.dropout,
            drop_path=self.drop_path,
            unit=tuple(crossing if kind == "cross" else Block for kind in self.blocks),
            encoder=partial(BranchEncoder, tuple(kind == "cross" for kind in self.blocks)),
            remat=self.remat,
            parent=None,
            **types,
        )

    @nn.compact
    def __call__(
        self,
        images: Mapping[str, jax.Array],
        *,
        available: Sequence[str] | jax.Array | None = None,
        partners: jax.Array | None = None,
        train: bool = False,
    ) -> dict[str, jax.Array]:
        names = self.modalities
        chosen = self._chosen(available)
        stacked = _stack(images, chosen)
        if partners is None:
            partners = partner_matrix(
                jnp.asarray(available) if _is_array(available) else jnp.ones(len(chosen), bool)
            )
        if self.partners == "itself":
            partners = jnp.eye(len(chosen), dtype=bool)
        branch = self.branch()

        def start(rng):
            every = jnp.broadcast_to(stacked[:1, :1], (len(names), 1, *stacked.shape[2:]))
            keys = jax.vmap(partial(jax.random.fold_in, rng))(jnp.arange(len(names)))
            rows = jnp.eye(len(names), dtype=bool)

            def one(key, image, row):
                return branch.init(key, image, mask=row)["params"]

            return jax.vmap(one, axis_name=BRANCHES)(keys, every, rows)

        def own(rng):
            return {n: leaf for n, leaf in start(rng).items() if n in _OF_A_BRANCH or not self.share_branches}

        def common(rng):
            rest = {n: leaf for n, leaf in start(rng).items() if n not in _OF_A_BRANCH}
            return jax.tree.map(lambda leaf: leaf[0], rest)

        params = self.param("branches", own)
        if chosen is not names:
            index = jnp.array([names.index(name) for name in chosen])
            params = jax.tree.map(lambda leaf: leaf[index], params)
        shared = self.param("shared", common) if self.share_branches else {}
        rngs = {name: self.make_rng(name) for name in ("dropout", "guide") if self.has_rng(name)}
        rngs = {name: jax.random.split(key, len(chosen)) for name, key in rngs.items()}

        def run(params, shared, image, row, rngs):
            variables = {"params": {**params, **shared}}
            return branch.apply(variables, image, mask=row, train=train, rngs=rngs)[:, 0]

        rows = 0 if partners.ndim == 2 else 1
        mapped = jax.vmap(run, in_axes=(0, None, 0, rows, 0), axis_name=BRANCHES)
        return dict(zip(chosen, mapped(params, shared, stacked, partners, rngs), strict=True))

    def _chosen(self, available) -> tuple[str, ...]:
        """The modalities that are computed, in the order of the network's."""
        if available is None or _is_array(available):
            return self.modalities
        unknown = [name for name in available if name not in self.modalities]
        if unknown or not available:
            raise UserError(
                f"available: needs some of {', '.join(self.modalities)}, got {', '.join(unknown) or 'none'}"
            )
        chosen = tuple(name for name in self.modalities if name in available)
        return self.modalities if len(chosen) == len(self.modalities) else chosen


def _is_array(available: Any) -> bool:
    return hasattr(available, "dtype")


def _stack(images: Mapping[str, jax.Array], names: Sequence[str]) -> jax.Array:
    """[M, B, H, W, 3] of images by name, gray ones repeated over the channels."""
    missing = [name for name in names if name not in images]
    if missing:
        raise UserError(f"images: needs {', '.join(missing)} besides {', '.join(images) or 'none'}")
    colors = []
    for name in names:
        image = jnp.asarray(images[name])
        image = image[..., None] if image.ndim == 3 else image
        if image.ndim != 4 or image.shape[-1] not in (1, 3):
            raise UserError(f"images: needs [B, H, W, 3] or gray, got {images[name].shape} of {name}")
        colors.append(jnp.broadcast_to(image, (*image.shape[:3], 3)))
    shapes = {image.shape[:3] for image in colors}
    if len(shapes) > 1:
        different = ", ".join(f"{n} {i.shape[:3]}" for n, i in zip(names, colors, strict=True))
        raise UserError(f"images: need one batch and size for all modalities, got {different}")
    return jnp.stack(colors)


def liveness(logits: Mapping[str, jax.Array] | jax.Array, available: jax.Array | None = None) -> jax.Array:
    """The score of a presentation: the mean of the branches' probabilities that it is live, over those available.

    Args:
      logits: {modality: [B]} or [M, B]. available: [M] or [B, M] bool; all unless given.

    Returns:
      [B] float32 in [0, 1].

    Example:
      >>> liveness({"rgb": jnp.array([0.0]), "depth": jnp.array([100.0])}).tolist()
      [0.75]
    """
    values = jnp.stack(list(logits.values())) if isinstance(logits, Mapping) else logits
    chances = jax.nn.sigmoid(values.astype(jnp.float32))
    if available is None:
        return chances.mean(axis=0)
    there = jnp.broadcast_to(available[:, None] if available.ndim == 1 else available.T, chances.shape)
    return jnp.where(there, chances, 0).sum(axis=0) / there.sum(axis=0)
