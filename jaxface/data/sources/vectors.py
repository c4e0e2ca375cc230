"""Embeddings as records, for what is done after a network, and files of them.

Methods: ida
"""

import os

import numpy as np

from jaxface.checks import index_array, real_array
from jaxface.data.sources.source import Record
from jaxface.errors import UserError
from jaxface.paths import local_path

_UNIT_TOLERANCE = 1e-3


class VectorSource:
    """Vectors [N, D] as records: `image` is float32 [1, D, 1].

    With `groups` [N] integers the source knows the groups of its records, whose names are their numbers.

    Raises:
      ValueError: another shape, or labels or groups that are not integers from 0.
      UserError: no vector, or one that is not finite.
    """

    def __init__(self, vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None):
        self.vectors = real_array("vectors", vectors, ndim=2).astype(np.float32)
        self.labels = index_array("labels", labels, len(self.vectors), 1 << 31).astype(np.int32)
        self.class_names = [str(k) for k in range(self.labels.max(initial=-1) + 1)]
        self.image_shape = (1, self.vectors.shape[1], 1)
        if groups is not None:
            self.groups = index_array("groups", groups, len(self.vectors), 1 << 31).astype(np.int32)
            self.group_names = [str(k) for k in range(self.groups.max() + 1)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        return {"image": self.vectors[index][None, :, None], "label": self.labels[index]}


def read_embeddings(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a .npz of embeddings, checked; labels are numbered from 0.

    Needed are `embeddings` [N, D] with `labels` [N] and `gallery` [T, D] with `gallery_labels` [T]; `groups` [N] and
    `virtual` [M, D] may be there. Rows have length 1, within 1e-3.

    Raises:
      UserError: a file that cannot be read, an array that is missing or of another shape, or rows of another length.
    """
    path = local_path("embeddings", path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"embeddings: cannot read {path}: {error}".replace("\n", " ")) from None
    for rows, labels in (("embeddings", "labels"), ("gallery", "gallery_labels")):
        for name in (rows, labels):
            if name not in arrays:
                raise UserError(
                    f"embeddings: needs an array {name!r}, {path} has {', '.join(sorted(arrays))}"
                )
        if arrays[labels].shape != (len(arrays[rows]),) or arrays[labels].dtype.kind not in "iu":
            raise UserError(
                f"embeddings: needs one integer of {labels} per row of {rows}, got {arrays[labels].dtype} "
                f"{arrays[labels].shape} for {arrays[rows].shape}"
            )
        # Any integers are labels; what follows counts on 0..C-1.
        arrays[labels] = np.unique(arrays[labels], return_inverse=True)[1]
    if "groups" in arrays:
        groups = arrays["groups"]
        if groups.shape != arrays["labels"].shape or groups.dtype.kind not in "iu":
            raise UserError(
                f"embeddings: needs one integer of groups per label, got {groups.dtype} {groups.shape}"
            )
    sizes = {name: arrays[name].shape[1:] for name in ("embeddings", "gallery", "virtual") if name in arrays}
    if len(set(sizes.values())) > 1 or len(sizes["embeddings"]) != 1:
        raise UserError(f"embeddings: need rows of one size, got {sizes}")
    for name in sizes:
        lengths = np.linalg.norm(arrays[name].astype(np.float64), axis=1)
        if not len(lengths) or not (np.abs(lengths - 1) <= _UNIT_TOLERANCE).all():
            raise UserError(f"embeddings: {name} in {path} needs rows of unit length")
    return arrays
