"""NCL++: experts, and copies of an image, that learn from each other under a long tail (arXiv:2306.16709, 2203.15359)."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxface.checks import AtLeast, Integers, NonNegative, Positive, check_number, int32_labels
from jaxface.errors import UserError
from jaxface.layers.prototypes import l2_normalize
from jaxface.losses.long_tail import balanced_logits
from jaxface.losses.softmax import cross_entropy

HcmMode = Literal["restrict", "zero"]
_MODES = ("restrict", "zero")
_ABSENT = -1e30


def hard_category_mask(logits: jax.Array, labels: jax.Array, *, num_hard: int) -> jax.Array:
    """The right class and the H - 1 classes that score highest beside it (hard category mining).

    The scores are raw ones: under the counts of `balanced_logits` the frequent classes would be the hard ones.

    Args:
      logits: [R, C] float; no gradient passes.
      labels: [R] integers in [0, C).
      num_hard: H in [2, C], the right class among them.

    Returns:
      [R, C] float32 of ones and zeros, H ones in a row.

    Raises:
      AssertionError, ValueError: other shapes, or a label out of range. UserError: H outside [2, C].

    Example:
      >>> hard_category_mask(jnp.array([[1.0, 3.0, 2.0]]), jnp.array([0]), num_hard=2).tolist()
      [[1.0, 1.0, 0.0]]
    """
    chex.assert_rank([logits, labels], [2, 1], custom_message="logits must be [R, C] and labels [R]")
    chex.assert_equal_shape_prefix([logits, labels], 1, custom_message="logits and labels differ in rows")
    check_number("num_hard", num_hard, Integers(2, logits.shape[1]))
    labels = int32_labels("labels", labels, logits.shape[1])
    right = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    scores = jnp.where(right, jnp.inf, jax.lax.stop_gradient(logits).astype(jnp.float32))
    _, hardest = jax.lax.top_k(scores, num_hard)
    return jnp.zeros(logits.shape).at[jnp.arange(len(logits))[:, None], hardest].set(1.0)


def partial_logits(balanced: jax.Array, mask: jax.Array, *, mode: HcmMode = "restrict") -> jax.Array:
    """Logits of the partial view: those off the mask count as absent ("restrict"), or are 0 ("zero", as released code has it).

    Raises:
      UserError: another mode.
    """
    if mode not in _MODES:
        raise UserError(f"mode: needs one of {', '.join(_MODES)}, got {mode!r}")
    return jnp.where(mask > 0, balanced, jnp.asarray(_ABSENT if mode == "restrict" else 0.0, balanced.dtype))


def partial_cross_entropy(
    balanced: jax.Array, labels: jax.Array, mask: jax.Array, *, mode: HcmMode = "restrict"
) -> jax.Array:
    """Cross-entropy among the hard classes.

    With "zero" every class off the mask still adds e⁰ to the sum, so that the gradient of a row does not sum to 0.

    Args:
      balanced: [R, C] float. labels: [R] integers in [0, C). mask: [R, C], of `hard_category_mask`.
      mode: "restrict", a softmax over the hard classes; or "zero", in which the other logits are 0.

    Returns:
      [R] float32, ≥ 0.

    Raises:
      AssertionError, ValueError: other shapes, or a label out of range. UserError: another mode.

    Example:
      >>> logits, mask = jnp.array([[1.0, 1.0, 9.0]]), jnp.array([[1.0, 1.0, 0.0]])
      >>> round(float(partial_cross_entropy(logits, jnp.array([0]), mask)[0]), 4)  # log 2
      0.6931
    """
    chex.assert_equal_shape([balanced, mask], custom_message="balanced and mask must be [R, C]")
    return cross_entropy(partial_logits(balanced, mask, mode=mode), labels)


def pairwise_sym_kl(log_probs: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Mean symmetric KL divergence over the pairs of P distributions, all of which receive gradients.

        D = 2 / (P (P - 1)) Σ_{i<j} mean_r Σ_c m_rc (p_i - p_j)(l_i - l_j),        p = exp l

    The sum over pairs is computed as P Σ_i (p_i - p̄)(l_i - l̄), which costs no pairs.

    Args:
      log_probs: [P, R, C] float, each row a log-softmax.
      mask: [R, C], classes that count; probabilities are not normalized over them again. None for all.

    Returns:
      [] float, ≥ 0; 0 for one distribution.

    Raises:
      AssertionError: other shapes.

    Example:
      >>> p = jnp.log(jnp.array([[[0.75, 0.25]], [[0.25, 0.75]]]))
      >>> round(float(pairwise_sym_kl(p)), 4)  # log 3
      1.0986
    """
    chex.assert_rank(log_probs, 3, custom_message="log_probs must be [P, R, C]")
    count = len(log_probs)
    if count == 1:
        return jnp.zeros((), log_probs.dtype)
    probs = jnp.exp(log_probs)
    products = (probs - probs.mean(0)) * (log_probs - log_probs.mean(0))
    if mask is not None:
        chex.assert_equal_shape([log_probs[0], mask], custom_message="mask must be [R, C]")
        products = products * mask
    return 2 / (count - 1) * products.sum((0, 2)).mean()


