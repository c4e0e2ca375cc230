"""Live faces and attacks of one camera from files: CelebA-Spoof, OULU-NPU and SiW, in the layouts of their authors.

Label 0 is a live face, the others are attack instruments. Of videos, frames are read that lie in a folder of the video's name.
What the names of OULU-NPU and SiW mean is written here from memory.

Methods: dpm
"""

import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxface.checks import AtLeast, Integers, OpenFraction, check_number
from jaxface.data.sources.annotated import inside, numbers, read_json
from jaxface.data.sources.images import SUFFIXES, CorruptImage, Fit, decode_image, fit_square
from jaxface.data.sources.listing import contents, natural_key, unreadable
from jaxface.data.sources.source import Record
from jaxface.data.sources.standin import StandInSource
from jaxface.errors import UserError
from jaxface.paths import name_text


class CapturedFace(NamedTuple):
    """A file, the box in it as a file of its own or None, its instrument by name, its video and whom it shows."""

    image: pathlib.Path
    box: pathlib.Path | None
    instrument: str
    video: str
    person: str


class CapturedFaces(StandInSource):
    """Captured faces from files. In the place of one that does not decode stands another of the same instrument; `shown` tells an
    evaluation, which leaves it out.

    Args:
      faces: what there is.
      instruments: names, "live" first.
      image_size: side of the images, pixels.
      fit: how a rectangle becomes a square.

    Attributes:
      labels: [N] int32, the instrument. class_names: its names. image_shape: (image_size, image_size, 3).
      videos, people: [N] int32, numbers of videos and people in the order in which they are listed.

    Raises:
      UserError: nothing there.
    """

    _OF = "of its instrument"

    def __init__(
        self, faces: Iterable[CapturedFace], instruments: Sequence[str], *, image_size: int, fit: Fit = "pad"
    ):
        super().__init__()
        self.faces, self.class_names = list(faces), list(instruments)
        if not self.faces:
            raise UserError("root: needs images in every part of the protocol, one has none")
        index = {name: number for number, name in enumerate(self.class_names)}
        self.labels = np.array([index[face.instrument] for face in self.faces], np.int32)
        self.videos = _numbered(face.video for face in self.faces)
        self.people = _numbered(face.person for face in self.faces)
        self.image_shape, self._fit = (image_size, image_size, 3), fit

    @property
    def record_names(self) -> list[str]:
        """[N] the images' last two folders and names."""
        return ["/".join(face.image.parts[-3:]) for face in self.faces]

    def _read(self, index: int) -> Record:
        face = self.faces[index]
        image = decode_image(face.image)
        if face.box is not None:
            top, left, bottom, right = celeba_spoof_box(face.box, *image.shape[:2])
            image = np.ascontiguousarray(image[top:bottom, left:right])
        label = self.labels[index]
        return {
            "image": fit_square(image, self.image_shape[0], fit=self._fit),
            "label": label,
            "spoof": label,
        }

    def _describe(self, index: int) -> str:
        return name_text(self.faces[index].image)


def _numbered(names: Iterable[str]) -> np.ndarray:
    known: dict[str, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in names], np.int32)


def set_people_aside(people: Sequence[str], share: float, *, seed: int) -> set[str]:
    """Names of the people of a development set: `share` of those there are, at least one and not all.

    Raises:
      UserError: a share outside (0, 1), or one person alone.
    """
    check_number("data.development", share, OpenFraction)
    names = sorted(set(people))
    if len(names) < 2:
        raise UserError(f"root: needs at least two people to train on, got {len(names)}")
    count = min(max(round(share * len(names)), 1), len(names) - 1)
    return {names[i] for i in np.random.default_rng([seed, 0x6465]).permutation(len(names))[:count]}


# CelebA-Spoof (github.com/ZhangYuanhan-AI/CelebA-Spoof): 40 attributes, spoof type, illumination, environment, live or spoof.
CELEBA_SPOOFS = (
    "live", "photo", "poster", "A4", "face mask", "upper body mask", "region mask", "PC", "pad", "phone", "3D mask",
)  # fmt: skip
CELEBA_ILLUMINATIONS = ("live", "normal", "strong", "back", "dark")
CELEBA_ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses", "Goatee",
    "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes", "No_Beard",
    "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling", "Straight_Hair",
    "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace", "Wearing_Necktie", "Young",
)  # fmt: skip
_GRID = 224  # boxes of CelebA-Spoof are on it, whatever size the image has


