"""How hard the anchors of a teacher's route are for a student (arXiv:1904.09149).

Methods: rco
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxface import losses
from jaxface.data.sources.source import Source
from jaxface.training.map_source import map_source
from jaxface.training.recognition import statistics
from jaxface.training.route import Anchor
from jaxface.training.step import TrainState
from jaxface.training.teachers import Teacher

BATCH_SIZE = 128
"""Images at a time, rounded up to a multiple of the devices."""


class RouteHardness:
    """Evaluation of a student on images that nobody learned from: how far it is from its anchor and from those ahead.

    Reports `congruence`, the distillation loss to the student's anchor; `hardness/<step>` of that anchor and of every later
    one; and `ratio/<step>`, a row of the matrix r_ij (`jaxface.losses.hardness_ratios`).

    Args:
      distance: jitted, ((params, extra), batch of `map_source`) -> [B, 2]: the distillation loss and the hardness against the
        anchor that is installed in `extra`, as means over the valid images of the batch, alike for each of them.
      teacher: the anchors' network, which installs them.
      source: the images.
      anchors: the student's, and those ahead.
    """

    def __init__(
        self,
        distance: Callable[..., jax.Array],
        teacher: Teacher,
        source: Source,
        anchors: Sequence[Anchor],
    ):
        self.distance, self.teacher, self.source, self.anchors = distance, teacher, source, anchors

    def __call__(self, state: TrainState) -> dict[str, float]:
        distances = [self._mean_distance(state, anchor) for anchor in self.anchors]
        hardness = np.array([value for _, value in distances])
        ratios = np.asarray(losses.hardness_ratios(hardness, 0))
        report = {"congruence": float(distances[0][0])}
        for anchor, value, ratio in zip(self.anchors, hardness, ratios, strict=True):
            report |= {f"hardness/{anchor.step}": float(value), f"ratio/{anchor.step}": float(ratio)}
        return report

    def _mean_distance(self, state: TrainState, anchor: Anchor) -> np.ndarray:
        """[2] of the whole source: distillation loss and hardness."""
        extra = self.teacher.installed(statistics(state.extra), anchor.load())
        rows = map_source(self.distance, self.source, (state.averaged_params, extra), batch_size=BATCH_SIZE)
        return rows.mean(axis=0, dtype=np.float64)