def _checked(logits: jax.Array, labels: jax.Array, copies: int) -> jax.Array:
    chex.assert_rank([logits, labels], [3, 1], custom_message="logits must be [K, R, C] and labels [R]")
    chex.assert_equal(logits.shape[1], len(labels))
    check_number("copies", copies, AtLeast(1))
    if logits.shape[1] % copies:
        raise ValueError(f"copies: needs a divisor of the {logits.shape[1]} rows, got {copies}")
    labels = int32_labels("labels", labels, logits.shape[2])
    if not isinstance(labels, jax.core.Tracer):
        blocks = np.asarray(labels).reshape(copies, -1)
        if (blocks != blocks[0]).any():
            raise ValueError(
                f"labels: needs the same ones for each of {copies} copies, one copy after another"
            )
    return labels


def ncl_pp_loss(
    logits: jax.Array,
    labels: jax.Array,
    counts: jax.Array,
    *,
    copies: int,
    lam: float | jax.Array = 0.6,
    num_hard: int,
    hcm_mode: HcmMode = "restrict",
    hcm_ratio: float = 1.0,
    inter: bool = True,
    intra: bool = True,
    partial_view: bool = True,
    balanced_distillation: bool = True,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Nested collaborative learning (arXiv:2306.16709).

        L = Σ_k mean_r CE(b^k, y) + r Σ_k mean_r CE(b^k among hard classes, y)
            + λ (D + D_m)(experts) + λ Σ_k (D + D_m)(copies seen by expert k)

    with b = z + log n, D `pairwise_sym_kl` of the softmax of b, and m the `hard_category_mask` of the first expert's raw logits,
    which all share; among copies, its rows of the first copy. Nothing is detached.

    Args:
      logits: [K, R, C] float, raw logits of K experts; the rows are T blocks of R / T, one copy of every image after another.
      labels: [R] integers in [0, C), the same in each block.
      counts: [C] training examples of each class, > 0.
      copies: T ≥ 1.
      lam: λ ≥ 0, weight of the agreement.
      num_hard: H in [2, C].
      hcm_mode: as of `partial_cross_entropy`.
      hcm_ratio: r ≥ 0; 0 leaves the partial classification out.
      inter, intra: whether experts, and whether copies, learn from each other.
      partial_view: whether D_m counts.
      balanced_distillation: whether D compares softmaxes of b, or of z.

    Returns:
      ([] float loss, {"full", "hcm", "inter", "intra"}: its terms, weights included).

    Raises:
      AssertionError, ValueError: other shapes, rows that T does not divide, labels out of range or others for another copy.
      UserError: counts that are not positive, H outside [2, C], or a negative weight.

    Example:
      >>> logits = jnp.zeros((2, 4, 3))
      >>> loss, terms = ncl_pp_loss(logits, jnp.array([0, 1, 0, 1]), jnp.ones(3), copies=2, num_hard=3)
      >>> round(float(loss), 4), float(terms["inter"])  # 4 log 3
      (4.3944, 0.0)
    """
    labels = _checked(logits, labels, copies)
    if not isinstance(lam, jax.core.Tracer):
        check_number("lam", float(lam), NonNegative)
    check_number("hcm_ratio", hcm_ratio, NonNegative)
    balanced = balanced_logits(logits, counts)
    mask = hard_category_mask(logits[0], labels, num_hard=num_hard).astype(balanced.dtype)
    log_probs = jax.nn.log_softmax(balanced if balanced_distillation else logits.astype(balanced.dtype))

    def agreement(log_probs, mask):
        distance = pairwise_sym_kl(log_probs)
        return lam * (distance + pairwise_sym_kl(log_probs, mask) if partial_view else distance)

    def summed(loss):
        return jax.vmap(loss)(balanced).mean(1).sum()

    zero = jnp.zeros((), balanced.dtype)
    terms = {"full": summed(lambda b: cross_entropy(b, labels)), "hcm": zero, "inter": zero, "intra": zero}
    if hcm_ratio:
        terms["hcm"] = hcm_ratio * summed(lambda b: partial_cross_entropy(b, labels, mask, mode=hcm_mode))
    if inter:
        terms["inter"] = agreement(log_probs, mask)
    if intra:
        rows = logits.shape[1] // copies
        blocks = log_probs.reshape(len(logits), copies, rows, -1)
        terms["intra"] = jax.vmap(lambda blocks: agreement(blocks, mask[:rows]))(blocks).sum()
    return jnp.stack([*terms.values()]).sum(), terms


def ncl_loss(
    logits: jax.Array,
    labels: jax.Array,
    counts: jax.Array,
    *,
    lam: float | jax.Array = 0.6,
    num_hard: int,
    hcm_mode: HcmMode = "zero",
    hcm_ratio: float = 1.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Nested collaborative learning as first published (arXiv:2203.15359), without its contrastive branch.

        L = Σ_k mean_r CE(b^k, y) + r Σ_k mean_r CE(b̂^k, y) + λ / (K - 1) Σ_{i≠j} mean_r [KL(p_j ‖ p_i) + KL(p̂_j ‖ p̂_i)]

    p is the softmax of b = z + log n, p̂ that of the partial logits b̂. Dividing by K - 1, this weighs agreement K / 2 times what
    `ncl_pp_loss` does.

    Args:
      logits: [K, R, C] float, raw logits of K experts.
      labels: [R] integers in [0, C).
      counts: [C] training examples of each class, > 0.
      lam, num_hard, hcm_mode, hcm_ratio: as of `ncl_pp_loss`.

    Returns:
      ([] float loss, {"full", "hcm", "inter"}: its terms, weights included).

    Raises:
      AssertionError, ValueError, UserError: as `ncl_pp_loss`.

    Example:
      >>> loss, _ = ncl_loss(jnp.zeros((2, 4, 3)), jnp.array([0, 1, 0, 1]), jnp.ones(3), num_hard=3)
      >>> round(float(loss), 4)  # 4 log 3
      4.3944
    """
    labels = _checked(logits, labels, 1)
    if not isinstance(lam, jax.core.Tracer):
        check_number("lam", float(lam), NonNegative)
    check_number("hcm_ratio", hcm_ratio, NonNegative)
    balanced = balanced_logits(logits, counts)
    mask = hard_category_mask(logits[0], labels, num_hard=num_hard)
    hard = partial_logits(balanced, mask, mode=hcm_mode)

    def summed(logits):
        return jax.vmap(lambda z: cross_entropy(z, labels))(logits).mean(1).sum()

    def agreement(logits):
        return len(logits) / 2 * pairwise_sym_kl(jax.nn.log_softmax(logits))

    terms = {
        "full": summed(balanced),
        "hcm": hcm_ratio * summed(hard),
        "inter": lam * (agreement(balanced) + agreement(hard)),
    }
    return jnp.stack([*terms.values()]).sum(), terms


def moco_nce(queries: jax.Array, keys: jax.Array, queue: jax.Array, *, temperature: float = 0.2) -> jax.Array:
    """Contrast of two views of an image with a queue of others (arXiv:1911.05722, equation 1), NCL's optional branch.

        L_i = -log( e^{⟨q_i, k_i⟩ / τ} / (e^{⟨q_i, k_i⟩ / τ} + Σ_j e^{⟨q_i, u_j⟩ / τ}) ),        q, k of unit length

    Args:
      queries: [B, D] float. keys: [B, D], of the same images; constants.
      queue: [D, Q], a unit vector in each column; constants.
      temperature: τ > 0.

    Returns:
      [B] float32, ≥ 0.

    Raises:
      AssertionError: other shapes. UserError: a temperature that is not positive.

    Example:
      >>> q = jnp.array([[1.0, 0.0]])
      >>> round(float(moco_nce(q, q, jnp.array([[1.0], [0.0]]))[0]), 4)  # log 2: the queue holds the key itself
      0.6931
    """
    chex.assert_rank([queries, keys, queue], 2)
    chex.assert_equal_shape([queries, keys])
    chex.assert_equal(queue.shape[0], queries.shape[1])
    check_number("temperature", temperature, Positive)
    queries = l2_normalize(queries.astype(jnp.float32))
    keys = jax.lax.stop_gradient(l2_normalize(keys.astype(jnp.float32)))
    same = jnp.sum(queries * keys, axis=1, keepdims=True)
    others = queries @ jax.lax.stop_gradient(queue.astype(jnp.float32))
    scores = jnp.concatenate([same, others], axis=1) / temperature
    return cross_entropy(scores, jnp.zeros(len(scores), jnp.int32))


def queue_push(queue: jax.Array, pointer: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The queue of `moco_nce` with the oldest columns replaced by the directions of new keys.

    Args:
      queue: [D, Q]. pointer: [] int32, the oldest column, a multiple of B. keys: [B, D], B a divisor of Q.

    Returns:
      (queue, pointer).

    Raises:
      AssertionError: other shapes. UserError: a batch that does not divide Q.

    Example:
      >>> queue, pointer = queue_push(jnp.zeros((1, 2)), jnp.int32(1), jnp.array([[3.0]]))
      >>> queue.tolist(), int(pointer)
      ([[0.0, 1.0]], 0)
    """
    chex.assert_rank([queue, keys], 2)
    chex.assert_equal(queue.shape[0], keys.shape[1])
    size, count = queue.shape[1], len(keys)
    if size % count:
        raise UserError(f"queue: needs a length that the batch divides, got {size} for {count} keys")
    columns = jax.lax.stop_gradient(l2_normalize(keys)).T.astype(queue.dtype)
    return jax.lax.dynamic_update_slice(queue, columns, (0, pointer)), (pointer + count) % size
