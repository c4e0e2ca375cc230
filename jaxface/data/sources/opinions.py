"""Images with mean opinion scores: any source with them, and the files of LIVE, CSIQ, KADID-10k and tables.

Opinions go from 0 (worst) to 10 (best) whatever the scale of a set, and a label says what happened to an image.

Methods: niqa_attack
"""

import csv
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxface.checks import Positive, check_number
from jaxface.data.sources.annotated import inside, read_lines
from jaxface.data.sources.images import decode_image
from jaxface.data.sources.matlab import read_mat
from jaxface.data.sources.source import Record, Source, WithFields
from jaxface.data.sources.standin import StandInSource
from jaxface.errors import UserError
from jaxface.paths import name_text

BEST = 10.0
"""The best opinion; the worst is 0."""


class RatedSource(WithFields):
    """A source whose records have `opinion`, a float32 of 0 (worst) to 10 (best), and `reference` int32 besides.

    Attributes:
      opinions: [N] float32.
      references: [N] int64, number of the image that each is a distortion of.
      labels: [N] int32, what happened to each image.
    """

    def __init__(self, source: Source, opinions: np.ndarray, references: np.ndarray):
        self.opinions = np.asarray(opinions, np.float32)
        self.references = np.asarray(references, np.int64)
        super().__init__(source, opinion=self.opinions, reference=self.references.astype(np.int32))


class Rated(NamedTuple):
    """One image: its file, its opinion in [0, 10], the name of the image that it is a distortion of, and what happened to it."""

    path: pathlib.Path
    opinion: float
    reference: str
    distortion: str


class RatedFiles(StandInSource):
    """Images from files with their opinions: the middle `image_size` pixels of each, which is not resized, since that changes it.

    In the place of one that does not decode stands another that suffered the same, with its own opinion.

    Args:
      rows: what there is.
      image_size: side of the squares, pixels.
      distortions: names in the order of the labels; those of the rows, sorted, unless given.

    Attributes:
      labels: [N] int32, what happened to each image. class_names: its names.
      opinions: [N] float32. references: [N] int64.
      image_shape: (image_size, image_size, 3).

    Raises:
      UserError: no row; and when a record is read, an image with a side shorter than `image_size`.
    """

    _OF = "with its distortion"

    def __init__(self, rows: Iterable[Rated], *, image_size: int, distortions: Sequence[str] | None = None):
        super().__init__()
        self.rows = list(rows)
        if not self.rows:
            raise UserError("root: its list has no image with an opinion")
        names = sorted({row.distortion for row in self.rows}) if distortions is None else list(distortions)
        self.class_names, self.image_shape = names, (image_size, image_size, 3)
        self.labels = np.array([names.index(row.distortion) for row in self.rows], np.int32)
        self.opinions = np.array([row.opinion for row in self.rows], np.float32)
        numbers: dict[str, int] = {}
        self.references = np.array(
            [numbers.setdefault(row.reference, len(numbers)) for row in self.rows], np.int64
        )

    @property
    def record_names(self) -> list[str]:
        """[N] names of the files."""
        return [row.path.name for row in self.rows]

    def _read(self, index: int) -> Record:
        image, size = decode_image(self.rows[index].path), self.image_shape[0]
        height, width = image.shape[:2]
        if min(height, width) < size:
            raise UserError(
                f"image_size: needs at most the {min(height, width)} pixels of {self._describe(index)}, got {size}"
            )
        top, left = (height - size) // 2, (width - size) // 2
        return {
            "image": np.ascontiguousarray(image[top : top + size, left : left + size]),
            "label": self.labels[index],
            "opinion": self.opinions[index],
            "reference": np.int32(self.references[index]),
        }

    def _describe(self, index: int) -> str:
        return name_text(self.rows[index].path)


def split_references(rows: Sequence[Rated], held_out: float, seed: int) -> tuple[list[Rated], list[Rated]]:
    """(rows to learn from, rows to evaluate on), which are distortions of other images.

    Raises:
      UserError: distortions of one image alone.
    """
    names = sorted({row.reference for row in rows})
    if len(names) < 2:
        raise UserError(f"root: needs distortions of at least two images to hold some out, got {len(names)}")
    count = min(max(round(held_out * len(names)), 1), len(names) - 1)
    out = {names[i] for i in np.random.default_rng(seed).permutation(len(names))[:count]}
    return [row for row in rows if row.reference not in out], [row for row in rows if row.reference in out]


def _opinion(text: str, low: float, high: float, *, reverse: bool, where: str) -> float:
    """A score on the scale of 0 to 10."""
    try:
        score = float(text)
    except ValueError:
        score = np.nan
    if not low <= score <= high:
        raise UserError(f"root: needs a score from {low:g} to {high:g} in {where}, got {text[:20]!r}")
    share = (score - low) / (high - low)
    return BEST * (1 - share if reverse else share)


