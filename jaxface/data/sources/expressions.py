"""Photographs of expressions as RAF-DB, FERPlus and AffectNet are distributed.

    <RAF-DB>/basic/EmoLabel/list_patition_label.txt      "train_00001.jpg 5" in each line, classes from 1
    <RAF-DB>/basic/Image/aligned/train_00001_aligned.jpg

    <FERPlus>/fer2013new.csv                             Usage, Image name, votes for ten classes
    <FERPlus>/FER2013Train/fer0000000.png …, FER2013Valid, FER2013Test; or FER2013's own fer2013.csv: emotion, pixels, Usage

    <AffectNet>/training.csv, validation.csv             subDirectory_filePath, face_x, …, expression, valence, arousal
    <AffectNet>/Manually_Annotated_Images/<folder>/<image>
    <AffectNet>/train/<class>/<image>, val/<class>/<image>                 as it is often passed on

Lines that say nothing are left out and counted, and so is an image that cannot be read.

Methods: apvit
"""

import csv
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from jaxface.data.sources.annotated import read_lines
from jaxface.data.sources.listed_faces import check_names
from jaxface.data.sources.listed_images import Listed, class_folders, need_some, told
from jaxface.errors import UserError
from jaxface.paths import local_path, name_text

RAF_DB = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
FER_PLUS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
AFFECTNET = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
_FER_FOLDERS = {"Training": "FER2013Train", "PublicTest": "FER2013Valid", "PrivateTest": "FER2013Test"}
_AFFECTNET_COLUMNS = (
    "subDirectory_filePath", "face_x", "face_y", "face_width", "face_height", "facial_landmarks", "expression", "valence",
    "arousal",
)  # fmt: skip


def majority_votes(votes: np.ndarray) -> np.ndarray:
    """The class that most of FERPlus' taggers saw; -1 where no class has more than half of the votes, or no face was seen.

    As Microsoft's FERPlus code in its mode "majority" (arXiv:1608.01041): single votes count as none.

    Args:
      votes: [N, 10] counts ≥ 0: `FER_PLUS`, unknown, no face.

    Returns:
      [N] int64 in [-1, 8).

    Example:
      >>> votes = [[4, 0, 0, 1, 3, 2, 0, 0, 0, 0], [0, 6, 1, 0, 1, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0, 0, 0, 2, 8]]
      >>> majority_votes(np.array(votes)).tolist()
      [-1, 1, -1]
    """
    votes = np.where(votes <= 1, 0, votes)
    best = votes.argmax(axis=1)
    clear = votes.max(axis=1) > 0.5 * votes.sum(axis=1)
    return np.where(clear & (best < len(FER_PLUS)), best, -1)


def raf_db(root: str, part: str, *, images: str = "Image/aligned") -> Listed:
    """RAF-DB's basic emotions.

    Args:
      root: the folder `basic`, or the one that holds it.
      part: "train" or "test".
      images: folder of the images in it; names are as in the list, with `_aligned` where such files stand there.

    Raises:
      UserError: a list or a folder that is missing, or a part without an image.
    """
    folder = local_path("root", root)
    folder = folder / "basic" if (folder / "basic").is_dir() else folder
    path = folder / "EmoLabel" / "list_patition_label.txt"
    names, labels, skipped = [], [], 0
    for _, line in read_lines("root", path):
        name, _, label = line.partition(" ")
        if label.strip() not in tuple("1234567") or not name.startswith(("train_", "test_")):
            skipped += 1
        elif name.startswith(f"{part}_"):
            names.append(name)
            labels.append(int(label) - 1)
    need_some(names, f"images of {part}", path)
    check_names("root", names, name_text(path))
    aligned = [f"{pathlib.PurePosixPath(name).stem}_aligned.jpg" for name in names]
    place = folder / images
    if not place.is_dir():
        raise UserError(f"root: needs the folder {name_text(place)}")
    if any((place / name).exists() for name in aligned[:100]):
        names = aligned
    return told(Listed(place, names, labels, RAF_DB, skipped=skipped), path)


