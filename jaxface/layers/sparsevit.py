"""AS-ViT: tokens scored by the attention of the class token, and dropped below learned thresholds (arXiv:2209.13802).

Scores are about 1/(N + 1) each, for N patch tokens and the class token, which comes first. Thresholds and temperatures of the
modules are in that unit; the functions take them as they are.
"""

import collections
import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.checks import AtLeast, Positive, check_number
from jaxface.errors import UserError
from jaxface.layers.remat import Remat, run_block

Score = Literal["head_weighted", "mean"]
"""How the heads' class attentions become one score: weighted by each head's response, or their mean."""
History = Literal["last", "sum", "average"]
"""Scores that count: those of the last block, their sum, or a moving average of them over the blocks."""
Selection = Literal["threshold", "top", "quantile", "random"]
"""What is kept: tokens above a learned threshold, the best of each image, the best of the batch, or any of each image."""
Mode = Literal["masked", "exact", "capacity", "packed"]
"""How an evaluation drops tokens; see `SparseEncoder`."""
COLLECTION = "pruning"
"""Where `SparseEncoder` leaves what it kept."""
_CARRIED = "packed"  # between the segments of a packed network
_RANGE = (0.01, 0.99)  # quantiles between which a threshold learns
_EARLY, _DECAY = 2, 0.99  # of sums and averages: the first block that counts, the weight of the old average


def head_weighted_cls_score(attention: jax.Array, head_out: jax.Array, *, eps: float = 1e-8) -> jax.Array:
    """How much the class token attends to each patch token, each head weighted by its response there (arXiv:2209.13802).

        w_hj = ‖y_hj‖ / (Σ_h' ‖y_h'j‖ + eps),     s_j = Σ_h w_hj A_h,class,j

    Args:
      attention: A [B, h, Q, N + 1] float, probabilities of queries of which the first is the class token; its row alone is read.
      head_out: y [B, h, N + 1, d] float, what each head gives for each token before the projection.
      eps: keeps a token to which no head responds at 0.

    Returns:
      [B, N] float32 of the patch tokens, in [0, h]; differentiable in both, with bounded gradients where y is 0.

    Example:
      >>> attention = jnp.array([[[[0.4, 0.3, 0.3]], [[0.2, 0.2, 0.6]]]])
      >>> head_out = jnp.array([[[[1.0], [3.0], [0.0]], [[1.0], [1.0], [2.0]]]])  # head 1 answers at token 1, head 2 at token 2
      >>> [round(float(s), 4) for s in head_weighted_cls_score(attention, head_out)[0]]
      [0.275, 0.6]
    """
    norms = jnp.sqrt(jnp.sum(jnp.square(head_out[:, :, 1:].astype(jnp.float32)), axis=-1) + 1e-12)
    weights = norms / (jnp.sum(norms, axis=1, keepdims=True) + eps)
    return jnp.sum(weights * attention[:, :, 0, 1:].astype(jnp.float32), axis=1)


def threshold_mask(score: jax.Array, theta: jax.typing.ArrayLike, *, tau: float = 1e-4) -> jax.Array:
    """1 where a score lies above a threshold, else 0; the gradient is that of a sigmoid (arXiv:2209.13802).

        m = 1[s > θ],     ∂m/∂s = -∂m/∂θ = σ(u) (1 - σ(u)) / τ,   u = (s - θ) / τ

    Args:
      score: s, float.
      theta: θ, of a shape that broadcasts. Farther than some 20 τ from every score its gradient is 0: it is dead.
      tau: τ > 0.

    Returns:
      float32 of the shape of `score`; equality gives 0.

    Raises:
      UserError: τ out of its range.

    Example:
      >>> threshold_mask(jnp.array([0.1, 0.15, 0.2]), 0.15).tolist()
      [0.0, 0.0, 1.0]
    """
    check_number("tau", tau, Positive)
    score = jnp.asarray(score, jnp.float32)
    soft = jax.nn.sigmoid((score - theta) / tau)
    hard = (score > theta).astype(jnp.float32)
    return hard + (soft - jax.lax.stop_gradient(soft))


