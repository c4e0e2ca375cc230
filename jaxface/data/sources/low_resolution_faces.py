"""SCface and TinyFace: faces of few pixels, searched in a gallery of larger ones.

    <SCface>/mugshot_frontal_cropped_all/<person>_frontal.JPG            the gallery
    <SCface>/mugshot_frontal_original_all/<person>_frontal.jpg           the same, whole; what `all.txt` is about
    <SCface>/surveillance_cameras_distance_<d>/[cam_<c>/]<person>_cam<c>_<d>.jpg
    <SCface>/all.txt                                                     image, right eye, left eye, nose, mouth: x y each

    <TinyFace>/Testing_Set/Gallery_Match/<image>, Gallery_Distractor/<image>, Probe/<image>
    <TinyFace>/Testing_Set/gallery_match_img_ID_pairs.mat                gallery_set, gallery_ids
    <TinyFace>/Testing_Set/probe_img_ID_pairs.mat                        probe_set, probe_ids

As LRFR's evaluation does (arXiv:2302.05621), a face of any size is enlarged by bicubic interpolation to that of the network.
"""

import os
import pathlib
import re

import cv2
import numpy as np
from PIL import Image

from jaxface.data.sources.annotated import numbers, read_lines
from jaxface.data.sources.images import CorruptImage, Fit, decode_image, fit_square
from jaxface.data.sources.listed_faces import ListedFaces, check_names, readable
from jaxface.data.sources.listing import images_below, unreadable
from jaxface.data.sources.matlab import read_mat
from jaxface.data.transforms.alignment import template, umeyama
from jaxface.errors import UserError
from jaxface.metrics.recognition.benchmarks import gallery_report
from jaxface.metrics.recognition.low_resolution import rank1_by_distance
from jaxface.paths import name_text, user_path

DISTANCES = ("d1", "d2", "d3")
"""Of SCface: 4.2, 2.6 and 1 m from the cameras, by the number at the end of a name."""
_CAMERAS = range(1, 6)  # 6 and 7 see infrared
_CROP = 112  # side at which the template of the landmarks is defined


def enlarge(image: np.ndarray, size: int, *, fit: Fit = "pad") -> np.ndarray:
    """An image [H, W, 3] uint8 as a square of `size` pixels, by Pillow's bicubic interpolation."""
    side = min(image.shape[:2]) if fit == "crop" else max(image.shape[:2])
    square = fit_square(image, side, fit=fit)
    return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC))


class _Searched(ListedFaces):
    """Gallery, then probes; what is shared by the two sets."""

    num_gallery: int
    """How many records are the gallery, distractors among them."""

    def _image(self, index: int) -> np.ndarray:
        return enlarge(
            decode_image(self.folder / self.record_names[index]), self.image_shape[0], fit=self._fit
        )

    def _usable(self, weights, *, what: str) -> tuple[np.ndarray, np.ndarray, float]:
        """(numbers of the gallery, numbers of the probes, images left out): what can be read, and whose mate can be, too."""
        good = readable(weights, what=what)
        gallery = np.flatnonzero(good[: self.num_gallery])
        probes = self.num_gallery + np.flatnonzero(good[self.num_gallery :])
        mated = np.isin(self.labels[probes], self.labels[gallery])
        if not mated.any():
            raise UserError(f"data: {what} has no probe left whose person is in the gallery")
        return gallery, probes[mated], float((~good).sum() + (~mated).sum())


