"""Depth maps of faces as images, alone or beside the photograph, and folders of such pairs.

A depth map is float32 [S, S], mm before some plane behind the face (larger is nearer), 0 where there is no reading: the
renderer's convention. A network sees it relative to the nose tip, since the distance from the camera says more about the
session than about the face.
"""

import io
import logging
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

from jaxface.data.sources.images import (
    MAX_SIDE,
    CorruptImage,
    Encoded,
    Fit,
    decode_image,
    encoded_bytes,
    fit_square,
    read_encoded,
)
from jaxface.data.sources.listing import images_by_class, unreadable
from jaxface.data.sources.source import Record, Source
from jaxface.data.sources.standin import StandInSource, any_readable
from jaxface.errors import UserError
from jaxface.paths import name_text, user_path

SPAN = 120.0
"""Depth that an encoded image covers, mm: half before the nose tip, half behind it."""
SUFFIX = "_depth"
_NOSE = 110.0  # mm before the plane at which the nose of a face from a file is put, about the renderer's

Modality = Literal["rgb", "depth", "rgbd"]

_log = logging.getLogger("jaxface.data")


def nose_depth(depth: np.ndarray, landmarks: np.ndarray | None = None) -> float | None:
    """Depth of the nose tip: the median around its landmark, or nearly the nearest point of the middle of the image.

    Args:
      depth: [H, W] mm, 0 where there is no reading.
      landmarks: [5, 2] (x, y) pixels with the nose tip in the middle; None where nobody marked it.

    Returns:
      mm; None for a map without a reading.

    Example:
      >>> depth = np.full((20, 20), 600.0)
      >>> depth[8:12, 8:12] = 570.0
      >>> float(nose_depth(depth, np.array([[5, 5], [15, 5], [10, 10], [6, 15], [14, 15]])))
      570.0
    """
    height, width = depth.shape
    if landmarks is not None:
        x, y = np.rint(landmarks[2]).astype(int)
        reach = max(1, height // 32)
        near = depth[max(y - reach, 0) : max(y + reach + 1, 0), max(x - reach, 0) : max(x + reach + 1, 0)]
        if (near != 0).any():
            return float(np.median(near[near != 0]))
    middle = depth[height // 4 : height - height // 4, width // 4 : width - width // 4]
    for part in (middle, depth):
        if (part != 0).any():
            return float(np.percentile(part[part != 0], 98))
    return None


def encode_depth(depth: np.ndarray, nose: float | None) -> np.ndarray:
    """A depth map as an image around the nose tip (arXiv:2403.06529; the range is ours, design).

        p = round(255 clip((z - z_nose + 60) / 120, 0, 1)),        0 where there is no reading

    Args:
      depth: [H, W] mm, 0 where there is no reading.
      nose: z_nose, mm; None for a map without a reading.

    Returns:
      [H, W, 3] uint8, gray; a level is 0.47 mm.

    Raises:
      ValueError: not [H, W].

    Example:
      >>> encode_depth(np.array([[500.0, 530.0, 0.0]]), 500.0)[..., 0].tolist()  # the nose, 30 mm behind it, no reading
      [[128, 191, 0]]
    """
    if depth.ndim != 2:
        raise ValueError(f"depth: needs shape [H, W], got {depth.shape}")
    if nose is None:
        return np.zeros((*depth.shape, 3), np.uint8)
    levels = np.rint(255 * np.clip((depth - nose + SPAN / 2) / SPAN, 0.0, 1.0)).astype(np.uint8)
    return np.repeat(np.where(depth != 0, levels, 0)[..., None], 3, axis=-1)


def _encoded(record: Record) -> np.ndarray:
    depth = record["depth"]
    return encode_depth(depth, nose_depth(depth, record.get("landmarks")))


class DepthImages:
    """A source with depth, whose images are its encoded depth maps; the photograph is gone."""

    def __init__(self, source: Source):
        self._source = source
        self.labels, self.class_names = source.labels, source.class_names
        self.image_shape = source.image_shape

    @property
    def record_names(self):
        """[N] names of the records; an AttributeError where the source has none."""
        return self._source.record_names

    @property
    def subsets(self) -> np.ndarray:
        """[N] int32, the part of the benchmark that each record is of; an AttributeError where the source does not know."""
        return self._source.subsets

    @property
    def subset_names(self) -> Sequence[str]:
        """Names of the parts."""
        return self._source.subset_names

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = dict(self._source[index])
        record["image"] = _encoded(record)
        del record["depth"]
        return record


class RgbdImages(DepthImages):
    """A source with depth, whose records keep their image; `depth` becomes an encoded image [S, S, 3] uint8 too."""

    def __getitem__(self, index: int) -> Record:
        record = dict(self._source[index])
        record["depth"] = _encoded(record)
        return record


def decode_depth(encoded: Encoded | str | os.PathLike) -> np.ndarray:
    """Decodes a 16-bit (or 8-bit) gray PNG of distances from the camera.

    Args:
      encoded: the bytes of the file, or its path, as `decode_image`.

    Returns:
      [H, W] float32 mm, 0 where there is no reading.

    Raises:
      CorruptImage: not such an image, a color one, or a side longer than `images.MAX_SIDE`. UserError: an address that cannot be
        reached.
      TypeError: neither bytes nor a path.
    """
    path = isinstance(encoded, str | os.PathLike)
    if not path:
        encoded = encoded_bytes(encoded)
    try:
        file = io.BytesIO(read_encoded(encoded) if path else encoded)
        with Image.open(file, formats=("PNG",)) as image:
            if max(image.size) > MAX_SIDE:
                raise CorruptImage(
                    f"its header claims {image.size[0]}x{image.size[1]} pixels, the limit is {MAX_SIDE}"
                )
            if image.mode not in ("I", "I;16", "I;16B", "I;16L", "L"):
                raise CorruptImage(f"a depth map needs one channel of millimeters, its mode is {image.mode}")
            return np.asarray(image).astype(np.float32)
    except (CorruptImage, UserError):
        raise
    except Exception as error:  # a decoder fed with garbage raises nearly anything
        raise CorruptImage(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from error


def fit_depth(depth: np.ndarray, size: int, *, fit: Fit = "pad") -> np.ndarray:
    """`images.fit_square` for a depth map: holes (0) are not averaged with what is beside them."""
    valid = (depth != 0).astype(np.float32)
    share = fit_square(valid, size, fit=fit)
    summed = fit_square(depth * valid, size, fit=fit)
    return np.where(share > 0.5, summed / np.maximum(share, 1e-6), 0.0).astype(np.float32)


def _before_plane(distance: np.ndarray) -> np.ndarray:
    """Distances from the camera as depth before a plane 110 mm behind the nose; 0 where there is no reading, and only there."""
    nose = nose_depth(np.where(distance != 0, -distance, 0))
    if nose is None:
        return distance
    depth = _NOSE - nose - distance
    return np.where(distance != 0, np.where(depth == 0, 1e-3, depth), 0.0).astype(np.float32)


class RgbdFolderSource(StandInSource):
    """Photographs with their depth: `root/<person>/<name>.png` and `root/<person>/<name>_depth.png`.

    The photograph is anything that `FolderSource` reads; the depth map a PNG of one channel, 16 bits, mm from the camera, 0
    where there is no reading, registered to the photograph. They need one size. A photograph without its depth map is
    left out. Pairs that do not decode are replaced by the next one of the same person.

    Record: `image` uint8 [S, S, 3], `depth` float32 [S, S] mm before a plane behind the face, `label` int32.

    Attributes:
      labels: [N] int32.
      class_names: names of the sub-folders.
      image_shape: (image_size, image_size, 3).
      paths: (photograph, depth map) of every record.
      subsets, subset_names: see `Source`; only where subsets were asked for.
    """

    def __init__(
        self,
        root: str | pathlib.Path,
        *,
        image_size: int,
        fit: Fit = "pad",
        subset_names: Sequence[str] = (),
    ):
        """Opens the folder; decodes one pair per person.

        Args:
          root: the folder.
          image_size: side of the images, pixels.
          fit: how a rectangle becomes a square.
          subset_names: parts of a benchmark, one of which stands as a word in the name of every photograph: NU in 001_NU_2.png.

        Raises:
          UserError: no such folder, no pair in it, fewer than two people with a readable pair, or a photograph whose name does
            not say which part it is of.
        """
        super().__init__()
        self._size, self._fit = image_size, fit
        self.image_shape = (image_size, image_size, 3)
        root = user_path("root", root)
        try:
            files = images_by_class(root)
        except OSError as error:
            raise UserError(f"root: needs a folder of pairs by person, {unreadable(error, root)}") from error
        pairs_of_person, alone = {}, 0
        for name, paths in files.items():
            photographs = [path for path in paths if not path.stem.endswith(SUFFIX)]
            pairs = [(path, path.with_name(f"{path.stem}{SUFFIX}.png")) for path in photographs]
            files_of_person = set(paths)
            complete = [pair for pair in pairs if pair[1] in files_of_person]
            alone += len(pairs) - len(complete)
            if complete:
                pairs_of_person[name] = complete
        if alone:
            _log.warning("left out %d photographs in %s without a depth map", alone, root)
        if not pairs_of_person:
            raise UserError(
                f"root: no pair in {root}; needs {root}/<person>/<name>.png and <name>{SUFFIX}.png"
            )
        pairs_of_person = {
            name: pairs for name, pairs in pairs_of_person.items() if any_readable(self._decode, pairs, name)
        }
        if len(pairs_of_person) < 2:
            raise UserError(
                f"root: needs at least two people, {root} has {len(pairs_of_person)} with a readable pair"
            )
        self.class_names = list(pairs_of_person)
        self.paths = [pair for pairs in pairs_of_person.values() for pair in pairs]
        self.labels = np.repeat(
            np.arange(len(pairs_of_person), dtype=np.int32),
            [len(pairs) for pairs in pairs_of_person.values()],
        )
        if subset_names:
            self.subset_names = list(subset_names)
            self.subsets = np.array([self._subset(name) for name in self.record_names], np.int32)

    def _subset(self, record_name: str) -> int:
        words = re.split("[^0-9A-Za-z]+", record_name.rpartition("/")[2])
        named = [number for number, name in enumerate(self.subset_names) if name in words]
        if len(named) != 1:
            raise UserError(
                f"subsets: needs one of {', '.join(self.subset_names)} in the name of every photograph, got {record_name}"
            )
        return named[0]

    @property
    def record_names(self) -> list[str]:
        """[N] `<person>/<photograph>`, wherever the folder is."""
        return [f"{photograph.parent.name}/{photograph.name}" for photograph, _ in self.paths]

    @staticmethod
    def _decode(pair: tuple[pathlib.Path, pathlib.Path]) -> tuple[np.ndarray, np.ndarray]:
        image, distance = decode_image(pair[0]), decode_depth(pair[1])
        if image.shape[:2] != distance.shape:
            raise CorruptImage(
                f"its depth map has {distance.shape[1]}x{distance.shape[0]} pixels, "
                f"the photograph {image.shape[1]}x{image.shape[0]}"
            )
        if not distance.any():
            raise CorruptImage("its depth map has no reading")
        return image, distance

    def _read(self, index: int) -> Record:
        image, distance = self._decode(self.paths[index])
        return {
            "image": fit_square(image, self._size, fit=self._fit),
            "depth": _before_plane(fit_depth(distance, self._size, fit=self._fit)),
            "label": self.labels[index],
        }

    def _describe(self, index: int) -> str:
        return name_text(self.paths[index][0])


def of_modality(source: Source, modality: Modality) -> Source:
    """A source with depth as a run wants it: its photographs, its depth as images, or both."""
    return {"rgb": lambda source: source, "depth": DepthImages, "rgbd": RgbdImages}[modality](source)
