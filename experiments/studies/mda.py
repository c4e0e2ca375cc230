"""What is claimed of MDA in the small, and against what: `python -m experiments.reproduce mda`.

Global selection is in no list of contributions, so that it alone is the baseline that MDA's two agreements are held against.
"""

import dataclasses

from experiments.methods.mda import Config
from experiments.study import Study
from jaxface import data as inputs

_GLOBAL = {"mirrored": False, "agreement_weight": 0.0}
_BATCH = {"selection": "batch", **_GLOBAL}
ARMS = {
    "mda": {},
    "global selection only": _GLOBAL,
    "global selection, mirrored": {"agreement_weight": 0.0},
    "global selection, MPE": {"mirrored": False},
    "global selection only, λ 0": {**_GLOBAL, "score_agreement": 0.0},
    "mda, λ 0": {"score_agreement": 0.0},
    "JoCoR": _BATCH,
    "JoCoR, λ 0.9": {**_BATCH, "score_agreement": 0.9},
    "JoCoR, MPE": {**_BATCH, "agreement_weight": 1.0},
    "Co-teaching": {"selection": "exchange", **_GLOBAL},
    "plain": {"selection": "all", **_GLOBAL},
}
NOISE = {
    f"{percent} % noise": {"data": inputs.Digits(mirrored=True, noise=inputs.LabelNoise(rate=percent / 100))}
    for percent in (50, 80)
}

_digits = Study(
    claim="Test accuracy on digits after training on wrong labels, mean of the last ten epochs",
    metric="classification/recent_accuracy",
    method="mda",
    arms=ARMS,
    base=Config(),
    baseline="global selection only",
    conditions=NOISE,
)

STUDIES = {
    "digits": _digits,
    "digits-precision": dataclasses.replace(
        _digits,
        claim="Share of right labels among those that the last epoch learned from",
        metric="selection/precision",
    ),
    "digits-recall": dataclasses.replace(
        _digits,
        claim="Share of the right labels that the last epoch learned from",
        metric="selection/recall",
    ),
    "digits-ranking": dataclasses.replace(
        _digits,
        claim="Share of right labels among those that the final networks would choose out of the whole training set",
        metric="ranking/precision",
    ),
}
