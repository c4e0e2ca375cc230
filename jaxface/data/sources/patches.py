"""Whole photographs of any size, and patches of them, for what learns pixels and no classes."""

import functools
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np

from jaxface.checks import AtLeast, check_number
from jaxface.data.sources.bundled import ArraySource
from jaxface.data.sources.images import SUFFIXES, CorruptImage, decode_image
from jaxface.data.sources.listing import natural_key
from jaxface.errors import UserError
from jaxface.extras import optional
from jaxface.paths import local_path, reason_of

BUNDLED = (
    "coffee",
    "motorcycle_left",
    "hubble_deep_field",
    "retina",
    "immunohistochemistry",
    "china",
    "flower",
)
"""Color photographs that scikit-image and scikit-learn bring, to learn from."""
BUNDLED_HELD_OUT = ("astronaut", "chelsea", "rocket")
"""Others of theirs, to evaluate on."""
_SCALES = (0.6, 1.0)


@functools.cache
def bundled_photograph(name: str) -> np.ndarray:
    """A color photograph of `BUNDLED` or `BUNDLED_HELD_OUT`, uint8 [H, W, 3]."""
    if name in ("china", "flower"):
        return optional("sklearn.datasets", "sets").load_sample_image(f"{name}.jpg")
    data = optional("skimage.data", "sets")
    if name == "motorcycle_left":
        return optional("skimage.io", "sets").imread(
            pathlib.Path(data.__file__).parent / "motorcycle_left.png"
        )[..., :3]
    return np.ascontiguousarray(getattr(data, name)()[..., :3])


def folder_photographs(root: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Name -> photograph uint8 [H, W, 3] of every image in a folder, such as Kodak's, in natural order.

    Raises:
      UserError: no such folder, no image in it, or one that cannot be read.
    """
    folder = local_path("root", root)
    try:
        paths = sorted(
            (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES), key=lambda p: natural_key(p.name)
        )
    except OSError as error:
        raise UserError(f"root: needs a folder of images, {folder}: {reason_of(error)}") from None
    if not paths:
        raise UserError(f"root: no image in {folder}")
    try:
        return {path.stem: decode_image(path) for path in paths}
    except CorruptImage as error:
        raise UserError(f"root: an image of {folder} cannot be read: {error}") from None


def patches(photographs: Sequence[np.ndarray], *, side: int, per_photograph: int, seed: int) -> ArraySource:
    """Random squares of photographs, each shrunk a little, as the training patches of learned codecs are cut.

    A square of side / f pixels, f ~ U(0.6, 1), becomes one of `side`; from a photograph come 4 ⌊H W / side²⌋ of them, or fewer.

    Args:
      photographs: uint8 [H, W, 3] each.
      side: of a patch, pixels, ≥ 8.
      per_photograph: the most of one, ≥ 1.
      seed: ≥ 0.

    Returns:
      A source of one class.

    Raises:
      UserError: a number out of its range, or a photograph smaller than a patch.
    """
    for name, value, least in (("side", side, 8), ("per_photograph", per_photograph, 1), ("seed", seed, 0)):
        check_number(name, value, AtLeast(least))
    rng, cut = np.random.default_rng([seed, 0x9A7C]), []
    for picture in photographs:
        height, width = picture.shape[:2]
        if min(height, width) < side:
            raise UserError(
                f"image_size: needs at most the {min(height, width)} pixels of a photograph, got {side}"
            )
        for _ in range(min(4 * (height * width // side**2), per_photograph)):
            window = min(int(side / rng.uniform(*_SCALES)), height, width)
            top, left = rng.integers(height - window + 1), rng.integers(width - window + 1)
            square = np.ascontiguousarray(picture[top : top + window, left : left + window])
            cut.append(cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA))
    return ArraySource(np.stack(cut), np.zeros(len(cut), np.int32), ["image"])
