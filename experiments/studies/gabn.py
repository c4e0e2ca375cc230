"""What is claimed of GABN in the small, and against what: `python -m experiments.reproduce gabn`.

Every arm is compared with the *baseline* besides: a term helps or it does not, whatever its neighbors do. Weights and cells were
chosen on digits, seed 0: the smallest deviation without a loss of average, or the smallest loss where every setting lost.
"""

import dataclasses

from experiments.methods.gabn import Config
from experiments.study import Study
from jaxface import data

BASELINE = {"erase_weight": 0.0, "adversarial_weight": 0.0}
ERASING = {"erase_weight": 0.5, "adversarial_weight": 0.0}
BOTH = {"erase_weight": 0.25}
ARMS = {
    "adversarial": {},
    "baseline": BASELINE,
    "erasing": ERASING,
    "random cells": {**ERASING, "erase_where": "random"},  # does it matter which are erased?
    "phased": BOTH,
    "simultaneous": {**BOTH, "adversarial_phase": (0.0, 1.0)},
    "cosine score": {"score": "cosine"},  # the literal one, blind to evidence along the embedding
    "200 steps": {**BASELINE, "steps": 200},  # does training less do the same?
}
# A third of the default run, so that five seeds take minutes. A map has 3 x 3 places there.
SMALL_FACES = dataclasses.replace(
    Config(),
    data=data.TonedFaces(
        identities=(48, 24), per_identity=8, held_out_identities=36, held_out_per_identity=5
    ),
    image_size=48,
    cells=3,
    embedding=64,
    batch_size=32,
    steps=300,
)
FACES_ARMS = {arm: ARMS[arm] for arm in ("adversarial", "baseline", "erasing", "random cells", "phased")}


def _study(claim: str, base: Config, metric: str, *, arms=ARMS, larger_is_better: bool) -> Study:
    return Study(
        claim=claim,
        metric=metric,
        method="adversarial",
        arms=arms,
        base=base,
        larger_is_better=larger_is_better,
        baseline="baseline",
    )


STUDIES = {
    "digits": _study(
        "Digits whose second group offers a shortcut that fails in the test: deviation of the accuracies of both groups",
        Config.digits(),
        "fairness/std",
        larger_is_better=False,
    ),
    "digits_average": _study(
        "The same runs: mean of the accuracies of both groups",
        Config.digits(),
        "fairness/average",
        larger_is_better=True,
    ),
    "digits_occlusion": _study(
        "The same runs: mass on the shortcut of occlusion maps, which no term trains",
        Config.digits(),
        "occlusion/shortcut_mass@shortcut",
        larger_is_better=False,
    ),
    "faces": _study(
        "Rendered faces, half as many dark as light ones: deviation of the verification accuracies of both groups",
        SMALL_FACES,
        "fairness/std",
        arms=FACES_ARMS,
        larger_is_better=False,
    ),
    "faces_average": _study(
        "The same runs: mean of the verification accuracies of both groups",
        SMALL_FACES,
        "fairness/average",
        arms=FACES_ARMS,
        larger_is_better=True,
    ),
}
