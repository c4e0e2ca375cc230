"""Images and their captions, learned from each other and from themselves (arXiv:2103.00020, 2110.05208, 2111.08687).

Features are of unit length unless stated otherwise. A loss takes `axis_name`, the name of a mapped axis over which the batch is
spread: its mean over the devices is then the loss of the whole batch, and so are the means of its gradients. Under `jit` over a
mesh, where arrays are global, no name is needed.

Methods: intern
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxface import search
from jaxface.checks import Fraction, NonNegative, Positive, check_fields, check_number
from jaxface.errors import UserError
from jaxface.layers.prototypes import l2_normalize


def _check_features(**features: jax.Array) -> None:
    names, arrays = list(features), list(features.values())
    chex.assert_rank(arrays, 2, custom_message=f"{', '.join(names)} must be [B, D]")
    chex.assert_equal_shape(arrays, custom_message=f"{', '.join(names)} differ in shape")
    if not arrays[0].shape[0] or not all(jnp.issubdtype(x.dtype, jnp.floating) for x in arrays):
        raise ValueError(
            f"{names[0]}: needs at least one row of floats, got {arrays[0].shape} {arrays[0].dtype}"
        )


def _gathered(x: jax.Array, axis_name: str | None) -> jax.Array:
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


def _contrast(
    queries: jax.Array, keys: jax.Array, scale: jax.Array | float, axis_name: str | None
) -> jax.Array:
    """[B]: cross-entropy of each query's own key among the keys of all devices."""
    logits = scale * search.dot_products(queries, _gathered(keys, axis_name))
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * len(queries)
    own = jnp.take_along_axis(logits, first + jnp.arange(len(queries))[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - own


def clip_infonce(
    images: jax.Array, texts: jax.Array, logit_scale: jax.Array | float, *, axis_name: str | None = None
) -> jax.Array:
    """Which text belongs to which image, and the other way round (arXiv:2103.00020).

        L_i = ½ [CE(s u_i · v_all, i) + CE(s v_i · u_all, i)]

    Args:
      images: [B, D] float of unit rows u. texts: [B, D] of unit rows v, the i-th of the i-th image.
      logit_scale: s > 0, the inverse temperature.
      axis_name: mapped axis that the batch is spread over; negatives come from all its devices.

    Returns:
      [B] float32, ≥ 0, unreduced.

    Raises:
      AssertionError, ValueError: other shapes or types. UserError: a scale that is not positive.

    Example:
      >>> rows = jnp.eye(2)
      >>> [round(x, 6) for x in clip_infonce(rows, rows, 1.0).tolist()]
      [0.313262, 0.313262]
    """
    _check_features(images=images, texts=texts)
    check_number("logit_scale", logit_scale, Positive)
    to_text = _contrast(images, texts, logit_scale, axis_name)
    return 0.5 * (to_text + _contrast(texts, images, logit_scale, axis_name))


@flax.struct.dataclass
class TextBank:
    """The last text features, first in, first out.

    Attributes:
      rows: [N, D] float32. cursor: [] int32, the oldest row, which is written next. written: [] int32, rows that were.
    """

    rows: jax.Array
    cursor: jax.Array
    written: jax.Array

    @classmethod
    def empty(cls, size: int, features: int) -> "TextBank":
        """Of `size` rows, none of which was written."""
        return cls(jnp.zeros((size, features)), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def nn_bank_lookup(queries: jax.Array, bank: TextBank) -> jax.Array:
    """The nearest row of a bank by cosine (arXiv:2110.05208); rows that were not written yet are never taken.

    Args:
      queries: [B, D] float.
      bank: of [N, D].

    Returns:
      [B, D] float32 of unit length, constants; zeros where nothing was written yet.

    Example:
      >>> bank = nn_bank_push(TextBank.empty(4, 2), jnp.array([[0.6, 0.8], [-1.0, 0.0]]))
      >>> [round(x, 3) for x in jax.jit(nn_bank_lookup)(jnp.array([[0.0, 2.0]]), bank)[0].tolist()]
      [0.6, 0.8]
    """
    chex.assert_rank([queries, bank.rows], 2)
    chex.assert_equal(queries.shape[1], bank.rows.shape[1])
    # Rows have unit length, so the product orders as the cosine does; `nearest` works in blocks of the bank.
    queries, rows = jax.lax.stop_gradient((queries, bank.rows))
    written = jnp.arange(len(rows)) < bank.written
    _, ids = search.nearest(queries, (rows, written), 1, similarity=_written_first)
    return jnp.where(bank.written > 0, l2_normalize(rows[ids[:, 0]]), 0.0)


def _written_first(queries: jax.Array, candidates: tuple[jax.Array, jax.Array]) -> jax.Array:
    rows, written = candidates
    return jnp.where(written, search.dot_products(queries, rows), -1e30)


def nn_bank_push(bank: TextBank, features: jax.Array, *, axis_name: str | None = None) -> TextBank:
    """A bank whose oldest rows are the directions of new features.

    Args:
      bank: of N rows.
      features: [B, D], B ≤ N over all devices; constants.
      axis_name: mapped axis that the batch is spread over; every device pushes all features.

    Raises:
      UserError: more features than the bank has rows.

    Example:
      >>> bank = nn_bank_push(TextBank.empty(2, 1), jnp.array([[2.0]]))
      >>> bank.rows.tolist(), int(bank.cursor), int(bank.written)
      ([[1.0], [0.0]], 1, 1)
    """
    features = jax.lax.stop_gradient(l2_normalize(features.astype(jnp.float32)))
    features = _gathered(features, axis_name)
    size, count = len(bank.rows), len(features)
    if count > size:
        raise UserError(f"bank: needs at least the {count} rows of a batch, got {size}")
    places = (bank.cursor + jnp.arange(count)) % size
    return TextBank(
        bank.rows.at[places].set(features, unique_indices=True),
        (bank.cursor + count) % size,
        jnp.minimum(bank.written + count, size),
    )


def simsiam_loss(
    predicted1: jax.Array, predicted2: jax.Array, projected1: jax.Array, projected2: jax.Array
) -> jax.Array:
    """Each of two views predicts the other's projection (arXiv:2011.10566).

        L_i = -½ [cos(p1_i, sg(z2_i)) + cos(p2_i, sg(z1_i))]

    Args:
      predicted1, predicted2: [B, D] float, p. projected1, projected2: [B, D], z; constants.

    Returns:
      [B] float32 in [-1, 1].

    Example:
      >>> z = jnp.array([[1.0, 2.0]])
      >>> simsiam_loss(3 * z, z, z, z).round(4).tolist()
      [-1.0]
    """
    _check_features(
        predicted1=predicted1, predicted2=predicted2, projected1=projected1, projected2=projected2
    )
    projected1, projected2 = jax.lax.stop_gradient((projected1, projected2))
    return -0.5 * (_cosine(predicted1, projected2) + _cosine(predicted2, projected1))


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    a, b = (l2_normalize(x.astype(jnp.float32)) for x in (a, b))
    return jnp.sum(a * b, axis=-1)


def mlm_loss(
    logits: jax.Array, labels: jax.Array, mask: jax.Array, *, axis_name: str | None = None
) -> jax.Array:
    """Masked words are told from their sentence (arXiv:1810.04805): the mean of CE over the masked places of the batch.

    Args:
      logits: [B, L, V] float. labels: [B, L] integers in [0, V), the true tokens. mask: [B, L] bool, places that count.
      axis_name: mapped axis that the batch is spread over.

    Returns:
      [] float32, ≥ 0; 0 where nothing is masked.

    Example:
      >>> float(mlm_loss(jnp.zeros((1, 2, 4)), jnp.zeros((1, 2), int), jnp.zeros((1, 2), bool)))
      0.0
    """
    chex.assert_rank([logits, labels, mask], [3, 2, 2])
    chex.assert_equal_shape_prefix([logits, labels, mask], 2)
    scores = logits.astype(jnp.float32)
    true = jnp.take_along_axis(scores, labels[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(scores, axis=-1) - true
    total, count = jnp.sum(jnp.where(mask, losses, 0.0)), jnp.sum(mask, dtype=jnp.float32)
    count = count if axis_name is None else jax.lax.pmean(count, axis_name)
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1.0), 0.0)


class MaskedTokens(NamedTuple):
    """Tokens to read and where they are to be told.

    Attributes:
      tokens: [B, L] int32, some of which were exchanged. mask: [B, L] bool, places to tell.
    """

    tokens: jax.Array
    mask: jax.Array


def mask_tokens(
    key: jax.Array,
    tokens: jax.Array,
    *,
    vocabulary: int,
    mask_token: int,
    special: Sequence[int],
    rate: float = 0.15,
) -> MaskedTokens:
    """Chooses places of sentences that are to be told (arXiv:1810.04805): 80 % read a mask, 10 % any word, 10 % themselves.

    Args:
      key: of the choice.
      tokens: [B, L] integers in [0, V).
      vocabulary: V. mask_token: what stands for a hidden word.
      special: tokens that are never chosen and no random words: padding, start, end and mask.
      rate: share of the words that is chosen, in [0, 1].

    Raises:
      UserError: a rate outside [0, 1], or special tokens that are not the vocabulary's or all of it.

    Example:
      >>> tokens = jnp.array([[1, 7, 5, 2, 0]])  # start, two words, end and padding
      >>> shown = mask_tokens(jax.random.key(0), tokens, vocabulary=9, mask_token=3, special=(0, 1, 2, 3), rate=1.0)
      >>> shown.mask.tolist()
      [[False, True, True, False, False]]
    """
    check_number("rate", rate, Fraction)
    no_words = np.unique(np.array([mask_token, *special]))
    if no_words[0] < 0 or no_words[-1] >= vocabulary or len(no_words) == vocabulary:
        raise UserError(f"special: needs some of {vocabulary} tokens, got {no_words.tolist()}")
    words = np.setdiff1d(np.arange(vocabulary), no_words).astype(np.int32)
    where, how, which = jax.random.split(key, 3)
    is_word = ~jnp.isin(tokens, no_words)
    chosen = (jax.random.uniform(where, tokens.shape) < rate) & is_word
    kind = jax.random.uniform(how, tokens.shape)
    other = jnp.asarray(words)[jax.random.randint(which, tokens.shape, 0, len(words))]
    shown = jnp.where(kind < 0.8, mask_token, jnp.where(kind < 0.9, other, tokens))
    return MaskedTokens(jnp.where(chosen, shown, tokens), chosen)


def view_grid(windows: jax.Array, plane: tuple[int, int]) -> jax.Array:
    """Where in the image the places of a view's map are.

    Args:
      windows: [B, 4] float, (y0, x0, side, mirrored): the square that the view shows, as fractions of the image's side, and 1
        where it is mirrored left and right, else 0.
      plane: (h, w) of the map.

    Returns:
      [B, h, w, 3] float32: y and x of the center and the diagonal of a bin, as fractions of the image's side.

    Example:
      >>> view_grid(jnp.array([[0.0, 0.5, 0.5, 1.0]]), (1, 2))[0, 0, :, :2].tolist()
      [[0.25, 0.875], [0.25, 0.625]]
    """
    chex.assert_rank(windows, 2)
    (height, width), windows = plane, windows.astype(jnp.float32)
    y0, x0, side, mirrored = (column[:, None, None] for column in windows.T)
    rows, columns = (jnp.arange(height) + 0.5) / height, (jnp.arange(width) + 0.5) / width
    columns = jnp.where(mirrored > 0.5, 1 - columns, columns)
    diagonal = side * (height**-2 + width**-2) ** 0.5
    parts = y0 + side * rows[:, None], x0 + side * columns, diagonal
    return jnp.stack([jnp.broadcast_to(part, (len(windows), height, width)) for part in parts], axis=-1)


def pixpro_loss(
    predicted: jax.Array,
    features: jax.Array,
    grid1: jax.Array,
    grid2: jax.Array,
    *,
    reach: float = 0.7,
) -> jax.Array:
    """Places of two views that show the same of the image have the same features (arXiv:2011.10043), one way.

        L_b = -mean cos(g_i, sg(f_j))        over i of view 1 and j of view 2 closer than `reach` diagonals of a bin

    Args:
      predicted: [B, h, w, D] float, of a predictor on the online side, which with the stopped gradient prevents a collapse.
      features: [B, h', w', D] of the other view; constants.
      grid1, grid2: [B, h, w, 3] and [B, h', w', 3], `view_grid` of the two; the larger of two diagonals counts.
      reach: > 0.

    Returns:
      [B] float32 in [-1, 1]; 0 where no pair is that close.

    Raises:
      AssertionError: other shapes. UserError: a reach that is not positive.

    Example:
      >>> grid = view_grid(jnp.array([[0.0, 0.0, 1.0, 0.0]]), (2, 2))
      >>> maps = jnp.eye(4).reshape(1, 2, 2, 4)
      >>> jax.jit(pixpro_loss)(maps, maps, grid, grid).tolist()  # every place is near itself alone
      [-1.0]
    """
    chex.assert_rank([predicted, features, grid1, grid2], 4)
    chex.assert_equal_shape_prefix([predicted, grid1], 3)
    chex.assert_equal_shape_prefix([features, grid2], 3)
    check_number("reach", reach, Positive)

    def flat(x):
        return x.reshape(len(x), -1, x.shape[-1])

    places1, places2 = flat(grid1)[:, :, None], flat(grid2)[:, None]
    squares = jnp.sum(jnp.square(places1[..., :2] - places2[..., :2]), axis=-1)
    near = squares < jnp.square(reach * jnp.maximum(places1[..., 2], places2[..., 2]))
    online, target = flat(predicted), jax.lax.stop_gradient(flat(features))
    online, target = (l2_normalize(x.astype(jnp.float32)) for x in (online, target))
    cosines = jnp.einsum("bnd,bmd->bnm", online, target)
    count = jnp.sum(near, axis=(1, 2), dtype=jnp.float32)
    return -jnp.sum(jnp.where(near, cosines, 0.0), axis=(1, 2)) / jnp.maximum(count, 1.0)


@dataclasses.dataclass(frozen=True)
class DeclipWeights:
    """Weights of the terms of `declip_loss`."""

    clip: Annotated[float, NonNegative] = 0.4
    """Of two views of the image against the caption and a changed one."""
    neighbors: Annotated[float, NonNegative] = 0.2
    """Of both views against the nearest captions of the bank."""
    views: Annotated[float, NonNegative] = 0.2
    """Of the views against each other."""
    words: Annotated[float, NonNegative] = 0.2
    """Of masked words."""

    def __post_init__(self):
        check_fields(self, "weights.")

    def total(self, terms: Mapping[str, jax.Array]) -> jax.Array:
        """The weighted sum of terms by these names.

        Example:
          >>> DeclipWeights().total({"clip": 1.0, "neighbors": 1.0, "views": 1.0, "words": 1.0})
          1.0
        """
        return sum(getattr(self, field.name) * terms[field.name] for field in dataclasses.fields(self))


class DeclipOutputs(NamedTuple):
    """What networks say of a batch of images and captions.

    Attributes:
      images: two [B, D] of unit rows, of the views. texts: two, of the (masked) caption and of the changed one.
      predicted, projected: two [B, P] each, of the views (`simsiam_loss`); of features that are not normalized.
      word_logits: [B, L, V]. words: [B, L], the true tokens. masked: [B, L] bool.
      logit_scale: [] > 0.
    """

    images: tuple[jax.Array, jax.Array]
    texts: tuple[jax.Array, jax.Array]
    predicted: tuple[jax.Array, jax.Array]
    projected: tuple[jax.Array, jax.Array]
    word_logits: jax.Array
    words: jax.Array
    masked: jax.Array
    logit_scale: jax.Array


def declip_loss(
    outputs: DeclipOutputs,
    bank: TextBank,
    *,
    weights: DeclipWeights | None = None,
    axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array], TextBank]:
    """Contrastive learning with several kinds of supervision (arXiv:2110.05208).

        L   = 0.4 clip + 0.2 neighbors + 0.2 views + 0.2 words
        clip      = mean over a, b of InfoNCE(u_a, v_b),        u of two views, v of the caption and of a changed one
        neighbors = mean over a, b of CE(s u_a · n(v_b)_all),   n the bank's nearest, from images to texts alone
        views     = `simsiam_loss`,   words = `mlm_loss`

    Both captions look at the bank as it was; then the changed caption's features are pushed, and the caption's. Until something
    was pushed there are no neighbors, and that term is 0.

    Args:
      outputs: of the networks.
      bank: of earlier steps.
      weights: of the terms.
      axis_name: mapped axis that the batch is spread over.

    Returns:
      (scalar float32, the terms by name, the bank after the step).

    Raises:
      AssertionError, ValueError, UserError: as the parts.

    Example:
      >>> rows, words = jnp.eye(2), jnp.zeros((2, 3), int)
      >>> outputs = DeclipOutputs(
      ...     (rows, rows), (rows, rows), (rows, rows), (rows, rows), jnp.zeros((2, 3, 5)), words, words == 0, jnp.float32(1.0)
      ... )
      >>> loss, terms, bank = jax.jit(declip_loss)(outputs, TextBank.empty(8, 2))
      >>> {name: round(float(value), 4) for name, value in terms.items()}, int(bank.written)
      ({'clip': 0.3133, 'neighbors': 0.0, 'views': -1.0, 'words': 1.6094}, 4)
    """
    weights = weights or DeclipWeights()
    scale = outputs.logit_scale
    pairs = [(u, v) for u in outputs.images for v in outputs.texts]
    clip = jnp.mean(jnp.stack([clip_infonce(u, v, scale, axis_name=axis_name) for u, v in pairs]))
    near = [nn_bank_lookup(v, bank) for v in outputs.texts]
    pairs = [(u, n) for u in outputs.images for n in near]
    neighbors = jnp.mean(jnp.stack([_contrast(u, n, scale, axis_name) for u, n in pairs]))
    terms = {
        "clip": clip,
        "neighbors": jnp.where(bank.written > 0, neighbors, 0.0),
        "views": jnp.mean(simsiam_loss(*outputs.predicted, *outputs.projected)),
        "words": mlm_loss(outputs.word_logits, outputs.words, outputs.masked, axis_name=axis_name),
    }
    for texts in reversed(outputs.texts):
        bank = nn_bank_push(bank, texts, axis_name=axis_name)
    return weights.total(terms), terms, bank