def masked_softmax(logits: jax.Array, policy: jax.Array, *, eps: float = 1e-6) -> jax.Array:
    """Softmax in which a dropped token is seen by itself alone (arXiv:2209.13802).

        E_jk = exp(z_jk - max_k z_jk) (p_k + (1 - p_k) 1[j = k]),     A_jk = (E_jk + eps / N) / (Σ_k E_jk + eps)

    Args:
      logits: z [..., N, N] float.
      policy: p [..., N] in [0, 1], of each key; broadcasts over the leading axes.
      eps: ≥ 0; a dropped key keeps eps / N.

    Returns:
      [..., N, N] float32; rows sum to 1.

    Example:
      >>> rows = masked_softmax(jnp.zeros((2, 2)), jnp.array([1.0, 0.0]), eps=0.0)
      >>> rows.tolist()
      [[1.0, 0.0], [0.5, 0.5]]
    """
    logits = logits.astype(jnp.float32)
    count = logits.shape[-1]
    policy = policy.astype(jnp.float32)[..., None, :]
    seen = policy + (1 - policy) * jnp.eye(count)
    shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(shifted) * seen
    return (weights + eps / count) / (jnp.sum(weights, axis=-1, keepdims=True) + eps)


def block_macs(tokens: jax.typing.ArrayLike, dim: int, mlp_dim: int) -> jax.Array:
    """Multiply-accumulates of a block, in 10⁹ (arXiv:2209.13802).

        F(n) = (4 D² n + 2 D n² + 2 D D_m n) / 10⁹

    Args:
      tokens: n, the class token counted; any shape.
      dim: D.
      mlp_dim: D_m, hidden units of the perceptron.

    Returns:
      float32 of that shape, differentiable in n.

    Example:
      >>> round(float(block_macs(197, 384, 1536)), 6)  # of DeiT-S
      0.378391
    """
    n = jnp.asarray(tokens, jnp.float32)
    linear, square = 1e-9 * (4 * dim**2 + 2 * dim * mlp_dim), 1e-9 * 2 * dim
    return n * (linear + square * n)


