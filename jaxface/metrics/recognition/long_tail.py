"""Accuracy where training classes were of unequal size, and how far several networks agree.

Methods: nclpp
"""

import numpy as np

from jaxface.checks import NonNegative, check_number, index_array, integer_array, real_array
from jaxface.errors import UserError


def split_accuracy(
    predicted, labels, counts, *, many_above: float = 100, few_below: float = 20
) -> dict[str, float]:
    """Mean accuracy over the test images of frequent, middling and rare classes (arXiv:1904.05160).

        many n_c > 100,  medium 20 ≤ n_c ≤ 100,  few n_c < 20

    Args:
      predicted: [N] integers in [0, C). labels: [N] integers in [0, C).
      counts: [C] training examples of each class.
      many_above, few_below: the two thresholds.

    Returns:
      {"many", "medium", "few"}, those of which there is a test image.

    Raises:
      ValueError: shapes disagree, or a class out of range. UserError: thresholds that overlap.

    Example:
      >>> split_accuracy([0, 1, 0], [0, 1, 2], [500, 50, 5])
      {'many': 1.0, 'medium': 1.0, 'few': 0.0}
    """
    check_number("few_below", few_below, NonNegative)
    if few_below > many_above:
        raise UserError(f"few_below: needs at most many_above, {many_above:g}, got {few_below:g}")
    counts = integer_array("counts", np.asarray(counts))
    labels = integer_array("labels", np.asarray(labels))
    labels = index_array("labels", labels, len(labels), len(counts))
    predicted = index_array("predicted", np.asarray(predicted), len(labels), len(counts))
    right, size = predicted == labels, counts[labels]
    rows = {
        "many": size > many_above,
        "medium": (size >= few_below) & (size <= many_above),
        "few": size < few_below,
    }
    return {name: float(right[row].mean()) for name, row in rows.items() if row.any()}


def disagreement(predicted) -> float:
    """Fraction of images for which several networks do not all say the same class.

    Args:
      predicted: [K, N] integers, the class that each network says.

    Raises:
      ValueError: another shape. UserError: no image.

    Example:
      >>> disagreement([[0, 1, 2, 3], [0, 1, 2, 0]])
      0.25
    """
    predicted = np.asarray(predicted)
    if predicted.ndim != 2 or not len(predicted):
        raise ValueError(f"predicted: needs [K, N], got {predicted.shape}")
    if not predicted.shape[1]:
        raise UserError("predicted: needs at least one image, got none")
    return float((predicted != predicted[0]).any(axis=0).mean())


def mean_pairwise_divergence(log_probs) -> float:
    """Mean symmetric KL divergence over pairs of networks and images, KL(p ‖ q) + KL(q ‖ p), in nats.

    Args:
      log_probs: [K, N, C] float, each row a log-softmax.

    Returns:
      ≥ 0; 0 for one network.

    Raises:
      ValueError: another shape. UserError: empty or not finite.

    Example:
      >>> round(mean_pairwise_divergence(np.log([[[0.75, 0.25]], [[0.25, 0.75]]])), 4)  # log 3
      1.0986
    """
    log_probs = real_array("log_probs", log_probs, ndim=3)
    if len(log_probs) == 1:
        return 0.0
    probs = np.exp(log_probs)
    products = (probs - probs.mean(0)) * (log_probs - log_probs.mean(0))
    return float(2 / (len(log_probs) - 1) * products.sum((0, 2)).mean())
