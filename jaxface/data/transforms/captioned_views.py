"""Two views of an image with its caption, and a changed one, on the host (arXiv:2110.05208).

Methods: intern
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import grain
import numpy as np

from jaxface.checks import Fraction, Ordered, Range, check_fields
from jaxface.data.sources.source import Record
from jaxface.data.transforms import geometry
from jaxface.data.transforms.augment import Augment, Augmentation
from jaxface.data.transforms.text import Tokenizer, caption_text, change_caption
from jaxface.errors import UserError


@dataclasses.dataclass(frozen=True)
class CaptionViewSpec:
    """How the two views of an image are made."""

    window: Annotated[tuple[float, float], Range(0.1, 1), Ordered()] = (0.7, 1.0)
    """Least and greatest side of the square that a view shows, as a fraction of the image's side."""
    flip: Annotated[float, Fraction] = 0.0
    """Probability of a mirror; captions that name sides are wrong of one."""
    pixels: Augment = Augment(flip=0.0, color=0.8, color_strength=0.3)
    """Further changes, which leave every pixel where it is."""

    def __post_init__(self):
        check_fields(self, "views.")
        moving = [name for name in ("flip", "crop", "rotate", "shift") if getattr(self.pixels, name)]
        if moving or self.pixels.policy != "none":
            raise UserError(
                f"views.pixels: needs changes that move no pixel, got {moving[0] if moving else 'policy'}; window and flip do"
            )


@dataclasses.dataclass(frozen=True)
class CaptionViews:
    """The views for `jaxface.data.batches`: of records with a `caption`.

    A record becomes `image` [2, H, W, C], `window` [2, 4] float32 (y0, x0, side, mirrored, as `jaxface.losses.view_grid` takes
    them), `tokens` [L] int32 of the caption and `changed_tokens` [L] of `change_caption`; other fields but `label` are left out.
    """

    tokenizer: Tokenizer
    spec: CaptionViewSpec = CaptionViewSpec()
    synonyms: Sequence[Sequence[str]] = ()

    active = True  # as `jaxface.data.batches` asks

    def transform(self) -> "CaptionViewsTransform":
        """The views as a grain transformation."""
        return CaptionViewsTransform(self)


class CaptionViewsTransform(grain.transforms.RandomMap):
    """Makes the views of a record."""

    def __init__(self, views: CaptionViews):
        self.views, self._change = views, Augmentation(views.spec.pixels)

    def random_map(self, element: Record, rng: np.random.Generator) -> Record:
        """One record; grain calls it with a generator of the record's own."""
        spec, tokenizer = self.views.spec, self.views.tokenizer
        first, second, words = (np.random.default_rng(seed) for seed in rng.integers(0, 1 << 63, 3))
        shown = [self._view(element["image"], spec, one) for one in (first, second)]
        caption = caption_text(element["caption"])
        changed = change_caption(caption, words, synonyms=self.views.synonyms)
        tokens = tokenizer.encode([caption, changed])
        return {
            "image": np.stack([image for image, _ in shown]),
            "window": np.stack([window for _, window in shown]),
            "tokens": tokens[0],
            "changed_tokens": tokens[1],
            "label": element["label"],
        }

    def _view(self, image: np.ndarray, spec: CaptionViewSpec, rng: np.random.Generator):
        size = image.shape[0]
        side = rng.uniform(*spec.window)
        y, x = rng.uniform(0, 1 - side, 2) if side < 1 else (0.0, 0.0)
        mirrored = rng.random() < spec.flip
        record = geometry.window({"image": image}, y * size, x * size, side * size)
        record = geometry.flip(record) if mirrored else record
        record = self._change.random_map(record, rng)
        return record["image"], np.array([y, x, side, mirrored], np.float32)