def prune_tokens(
    x: jax.Array,
    score: jax.Array,
    theta: jax.typing.ArrayLike,
    *,
    capacity: int,
    valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The class token and the patch tokens above a threshold, in their order, in arrays of a static size.

    Args:
      x: [B, N + 1, D].
      score: [B, N] of the patch tokens.
      theta: threshold, of a shape that broadcasts to [B, N].
      capacity: C in [1, N + 1], tokens that there is room for; where more are above the threshold, those with the highest score
        stay, the first of equal ones.
      valid: [B, N + 1] bool, which of the tokens there are; all by default.

    Returns:
      ([B, C, D], valid [B, C] bool): tokens past the valid ones are others of the image, for an attention to mask.

    Raises:
      UserError: a capacity out of its range.

    Example:
      >>> x = jnp.array([[[9.0], [1.0], [2.0], [3.0]]])
      >>> tokens, valid = prune_tokens(x, jnp.array([[0.5, 0.1, 0.3]]), 0.2, capacity=4)
      >>> tokens[0, :3, 0].tolist(), valid[0].tolist()
      ([9.0, 1.0, 3.0], [True, True, True, False])
    """
    indices, valid = _selected(score > theta, score, capacity, valid)
    return jnp.take_along_axis(x, indices[..., None], axis=1), valid


def _selected(above, score, capacity, valid):
    """(which tokens [B, C], valid [B, C]): those above first, in their order."""
    total = score.shape[1] + 1
    if not 1 <= capacity <= total:
        raise UserError(f"capacity: needs an integer from 1 to the {total} tokens, got {capacity}")
    above = jnp.concatenate([jnp.ones_like(above[:, :1]), above], axis=1)
    above = above if valid is None else above & valid
    ranked = jnp.concatenate([jnp.full_like(score[:, :1], jnp.inf), score], axis=1)
    best = jnp.argsort(jnp.where(above, -ranked, jnp.inf), axis=1, stable=True)[:, :capacity]
    count = jnp.minimum(above.sum(axis=1), capacity)
    valid = jnp.arange(capacity) < count[:, None]
    # In the order of the image, the filling behind.
    order = jnp.argsort(jnp.where(valid, best, total), axis=1, stable=True)
    return jnp.take_along_axis(best, order, axis=1), valid


class Packing(NamedTuple):
    """Where the tokens of images are in [1, T, D], one image after the other; attention is on [B, C, D], which is padded.

    Attributes:
      rows: [B, C] int32, the row of each padded token; of filling any.
      valid: [B, C] bool, what is no filling.
      padded: [T] int32, the padded token, of B · C, that each row is; of filling any.
    """

    rows: jax.Array
    valid: jax.Array
    padded: jax.Array


def _pack(keep: jax.Array, total: int, capacity: int) -> tuple[jax.Array, Packing, jax.Array]:
    """Of padded tokens [B, C] those that go on: (which they are, of B · C [T], their packing, whether there is room)."""
    places = jnp.nonzero(keep.ravel(), size=total, fill_value=0)[0]
    lengths = keep.sum(axis=1)
    ends = jnp.cumsum(lengths)
    starts, image = ends - lengths, places // keep.shape[1]
    packing = Packing(
        rows=jnp.minimum(starts[:, None] + jnp.arange(capacity), total - 1),
        valid=jnp.arange(capacity) < lengths[:, None],
        padded=image * capacity + jnp.clip(jnp.arange(total) - starts[image], 0, capacity - 1),
    )
    return places, packing, (ends[-1] <= total) & (lengths.max() <= capacity)


class Scores(NamedTuple):
    """Of patch tokens, float32 [B, N]: `weighted` by the heads' responses, and `mean` over the heads."""

    weighted: jax.Array
    mean: jax.Array


class ScoredProduct(nn.Module):
    """Attention that also says how much the class token attends to each patch token: the `mix` of `Attention`.

    query, key and value [B, N + 1, h, d]; `mask` is None, or says of the keys which there are:

        float [B, N + 1], a policy as `masked_softmax` has it;   bool [B, N + 1], in an ordinary softmax;
        a `Packing` of tokens [1, T, h, d], which are padded for the attention alone

    -> ([B, N + 1, h, d], `Scores`). Attention probabilities and scores are float32.
    """

    @nn.compact
    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        *,
        mask: jax.Array | Packing | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, Scores]:
        del train
        if isinstance(mask, Packing):
            padded = (x[0, mask.rows] for x in (query, key, value))
            mixed, scores = _attend(*padded, mask.valid)
            return mixed.reshape(-1, *mixed.shape[2:])[mask.padded][None], scores
        if mask is None or mask.dtype == bool:
            return _attend(query, key, value, mask)
        logits = _logits(query, key)
        attention = masked_softmax(logits, mask[:, None])
        mixed = jnp.einsum(
            "bhqk,bkhd->bqhd", attention, value.astype(jnp.float32), preferred_element_type=jnp.float32
        )
        return mixed.astype(value.dtype), _scores(attention, mixed)


def _logits(query: jax.Array, key: jax.Array) -> jax.Array:
    """[B, h, Q, K] float32."""
    scale = query.shape[-1] ** -0.5
    return scale * jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)


def _attend(query, key, value, valid):
    mask = None if valid is None else valid[:, None, None]
    mixed = jax.nn.dot_product_attention(query, key, value, mask=mask)
    # The row of the class token once more, in float32: what a kernel that makes no [N, N] keeps to itself.
    row = _logits(query[:, :1].astype(jnp.float32), key.astype(jnp.float32))
    row = jax.nn.softmax(row if mask is None else jnp.where(mask, row, -jnp.inf), axis=-1)
    return mixed, _scores(row, mixed)


def _scores(attention: jax.Array, mixed: jax.Array) -> Scores:
    plain = jnp.mean(attention[:, :, 0, 1:], axis=1)
    return Scores(head_weighted_cls_score(attention, jnp.swapaxes(mixed, 1, 2)), plain)


