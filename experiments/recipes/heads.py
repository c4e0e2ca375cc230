"""The margin softmax of a configuration.

Methods: acw, apvit, cckd, cloak, condensation_net, coupleface, dcp_nas, ddc, gabn, ida, lrfr, ota, rbonn, rco, sparsevit
"""

import dataclasses
from typing import Annotated

from jaxface import losses
from jaxface.checks import Positive


@dataclasses.dataclass(frozen=True)
class HeadSpec:
    """A margin softmax over class prototypes, or a linear classifier."""

    loss: str = "arcface"
    """Where the margin is: nowhere (softmax), on the cosine (cosface) or on the angle (arcface); or sface, without a
    softmax; or linear, a weight per class and a bias instead of cosines."""
    scale: Annotated[float, Positive] = 16.0
    """Scale s of the cosines; 64 in long runs."""
    margin: float | None = None
    """ArcFace: radians, 0.3 unless given, for the small scale of short runs; CosFace: cosine, 0.35 unless given."""

    def build(self) -> losses.Head:
        """The head.

        Raises:
          UserError: an unknown loss, or a scale or margin out of its range.
        """
        margin = 0.3 if self.margin is None and self.loss == "arcface" else self.margin
        return losses.create_head(self.loss, scale=self.scale, margin=margin)

    def check(self) -> None:
        """Raises UserError for what `build` refuses."""
        self.build()
