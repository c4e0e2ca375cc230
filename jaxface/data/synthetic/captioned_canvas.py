"""Canvases of a digit among squares in words.

Methods: intern
"""

import functools

import numpy as np

from jaxface.data.sources.source import Record
from jaxface.data.synthetic.task_canvas import TaskCanvasSource
from jaxface.data.transforms.text import caption_bytes

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLACES = ("upper left", "upper right", "lower left", "lower right")


class CaptionedCanvasSource:
    """Canvases with captions: `image`, `label` and `caption`, [C] uint8.

    Args:
      canvases: with digits as their labels.
      seed: of the words. first: number of the first canvas.

    Attributes:
      labels, class_names, image_shape: of the canvases. captions: [N] strings. record_names: the same, so that a run resumes with
        the captions that it had.
      attributes: name -> [N] int32. attribute_names: name -> the values that it has.
    """

    def __init__(self, canvases: TaskCanvasSource, *, seed: int, first: int = 0):
        self._canvases, self._seed, self._first = canvases, seed, first
        self.labels, self.image_shape = canvases.labels, canvases.image_shape
        self.class_names = [NUMBERS[int(name)] for name in canvases.class_names]
        counts = range(int(canvases.counts.max()) + 1)
        self.attribute_names = {
            "digit": tuple(self.class_names),
            "squares": tuple(NUMBERS[k] for k in counts),
            "place": PLACES,
        }

    @functools.cached_property
    def attributes(self) -> dict[str, np.ndarray]:
        """Name -> [N] int32; the place is that of the digit's center."""
        boxes = np.stack([self._canvases[i]["boxes"][0] for i in range(len(self))])
        low, right = (boxes[:, k] + boxes[:, k + 2] > self.image_shape[k] for k in (0, 1))
        place = (2 * low + right).astype(np.int32)
        return {"digit": self.labels, "squares": self._canvases.counts.astype(np.int32), "place": place}

    @functools.cached_property
    def captions(self) -> list[str]:
        """[N] strings."""
        captions = []
        for i in range(len(self)):
            rng = np.random.default_rng([self._seed, 19, self._first + i])
            names = {name: self.attribute_names[name][column[i]] for name, column in self.attributes.items()}
            start = ("a photo of a {}", "a picture of a {}", "the digit {}", "a handwritten {}")[
                rng.integers(4)
            ]
            squares = "square" if names["squares"] == "one" else "squares"
            rest = [f"{names['squares']} {squares}", f"at the {names['place']}"]
            rng.shuffle(rest)
            captions.append(", ".join([start.format(names["digit"]), *rest]))
        return captions

    @property
    def record_names(self) -> list[str]:
        """The captions."""
        return self.captions

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        record = self._canvases[index]
        caption = caption_bytes(self.captions[int(index)])
        return {"image": record["image"], "label": record["label"], "caption": caption}
