"""IJB-B and IJB-C as InsightFace lays them out: images, which template and medium each belongs to, and pairs of templates.

    <root>/loose_crop/<image>
    <root>/meta/<set>_face_tid_mid.txt          image, template, medium
    <root>/meta/<set>_name_5pts_score.txt       image, five landmarks x y, score of the detector; same order
    <root>/meta/<set>_template_pair_label.txt   template, template, 1 for one person and 0 for two

Methods: ida
"""

import logging
import os
import pathlib

import cv2
import numpy as np

from jaxface.data.sources.images import CorruptImage, decode_image
from jaxface.data.sources.source import Record
from jaxface.data.transforms.alignment import align_face
from jaxface.errors import UserError
from jaxface.metrics.recognition.pairs import Pairs
from jaxface.paths import local_path, name_text

_CROP = 112  # side at which the five-point template is defined
_log = logging.getLogger("jaxface.data")


class TemplateSource:
    """Images that count in templates: many images of one person are compared as one (`jaxface.metrics.aggregate_templates`).

    A record has `image`, aligned by its landmarks, `label`, the number of its template, and `weight`, the detector's score; an
    image that cannot be read is black, has weight 0, and is counted in `corrupt`.

    Attributes:
      template_ids, media_ids: [N] int64, as the files have them.
      labels: [N] int32, number of the template in [0, T), in the order of the ids.
      class_names: the ids of the T templates as text, rising.
      pairs: pairs of templates by their numbers, not of images.
      image_shape: (image_size, image_size, 3).
      corrupt: numbers of the images that could not be read, as far as they were asked for.
    """

    def __init__(self, root: str | os.PathLike, *, image_size: int = _CROP):
        """Opens a set; no image is read yet.

        Args:
          root: the folder of the set.
          image_size: side of every image, pixels; faces are aligned at 112 and resized to another size.

        Raises:
          UserError: a file that is missing or has other columns, files that disagree, an image name that leaves the folder, a
            template without an image, landmarks that are not finite, or scores that are negative.
        """
        self._root = local_path("templates", root)
        meta = self._root / "meta"
        listings = sorted(meta.glob("*_face_tid_mid.txt"))
        if len(listings) != 1:
            raise UserError(
                f"templates: needs one meta/<set>_face_tid_mid.txt, {name_text(self._root)} has {len(listings)}"
            )
        prefix = listings[0].name.removesuffix("_face_tid_mid.txt")
        names, numbers = _named_rows(listings[0], 2)
        same_names, values = _named_rows(meta / f"{prefix}_name_5pts_score.txt", 11)
        if names != same_names:
            raise UserError(
                f"templates: both lists of images in {name_text(meta)} need the same names in one order"
            )
        self.template_ids, self.media_ids = numbers.astype(np.int64).T
        if not np.isfinite(values).all() or (values[:, 10] < 0).any():
            raise UserError(
                f"templates: landmarks and scores in {name_text(meta)} need to be finite, scores ≥ 0"
            )
        self._names, self._landmarks = names, values[:, :10].reshape(-1, 5, 2)
        self._weights = values[:, 10].astype(np.float32)
        ids, labels = np.unique(self.template_ids, return_inverse=True)
        self.labels, self.class_names = labels.astype(np.int32), [str(i) for i in ids]
        table = _numbers(meta / f"{prefix}_template_pair_label.txt", 3, np.int64)
        indices = np.minimum(np.searchsorted(ids, table[:, :2]), len(ids) - 1)
        missing = table[:, :2][ids[indices] != table[:, :2]]
        if len(missing):
            raise UserError(
                f"templates: template {missing[0]} of the pairs has no image in {name_text(listings[0])}"
            )
        if not np.isin(table[:, 2], (0, 1)).all():
            raise UserError(f"templates: the labels of pairs in {name_text(meta)} need to be 0 or 1")
        self.pairs = Pairs(indices.astype(np.int32), table[:, 2] == 1, folds=1)
        self.image_shape, self.corrupt = (image_size, image_size, 3), set()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        size, weight = self.image_shape[0], self._weights[index]
        try:
            image = decode_image(self._root / "loose_crop" / self._names[index])
            face = align_face(image, self._landmarks[index], _CROP)
            if size != _CROP:
                face = cv2.resize(face, (size, size), interpolation=cv2.INTER_AREA)
        except (CorruptImage, UserError) as error:
            if not self.corrupt:
                _log.warning(
                    "left out %s and any other image that cannot be used: %s", self._names[index], error
                )
            self.corrupt.add(int(index))
            face, weight = np.zeros(self.image_shape, np.uint8), np.float32(0)
        return {"image": face, "label": self.labels[index], "weight": weight}


def _named_rows(path: pathlib.Path, columns: int) -> tuple[list[str], np.ndarray]:
    """Names [N] and the numbers [N, columns] behind them."""
    try:
        lines = [line.split() for line in path.read_text("utf-8").splitlines() if line.strip()]
        if not lines or any(len(line) != columns + 1 for line in lines):
            raise ValueError(f"needs a name and {columns} numbers per line")
        names = [line[0] for line in lines]
        if any(pathlib.PurePosixPath(name).is_absolute() or ".." in name.split("/") for name in names):
            raise ValueError("names an image outside of its folder")
        return names, np.array([line[1:] for line in lines], np.float64)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _numbers(path: pathlib.Path, columns: int, dtype: type) -> np.ndarray:
    """[P, columns] numbers; the files of IJB-C have 16 million lines."""
    try:
        table = np.loadtxt(path, dtype=dtype, ndmin=2)
        if table.shape[1] != columns or not len(table):
            raise ValueError(f"needs {columns} numbers per line")
        return table
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: pathlib.Path, error: Exception) -> UserError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UserError(f"templates: cannot read {name_text(path)}: {reason}".replace("\n", " "))
