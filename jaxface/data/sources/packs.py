"""InsightFace verification packs: one pickle of (encoded images of N pairs, whether each is of one person).

Nothing of the pickle runs (`jaxface.safe_pickle`): it has lists, tuples, numbers, bytes, text and arrays
(`jaxface.data.sources.pickled_arrays`).
"""

import collections
import logging
import os
import pathlib
import pickle
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxface import safe_pickle
from jaxface.checks import truth_array
from jaxface.data.sources.images import CorruptImage, Fit, decode_image, encoded_bytes, fit_square
from jaxface.data.sources.listing import contents
from jaxface.data.sources.pickled_arrays import FUNCTIONS, PickledArray, build
from jaxface.data.sources.source import Record
from jaxface.errors import UserError
from jaxface.metrics.recognition.pairs import Pairs
from jaxface.paths import file_size, local_path, name_text, reaching, reason_of, user_path
from jaxface.safe_pickle import Refused

MAX_PACK = 1 << 31  # bytes; the largest public ones have some hundred million
MAX_STEPS = 1 << 22  # instructions; arrays in the oldest protocol need some 50 for an image
_log = logging.getLogger("jaxface.data")

_OPCODES = safe_pickle.OPCODES - {"BINFLOAT", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "BINPERSID"}


def _image(entry: Any) -> bytes:
    if isinstance(entry, bytes):
        return entry
    filled = isinstance(entry, PickledArray) and entry.data is not None
    if filled and entry.type.code == "u1" and (len(entry.shape) == 1 or entry.shape[1:] == (1,)):
        return entry.data
    raise Refused("holds an image that is neither bytes nor a uint8 array of shape [L] or [L, 1]")


def _truth(entry: Any) -> bool:
    if isinstance(entry, PickledArray) and entry.shape == ():
        entry = entry.numbers()[0]
    if isinstance(entry, bool) or (type(entry) is int and entry in (0, 1)):
        return bool(entry)
    raise Refused("holds a pair that is neither same nor different")


def parse_bin(data: bytes) -> tuple[list[bytes], np.ndarray]:
    """`read_bin` of bytes.

    Raises:
      Refused: what makes `read_bin` refuse.
    """
    if len(data) > MAX_PACK:
        raise Refused(f"has more than {MAX_PACK} bytes")
    pack = safe_pickle.load(
        data, FUNCTIONS, opcodes=_OPCODES, purpose="a pack", build=build, max_steps=MAX_STEPS
    )
    if not isinstance(pack, tuple | list) or len(pack) != 2:
        raise Refused("holds no pair of images and labels")
    bins, labels = pack
    if isinstance(labels, PickledArray) and labels.data is not None and len(labels.shape) == 1:
        labels = labels.numbers()
    if not isinstance(bins, list | tuple) or not isinstance(labels, list | tuple):
        raise Refused("holds no pair of a list of images and a list of labels")
    if len(bins) % 2:
        raise Refused(f"has an odd number of images, {len(bins)}")
    if len(labels) != len(bins) // 2:
        raise Refused(f"has {len(labels)} labels for {len(bins) // 2} pairs")
    return [_image(entry) for entry in bins], np.array([_truth(entry) for entry in labels], bool)


def read_bin(path: str | os.PathLike) -> tuple[list[bytes], np.ndarray]:
    """Images and labels of a verification pack, of any pickle protocol from 0 to 5 and of Python 2.

    Args:
      path: the `.bin`.

    Returns:
      (2N encoded images, pair i being 2i and 2i + 1; same [N] bool).

    Raises:
      UserError: no such file, or a pickle with anything but lists, tuples, numbers, bytes, strings and numpy arrays in
        it, which has been read and not run; an odd number of images or another number of labels than of pairs.
    """
    path = user_path("path", path)
    try:
        with reaching(path):
            if file_size(path) > MAX_PACK:
                raise UserError(f"path: needs a pack of at most {MAX_PACK} bytes; got {path}")
            data = path.read_bytes()
        return parse_bin(data)
    except OSError as error:
        raise UserError(f"path: needs a .bin pack; got {path}: {reason_of(error)}") from error
    except Refused as error:
        raise UserError(f"path: needs a .bin pack; got {path}, which {error}") from None