def opinion_table(
    root: pathlib.Path,
    name: str,
    *,
    image: str = "image",
    score: str = "mos",
    reference: str | None = None,
    distortion: str | None = None,
    folder: str = ".",
    low: float = 0.0,
    high: float = 10.0,
    reverse: bool = False,
) -> list[Rated]:
    """What a CSV table of images and scores has.

    Args:
      root: the folder. name: of the table in it.
      image, score: columns of files' names and scores.
      reference, distortion: columns of the image that each is a distortion of (by default each is its own), and of what happened
        to it (by default the same to all).
      folder: of the files, from `root`.
      low, high: ends of the scale.
      reverse: whether large scores are bad, as those of a DMOS.

    Raises:
      UserError: no such table, a column that is missing, a score outside of the scale, or a name that leads out of the folder.
    """
    check_number("highest", high - low, Positive)
    listed = root / name
    lines = list(read_lines("root", listed))
    table = csv.DictReader([line for _, line in lines], skipinitialspace=True)
    columns = [column for column in (image, score, reference, distortion) if column is not None]
    if missing := [column for column in columns if column not in (table.fieldnames or ())]:
        raise UserError(f"root: needs a column {missing[0]} in {name_text(listed)}")
    rows = []
    for (number, _), row in zip(lines[1:], table, strict=False):
        if empty := [column for column in columns if not row[column]]:
            raise UserError(f"root: needs a value of {empty[0]} in line {number} of {name_text(listed)}")
        path = _path(root / folder, row[image], listed, number)
        opinion = _opinion(
            row[score], low, high, reverse=reverse, where=f"line {number} of {name_text(listed)}"
        )
        original = row[image] if reference is None else row[reference]
        rows.append(Rated(path, opinion, original, "image" if distortion is None else row[distortion]))
    return rows


def _path(folder: pathlib.Path, name: str, listed: pathlib.Path, number: int) -> pathlib.Path:
    path = inside(folder, name)
    if path is None:
        raise UserError(
            f"root: {name_text(listed)} names an image outside of its folder in line {number}, {name[:80]!r}"
        )
    return path


def kadid10k(root: pathlib.Path) -> list[Rated]:
    """KADID-10k: `dmos.csv` (dist_img, ref_img, dmos from 1 to 5, which is larger for better images) and `images/`.

    A distortion is the second number of a file's name, 01 to 25 in I04_10_03.png.

    Raises:
      UserError: as `opinion_table`.
    """
    rows = opinion_table(
        root, "dmos.csv", image="dist_img", score="dmos", reference="ref_img", folder="images", low=1.0, high=5.0
    )  # fmt: skip
    return [
        row._replace(distortion=row.path.stem.split("_")[1] if "_" in row.path.stem else "image")
        for row in rows
    ]


CSIQ_LABELS = "csiq_label.txt"


def csiq(root: pathlib.Path) -> list[Rated]:
    """CSIQ: lines "1600.AWGN.1.png 0.062" of `csiq_label.txt`, a DMOS from 0 to 1, and `dst_imgs/<distortion>/`.

    Images may lie in folders by distortion (awgn, jpeg, jpeg2000, fnoise, blur, contrast) or all in `dst_imgs/`.

    Raises:
      UserError: no such list, or a line of another form.
    """
    listed, rows = root / CSIQ_LABELS, []
    for number, line in read_lines("root", listed):
        words = line.split()
        parts = words[0].split(".") if words else []
        if len(words) != 2 or len(parts) < 4:
            raise UserError(
                f"root: needs a name such as 1600.AWGN.1.png and a score in line {number} of {name_text(listed)}"
            )
        path = _path(root / "dst_imgs", words[0], listed, number)
        distortion = parts[1].lower()
        if not path.exists():
            path = path.parent / distortion / path.name
        where = f"line {number} of {name_text(listed)}"
        rows.append(Rated(path, _opinion(words[1], 0, 1, reverse=True, where=where), parts[0], distortion))
    return rows


LIVE_PARTS = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}
"""Folders of LIVE and how many images each has, img1.bmp and so on; its lists go through them in this order."""
LIVE_WORST = 114.4147
"""The largest realigned DMOS of LIVE."""


def live(root: pathlib.Path, *, originals: bool = False) -> list[Rated]:
    """LIVE, release 2: `dmos_realigned.mat`, `refnames_all.mat` and the folders `LIVE_PARTS`.

    Args:
      root: the folder.
      originals: also those images of the lists that nothing happened to, which are best by definition.

    Raises:
      UserError: no such file, or lists of another length.
    """
    scores = read_mat("root", root / "dmos_realigned.mat", ("dmos_new", "orgs"))
    names = read_mat("root", root / "refnames_all.mat", ("refnames_all",))["refnames_all"].reshape(-1)
    dmos, are_original = (np.asarray(scores[key]).reshape(-1) for key in ("dmos_new", "orgs"))
    places = [(part, number) for part, count in LIVE_PARTS.items() for number in range(1, count + 1)]
    for what, values in (("dmos_new", dmos), ("orgs", are_original), ("refnames_all", names)):
        if len(values) != len(places):
            raise UserError(
                f"root: needs {len(places)} values of {what} in {name_text(root)}, got {len(values)}"
            )
    rows = []
    for (part, number), score, original, name in zip(places, dmos, are_original, names, strict=True):
        if original and not originals:
            continue
        reference = str(np.asarray(name).reshape(-1)[0])
        worst = max(LIVE_WORST, float(np.max(dmos)))
        opinion = BEST * (1 - float(np.clip(score, 0, worst)) / worst)
        rows.append(Rated(root / part / f"img{number}.bmp", opinion, reference, part))
    return rows
