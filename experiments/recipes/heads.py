"""The margin softmax of a configuration.

Methods: cckd, coupleface, lrfr, rco, gabn, ida, acw, cloak
"""

import dataclasses
from typing import Annotated

from jaxface import losses
from jaxface.checks import Positive


@dataclasses.dataclass(frozen=True)
class HeadSpec:
    """A margin softmax over class prototypes."""

    loss: str = "arcface"
    """Where the margin is: nowhere (softmax), on the cosine (cosface) or on the angle (arcface); or sface, without a softmax."""
    scale: Annotated[float, Positive] = 16.0
    """Scale s of the cosines; 64 in long runs."""
    margin: float = 0.3
    """ArcFace: radians; CosFace: cosine."""

    def build(self) -> losses.Head:
        """The head.

        Raises:
          UserError: an unknown loss, or a scale or margin out of its range.
        """
        return losses.create_head(self.loss, scale=self.scale, margin=self.margin)

    def check(self) -> None:
        """Raises UserError for what `build` refuses."""
        self.build()