def write_bin(path: str | os.PathLike, images: Sequence[bytes], same: Sequence[bool] | np.ndarray) -> None:
    """Writes a verification pack, as protocol 4, whole or not at all.

    Args:
      path: the `.bin` to come.
      images: 2N encoded images, pair i being 2i and 2i + 1.
      same: [N] bool.

    Raises:
      ValueError: another number of labels than of pairs, or one that is no truth. TypeError: images that are not bytes.
      UserError: more than `read_bin` takes, or a file that cannot be written.
    """
    same = truth_array("same", same, len(same)).tolist()
    if len(images) != 2 * len(same):
        raise ValueError(f"images: needs two for each of the {len(same)} pairs, got {len(images)}")
    path = local_path("path", path)
    data = pickle.dumps(([encoded_bytes(image) for image in images], same), protocol=4)
    # An image takes up to three instructions, a label one, and a thousand of either two more for their list.
    if len(data) > MAX_PACK or 4 * len(images) + 2 * len(same) > MAX_STEPS:
        raise UserError(
            f"path: a pack that can be read back has at most {MAX_PACK} bytes and {MAX_STEPS // 10} pairs; "
            f"got {len(data)} bytes and {len(same)} pairs"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            pathlib.Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"path: cannot write {path}: {error.strerror}") from error


class PackSource:
    """The images of a verification pack, to be compared in the pairs that come with them.

    All images are decoded once on opening. A pair with one that cannot be read is left out: no other image could stand
    in for it. The folds of the protocol are contiguous tenths of what is left, in the order of the pack.

    Attributes:
      pairs: the official pairs, for `jaxface.metrics.verify(embeddings, None, pairs=source.pairs)`.
      labels: [2N] int32, equal for the two images of a genuine pair and otherwise different. They say nothing across
        pairs: a pack does not tell who is on an image.
      class_names: one number per label.
      image_shape: (image_size, image_size, 3).
      corrupt: images that cannot be read.
    """

    def __init__(self, path: str | os.PathLike, *, image_size: int = 112, fit: Fit = "crop"):
        """Opens a pack.

        Args:
          path: the `.bin`.
          image_size: side of every image, pixels.
          fit: how a rectangle becomes a square; `crop` resizes the short side, as the public protocol does.

        Raises:
          UserError: what `read_bin` refuses, or fewer than two genuine or impostor pairs that can be read.
        """
        images, same = read_bin(path)
        good = np.ones(len(images), bool)
        reasons: collections.Counter[str] = collections.Counter()
        for index, image in enumerate(images):
            try:
                decode_image(image)
            except CorruptImage as error:
                good[index] = False
                reasons[str(error)] += 1
        self.corrupt = int((~good).sum())
        kept = np.flatnonzero(good[0::2] & good[1::2])
        if self.corrupt:
            _log.warning(
                "left out %d of the %d pairs of %s: %d images cannot be read (%s)",
                *(
                    len(same) - len(kept),
                    len(same),
                    name_text(path),
                    self.corrupt,
                    reasons.most_common(1)[0][0],
                ),
            )
        same = same[kept]
        if min(same.sum(), (~same).sum()) < 2:
            raise UserError(
                f"path: needs a pack with two genuine and two impostor pairs; {path} has {same.sum()} and "
                f"{(~same).sum()} that can be read"
            )
        self._images = [images[index] for pair in kept.tolist() for index in (2 * pair, 2 * pair + 1)]
        self._size, self._fit = image_size, fit
        self.image_shape = (image_size, image_size, 3)
        first = np.arange(0, 2 * len(same), 2)
        self.labels = np.stack([first, np.where(same, first, first + 1)], 1).ravel().astype(np.int32)
        self.class_names = [str(number) for number in range(2 * len(same))]
        indices = np.stack([first, first + 1], 1).astype(np.int32)
        self.pairs = Pairs(indices, same, folds=min(10, len(same)))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Record:
        image = fit_square(decode_image(self._images[index]), self._size, fit=self._fit)
        return {"image": image, "label": self.labels[index]}


def open_packs(
    folder: str | os.PathLike, *, image_size: int = 112, fit: Fit = "crop", argument: str = "packs"
) -> dict[str, PackSource]:
    """Every `.bin` of a folder by its name without the suffix, in their order; other files and folders are of no concern.

    Args:
      folder: with the packs.
      image_size, fit: as `PackSource`.
      argument: what a refusal calls the folder.

    Raises:
      UserError: no such folder, no pack in it, or one that `PackSource` refuses.
    """
    folder = user_path(argument, folder)
    try:
        with reaching(folder):
            paths = sorted(path for path in contents(folder).files if path.suffix == ".bin")
    except OSError as error:
        raise UserError(
            f"{argument}: needs a folder with .bin packs; got {name_text(folder)}: {reason_of(error)}"
        ) from None
    if not paths:
        raise UserError(f"{argument}: needs a folder with .bin packs; {name_text(folder)} has none")
    packs = {}
    for path in paths:
        try:
            packs[name_text(path.stem)] = PackSource(path, image_size=image_size, fit=fit)
        except UserError as error:
            raise UserError(f"{argument}: {str(error).partition(': ')[2]}") from None
    return packs
