"""What is claimed of GABN in the small, and against what: `python -m experiments.reproduce gabn`.

Every arm is compared with the *baseline* besides: a term helps or it does not, whatever its neighbors do.
"""

from experiments.methods.gabn import Config
from experiments.study import Study

BASELINE = {"erase_weight": 0.0, "adversarial_weight": 0.0}
ERASING = {"erase_weight": 0.5, "adversarial_weight": 0.0}
BOTH = {"erase_weight": 0.25, "adversarial_weight": 0.2}
ARMS = {
    "adversarial": {},
    "baseline": BASELINE,
    "erasing": ERASING,
    "random cells": {**ERASING, "erase_where": "random"},  # does it matter which are erased?
    "phased": {**BOTH, "adversarial_phase": (0.6, 1.0)},
    "simultaneous": BOTH,
    "cosine score": {"score": "cosine"},  # the literal score, blind to evidence along the embedding
    "200 steps": {**BASELINE, "steps": 200},  # does training less do the same?
}


def _study(claim: str, base: Config, metric: str, *, larger_is_better: bool) -> Study:
    return Study(
        claim=claim,
        metric=f"fairness/{metric}",
        method="adversarial",
        arms=ARMS,
        base=base,
        larger_is_better=larger_is_better,
        baseline="baseline",
    )


STUDIES = {
    "digits": _study(
        "Digits whose second group offers a shortcut that fails in the test: deviation of the accuracies of both groups",
        Config.digits(),
        "std",
        larger_is_better=False,
    ),
    "digits_average": _study(
        "The same runs: mean of the accuracies of both groups",
        Config.digits(),
        "average",
        larger_is_better=True,
    ),
    "faces": _study(
        "Rendered faces, half as many dark as light ones: deviation of the verification accuracies of both groups",
        Config(),
        "std",
        larger_is_better=False,
    ),
    "faces_average": _study(
        "The same runs: mean of the verification accuracies of both groups",
        Config(),
        "average",
        larger_is_better=True,
    ),
}
