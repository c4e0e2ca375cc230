"""Learned and random augmentation policies on uint8: AutoAugment's for CIFAR-10, RandAugment, Cutout.

An operation is drawn by its name and a magnitude in [0, 1], the greatest of its published range:

    shear_x, shear_y             ± 0.3                        translate_x, translate_y   ± 150/331 of the side
    rotate                       ± 30°                        posterize                  8 to 4 bits
    color, contrast, brightness,                              solarize                   above 256 to above 0
    sharpness                    1 ± 0.9                      auto_contrast, equalize, invert, identity

What comes in from outside of the image is gray (128).

Methods: nclpp
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from jaxface.checks import AtLeast, Fraction, Range, check_number
from jaxface.data.sources.images import check_bytes
from jaxface.errors import UserError

_FILL = 128
_SHEAR, _SHIFT, _DEGREES, _FACTOR = 0.3, 150 / 331, 30.0, 0.9


def _affine(picture: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """`matrix` takes places of the result, around the middle, to those of the picture."""
    a, b, c, d, e, f = matrix
    x, y = picture.width / 2, picture.height / 2
    moved = (a, b, c + x - a * x - b * y, d, e, f + y - d * x - e * y)
    fill = _FILL if picture.mode == "L" else (_FILL,) * 3
    return picture.transform(picture.size, Image.Transform.AFFINE, moved, fillcolor=fill)


def _enhance(kind: type) -> Callable[[Image.Image, float], Image.Image]:
    return lambda picture, signed: kind(picture).enhance(1 + _FACTOR * signed)


# (picture, magnitude in [-1, 1]) -> picture
_SIGNED = {
    "shear_x": lambda p, m: _affine(p, (1, _SHEAR * m, 0, 0, 1, 0)),
    "shear_y": lambda p, m: _affine(p, (1, 0, 0, _SHEAR * m, 1, 0)),
    "translate_x": lambda p, m: _affine(p, (1, 0, _SHIFT * m * p.width, 0, 1, 0)),
    "translate_y": lambda p, m: _affine(p, (1, 0, 0, 0, 1, _SHIFT * m * p.height)),
    "rotate": lambda p, m: p.rotate(_DEGREES * m, fillcolor=_FILL if p.mode == "L" else (_FILL,) * 3),
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
}
# (picture, magnitude in [0, 1]) -> picture
_UNSIGNED = {
    "identity": lambda p, m: p,
    "posterize": lambda p, m: ImageOps.posterize(p, 8 - round(4 * m)),
    "solarize": lambda p, m: ImageOps.solarize(p, round(256 * (1 - m))),
    "auto_contrast": lambda p, m: ImageOps.autocontrast(p),
    "equalize": lambda p, m: ImageOps.equalize(p),
    "invert": lambda p, m: ImageOps.invert(p),
}

# arXiv:1805.09501, table 7: (operation, probability, level of 9) twice; operations without a level have 0.
_CIFAR10 = (
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.5, 0), ("equalize", 0.9, 0)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 0), ("auto_contrast", 0.4, 0)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 0)),
    (("equalize", 0.2, 0), ("auto_contrast", 0.6, 0)),
    (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
    (("color", 0.9, 9), ("equalize", 0.6, 0)),
    (("auto_contrast", 0.8, 0), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("auto_contrast", 0.9, 0)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.9, 0), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 0), ("invert", 0.1, 0)),
    (("translate_y", 0.7, 9), ("auto_contrast", 0.9, 0)),
)

RAND_AUGMENT = (
    "identity", "auto_contrast", "equalize", "rotate", "solarize", "color", "posterize", "contrast", "brightness", "sharpness",
    "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip
"""The operations of RandAugment (arXiv:1909.13719)."""


def apply_operation(image: np.ndarray, name: str, magnitude: float, *, negative: bool = False) -> np.ndarray:
    """One operation of the list above.

    Args:
      image: [H, W, 1 or 3] uint8.
      name: of the operation.
      magnitude: in [0, 1], of its range.
      negative: the other way, of operations that have two.

    Returns:
      [H, W, 1 or 3] uint8.

    Raises:
      UserError: an unknown operation, or a magnitude outside [0, 1]. ValueError: another image.

    Example:
      >>> apply_operation(np.full((1, 1, 3), 200, np.uint8), "solarize", 0.5).tolist()  # 255 - 200: above 128
      [[[55, 55, 55]]]
    """
    check_bytes("image", image)
    check_number("magnitude", magnitude, Fraction)
    gray = image.shape[-1] == 1
    picture = Image.fromarray(image[..., 0] if gray else image)
    if name in _SIGNED:
        changed = _SIGNED[name](picture, -magnitude if negative else magnitude)
    elif name in _UNSIGNED:
        changed = _UNSIGNED[name](picture, magnitude)
    else:
        raise UserError(f"name: needs one of {', '.join([*_SIGNED, *_UNSIGNED])}, got {name!r}")
    return np.asarray(changed).reshape(image.shape)


def cifar10_policy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of the 25 pairs of operations that AutoAugment found on CIFAR-10 (arXiv:1805.09501).

    Args:
      image: [H, W, 1 or 3] uint8.
      rng: of the pair, of which of its operations happen, and of their signs.

    Returns:
      [H, W, 1 or 3] uint8.
    """
    for name, probability, level in _CIFAR10[rng.integers(len(_CIFAR10))]:
        happens, sign = rng.random(2)
        if happens < probability:
            image = apply_operation(image, name, level / 9, negative=sign < 0.5)
    return image


def rand_augment(
    image: np.ndarray, rng: np.random.Generator, *, operations: int = 2, magnitude: float = 10.0
) -> np.ndarray:
    """Some operations one after another, each any of `RAND_AUGMENT` (arXiv:1909.13719).

    Args:
      image: [H, W, 1 or 3] uint8.
      rng: of the operations and their signs.
      operations: how many, ≥ 1.
      magnitude: of all of them, in [0, 30].

    Returns:
      [H, W, 1 or 3] uint8.

    Raises:
      UserError: a number out of its range.
    """
    check_number("operations", operations, AtLeast(1))
    check_number("magnitude", magnitude, Range(0, 30))
    for index in rng.integers(len(RAND_AUGMENT), size=operations):
        image = apply_operation(image, RAND_AUGMENT[index], magnitude / 30, negative=rng.random() < 0.5)
    return image


def cut_hole(image: np.ndarray, rng: np.random.Generator, *, side: int) -> np.ndarray:
    """A black square around any pixel, of which a part may lie outside of the image (Cutout, arXiv:1708.04552).

    Args:
      image: [H, W, C]. rng: of the place. side: of the square, pixels, ≥ 1.

    Returns:
      A changed copy.

    Raises:
      UserError: `side` below 1.
    """
    check_number("side", side, AtLeast(1))
    image = image.copy()
    top, left = (int(rng.integers(length)) - side // 2 for length in image.shape[:2])
    image[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
    return image
