"""What is claimed of Q-ViT in the small, and against what: `python -m experiments.reproduce qvit`.

All arms have one float teacher and one schedule, whose rates are the best of five for the method on seed 0, none of those
compared. Those of the other arms were not searched for on their own.
"""

import dataclasses

from experiments.methods.qvit import Config
from experiments.study import Study

_PLAIN = dataclasses.replace(Config().precision, rectify=None)
_ARMS = {
    "qvit": {},
    "LSQ, hard distillation": {"precision": _PLAIN, "dgd_weight": 0.0},
    "rectification alone": {"dgd_weight": 0.0},
    "DGD alone": {"precision": _PLAIN},
    "raw teacher": {"teacher_form": "raw"},
}

_digits = Study(
    claim="Test accuracy on digits of a transformer whose products all have 2 bits, first and last layer 8",
    metric="student/classification/accuracy",
    method="qvit",
    arms={**_ARMS, "float teacher": {}},
    base=Config(integers=False),
    arm_metrics={"float teacher": "teacher/classification/accuracy"},
    baseline="LSQ, hard distillation",
    shared=1,
)

STUDIES = {
    "digits": _digits,
    "digits-entropy": dataclasses.replace(
        _digits,
        claim="Entropy in bits of the 2-bit codes of the queries, test digits, mean over layers",
        metric="student/codes/query_entropy",
        arms=_ARMS,
        arm_metrics={},
    ),
    "digits-spread": dataclasses.replace(
        _digits,
        claim="How unequal the lengths of the float teacher's queries and keys are: standard deviation of their logarithms",
        metric="student/teacher/query_spread",
        method="queries",
        arms={"queries": {}, "keys": {}},
        arm_metrics={"keys": "student/teacher/key_spread"},
        baseline=None,
    ),
}
