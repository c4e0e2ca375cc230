"""Fine-tuning on images said again, then on the images themselves (IRF), and what it is compared with.

Methods: ota, intern
"""

from typing import Literal, NamedTuple

import numpy as np

from jaxface.checks import AtLeast, Fraction, check_number
from jaxface.data.sources.source import Source
from jaxface.errors import UserError

Mode = Literal["two_stage", "joint", "direct", "restart", "re_represented"]
"""R(x), then x; both mixed; x alone; x alone, with a fresh optimizer where the two stages have one; R(x) alone."""


class Phase(NamedTuple):
    """A part of the fine-tuning: a fresh optimizer, and `steps` steps on `source` after `before` steps of other phases."""

    name: str
    source: Source
    steps: int
    before: int


class Joined:
    """Two sources as one: the records of the first, then those of the second; fields that one of them lacks are left out.

    Raises:
      UserError: images of different shapes, or other classes.
    """

    def __init__(self, first: Source, second: Source):
        if first.image_shape != second.image_shape or list(first.class_names) != list(second.class_names):
            raise UserError(
                f"data: needs images of one shape and the same classes in both, got {first.image_shape} of "
                f"{len(first.class_names)} and {second.image_shape} of {len(second.class_names)}"
            )
        self._first, self._second = first, second
        self._fields = set(first[0]) & set(second[0])
        self.labels = np.concatenate([first.labels, second.labels])
        self.class_names, self.image_shape = first.class_names, first.image_shape

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, index: int) -> dict:
        split = len(self._first)
        record = self._first[index] if index < split else self._second[index - split]
        return {name: value for name, value in record.items() if name in self._fields}


def irf_schedule(steps: int, share: float) -> tuple[int, int]:
    """(steps on images said again, steps on the images): together `steps`, the first a `share` of them, rounded.

    Example:
      >>> irf_schedule(401, 0.5)
      (200, 201)
    """
    check_number("steps", steps, AtLeast(0))
    check_number("share", share, Fraction)
    first = round(share * steps)
    return first, steps - first


def irf_phases(
    mode: Mode, steps: int, share: float, originals: Source, re_represented: Source | None
) -> list[Phase]:
    """The phases of a fine-tuning of `steps` steps, of which those without a step are left out.

    The stages of all phases are to have one key and to go on with the batches where the phase before stopped, so that
    `two_stage` with a share of 0 is `direct`, bit for bit.

    Args:
      mode: which.
      steps: all of them together, for every mode.
      share: that the first of two phases has.
      originals: x. re_represented: R(x); not needed for direct and restart.

    Raises:
      UserError: a number out of its range.
    """
    first, second = irf_schedule(steps, share)
    wanted = {
        "two_stage": [("re_represented", re_represented, first), ("originals", originals, second)],
        "restart": [("originals_first", originals, first), ("originals", originals, second)],
        "direct": [("originals", originals, steps)],
        "re_represented": [("re_represented", re_represented, steps)],
    }
    parts = [("joint", Joined(originals, re_represented), steps)] if mode == "joint" else wanted[mode]
    parts = [part for part in parts if part[2]] or parts[-1:]
    before = np.cumsum([0, *(part[2] for part in parts)])
    return [Phase(*part, before=int(done)) for part, done in zip(parts, before, strict=False)]