class ScfaceSource(_Searched):
    """One frontal photograph of each person as the gallery, and what five visible-light cameras saw of them at three distances.

    Attributes:
      distances: [N] the distance of each record, "d1" (4.2 m), "d2" (2.6 m) or "d3" (1 m); "" of the gallery.
      num_gallery: how many records are the gallery; the probes come after.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        image_size: int = _CROP,
        skip: int = 50,
        align: bool = False,
        fit: Fit = "pad",
    ):
        """Lists the set; no image is read yet.

        Args:
          root: the folder of the set.
          image_size: side of every image, pixels.
          skip: leave out the people with numbers up to this; the first 50 of 130 may be used for training, by convention.
          align: faces by the four points of `all.txt`, and the gallery from the whole photographs; otherwise images are used as
            they are, for copies of the set that are aligned already.
          fit: how a rectangle becomes a square, of images that are not aligned.

        Raises:
          UserError: a folder that is missing or has no image of the set, a probe whose person has no frontal photograph, an
            `all.txt` that is missing, cannot be read or does not know an image.
        """
        root = user_path("root", root)
        mugshots = "mugshot_frontal_original_all" if align else "mugshot_frontal_cropped_all"
        frontal = _matching(root, mugshots, r"(\d{3})_frontal")
        people = sorted({int(match[1]) for match in frontal.values() if int(match[1]) > skip})
        names = [name for name, match in frontal.items() if int(match[1]) > skip]
        labels = [people.index(int(frontal[name][1])) for name in names]
        if len(names) != len(people):
            raise UserError(f"root: needs one photograph of each person in {name_text(root / mugshots)}")
        distances = [""] * len(names)
        for number, distance in enumerate(DISTANCES, start=1):
            folder = f"surveillance_cameras_distance_{number}"
            for name, match in _matching(root, folder, rf"(\d{{3}})_cam(\d)_{number}").items():
                if int(match[1]) <= skip or int(match[2]) not in _CAMERAS:
                    continue
                if int(match[1]) not in people:
                    raise UserError(f"root: {name} has no frontal photograph in {name_text(root / mugshots)}")
                names.append(name)
                labels.append(people.index(int(match[1])))
                distances.append(distance)
        if not people or len(names) == len(people):
            raise UserError(f"root: needs people with numbers above {skip}, {name_text(root)} has none")
        super().__init__(root, names, labels, [f"{p:03}" for p in people], image_size=image_size, fit=fit)
        self.num_gallery, self.distances = len(people), np.array(distances)
        self._points = _four_points(root / "all.txt", names) if align else None

    def _image(self, index: int) -> np.ndarray:
        if self._points is None:
            return super()._image(index)
        image, five = decode_image(self.folder / self.record_names[index]), template(_CROP).astype(np.float64)
        four = np.concatenate([five[:3], five[3:].mean(axis=0, keepdims=True)])
        try:
            matrix = umeyama(self._points[index], four)
        except ValueError as error:
            raise CorruptImage(str(error)) from None
        face = cv2.warpAffine(image, matrix, (_CROP, _CROP), flags=cv2.INTER_CUBIC, borderValue=0)
        return fit_square(face, self.image_shape[0])

    def report(self, features, weights) -> dict[str, float]:
        """Rank-1 at each distance and their mean (`jaxface.metrics.rank1_by_distance`), and how many images were left out.

        Args:
          features: [N, D] float, of the records, not normalized. weights: [N], 0 for an image that could not be read.

        Raises:
          UserError: nothing to compare could be read.
        """
        features = np.asarray(features)
        gallery, probes, left_out = self._usable(weights, what="SCface")
        rates = rank1_by_distance(
            features[probes],
            self.labels[probes],
            self.distances[probes],
            features[gallery],
            self.labels[gallery],
        )
        return {f"identification/{name}": rate for name, rate in rates.items()} | {"data/left_out": left_out}


class TinyFaceSource(_Searched):
    """The gallery, its distractors, and the probes of TinyFace's test; the label of a distractor is nobody's.

    Attributes:
      num_gallery: how many records are gallery and distractors; the probes come after.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        image_size: int = _CROP,
        images: str | os.PathLike | None = None,
        fit: Fit = "pad",
    ):
        """Opens the lists; no image is read yet.

        Args:
          root: the folder of the set, with `Testing_Set` in it.
          image_size: side of every image, pixels.
          images: folder with Gallery_Match, Gallery_Distractor and Probe, for an aligned copy; `Testing_Set` unless given.
          fit: how a rectangle becomes a square.

        Raises:
          UserError: a list or a folder that is missing, a list that cannot be read or names an image outside of its folder, or a
            probe whose person is not in the gallery.
        """
        root = user_path("root", root)
        lists = root / "Testing_Set"
        folder = lists if images is None else user_path("images", images)
        gallery, gallery_ids = _named_ids(lists / "gallery_match_img_ID_pairs.mat", "gallery")
        probes, probe_ids = _named_ids(lists / "probe_img_ID_pairs.mat", "probe")
        people, numbers_of_people = np.unique(gallery_ids, return_inverse=True)
        lost = np.setdiff1d(probe_ids, people)
        if lost.size:
            raise UserError(
                f"root: the gallery of {name_text(lists)} has no image of person {lost[0]}, a probe has"
            )
        distractors = _files(folder, "Gallery_Distractor")
        names = [f"Gallery_Match/{name}" for name in gallery] + distractors
        super().__init__(
            folder,
            names + [f"Probe/{name}" for name in probes],
            np.concatenate(
                [
                    numbers_of_people,
                    np.full(len(distractors), len(people)),
                    np.searchsorted(people, probe_ids),
                ]
            ),
            [*map(str, people), "distractor"],
            image_size=image_size,
            fit=fit,
        )
        self.num_gallery = len(names)

    def report(self, features, weights) -> dict[str, float]:
        """Rank-k rates and mAP (`jaxface.metrics.gallery_report`), and how many images were left out; arguments as SCface's."""
        features = np.asarray(features)
        gallery, probes, left_out = self._usable(weights, what="TinyFace")
        report = gallery_report(
            features[probes], self.labels[probes], features[gallery], self.labels[gallery]
        )
        return report | {"data/left_out": left_out}


