"""Presentations to a camera with several sensors: live faces and attacks, as color, depth and infrared.

In every source here the class of a record is the instrument of the presentation: label 0 is a live face, the others are attacks.
A record has `image` uint8 [S, S, 3], `depth` and `infrared` uint8 [S, S], `label` and, equal to it, `spoof` int32.

The layouts of CASIA-SURF and CASIA-SURF CeFA are those of their authors (github.com/liuajian/CASIA-FAS-Dataset and the lists of
the challenges); what lies in another layout, such as frames taken from WMCA's videos, is listed in a table.

Methods: fmvit
"""

import csv
import functools
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxface.data.render.presentation import SPOOFS
from jaxface.data.render.rendered import RenderedSource
from jaxface.data.sources.annotated import inside, read_lines
from jaxface.data.sources.images import SUFFIXES, CorruptImage, Fit, decode_image, fit_square
from jaxface.data.sources.listing import contents, natural_key, unreadable
from jaxface.data.sources.source import Record
from jaxface.data.sources.standin import StandInSource
from jaxface.errors import UserError
from jaxface.paths import name_text

_DEEPEST = 132.0  # mm before the head's origin that is white; the nose of the mean head is 110 mm before it


class RenderedPresentations:
    """Rendered faces and attacks whose class is what is presented.

    Depth is clip(z / 132 mm, 0, 1), z before the head's origin, as gray levels; 0 where there is no reading.

    Args:
      source: rendered people with depth and infrared.

    Attributes:
      labels: [N] int32, `presentation.SPOOFS`; drawn when first asked for. class_names: one per instrument.
      people: [N] int32, who it is or who is imitated.
      image_shape: (S, S, 3).
    """

    class_names = SPOOFS

    def __init__(self, source: RenderedSource):
        self._source = source
        self.image_shape, self.people = source.image_shape, source.labels

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """[N] int32."""
        return self._source.spoofs

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        levels = np.rint(255 * np.clip(record["depth"] / _DEEPEST, 0, 1)).astype(np.uint8)
        shown = {"image": record["image"], "depth": levels, "infrared": record["infrared"]}
        return {**shown, "label": record["spoof"], "spoof": record["spoof"]}


class Presentation(NamedTuple):
    """Files of one presentation at one moment, its instrument by name, and its video."""

    image: pathlib.Path
    depth: pathlib.Path
    infrared: pathlib.Path
    instrument: str
    video: str


class PresentationFiles(StandInSource):
    """Presentations from files. In the place of one that does not decode stands another of the same instrument; `shown` tells
    an evaluation, which leaves it out.

    Args:
      presentations: what there is.
      instruments: names, "live" first.
      image_size: side of the images, pixels.
      fit: how a rectangle becomes a square; the three images of a presentation need one shape.

    Attributes:
      labels: [N] int32, the instrument. class_names: its names.
      videos: [N] int32, the video of each frame, in the order in which they are listed.
      image_shape: (image_size, image_size, 3).

    Raises:
      UserError: nothing listed, or an instrument without a name.
    """

    _OF = "of its instrument"

    def __init__(
        self,
        presentations: Iterable[Presentation],
        instruments: Sequence[str],
        *,
        image_size: int,
        fit: Fit = "pad",
    ):
        super().__init__()
        self.presentations, self.class_names = list(presentations), list(instruments)
        if not self.presentations:
            raise UserError("root: its list has no presentation")
        numbers = {name: number for number, name in enumerate(self.class_names)}
        unknown = sorted({row.instrument for row in self.presentations} - numbers.keys())
        if unknown:
            raise UserError(
                f"root: needs instruments among {', '.join(numbers)}, its list has {unknown[0]!r}"
            )
        self.labels = np.array([numbers[row.instrument] for row in self.presentations], np.int32)
        videos: dict[str, int] = {}
        self.videos = np.array(
            [videos.setdefault(row.video, len(videos)) for row in self.presentations], np.int32
        )
        self.image_shape, self._fit = (image_size, image_size, 3), fit

    @property
    def record_names(self) -> list[str]:
        """[N] the color images' last two folders and names."""
        return ["/".join(row.image.parts[-3:]) for row in self.presentations]

    def _read(self, index: int) -> Record:
        row = self.presentations[index]
        image, depth, infrared = (decode_image(path) for path in row[:3])
        if not image.shape == depth.shape == infrared.shape:
            shapes = [f"{part.shape[1]}x{part.shape[0]}" for part in (image, depth, infrared)]
            raise CorruptImage(f"color, depth and infrared have {', '.join(shapes)} pixels")
        size, label = self.image_shape[0], self.labels[index]
        planes = (np.ascontiguousarray(part[..., 0]) for part in (depth, infrared))
        gray = [fit_square(plane, size, fit=self._fit) for plane in planes]
        shown = {"image": fit_square(image, size, fit=self._fit), "depth": gray[0], "infrared": gray[1]}
        return {**shown, "label": label, "spoof": label}

    def _describe(self, index: int) -> str:
        return name_text(self.presentations[index].image)


def _file(root: pathlib.Path, name: str, listed: pathlib.Path, number: int) -> pathlib.Path:
    path = inside(root, name)
    if path is None:
        raise UserError(
            f"root: {name_text(listed)} names an image outside of its folder in line {number}, {name[:80]!r}"
        )
    return path


