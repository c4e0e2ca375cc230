"""Right answers among a fixed set of classes.

Of equal scores the class with the lower number is the answer, everywhere (as argmax has it), so top-1 is
exactly accuracy, and a network that says nothing scores the share of class 0.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import checks, search
from jaxface.errors import UserError
from jaxface.metrics.recognition.verification import normalize


def correct_top_k(logits: jax.Array, labels: jax.Array, *, k: int = 1) -> jax.Array:
    """Whether the true class is among the k highest; pure and jittable, for a training step.

        #{j : z_j > z_y  or  (z_j = z_y and j < y)} < k

    Args:
      logits: [B, C] float. labels: [B] integers in [0, C), or -1 for none. k: at least 1; k >= C is always right.

    Returns:
      [B] float32, 0 or 1; 0 where the true class has a NaN, or (as far as the values are not known) is none.

    Raises:
      ValueError: shapes disagree, labels of another dtype or (where the values are known) out of range, or k < 1.

    Example:
      >>> logits, labels = jnp.array([[0.5, 0.2, 0.3]]), jnp.array([2])
      >>> correct_top_k(logits, labels).tolist(), correct_top_k(logits, labels, k=2).tolist()
      ([0.0], [1.0])
    """
    labels = checks.int32_labels("labels", labels, None if logits.ndim != 2 else logits.shape[1], low=-1)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"logits, labels: need shapes [B, C] and [B], got {logits.shape} and {labels.shape}")
    checks.check_number("k", k, checks.AtLeast(1))
    # NaN for a label that is no class; a negative index would count from the end.
    rows = jnp.where(labels < 0, logits.shape[1], labels)[:, None]
    own = jnp.take_along_axis(jnp.asarray(logits), rows, axis=1, mode="fill")
    earlier = jnp.arange(logits.shape[1]) < labels[:, None]
    above = jnp.sum((logits > own) | ((logits == own) & earlier), axis=1)
    return ((above < k) & ~jnp.isnan(own[:, 0])).astype(jnp.float32)


def top_k_accuracy(logits, labels, *, k: int = 1) -> float:
    """Fraction of rows whose true class is among the k highest (`correct_top_k`).

    Raises:
      ValueError: shapes disagree, a label outside [0, C), or k < 1. UserError: empty or not finite.

    Example:
      >>> top_k_accuracy(np.array([[0.5, 0.2, 0.3], [0.1, 0.2, 0.7]]), np.array([2, 0]), k=2)
      0.5
    """
    logits = checks.real_array("logits", logits, ndim=2)
    labels = checks.index_array("labels", labels, *logits.shape)
    return float(np.asarray(correct_top_k(jnp.asarray(logits), jnp.asarray(labels), k=k), np.float64).mean())


def accuracy(logits, labels) -> float:
    """Fraction of rows whose highest logit is the true class; arguments and refusals of `top_k_accuracy`.

    Example:
      >>> accuracy(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
      0.5
    """
    return top_k_accuracy(logits, labels, k=1)


def nearest_prototype(embeddings, prototypes, *, block: int = 4096) -> np.ndarray:
    """The class whose prototype has the largest cosine, [N] int32; `block` embeddings are compared at a time.

    Args:
      embeddings: [N, D] float, prototypes: [C, D] float; both normalized here.

    Raises:
      ValueError: not matrices, or widths differ. UserError: empty or not finite.

    Example:
      >>> nearest_prototype(np.array([[2.0, 0.1], [0.0, 3.0]]), np.eye(2)).tolist()
      [0, 1]
    """
    embeddings = checks.real_array("embeddings", embeddings, ndim=2)
    prototypes = checks.real_array("prototypes", prototypes, ndim=2)
    if embeddings.shape[1] != prototypes.shape[1]:
        raise ValueError(
            f"embeddings, prototypes: need one width, got {embeddings.shape} and {prototypes.shape}"
        )
    _, ids = search.nearest(normalize(embeddings), normalize(prototypes), 1, query_block=block)
    return np.asarray(ids[:, 0])


def nearest_prototype_accuracy(embeddings, prototypes, labels, *, block: int = 4096) -> float:
    """Fraction of embeddings [N, D] whose nearest prototype [C, D] is that of their class.

    Labels are [N] integers in [0, C); the rest, and what is refused, as `nearest_prototype`.

    Example:
      >>> nearest_prototype_accuracy(np.array([[2.0, 0.1], [0.0, 3.0]]), np.eye(2), np.array([0, 0]))
      0.5
    """
    predicted = nearest_prototype(embeddings, prototypes, block=block)
    return float((predicted == checks.index_array("labels", labels, len(predicted), len(prototypes))).mean())


def confusion_matrix(predicted, labels, *, num_classes: int) -> np.ndarray:
    """Counts [C, C] int64: row = true class, column = answer.

    Raises:
      ValueError: shapes disagree or a class outside [0, num_classes). UserError: empty.

    Example:
      >>> confusion_matrix([0, 1, 1], [0, 0, 1], num_classes=2).tolist()
      [[1, 1], [0, 1]]
    """
    labels = np.asarray(labels)
    if labels.size == 0:
        raise UserError("labels: needs at least one value, got none")
    labels = checks.index_array("labels", labels, labels.size, num_classes)
    predicted = checks.index_array("predicted", predicted, labels.size, num_classes)
    flat = np.bincount(labels * num_classes + predicted, minlength=num_classes * num_classes)
    return flat.reshape(num_classes, num_classes)


def per_class_accuracy(predicted, labels, *, num_classes: int) -> np.ndarray:
    """Fraction right of each class, [C]; NaN for a class that does not occur, so use `np.nanmean`.

    Example:
      >>> per_class_accuracy([0, 1, 1], [0, 0, 1], num_classes=3).tolist()
      [0.5, 1.0, nan]
    """
    counts = confusion_matrix(predicted, labels, num_classes=num_classes)
    occurrences = counts.sum(axis=1)
    return np.where(occurrences > 0, np.diag(counts) / np.maximum(occurrences, 1), np.nan)


def mean_class_accuracy(predicted, labels, *, num_classes: int) -> float:
    """Mean of `per_class_accuracy` over the classes that occur: what a rare class says counts as much as a frequent one.

    Example:
      >>> mean_class_accuracy([0, 1, 1, 0], [0, 0, 1, 0], num_classes=3).__round__(4)
      0.8333
    """
    return float(np.nanmean(per_class_accuracy(predicted, labels, num_classes=num_classes)))


def macro_f1(predicted, labels, *, num_classes: int) -> float:
    """Mean over the classes of the harmonic mean of precision and recall.

        F1_c = 2 M_cc / (Σ_j M_cj + Σ_i M_ic),      M the confusion matrix

    Over the classes that occur, as truth or as an answer.

    Example:
      >>> macro_f1([0, 1, 1, 0], [0, 0, 1, 0], num_classes=3).__round__(4)  # 4/5 and 2/3
      0.7333
    """
    counts = confusion_matrix(predicted, labels, num_classes=num_classes)
    both = counts.sum(axis=0) + counts.sum(axis=1)
    return float((2 * np.diag(counts)[both > 0] / both[both > 0]).mean())