def fer_plus(root: str, usage: str) -> Listed:
    """FERPlus: the images of FER2013 with the label that most of ten taggers gave; images without one are left out.

    Args:
      root: folder with fer2013new.csv and either fer2013.csv or the folders of images.
      usage: "Training", "PublicTest" or "PrivateTest".

    Raises:
      UserError: a file that is missing, lists of other lengths, or a part without an image.
    """
    folder = local_path("root", root)
    path = folder / "fer2013new.csv"
    names, votes, rows, skipped, total = [], [], [], 0, 0
    for total, row in enumerate(_rows(path), start=1):
        counts = [cell for cell in row[2:12] if cell.strip().isdigit()]
        if len(row) < 12 or len(counts) < 10 or row[0] not in _FER_FOLDERS:
            skipped += 1
        elif row[0] == usage:
            names.append(row[1].strip())
            votes.append([min(int(cell), 1000) for cell in counts])
            rows.append(total - 1)
    need_some(names, f"images of {usage}", path)
    labels = majority_votes(np.array(votes))
    pixels = None
    own = folder / "fer2013.csv"
    place = folder / _FER_FOLDERS[usage]
    if not place.is_dir():
        if not own.is_file():
            raise UserError(f"root: needs {name_text(place)} or fer2013.csv beside fer2013new.csv")
        lines = [row[1] if len(row) > 1 else "" for row in _rows(own)]
        if len(lines) != total:
            raise UserError(
                f"root: {name_text(own)} and fer2013new.csv need as many rows, got {len(lines)} and {total}"
            )
        pixels = [lines[i] for i in rows]
        names = [name or f"row-{i + 1}" for name, i in zip(names, rows, strict=True)]
    used = [i for i, name in enumerate(names) if labels[i] >= 0 and name]
    need_some(used, f"images of {usage} with a label", path)
    names = [names[i] for i in used]
    check_names("root", names, name_text(path))
    return told(
        Listed(
            place,
            names,
            labels[used].tolist(),
            FER_PLUS,
            pixels=None if pixels is None else [pixels[i] for i in used],
            skipped=skipped,
        ),
        path,
    )


def affectnet(root: str, part: str, *, classes: int = 7) -> Listed:
    """AffectNet: its own lists with the faces cut out, or folders by class.

    Args:
      root: folder with training.csv and validation.csv, or with train/ and val/ (or valid, validation, test).
      part: "train" or "test".
      classes: 7, or 8 with contempt; of the lists. Folders have the classes that they have.

    Raises:
      UserError: neither of them, or a part without an image.
    """
    folder = local_path("root", root)
    path = folder / ("training.csv" if part == "train" else "validation.csv")
    if not path.is_file():
        return class_folders(folder, part, instead="training.csv and validation.csv, or ")
    names, labels, boxes, skipped = [], [], [], 0
    for row in _rows(path, header=_AFFECTNET_COLUMNS):
        numbers = [_integer(cell) for cell in (*row[1:5], row[6] if len(row) > 6 else "")]
        if None in numbers or not row[0] or numbers[4] not in range(11):
            skipped += 1
        elif numbers[4] < classes:  # from 8 on: none, uncertain, no face
            names.append(row[0].replace("\\", "/"))
            boxes.append(numbers[:4])
            labels.append(numbers[4])
    need_some(names, f"images of {part}", path)
    check_names("root", names, name_text(path))
    place = folder / "Manually_Annotated_Images"
    place = place if place.is_dir() else folder
    return told(Listed(place, names, labels, AFFECTNET[:classes], np.array(boxes), skipped=skipped), path)


def _rows(path: pathlib.Path, header: Sequence[str] | None = None) -> Iterator[list[str]]:
    """The rows of a CSV file behind its first line; with `header` the first line is a row too where it is another."""
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            for number, row in enumerate(csv.reader(file)):
                if row and (number or (header is not None and row[0] != header[0])):
                    yield row
    except OSError as error:
        raise UserError(f"root: cannot read {name_text(path)}: {error.strerror}") from error
    except csv.Error as error:
        raise UserError(f"root: needs a CSV file, {name_text(path)} is none: {error}") from error


def _integer(text: str) -> int | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if abs(value) < 1 << 20 else None