def _live(text: str, listed: pathlib.Path, number: int) -> bool:
    if text not in ("0", "1"):
        raise UserError(
            f"root: needs 1 for live or 0 at the end of line {number} of {name_text(listed)}, got {text[:20]!r}"
        )
    return text == "1"


def casia_surf(root: pathlib.Path, name: str) -> list[Presentation]:
    """What a list of CASIA-SURF has, such as `train_list.txt`: the paths of color, depth and infrared, and 1 for live or 0.

    Its attacks, photographs with parts cut out, are one instrument here, "attack": the lists of validation and test say no more.

    Raises:
      UserError: no such list, or a line of another form.
    """
    listed, rows = root / name, []
    for number, line in read_lines("root", listed):
        words = line.split()
        if len(words) != 4:
            raise UserError(
                f"root: needs three paths and a label in line {number} of {name_text(listed)}, it has {len(words)} words"
            )
        files = [_file(root, word, listed, number) for word in words[:3]]
        instrument = "live" if _live(words[3], listed, number) else "attack"
        rows.append(Presentation(*files, instrument, str(pathlib.PurePosixPath(words[0]).parent)))
    return rows


CEFA_INSTRUMENTS = ("live", "cloth", "photo", "screen")
"""What the last number of a CeFA folder says, from 1: a live face, or a print on cloth, on paper, or a screen."""
_CEFA = re.compile(r"[123]_\d{3}_\d_\d_([1234])")


def cefa(root: pathlib.Path, name: str) -> list[Presentation]:
    """What a list of CASIA-SURF CeFA has: of training, such as `4@1_train.txt`, color images and 1 for live or 0; of development
    and test, such as `4@1_dev_ref.txt`, folders of a video, all of whose images count.

    Images lie in <folder>/profile (color), depth and ir under the same name. A folder is called <ethnicity>_<person>_<device>_
    <session>_<instrument> (`CEFA_INSTRUMENTS`), as 1_001_1_1_1; of another name, an attack's instrument is "attack".

    Raises:
      UserError: no such list, a line of another form, a folder that cannot be read, or one whose name contradicts its label.
    """
    listed, rows = root / name, []
    for number, line in read_lines("root", listed):
        words = line.split()
        if len(words) != 2:
            raise UserError(
                f"root: needs a path and a label in line {number} of {name_text(listed)}, it has {len(words)} words"
            )
        path, live = _file(root, words[0], listed, number), _live(words[1], listed, number)
        if path.suffix.lower() in SUFFIXES:
            folder, names = path.parent.parent, [path.name]
        else:
            folder = path
            try:
                files = contents(folder / "profile").files
            except OSError as error:
                raise UserError(
                    f"root: needs a video's images for line {number} of {name_text(listed)}, {unreadable(error, folder)}"
                ) from error
            names = sorted((f.name for f in files if f.suffix.lower() in SUFFIXES), key=natural_key)
        said = _CEFA.fullmatch(folder.name)
        instrument = CEFA_INSTRUMENTS[int(said[1]) - 1] if said else ("live" if live else "attack")
        if (instrument == "live") != live:
            label = "live" if live else "attack"
            raise UserError(
                f"root: {name_text(listed)} has {label} in line {number}, its folder's name says {instrument}"
            )
        for image in names:
            rows.append(
                Presentation(
                    *(folder / part / image for part in ("profile", "depth", "ir")), instrument, str(folder)
                )
            )
    return rows


TABLE_COLUMNS = ("color", "depth", "infrared", "group", "instrument", "video")


def presentation_table(root: pathlib.Path, name: str) -> dict[str, list[Presentation]]:
    """What a CSV table has by group: the columns `TABLE_COLUMNS`, in any order, the paths from `root`, the group train, dev or
    eval, the instrument a name ("live" or "bonafide" of live faces), the video a name.

    Raises:
      UserError: no such table, a column or a value that is missing, or another group.
    """
    listed = root / name
    lines = list(read_lines("root", listed))
    table = csv.DictReader([line for _, line in lines])
    missing = [column for column in TABLE_COLUMNS if column not in (table.fieldnames or ())]
    if missing:
        raise UserError(f"root: needs a column {missing[0]} in {name_text(listed)}")
    groups: dict[str, list[Presentation]] = {"train": [], "dev": [], "eval": []}
    for (number, _), row in zip(lines[1:], table, strict=False):
        empty = [column for column in TABLE_COLUMNS if not row[column]]
        if empty or row["group"] not in groups:
            wanted = f"a value of {empty[0]}" if empty else "a group train, dev or eval"
            raise UserError(f"root: needs {wanted} in line {number} of {name_text(listed)}")
        files = [_file(root, row[column], listed, number) for column in TABLE_COLUMNS[:3]]
        instrument = "live" if row["instrument"] == "bonafide" else row["instrument"]
        groups[row["group"]].append(Presentation(*files, instrument, row["video"]))
    return groups


def without(rows: Iterable[Presentation], unwanted: Callable[[str], bool]) -> list[Presentation]:
    """The presentations whose instrument is not unwanted."""
    return [row for row in rows if not unwanted(row.instrument)]