def celeba_spoof_box(path: pathlib.Path, height: int, width: int) -> tuple[int, int, int, int]:
    """The face's box of CelebA-Spoof in the pixels of an image, as its released code has it.

    The file has x, y, width, height and a score on a grid of 224 x 224; each is cut to an integer before it is scaled and after,
    and the box is clipped at the image's edges.

    Args:
      path: of the file, `<image>_BB.txt`. height, width: of the image.

    Returns:
      (y0, x0, y1, x1).

    Raises:
      CorruptImage: no such file, another form, or nothing of the image in the box.
    """
    try:
        words = path.read_text("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptImage(f"its box cannot be read: {type(error).__name__}") from error
    values = numbers(words[:4], 4)
    if values is None or not np.isfinite(values).all() or max(map(abs, values)) > 1 << 20:
        raise CorruptImage("its box needs x, y, width and height")
    x, y, w, h = (int(v) for v in values)
    x, w = int(x * (width / _GRID)), int(w * (width / _GRID))
    y, h = int(y * (height / _GRID)), int(h * (height / _GRID))
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if x1 <= x0 or y1 <= y0:
        raise CorruptImage("its box has nothing of the image")
    return y0, x0, y1, x1


def celeba_spoof(root: pathlib.Path, name: str) -> tuple[list[CapturedFace], dict[str, np.ndarray]]:
    """What a label file of CelebA-Spoof has, such as `metas/intra_test/train_label.json`: path -> 44 integers.

    Returns:
      (faces, {attributes [N, 40], spoof_type [N], illumination [N]}).

    Raises:
      UserError: no such file, or one of another form; the line names the first image that is not as it should be.
    """
    listed = root / name
    table = read_json("root", listed)
    if not isinstance(table, dict) or not table:
        raise UserError(f"root: needs an object of paths and labels in {name_text(listed)}")
    limits = np.array([2] * 40 + [len(CELEBA_SPOOFS), len(CELEBA_ILLUMINATIONS), 3, 2])
    faces, rows = [], []
    for key, values in table.items():
        whole = isinstance(values, list) and len(values) == 44 and all(type(v) is int for v in values)
        if not whole or not all(0 <= v < limit for v, limit in zip(values, limits, strict=True)):
            raise UserError(
                f"root: needs 44 labels in their ranges in {name_text(listed)}, {key[:80]!r} has others"
            )
        if (values[40] == 0) != (values[43] == 0):
            raise UserError(
                f"root: {name_text(listed)} says of {key[:80]!r} that it is {'spoof' if values[43] else 'live'}, "
                f"and its spoof type is {CELEBA_SPOOFS[values[40]]}"
            )
        path = inside(root, key)
        if path is None:
            raise UserError(f"root: {name_text(listed)} names an image outside of its folder, {key[:80]!r}")
        parts = pathlib.PurePosixPath(key).parts
        person = "/".join(parts[:-2]) or key  # Data/train/<person>/live/<image>
        box = path.with_name(f"{path.stem}_BB.txt")
        faces.append(CapturedFace(path, box, CELEBA_SPOOFS[values[40]], key, person))
        rows.append(values)
    labels = np.array(rows, np.int32)
    semantics = {"attributes": labels[:, :40], "spoof_type": labels[:, 40], "illumination": labels[:, 41]}
    return faces, semantics


# OULU-NPU: <phone>_<session>_<user>_<file>, file 1 live, 2 and 3 printers, 4 and 5 displays.
OULU_INSTRUMENTS = ("live", "print 1", "print 2", "display 1", "display 2")
OULU_PARTS = {"train": range(1, 21), "development": range(21, 36), "test": range(36, 56)}
_OULU_FOLDERS = {"train": "Train_files", "development": "Dev_files", "test": "Test_files"}
_OULU = re.compile(r"([1-6])_([1-3])_(\d{1,2})_([1-5])")


class OuluVideo(NamedTuple):
    """What a name says: phone 1..6, session 1..3, user 1..55, and its instrument."""

    phone: int
    session: int
    user: int
    instrument: str


def oulu_video(name: str) -> OuluVideo | None:
    """What the name of a video says; None of another name.

    Example:
      >>> oulu_video("6_3_20_5").instrument
      'display 2'
    """
    said = _OULU.fullmatch(name)
    if said is None:
        return None
    phone, session, user, file = map(int, said.groups())
    return OuluVideo(phone, session, user, OULU_INSTRUMENTS[file - 1])


def oulu_takes(video: OuluVideo, part: str, protocol: int, phone: int) -> bool:
    """Whether a video is in a part of a protocol.

        1  trains on sessions 1 and 2, tests session 3
        2  trains on print 1 and display 1, tests print 2 and display 2
        3  tests one phone, trains on the five others
        4  all three at once

    Args:
      video: of any part. part: train, development or test. protocol: 1..4. phone: the one left out in protocols 3 and 4, 1..6.

    Raises:
      UserError: another protocol or phone.

    Example:
      >>> oulu_takes(OuluVideo(1, 3, 40, "live"), "test", 4, 1)
      True
    """
    if protocol not in range(1, 5) or phone not in range(1, 7):  # of every video: no slower check
        raise UserError(f"protocol: needs 1 to 4 and a phone from 1 to 6, got {protocol} and {phone}")
    test = part == "test"
    if video.user not in OULU_PARTS[part]:
        return False
    if protocol in (1, 4) and (video.session == 3) != test:
        return False
    if protocol in (2, 4) and video.instrument != "live" and video.instrument.endswith("2") != test:
        return False
    return protocol not in (3, 4) or (video.phone == phone) == test


# SiW: <subject>-<sensor>-<type>-<medium>-<session>, type 1 live, 2 print, 3 replay; the medium of a replay is its screen.
SIW_INSTRUMENTS = ("live", "print", "replay 1", "replay 2", "replay 3", "replay 4")
_SIW = re.compile(r"(\d{3})-(\d)-([123])-([1-4])-(\d)")


class SiwVideo(NamedTuple):
    """What a name says: subject, and its instrument."""

    subject: str
    instrument: str


def siw_video(name: str) -> SiwVideo | None:
    """What the name of a video says; None of another name.

    Example:
      >>> siw_video("003-1-3-2-1")
      SiwVideo(subject='003', instrument='replay 2')
    """
    said = _SIW.fullmatch(name)
    if said is None:
        return None
    kind = ("live", "print", f"replay {said[4]}")[int(said[3]) - 1]
    return SiwVideo(said[1], kind)


def siw_takes(instrument: str, test: bool, protocol: int, fold: int) -> bool:
    """Whether an instrument is in the training, or the test, of a protocol.

        1  all in both; the training has the first 60 frames of a video alone
        2  live and replays; the screen `fold` of four is tested, the others trained on
        3  fold 1 trains on prints and tests replays, fold 2 the other way round

    Raises:
      UserError: another protocol or fold.

    Example:
      >>> siw_takes("print", False, 3, 1), siw_takes("replay 4", True, 2, 4)
      (True, True)
    """
    check_number("data.protocol", protocol, Integers(1, 3))
    check_number("data.fold", fold, Integers(1, {1: 1, 2: 4, 3: 2}[protocol]))
    if instrument == "live" or protocol == 1:
        return True
    if protocol == 2:
        return instrument != "print" and (instrument == f"replay {fold}") == test
    return (instrument == "print") == ((fold == 1) != test)


def _folders(root: pathlib.Path, where: pathlib.Path) -> list[pathlib.Path]:
    try:
        found = contents(where).folders
    except OSError as error:
        raise UserError(f"root: needs videos as folders of frames, {unreadable(error, where)}") from error
    return sorted(found, key=lambda path: natural_key(path.name))


def video_frames(folder: pathlib.Path, count: int, *, first: int | None = None) -> list[pathlib.Path]:
    """Up to `count` images of a folder, spread evenly over it, or over its `first` ones.

    Raises:
      UserError: a folder that cannot be read.
    """
    check_number("data.frames", count, AtLeast(1))
    try:
        files = contents(folder).files
    except OSError as error:
        raise UserError(f"root: needs frames of a video, {unreadable(error, folder)}") from error
    images = sorted((f for f in files if f.suffix.lower() in SUFFIXES), key=lambda f: natural_key(f.name))
    images = images[:first]
    spread = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int))
    return [images[i] for i in spread] if images else []


