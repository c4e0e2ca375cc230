"""Boxes and landmarks drawn on images."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxface.data.sources.images import check_bytes

COLORS = ((255, 64, 64), (64, 160, 255), (255, 200, 0), (64, 220, 96), (220, 96, 255), (255, 144, 64))
"""Of classes, in turn."""


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    *,
    scores: np.ndarray | None = None,
    classes: np.ndarray | None = None,
    landmarks: np.ndarray | None = None,
    color: tuple[int, int, int] | None = None,
) -> np.ndarray:
    """A copy of an image with boxes on it.

    Args:
      image: [H, W, 3] or [H, W, 1] uint8.
      boxes: [N, 4] (y0, x0, y1, x1) pixels; parts outside the image are not drawn.
      scores: [N], written above each box; None writes none.
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
        if scores is not None:
            draw.text((x0, y0), f"{float(scores[i]):.2f}", fill=paint, font=font, anchor="lb")
    return np.asarray(canvas)
