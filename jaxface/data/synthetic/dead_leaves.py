"""Dead leaves: overlapping discs of any size and color, whose statistics are those of photographs in many ways.

Methods: edic, niqa_attack
"""

from collections.abc import Iterator

import numpy as np

from jaxface.checks import AtLeast, NonNegative, check_number
from jaxface.data.sources.bundled import ArraySource
from jaxface.data.sources.source import WithFields

_SMALLEST = 2.0  # radius, pixels
_TOGETHER = 64  # images that are drawn at once


def dead_leaves(count: int, *, side: int = 32, leaves: int = 60, seed: int, first: int = 0) -> ArraySource:
    """Images of random discs, each over those before it (Lee, Mumford and Huang, 2001).

    Radii have a density of r^-3 from 2 pixels to half the side, centers and colors are uniform; an edge is a pixel wide. Image i
    depends on (seed, `first` + i, its size) alone.

    Args:
      count: images, ≥ 1.
      side: of an image, pixels, ≥ 8.
      leaves: discs of an image, ≥ 1.
      seed: ≥ 0. first: number of the first image, ≥ 0.

    Returns:
      A source of images uint8 [side, side, 3] of one class.

    Raises:
      UserError: a number out of its range.

    Example:
      >>> dead_leaves(2, seed=0)[1]["image"].shape
      (32, 32, 3)
    """
    for name, value, least in (("count", count, 1), ("side", side, 8), ("leaves", leaves, 1), ("seed", seed, 0),
                               ("first", first, 0)):  # fmt: skip
        check_number(name, value, AtLeast(least))
    images = np.empty((count, side, side, 3), np.uint8)
    for rows, numbers in _blocks(count, first):
        images[rows] = _drawn(_leaves(numbers, side, leaves, seed), side)
    return ArraySource(images, np.zeros(count, np.int32), ["image"])


def textured_leaves(
    count: int, *, side: int = 48, leaves: int = 60, texture: float = 0.05, seed: int, first: int = 0
) -> ArraySource:
    """`dead_leaves` whose discs have a texture: a grating of its own for each, and grain, both of random strength.

        color · (1 + t (cos(2π k·x + φ) + n(x)) a),   a ~ U(0, 1)²,   |k| from 1/16 to 1/3 of a pixel, n normal

    Image i depends on (seed, `first` + i, its size) alone.

    Args:
      count: images, ≥ 1.
      side: of an image, pixels, ≥ 8.
      leaves: discs of an image, ≥ 1.
      texture: t ≥ 0; at 0 the discs are flat.
      seed: ≥ 0. first: number of the first image, ≥ 0.

    Returns:
      A source of images uint8 [side, side, 3] of one class.

    Raises:
      UserError: a number out of its range.

    Example:
      >>> textured_leaves(2, side=16, seed=0)[1]["image"].shape
      (16, 16, 3)
    """
    for name, value, least in (("count", count, 1), ("side", side, 8), ("leaves", leaves, 1), ("seed", seed, 0),
                               ("first", first, 0)):  # fmt: skip
        check_number(name, value, AtLeast(least))
    check_number("texture", texture, NonNegative)
    images = np.empty((count, side, side, 3), np.uint8)
    for rows, numbers in _blocks(count, first):
        textures = texture * _textures(numbers, side, leaves, seed)
        images[rows] = _drawn(_leaves(numbers, side, leaves, seed), side, textures)
    return ArraySource(images, np.zeros(count, np.int32), ["image"])


def moving_leaves(
    count: int,
    *,
    frames: int = 3,
    side: int = 64,
    leaves: int = 60,
    movers: int = 4,
    speed: float = 3.0,
    seed: int,
    first: int = 0,
) -> WithFields:
    """Clips of dead leaves that move: a background as one, and discs over it each on its own.

    Velocities are uniform in a disc of `speed` pixels a frame and constant; the background reaches beyond the frame. Clip i
    depends on (seed, `first` + i, its size) alone.

    Args:
      count: clips, ≥ 1.
      frames: of a clip, ≥ 1.
      side: of a frame, pixels, ≥ 8.
      leaves: discs of the background, ≥ 1. movers: discs over it, ≥ 0.
      speed: the most, pixels a frame, ≥ 0.
      seed: ≥ 0. first: number of the first clip, ≥ 0.

    Returns:
      A source of one class, whose `image` is the first frame; records have `frames` uint8 [T, side, side, 3] besides.

    Raises:
      UserError: a number out of its range.

    Example:
      >>> moving_leaves(1, frames=2, side=16, seed=0)[0]["frames"].shape
      (2, 16, 16, 3)
    """
    for name, value, least in (("count", count, 1), ("frames", frames, 1), ("side", side, 8), ("leaves", leaves, 1),
                               ("movers", movers, 0), ("seed", seed, 0), ("first", first, 0)):  # fmt: skip
        check_number(name, value, AtLeast(least))
    check_number("speed", speed, NonNegative)
    clips = np.empty((count, frames, side, side, 3), np.uint8)
    total, margin = leaves + movers, speed * frames
    for rows, numbers in _blocks(count, first):
        drawn = _leaves(numbers, side, total, seed)
        # Of the background too there are leaves beyond the frame, which come in.
        places = drawn[:, :, 4:6] * (1 + 2 * margin / side) - margin / side
        steps = _velocities(numbers, movers, seed) * (speed / side)
        steps = np.concatenate([np.repeat(steps[:, :1], leaves + 1, axis=1), steps[:, 1:]], axis=1)[
            ..., None, None
        ]
        for frame in range(frames):
            moved = np.concatenate([drawn[:, :, :4], places + frame * steps], axis=2)
            clips[rows, frame] = _drawn(moved, side)
    still = ArraySource(clips[:, 0], np.zeros(count, np.int32), ["image"])
    return WithFields(still, frames=clips)