def oulu_npu(root: pathlib.Path, part: str, protocol: int, phone: int, frames: int) -> list[CapturedFace]:
    """Frames of the videos that a part of a protocol has, in `Train_files`, `Dev_files` or `Test_files`.

    Raises:
      UserError: no such folder, or a name that says nothing.
    """
    faces = []
    for folder in _folders(root, root / _OULU_FOLDERS[part]):
        video = oulu_video(folder.name)
        if video is None:
            raise UserError(
                f"root: needs videos named phone_session_user_file, as 1_1_01_1; got {folder.name[:40]!r}"
            )
        if oulu_takes(video, part, protocol, phone):
            for frame in video_frames(folder, frames):
                faces.append(CapturedFace(frame, None, video.instrument, folder.name, str(video.user)))
    return faces


def siw(root: pathlib.Path, test: bool, protocol: int, fold: int, frames: int) -> list[CapturedFace]:
    """Frames of the videos that the training or the test of a protocol has, in <Train or Test>/<live or spoof>/<subject>/<video>.

    Raises:
      UserError: no such folder, or a name that says nothing.
    """
    faces, first = [], 60 if protocol == 1 and not test else None
    for kind in ("live", "spoof"):
        for subject in _folders(root, root / ("Test" if test else "Train") / kind):
            for folder in _folders(root, subject):
                video = siw_video(folder.name)
                if video is None or (video.instrument == "live") != (kind == "live"):
                    raise UserError(
                        "root: needs videos named subject-sensor-type-medium-session in the folder of their type, "
                        f"got {name_text(folder)}"
                    )
                if siw_takes(video.instrument, test, protocol, fold):
                    for frame in video_frames(folder, frames, first=first):
                        faces.append(CapturedFace(frame, None, video.instrument, folder.name, video.subject))
    return faces
