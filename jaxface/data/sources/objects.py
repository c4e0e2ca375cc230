"""Objects in an image as fields of a record: boxes of one number of rows, whatever the image holds.

Coordinates are float32 pixels, continuous with the origin at the image's top-left corner: boxes (y0, x0, y1, x1), points (x, y).
"""

from collections.abc import Sequence

import numpy as np

from jaxface.data.sources.source import Record

POINTS = 5  # eyes, nose, corners of the mouth, left to right as seen in the image
OBJECT_FIELDS = ("boxes", "box_mask", "box_label", "box_crowd", "landmarks", "landmark_mask")


def object_fields(
    boxes: np.ndarray,
    *,
    image_size: Sequence[int],
    max_objects: int,
    original_size: Sequence[int] | None = None,
    labels: np.ndarray | None = None,
    crowd: np.ndarray | None = None,
    landmarks: np.ndarray | None = None,
    landmark_mask: np.ndarray | None = None,
) -> Record:
    """The fields of a record about n <= M objects, padded to M rows.

    Args:
      boxes: [n, 4].
      image_size: (height, width) of what is valid in the image, before padding.
      max_objects: M.
      original_size: (height, width) of the image in its file; `image_size` unless given.
      labels: [n] classes; zeros unless given.
      crowd: [n] bool, regions to ignore; none unless given.
      landmarks: [n, 5, 2] and landmark_mask [n] bool, whose are known; none unless given.

    Returns:
      `boxes` [M, 4] float32, (0, 0, 1, 1) where there is no object; `box_mask` [M] bool; `box_label` [M] int32; `box_crowd` [M]
      bool; `landmarks` [M, 5, 2] float32, zeros where unknown; `landmark_mask` [M] bool; `image_size` and `original_size` [2] int32.

    Raises:
      ValueError: more than M objects.
    """
    count = len(boxes)
    if count > max_objects:
        raise ValueError(f"boxes: needs at most {max_objects} objects, got {count}")

    def padded(values, shape, dtype, fill=0):
        rows = np.full((max_objects, *shape), fill, dtype)
        if values is not None and count:
            rows[:count] = values
        return rows

    known = padded(landmark_mask, (), bool)
    return {
        "boxes": padded(boxes, (4,), np.float32, (0, 0, 1, 1)),
        "box_mask": np.arange(max_objects) < count,
        "box_label": padded(labels, (), np.int32),
        "box_crowd": padded(crowd, (), bool),
        "landmarks": np.where(
            known[:, None, None], padded(landmarks, (POINTS, 2), np.float32), np.float32(0)
        ),
        "landmark_mask": known,
        "image_size": np.asarray(image_size, np.int32),
        "original_size": np.asarray(image_size if original_size is None else original_size, np.int32),
    }
