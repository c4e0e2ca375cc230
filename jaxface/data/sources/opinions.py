"""Images with mean opinion scores.

Methods: niqa_attack
"""

import numpy as np

from jaxface.data.sources.source import Source, WithFields


class RatedSource(WithFields):
    """A source whose records have `opinion`, a float32 of 0 (worst) to 10 (best), and `reference` int32 besides.

    Attributes:
      opinions: [N] float32.
      references: [N] int64, number of the image that each is a distortion of.
      labels: [N] int32, what happened to each image.
    """

    def __init__(self, source: Source, opinions: np.ndarray, references: np.ndarray):
        self.opinions = np.asarray(opinions, np.float32)
        self.references = np.asarray(references, np.int64)
        super().__init__(source, opinion=self.opinions, reference=self.references.astype(np.int32))