def _blocks(count: int, first: int) -> Iterator[tuple[slice, range]]:
    """(rows, numbers of the images) that are drawn at once."""
    for start in range(0, count, _TOGETHER):
        stop = min(start + _TOGETHER, count)
        yield slice(start, stop), range(first + start, first + stop)


def _leaves(numbers: range, side: int, leaves: int, seed: int) -> np.ndarray:
    """[N, leaves + 1, 6, 1, 1]: color, radius in pixels and center as a fraction of the side, the ground's color first."""
    near, far = _SMALLEST**-2, (side / 2) ** -2
    draws = np.stack([np.random.default_rng([seed, 0x1EAF, n]).random((leaves + 1, 6)) for n in numbers])
    draws[:, :, 3] = (near - draws[:, :, 3] * (near - far)) ** -0.5
    return draws.astype(np.float32)[..., None, None]


def _velocities(numbers: range, movers: int, seed: int) -> np.ndarray:
    """[N, 1 + movers, 2] uniform in the unit disc: the background's, and those of what moves over it."""
    rows = np.stack([np.random.default_rng([seed, 0x30F, n]).random((1 + movers, 2)) for n in numbers])
    length, angle = np.sqrt(rows[..., 0]), 2 * np.pi * rows[..., 1]
    return np.stack([length * np.sin(angle), length * np.cos(angle)], axis=-1).astype(np.float32)


def _textures(numbers: range, side: int, leaves: int, seed: int) -> np.ndarray:
    """[N, leaves + 1, side, side]: how much brighter than its mean each leaf is in each place."""
    at = np.arange(side, dtype=np.float32)
    textures = np.empty((len(numbers), leaves + 1, side, side), np.float32)
    for row, n in enumerate(numbers):
        rng = np.random.default_rng([seed, 0x7E87, n])
        strength, frequency, angle, phase = rng.random((4, leaves + 1, 1, 1), np.float32)
        frequency, angle, phase = (1 / 16) * (16 / 3) ** frequency, np.pi * angle, 2 * np.pi * phase
        along = at[:, None] * np.sin(angle) + at[None, :] * np.cos(angle)
        grain = rng.standard_normal((side, side), np.float32)
        textures[row] = strength**2 * (np.cos(2 * np.pi * frequency * along + phase) + grain)
    return textures


def _drawn(leaves: np.ndarray, side: int, textures: np.ndarray | None = None) -> np.ndarray:
    """Images [N, side, side, 3], leaf after leaf over all of them; `textures` as `_textures` gives them."""
    at = np.arange(side, dtype=np.float32) + 0.5
    down, right = at[:, None], at[None, :]
    colors, radii, y, x = (
        255 * leaves[:, :, :3],
        leaves[:, :, 3],
        side * leaves[:, :, 4],
        side * leaves[:, :, 5],
    )
    painted = lambda leaf: colors[:, leaf] * (1 if textures is None else 1 + textures[:, leaf, None])  # noqa: E731
    canvas = np.empty((len(leaves), 3, side, side), np.float32)
    canvas[:] = painted(0)
    for leaf in range(1, leaves.shape[1]):
        distance = np.sqrt((down - y[:, leaf]) ** 2 + (right - x[:, leaf]) ** 2)
        cover = np.clip(radii[:, leaf] - distance + 0.5, 0, 1)[:, None]
        canvas += cover * (painted(leaf) - canvas)
    return np.rint(np.clip(canvas, 0, 255)).transpose(0, 2, 3, 1)