def _files(root: pathlib.Path, folder: str) -> list[str]:
    """The images in a folder of `root` and below, by their names from `root`, sorted."""
    try:
        return sorted(images_below(root, folder))
    except OSError as error:
        raise UserError(f"root: needs the folder {unreadable(error, root / folder)}") from error


def _matching(root: pathlib.Path, folder: str, pattern: str) -> dict[str, re.Match]:
    """Name from `root` -> what its stem matches; other files are of no concern."""
    found = {name: re.fullmatch(pattern, pathlib.PurePosixPath(name).stem) for name in _files(root, folder)}
    return {name: match for name, match in found.items() if match}


def _four_points(path: pathlib.Path, names: list[str]) -> np.ndarray:
    """[N, 4, 2] (x, y) of the eye at the left of the image, the other, the nose and the mouth."""
    points = {}
    for number, line in read_lines("root", path):
        name, *tokens = line.split()
        row = numbers(tokens, 8)
        if row is None or not np.isfinite(row).all():
            raise UserError(f"root: {name_text(path)} needs a name and 8 numbers in line {number}")
        points[name.lower()] = row
    stems = [pathlib.PurePosixPath(name).stem.lower() for name in names]
    lost = [stem for stem in stems if stem not in points]
    if lost:
        raise UserError(f"root: {name_text(path)} has no points of {lost[0]}")
    return np.array([points[stem] for stem in stems], np.float64).reshape(-1, 4, 2)


def _named_ids(path: pathlib.Path, kind: str) -> tuple[list[str], np.ndarray]:
    """Names [N] of images and whose [N] they are."""
    table = read_mat("root", path, (f"{kind}_set", f"{kind}_ids"))
    try:
        names = [str(np.asarray(cell).item()) for cell in table[f"{kind}_set"].ravel()]
        ids = np.asarray(table[f"{kind}_ids"]).ravel()
        if not names or len(names) != len(ids) or (ids != ids.astype(np.int64)).any():
            raise ValueError(f"{len(names)} names and {len(ids)} numbers")
    except (ValueError, TypeError) as error:
        raise UserError(
            f"root: {name_text(path)} needs names and numbers of people, as many of either: {error}"
        ) from error
    check_names("root", names, name_text(path))
    return names, ids.astype(np.int64)
