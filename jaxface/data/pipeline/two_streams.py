"""Images with labels and images without, side by side in every batch.

Methods: dcp_nas, ota, pseco
"""

import hashlib
from typing import Annotated

import numpy as np

from jaxface.checks import AtLeast, Range, check_number, integer_array
from jaxface.data.pipeline.buckets import BucketOrder
from jaxface.errors import UserError

Percent = Annotated[float, Range(0, 100, above=True)]


def labeled_split(count: int, percent: float, *, fold: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Which images have labels, by the rule of semi-supervised COCO (arXiv:2005.04757, 2203.16317).

    ⌊percent / 100 · count⌋ images without replacement, drawn by NumPy's legacy generator with the fold as its seed: on COCO's
    118,287 training images in the order of their file, the published folds 1 to 5. At 100 % no image is left without labels.

    Args:
      count: images. percent: in (0, 100]; 1, 2, 5 and 10 are published. fold: ≥ 0.

    Returns:
      (with labels, without), sorted numbers of images.

    Raises:
      UserError: no image would have labels, or a number out of its range.

    Example:
      >>> labeled, unlabeled = labeled_split(118_287, 1, fold=1)
      >>> len(labeled), len(unlabeled)
      (1182, 117105)
    """
    check_number("percent", percent, Range(0, 100, above=True))
    check_number("fold", fold, AtLeast(0))
    number = int(percent / 100.0 * count)
    if number < 1:
        raise UserError(
            f"percent: needs at least {100 / max(count, 1):.3g} for one of {count} images to have labels, got {percent:g}"
        )
    labeled = np.sort(np.random.RandomState(fold).choice(count, number, replace=False))
    return labeled, np.setdiff1d(np.arange(count), labeled)


class TwoStreams:
    """A strategy for `jaxface.data.batches`: groups of one image with labels and `ratio` without, all of one shape.

    Images without labels come once each in an epoch, as `BucketOrder` has them; those with labels are drawn anew for every step,
    without replacement where there are enough. Row 0 of every group has labels, so that any shard of whole groups has its share.

    Args:
      labeled, unlabeled: numbers of records.
      ratio: images without labels for each with labels, ≥ 1.
      buckets: [N] integers, the shape of every record's image; one shape unless given.

    Raises:
      UserError: no image with labels or none without, or a shape that has images without labels and none with.
    """

    def __init__(
        self,
        labeled: np.ndarray,
        unlabeled: np.ndarray,
        *,
        ratio: int = 4,
        buckets: np.ndarray | None = None,
    ):
        check_number("ratio", ratio, AtLeast(1))
        labeled, unlabeled = integer_array("labeled", labeled), integer_array("unlabeled", unlabeled)
        for name, numbers in (("labeled", labeled), ("unlabeled", unlabeled)):
            if not len(numbers):
                raise UserError(f"{name}: needs at least one image, got none")
        shapes = np.zeros(max(labeled.max(), unlabeled.max()) + 1, int) if buckets is None else buckets
        self._unlabeled, self._ratio = unlabeled, ratio
        self._order = BucketOrder(shapes[unlabeled])
        self._shapes = shapes
        self._labeled = {int(k): labeled[shapes[labeled] == k] for k in np.unique(shapes[unlabeled])}
        if empty := [k for k, numbers in self._labeled.items() if not len(numbers)]:
            raise UserError(
                f"labeled: needs an image of each shape that images without labels have, none is of shape {empty[0]}"
            )
        digest = hashlib.sha256(
            np.asarray(labeled, "<i8").tobytes() + b"|" + np.asarray(unlabeled, "<i8").tobytes()
        )
        self.name = f"two streams, 1 to {ratio}, {digest.hexdigest()[:16]}"

    def __call__(self, step: int, *, batch_size: int, seed: int) -> np.ndarray:
        """[batch_size] numbers of records; see `samplers.Order`.

        Raises:
          UserError: the batch is not of whole groups, or no shape fills it.
        """
        group = 1 + self._ratio
        if batch_size % group:
            raise UserError(
                f"batch_size: needs a multiple of {group}, one image with labels and {self._ratio} without, got {batch_size}"
            )
        groups = batch_size // group
        rows = self._unlabeled[self._order(step, batch_size=groups * self._ratio, seed=seed)]
        own = self._labeled[int(self._shapes[rows[0]])]
        drawn = np.random.default_rng([seed, step, 1]).choice(own, groups, replace=groups > len(own))
        return np.concatenate([drawn[:, None], rows.reshape(groups, self._ratio)], axis=1).ravel()
