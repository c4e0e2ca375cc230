"""IJB-B and IJB-C as InsightFace lays them out: images, which template and medium each belongs to, and what is compared.

    <root>/loose_crop/<image>
    <root>/meta/<set>_face_tid_mid.txt          image, template, medium
    <root>/meta/<set>_name_5pts_score.txt       image, five landmarks x y, score of the detector; same order
    <root>/meta/<set>_template_pair_label.txt   template, template, 1 for one person and 0 for two
    <root>/meta/<set>_1N_gallery_G1.csv         template, person, …; and G2: two galleries (S1 and S2 in IJB-B)
    <root>/meta/<set>_1N_probe_mixed.csv        template, person, …

Methods: ida
"""

import os
import pathlib

import cv2
import numpy as np

from jaxface.data.sources.annotated import read_lines
from jaxface.data.sources.images import decode_image
from jaxface.data.sources.listed_faces import ListedFaces, check_names
from jaxface.data.sources.listing import contents
from jaxface.data.transforms.alignment import align_face
from jaxface.errors import UserError
from jaxface.metrics.recognition.benchmarks import TemplateSearch, template_report
from jaxface.metrics.recognition.pairs import Pairs
from jaxface.metrics.recognition.templates import aggregate_templates
from jaxface.paths import name_text, reaching, reason_of, user_path

_CROP = 112  # side at which the five-point template is defined


