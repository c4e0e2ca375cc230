"""What is claimed of CCKD in the small, and against what: `python -m experiments.reproduce cckd`."""

import dataclasses

from experiments.methods.cckd import Config
from experiments.study import Study

_digits = Study(
    claim="Test accuracy on digits by the nearest prototype, of a student that learns from soft targets",
    metric="student/classification/accuracy",
    method="cckd",
    arms={
        "cckd": {},
        "soft targets alone": {"congruence_weight": 0.0},
        "mmd": {"kernel": "mmd", "congruence_weight": 10.0},
        "bilinear": {"kernel": "bilinear", "congruence_weight": 10.0},
        "weight 0.003": {"congruence_weight": 0.003},  # the paper's, on unit vectors
    },
    base=Config.digits(),
    conditions={"T = 1": {"temperature": 1.0}, "T = 4": {"temperature": 4.0}},
    shared=1,
)
_procedural = Study(
    claim="Verification of unseen synthetic people by a student that mimics a teacher of twice its embedding",
    metric="student/verification/accuracy",
    method="cckd",
    arms={
        "cckd": {},
        "mimic alone": {"congruence_weight": 0.0},
        "mimic alone, class-uniform": {"congruence_weight": 0.0, "sampler": "class"},
        "class-uniform": {"sampler": "class"},
        "superclass-uniform": {"sampler": "superclass"},
        "mmd": {"kernel": "mmd", "congruence_weight": 30.0},
        "bilinear": {"kernel": "bilinear", "congruence_weight": 30.0},
    },
    base=Config.procedural(),
    shared=1,
)
_congruence = dict(metric="student/congruence/error", larger_is_better=False)

STUDIES = {
    "digits": _digits,
    "digits-pairs": dataclasses.replace(
        _digits,
        claim="Verification on all pairs of test digits: true acceptances at one false one in a thousand",
        metric="student/verification/tar@1e-3",
    ),
    "digits-congruence": dataclasses.replace(
        _digits,
        claim="Mean squared difference of the student's and the teacher's cosines between test digits",
        **_congruence,
    ),
    "procedural": _procedural,
    "procedural-congruence": dataclasses.replace(
        _procedural,
        claim="Mean squared difference of the student's and the teacher's cosines between records of unseen people",
        **_congruence,
    ),
}
