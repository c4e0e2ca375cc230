"""How well a selection of examples keeps right labels and leaves wrong ones out.

Methods: mda
"""

from typing import NamedTuple

import numpy as np

from jaxface.checks import integer_array, truth_array


class LabelSelection(NamedTuple):
    """Shares; NaN where there is nothing to be counted."""

    precision: float
    recall: float
    fraction: float


def label_selection(selected: np.ndarray, labels: np.ndarray, true_labels: np.ndarray) -> LabelSelection:
    """Of a selection of examples: `precision`, the share of right labels among the selected; `recall`, the share of the right
    labels that is selected; `fraction`, the share of the examples that is selected.

    Args:
      selected: [N] bool.
      labels: [N] integers, the given ones.
      true_labels: [N] integers.

    Raises:
      ValueError: arrays of other lengths or types.

    Example:
      >>> label_selection(np.array([True, True, False, False]), [0, 1, 2, 3], [0, 0, 2, 0])
      LabelSelection(precision=0.5, recall=0.5, fraction=0.5)
    """
    labels = integer_array("labels", labels)
    right = labels == integer_array("true_labels", true_labels, len(labels))
    selected = truth_array("selected", selected, len(labels))
    both = float((selected & right).sum())

    def share(part: float, whole: float) -> float:
        return float(part / whole) if whole else float("nan")

    return LabelSelection(
        share(both, selected.sum()), share(both, right.sum()), share(selected.sum(), len(labels))
    )