class TemplateSource(ListedFaces):
    """Images that count in templates: many images of one person are compared as one (`jaxface.metrics.aggregate_templates`).

    A record has `image`, aligned by its landmarks, `label`, the number of its template, and `weight`, the detector's score; an
    image that cannot be read is black, has weight 0, and is counted in `corrupt`.

    Attributes:
      template_ids, media_ids: [N] int64, as the files have them.
      labels: [N] int32, number of the template in [0, T), in the order of the ids.
      class_names: the ids of the T templates as text, rising.
      pairs: pairs of templates by their numbers, not of images; the 1:1 protocol.
      search: the 1:N protocol, templates by their numbers; None where the set has no lists of it.
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
            template without an image, landmarks that are not finite, scores that are negative, or of the lists of 1:N some alone,
            somebody with two templates in a gallery, or in both.
        """
        root = user_path("templates", root)
        meta = root / "meta"
        listings = _named(meta, "_face_tid_mid.txt")
        if len(listings) != 1:
            raise UserError(
                f"templates: needs one meta/<set>_face_tid_mid.txt, {name_text(root)} has {len(listings)}"
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
        self._landmarks, self._scores = values[:, :10].reshape(-1, 5, 2), values[:, 10]
        ids, labels = np.unique(self.template_ids, return_inverse=True)
        super().__init__(root / "loose_crop", names, labels, [str(i) for i in ids], image_size=image_size)

        def number(templates: np.ndarray, what: str) -> np.ndarray:
            """The numbers of templates, given by their ids."""
            place = np.minimum(np.searchsorted(ids, templates), len(ids) - 1)
            missing = templates[ids[place] != templates]
            if len(missing):
                raise UserError(
                    f"templates: template {missing[0]} of {what} has no image in {name_text(listings[0])}"
                )
            return place

        table = _numbers(meta / f"{prefix}_template_pair_label.txt", 3, np.int64)
        indices = number(table[:, :2], "the pairs")
        if not np.isin(table[:, 2], (0, 1)).all():
            raise UserError(f"templates: the labels of pairs in {name_text(meta)} need to be 0 or 1")
        self.pairs = Pairs(indices.astype(np.int32), table[:, 2] == 1, folds=1)
        self.search = None
        if lists := _lists_of_search(meta, prefix):
            templates, people = zip(*map(_template_people, lists), strict=True)
            for path, whose in zip(lists[:2], people, strict=False):
                if len(np.unique(whose)) < len(whose):
                    raise UserError(f"templates: {name_text(path)} needs one template of each person")
            if common := set(people[0].tolist()) & set(people[1].tolist()):
                raise UserError(f"templates: person {min(common)} is in both galleries of {name_text(meta)}")
            numbers = [number(rows, name_text(path)) for rows, path in zip(templates, lists, strict=True)]
            self.search = TemplateSearch((numbers[0], numbers[1]), people[:2], numbers[2], people[2])

    def _image(self, index: int) -> np.ndarray:
        face = align_face(decode_image(self.folder / self.record_names[index]), self._landmarks[index], _CROP)
        size = self.image_shape[0]
        return face if size == _CROP else cv2.resize(face, (size, size), interpolation=cv2.INTER_AREA)

    def _weight(self, index: int) -> float:
        return self._scores[index]

    def report(self, features, weights) -> dict[str, float]:
        """Verification and, with its lists, identification (`jaxface.metrics.template_report`); how many images were left out.

        Args:
          features: [N, D] float, of the records, not normalized: their lengths count. weights: [N], those of the records.

        Raises:
          UserError: a template none of whose images could be read.
        """
        templates = aggregate_templates(features, self.template_ids, self.media_ids, weights)
        report = template_report(templates.embeddings, self.pairs, self.search)
        return report | {"data/left_out": float(((np.asarray(weights) == 0) & (self._scores > 0)).sum())}


def _named(folder: pathlib.Path, suffix: str, prefix: str = "") -> list[pathlib.Path]:
    """Files of a folder whose names begin and end so, in their order; none where there is no such folder."""
    try:
        files = contents(folder).files
    except FileNotFoundError:
        return []
    return sorted(file for file in files if file.name.startswith(prefix) and file.name.endswith(suffix))


def _lists_of_search(meta: pathlib.Path, prefix: str) -> list[pathlib.Path]:
    """Two galleries and the probes; nothing where there are no such lists."""
    lists = _named(meta, ".csv", f"{prefix}_1N_gallery_")
    probes = meta / f"{prefix}_1N_probe_mixed.csv"
    if not lists and not probes.exists():
        return []
    if len(lists) != 2 or not probes.exists():
        raise UserError(
            f"templates: 1:N needs two {prefix}_1N_gallery_*.csv and {probes.name}; {name_text(meta)} has {len(lists)} and "
            f"{'one' if probes.exists() else 'none'}"
        )
    return [*lists, probes]


def _template_people(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """The templates of a list, rising, and whose they are; both [T] int64. A template has a line for each of its images."""
    rows = set()
    for number, line in list(read_lines("templates", path))[1:]:
        try:
            template, person = (int(cell) for cell in line.split(",", 2)[:2])
        except ValueError:
            raise UserError(
                f"templates: {name_text(path)} needs a template and a person in line {number}"
            ) from None
        rows.add((template, person))
    table = np.array(sorted(rows), np.int64).reshape(-1, 2)
    if not len(table) or len(np.unique(table[:, 0])) < len(table):
        raise UserError(f"templates: {name_text(path)} needs templates of one person each")
    return table[:, 0], table[:, 1]


def _named_rows(path: pathlib.Path, columns: int) -> tuple[list[str], np.ndarray]:
    """Names [N] and the numbers [N, columns] behind them."""
    try:
        with reaching(path):
            text = path.read_text(encoding="utf-8")
        lines = [line.split() for line in text.splitlines() if line.strip()]
        if not lines or any(len(line) != columns + 1 for line in lines):
            raise ValueError(f"needs a name and {columns} numbers per line")
        names = [line[0] for line in lines]
        check_names("templates", names, name_text(path))
        return names, np.array([line[1:] for line in lines], np.float64)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _numbers(path: pathlib.Path, columns: int, dtype: type) -> np.ndarray:
    """[P, columns] numbers; the files of IJB-C have 16 million lines."""
    try:
        with reaching(path):
            file = path.open("r", encoding="utf-8")
        with file:
            table = np.loadtxt(file, dtype=dtype, ndmin=2)
        if table.shape[1] != columns or not len(table):
            raise ValueError(f"needs {columns} numbers per line")
        return table
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: pathlib.Path, error: Exception) -> UserError:
    return UserError(f"templates: cannot read {name_text(path)}: {reason_of(error)}")