class SparseEncoder(nn.Module):
    """Takes tokens through blocks and drops some at the entry of certain ones: the `encoder` of a `ViT` (arXiv:2209.13802).

        policy_t = 1[s > θ_t / (N + 1)]   at the entry of block stages[t], with the score s of the block before

    The blocks' attention needs `ScoredProduct`. In training every token stays and those below a threshold are seen by
    themselves alone; thresholds, a parameter, and scores have the gradients of `threshold_mask`. An evaluation drops tokens by

        masked      as in training
        exact       masks: an ordinary softmax over the tokens that are left, and all the work of a dense network
        capacity    gathering: `capacities` tokens of each image stay, those with the highest scores where more are above θ
        packed      gathering into [1, T, D], images one after the other: what is kept is what is computed, whatever the batch

    Args:
      stages: blocks, counted from 0, at whose entry tokens are dropped; increasing, from 1.
      start: θ at the start, in units of 1 / (N + 1), one for each stage.
      temperature: τ in that unit.
      score: `Score`.
      history: `History`; with the latter two, from the third block on, dropped tokens stay dropped in training too.
      select: `Selection`. All but threshold keep `keep` of the tokens, and nothing is learned.
      keep: patch tokens kept at each stage: of an image, or with quantile on average over the images of a batch.
      mode: of an evaluation.
      capacities: with capacity or packed: tokens of an image, with the class token, that there is room for in each stage; all
        that there are unless given.
      rows: with packed: T of each stage; all that there are unless given.
      segment: with packed: do only the blocks before the first stage (0), or those from stage t on (t); what lies between is
        in the collection "packed".

    blocks, tokens [B, N + 1, D] -> [B, M, D], the class token first; with packed [B, 1, D], NaN where `rows` or `capacities`
    had no room. Where the collection "pruning" is mutable it gets, each in a tuple of one:

        kept        [B, stages] float32, patch tokens left; in training with a gradient
        thresholds  [stages], those applied, a mean over the images, in units of 1 / (N + 1)
        range       [stages, 2], quantiles 0.01 and 0.99 of the scores of tokens that were left before, in that unit
        extremes    [stages, 2], the least and the greatest of them
        weighting   [stages], mean |s - mean_h A| / mean A: how much the heads' weights can matter
        policy      [B, stages, N] bool, which tokens are left; not with capacity or packed

    Raises:
      UserError: stages, thresholds, counts or sizes that do not fit each other or the network.
    """

    stages: Sequence[int] = (4, 7, 10)
    start: Sequence[float] = (0.2, 0.4, 0.6)
    temperature: float = 0.02
    score: Score = "head_weighted"
    history: History = "last"
    select: Selection = "threshold"
    keep: Sequence[int] | None = None
    mode: Mode = "exact"
    capacities: Sequence[int] | None = None
    rows: Sequence[int] | None = None
    segment: int | None = None

    def check(self, depth: int | None = None) -> None:
        """Raises UserError for fields that do not fit each other, or a network of `depth` blocks."""
        check_stages(self.stages, depth)
        for name, kind in (("score", Score), ("history", History), ("select", Selection), ("mode", Mode)):
            if getattr(self, name) not in get_args(kind):
                raise UserError(
                    f"{name}: needs one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}"
                )
        check_number("temperature", self.temperature, Positive)
        if self.select != "threshold" and self.keep is None:
            raise UserError(f"keep: needs the tokens to keep at each stage with {self.select}, got none")
        for name, allowed in (("start", None), ("keep", 0), ("capacities", 1), ("rows", 1)):
            values = getattr(self, name)
            if values is None:
                continue
            if len(values) != len(self.stages):
                raise UserError(f"{name}: needs one for each of {len(self.stages)} stages, got {len(values)}")
            for value in values:
                if allowed is not None:
                    check_number(name, value, AtLeast(allowed))

    @nn.compact
    def __call__(
        self, blocks: Sequence[nn.Module], tokens: jax.Array, *, remat: Remat = "none", train: bool
    ) -> jax.Array:
        self.check(len(blocks))
        unit = 1.0 / tokens.shape[1]
        start = jnp.asarray(self.start, jnp.float32)
        thresholds = unit * self.param("thresholds", lambda _: start)
        walk = _Walk(self, blocks, thresholds, unit, remat, train)
        if train or self.mode in ("masked", "exact"):
            return walk.masked(tokens, hard=not train and self.mode == "exact")
        if self.mode == "capacity":
            return walk.capacity(tokens)
        return walk.packed(tokens)


