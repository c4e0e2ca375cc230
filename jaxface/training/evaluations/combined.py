"""Several evaluations of a state as one.

Methods: apvit, bamsprod, cckd, condensation_net, gabn, lrfr, pseco, qvit, rbonn, rco, rm_pfi, sface
"""

from jaxface.training.stages import Evaluation, Figures, figures_of
from jaxface.training.step import TrainState


class Evaluations:
    """Several evaluations of one state as one: their metrics and figures together, in `parts` one by one."""

    def __init__(self, *parts: Evaluation):
        self.parts = parts

    def __call__(self, state: TrainState) -> dict[str, float]:
        return {key: value for part in self.parts for key, value in part(state).items()}

    def figures(self, state: TrainState) -> Figures:
        """The figures of all parts that have some."""
        return {name: draw for part in self.parts for name, draw in figures_of(part, state).items()}
