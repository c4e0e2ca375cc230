"""Boxes, landmarks, tokens and attention drawn on images, and many small images on a sheet."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxface.checks import AtLeast, Range, check_number
from jaxface.data.sources.images import check_bytes
from jaxface.errors import UserError

COLORS = ((255, 64, 64), (64, 160, 255), (255, 200, 0), (64, 220, 96), (220, 96, 255), (255, 144, 64))
"""Of classes, in turn."""
_HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
"""From nothing to the most, at equal distances; their lightness rises evenly."""


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    *,
    scores: np.ndarray | None = None,
    labels: Sequence[str] | None = None,
    classes: np.ndarray | None = None,
    landmarks: np.ndarray | None = None,
    color: tuple[int, int, int] | None = None,
) -> np.ndarray:
    """A copy of an image with boxes on it.

    Args:
      image: [H, W, 3] or [H, W, 1] uint8.
      boxes: [N, 4] (y0, x0, y1, x1) pixels; parts outside the image are not drawn.
      scores: [N], written above each box; None writes none.
      labels: [N] texts to write instead.
      classes: [N] integers, each class in a color of its own; all the first one's unless given.
      landmarks: [N, P, 2] (x, y) pixels; None draws none.
      color: of all boxes instead.

    Returns:
      [H, W, 3] uint8.

    Raises:
      ValueError: an image of another type or shape.
    """
    check_bytes("image", image)
    canvas = Image.fromarray(np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image)
    draw = ImageDraw.Draw(canvas)
    side = max(image.shape[:2])
    width, font = max(1, side // 400), ImageFont.load_default(size=max(9, side // 60))
    for i, (y0, x0, y1, x1) in enumerate(np.asarray(boxes, np.float64).tolist()):
        paint = color or COLORS[(0 if classes is None else int(classes[i])) % len(COLORS)]
        draw.rectangle((x0, y0, max(x1, x0), max(y1, y0)), outline=paint, width=width)
        if landmarks is not None:
            for x, y in np.asarray(landmarks[i], np.float64).tolist():
                draw.ellipse((x - width, y - width, x + width, y + width), fill=paint)
        if labels is not None or scores is not None:
            text = f"{float(scores[i]):.2f}" if labels is None else _printable(labels[i])
            above = y0 >= font.size + width  # or inside, at the upper edge of the image
            draw.text(
                (max(x0, 0), y0 if above else max(y0, 0)),
                text,
                fill=paint,
                font=font,
                anchor="lb" if above else "la",
            )
    return np.asarray(canvas)


def draw_tokens(
    image: np.ndarray, selected: np.ndarray, grid: tuple[int, int], *, fade: float = 0.8
) -> np.ndarray:
    """A copy of an image on which the places of tokens that are not selected fade to white.

    Args:
      image: [H, W, 3] or [H, W, 1] uint8.
      selected: [N] bool, row by row; tokens of the class and such left out.
      grid: (rows, columns) of tokens, which divide H and W; N = rows · columns.
      fade: share of white in [0, 1].

    Returns:
      [H, W, 3] uint8.

    Raises:
      ValueError: types or shapes that do not fit. UserError: a share out of its range.

    Example:
      >>> black = np.zeros((2, 4, 1), np.uint8)
      >>> draw_tokens(black, np.array([True, False]), (1, 2), fade=1.0)[0, :, 0].tolist()
      [0, 0, 255, 255]
    """
    check_number("fade", fade, Range(0, 1))
    image, selected = _on_grid(image, "selected", selected, grid)
    if selected.dtype != bool:
        raise ValueError(f"selected: needs bool, got {selected.dtype}")
    white = fade * ~selected[..., None]
    return np.round(image + white * (255.0 - image)).astype(np.uint8)


def draw_map(
    image: np.ndarray, values: np.ndarray, grid: tuple[int, int], *, strength: float = 0.65
) -> np.ndarray:
    """A gray copy of an image under a map of its tokens, such as attention, from black over red to yellow at its largest value.

    Args:
      image: [H, W, 3] or [H, W, 1] uint8.
      values: [N] or [rows, columns] float ≥ 0, row by row; all 0 is no map, which is black.
      grid: (rows, columns) of tokens, which divide H and W; N = rows · columns.
      strength: share of the map's color in [0, 1].

    Returns:
      [H, W, 3] uint8.

    Raises:
      ValueError: types or shapes that do not fit. UserError: a value below 0 or not finite, or a share out of its range.

    Example:
      >>> gray = np.full((2, 4, 3), 128, np.uint8)
      >>> draw_map(gray, np.array([0.25, 0.5]), (1, 2), strength=1.0)[0, ::2].tolist()  # half the largest, and the largest
      [[188, 55, 84], [252, 255, 164]]
    """
    check_number("strength", strength, Range(0, 1))
    image, values = _on_grid(image, "values", values, grid)
    values = values.astype(np.float64)
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise UserError("values: need to be finite and at least 0")
    level = values / (values.max() or 1.0)
    places = np.linspace(0.0, 1.0, len(_HEAT))
    color = np.stack([np.interp(level, places, channel) for channel in zip(*_HEAT, strict=True)], axis=-1)
    gray = image.mean(axis=-1, keepdims=True)
    return np.round((1 - strength) * gray + strength * color).astype(np.uint8)


def _on_grid(
    image: np.ndarray, name: str, values: np.ndarray, grid: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Image and values of tokens as arrays of pixels: [H, W, 3] and [H, W]."""
    check_bytes("image", image)
    values, (rows, columns) = np.asarray(values), grid
    height, width = image.shape[:2]
    if rows < 1 or columns < 1 or height % rows or width % columns:
        raise ValueError(f"grid: needs divisors of {height} x {width} pixels, got {rows} x {columns}")
    if values.shape not in ((rows * columns,), (rows, columns)):
        raise ValueError(f"{name}: needs {rows} x {columns} tokens, got {values.shape}")
    values = values.reshape(rows, columns).repeat(height // rows, axis=0).repeat(width // columns, axis=1)
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image, values


class Tile(NamedTuple):
    """A picture of a contact sheet.

    Attributes:
      image: [H, W, 3 or 1] uint8; None draws an empty frame.
      caption: below it, cut to its width.
      marked: framed in red.
    """

    image: np.ndarray | None
    caption: str = ""
    marked: bool = False


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Tile]]], *, side: int = 96, columns: int = 10
) -> np.ndarray:
    """Rows of small pictures on white, each row with its title above, continued on the next line where it is long.

    Args:
      rows: (title, tiles).
      side: of a tile, pixels; images are shrunk or enlarged to fit, in their own proportions.
      columns: tiles of a line.

    Returns:
      [H, W, 3] uint8.

    Raises:
      UserError: no row, or a number out of its range.

    Example:
      >>> import numpy as np
      >>> tiles = [Tile(np.full((20, 20, 3), level, np.uint8), f"level {level}") for level in (0, 128)]
      >>> contact_sheet([("two levels of gray", tiles)], side=64, columns=4).shape
      (120, 286, 3)
    """
    check_number("side", side, AtLeast(16))
    check_number("columns", columns, AtLeast(1))
    if not rows:
        raise UserError("rows: needs at least one")
    size = max(side // 9, 9)
    font, title_font = (ImageFont.load_default(size=points) for points in (size, size + 4))
    gap, line = 6, size + 4
    heights = [
        title_font.size + 3 * gap + -(-len(tiles) // columns) * (side + line + gap) for _, tiles in rows
    ]
    width = columns * (side + gap) + gap
    sheet = Image.new("RGB", (width, sum(heights) + gap), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for (title, tiles), height in zip(rows, heights, strict=True):
        draw.text((gap, top + gap), _cut(title, width - 2 * gap, title_font), fill="black", font=title_font)
        for number, tile in enumerate(tiles):
            x = gap + number % columns * (side + gap)
            y = top + title_font.size + 3 * gap + number // columns * (side + line + gap)
            if tile.image is None:
                draw.rectangle((x, y, x + side - 1, y + side - 1), fill=(225, 225, 225))
                draw.line((x, y, x + side - 1, y + side - 1), fill=COLORS[0])
                draw.line((x, y + side - 1, x + side - 1, y), fill=COLORS[0])
            else:
                check_bytes("image", tile.image)
                picture = Image.fromarray(
                    np.repeat(tile.image, 3, axis=-1) if tile.image.shape[-1] == 1 else tile.image
                )
                factor = side / max(picture.size)
                picture = picture.resize([max(round(edge * factor), 1) for edge in picture.size])
                sheet.paste(picture, (x + (side - picture.width) // 2, y + (side - picture.height) // 2))
            if tile.marked:
                draw.rectangle((x - 2, y - 2, x + side + 1, y + side + 1), outline=COLORS[0], width=2)
            draw.text((x, y + side + 2), _cut(tile.caption, side, font), fill=(90, 90, 90), font=font)
        top += height
    return np.asarray(sheet)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _cut(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """As much of a text as is no wider than `width` pixels; its end says that there is more."""
    text = _printable(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