def check_stages(stages: Sequence[int], depth: int | None = None) -> None:
    """Raises UserError for blocks that are not increasing, hold the first, or lie past the last of `depth`."""
    increasing = all(a < b for a, b in itertools.pairwise(stages))
    if not stages or not increasing or stages[0] < 1 or (depth is not None and stages[-1] >= depth):
        last = "" if depth is None else f" to {depth - 1}"
        raise UserError(
            f"stages: needs increasing blocks from 1{last}, got {', '.join(map(str, stages)) or 'none'}"
        )


class _Walk:
    """One pass through the blocks; all modes share how scores become a choice."""

    def __init__(self, encoder, blocks, thresholds, unit, remat, train):
        self.encoder, self.blocks, self.thresholds = encoder, blocks, thresholds
        self.unit, self.remat, self.train = unit, remat, train
        self.reports: dict[str, list] = collections.defaultdict(list)
        self.bounds = (0, *encoder.stages, len(blocks))

    def run(self, segment, tokens, mask, old):
        """Blocks of a segment: (tokens, the scores that count, those of the last block)."""

        def call(block, tokens, mask, *, train):
            return block(tokens, mask=mask, train=train)

        scores = None
        for i in range(self.bounds[segment], self.bounds[segment + 1]):
            made = run_block(self.blocks[i], tokens, mask, remat=self.remat, call=call, train=self.train)
            if not isinstance(made, tuple):
                raise UserError("unit: needs blocks whose attention has mix=ScoredProduct")
            tokens, scores = made
            old = self.history(
                i, old, scores.weighted if self.encoder.score == "head_weighted" else scores.mean
            )
        return tokens, old, scores

    def history(self, i, old, new):
        kind = self.encoder.history
        if kind == "last" or i <= min(_EARLY, self.encoder.stages[0] - 1) or old is None:
            return new
        return old + new if kind == "sum" else _DECAY * old + (1 - _DECAY) * new

    def choice(self, stage, score, live):
        """(score, θ) such that what stays is score > θ; tokens that are gone have -inf, live [B, N] bool says which there are."""
        kind, encoder = self.encoder.select, self.encoder
        if kind == "threshold":
            return score, self.thresholds[stage]
        if kind == "random":
            rng = encoder.make_rng("dropout") if self.train else jax.random.key(0)
            score = jax.random.uniform(jax.random.fold_in(rng, stage), score.shape)
        score = jnp.where(live, jax.lax.stop_gradient(score), -jnp.inf)
        batch, count = score.shape
        ranked, keep = score, encoder.keep[stage]
        if kind == "quantile":
            ranked, keep = score.reshape(1, -1), batch * keep
        if keep >= ranked.shape[1]:
            return score, -jnp.inf
        # Between the last that stays and the first that does not.
        return score, jax.lax.top_k(ranked, keep + 1)[0][:, -2:].mean(axis=1, keepdims=True)

    def report(self, score, theta, scores, live, kept):
        if not self.encoder.is_mutable_collection(COLLECTION):
            return  # nobody asks, and no export has a sort of a batch of any size
        # Where nothing is left the scores of what was dropped say how low a threshold has to go.
        live = live | ~live.any()
        flat = jnp.where(live, jax.lax.stop_gradient(score), jnp.nan).ravel() / self.unit
        self.reports["range"].append(jnp.nanquantile(flat, jnp.asarray(_RANGE)))
        self.reports["extremes"].append(jnp.stack([jnp.nanmin(flat), jnp.nanmax(flat)]))
        mean = jnp.where(live, scores.mean, 0.0)
        apart = jnp.abs(jnp.where(live, scores.weighted, 0.0) - mean)
        self.reports["weighting"].append(jax.lax.stop_gradient(apart.sum() / jnp.maximum(mean.sum(), 1e-12)))
        self.reports["kept"].append(kept)
        self.reports["thresholds"].append(jnp.mean(theta) / self.unit)

    def sow(self):
        encoder = self.encoder
        if encoder.is_initializing() or not encoder.is_mutable_collection(COLLECTION):
            return
        for name, values in self.reports.items():
            axis = 1 if name in ("kept", "policy") else 0
            encoder.sow(COLLECTION, name, jnp.stack(values, axis=axis))

    def masked(self, tokens, *, hard):
        """All tokens stay; [B, N] policies say what is seen."""
        encoder = self.encoder
        policy = jnp.ones((tokens.shape[0], tokens.shape[1] - 1))
        tokens, score, scores = self.run(0, tokens, None if hard else jnp.ones(tokens.shape[:2]), None)
        for stage in range(len(encoder.stages)):
            live = policy > 0.5
            seen, theta = self.choice(stage, score, live)
            if self.train and encoder.select == "threshold":
                new = threshold_mask(seen, theta, tau=encoder.temperature * self.unit)
            else:
                new = (seen > theta).astype(jnp.float32)
            # The released method replaces: a dropped token has hardly any score. Sums remember one.
            policy = policy * new if hard or encoder.history != "last" else new
            self.report(seen, theta, scores, live, policy.sum(axis=1))
            self.reports["policy"].append(policy > 0.5)
            mask = jnp.concatenate([jnp.ones_like(policy[:, :1]), policy], axis=1)
            tokens, score, scores = self.run(stage + 1, tokens, mask > 0.5 if hard else mask, score)
        self.sow()
        return tokens

    def capacity(self, tokens):
        """[B, C, D] with a mask of what there is."""
        encoder, valid = self.encoder, jnp.ones(tokens.shape[:2], bool)
        tokens, score, scores = self.run(0, tokens, None, None)
        for stage in range(len(encoder.stages)):
            room = encoder.capacities[stage] if encoder.capacities else tokens.shape[1]
            live = valid[:, 1:]
            seen, theta = self.choice(stage, score, live)
            indices, valid = _selected(seen > theta, seen, min(room, tokens.shape[1]), valid)
            self.report(seen, theta, scores, live, (valid.sum(axis=1) - 1).astype(jnp.float32))
            tokens = jnp.take_along_axis(tokens, indices[..., None], axis=1)
            score = jnp.take_along_axis(score, jnp.maximum(indices[:, 1:] - 1, 0), axis=1)
            tokens, score, scores = self.run(stage + 1, tokens, valid, score)
        self.sow()
        return tokens

    def packed(self, tokens):
        """[1, T, D]; attention and scores are padded."""
        encoder, (batch, dense, dim) = self.encoder, tokens.shape
        wanted = range(len(encoder.stages) + 1) if encoder.segment is None else (encoder.segment,)
        packing: Packing | None = None
        score: Any = None
        scores: Any = None
        fits = jnp.ones((), bool)
        if wanted[0]:
            tokens, packing, score, scores, fits = encoder.get_variable(_CARRIED, "state")
        for segment in wanted:
            if segment:
                stage = segment - 1
                seen, theta, keep, rows = self.going_on(stage, score, packing)
                valid = jnp.ones(keep.shape, bool) if packing is None else packing.valid
                self.report(seen, theta, scores, valid[:, 1:], keep[:, 1:].sum(axis=1).astype(jnp.float32))
                total = encoder.rows[stage] if encoder.rows else batch * dense
                room = encoder.capacities[stage] if encoder.capacities else dense
                places, packing, enough = _pack(keep, total, room)
                tokens = tokens.reshape(-1, dim)[rows.ravel()[places]][None]
                score = jnp.concatenate([score[:, :1], score], axis=1).ravel()[places][packing.rows][:, 1:]
                fits = fits & enough
            tokens, score, scores = self.run(segment, tokens, packing, score)
        if encoder.segment is not None and not encoder.is_initializing():
            encoder.put_variable(_CARRIED, "state", (tokens, packing, score, scores, fits))
            if encoder.segment < len(encoder.stages):
                *_, keep, _ = self.going_on(encoder.segment, score, packing)
                encoder.put_variable(_CARRIED, "lengths", keep.sum(axis=1))
        self.sow()
        if packing is None:
            return tokens[:, :1]
        return jnp.where(fits, tokens[0, packing.rows[:, :1]], jnp.nan)

    def going_on(self, stage, score, packing):
        """(score, θ) as `choice` gives them and, of the padded tokens [B, C], whether they stay and the rows that they are."""
        batch, count = score.shape[0], score.shape[1] + 1
        if packing is None:
            rows, valid = jnp.arange(batch * count).reshape(batch, count), jnp.ones((batch, count), bool)
        else:
            rows, valid = packing.rows, packing.valid
        seen, theta = self.choice(stage, score, valid[:, 1:])
        return seen, theta, valid & jnp.concatenate([valid[:, :1], seen > theta], axis=1), rows
