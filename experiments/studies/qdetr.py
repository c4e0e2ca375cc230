"""What is claimed of Q-DETR in the small, and against what: `python -m experiments.reproduce qdetr`.

All arms start from one float teacher, which has learned until it finds nearly all objects, and have one schedule. The weight of
the distillation and the share τ are the paper's, but for arms that are named for another. The learning rate was chosen on seed 0.
"""

import dataclasses

from experiments.methods.qdetr import Config, float_detector
from experiments.study import Study


def _study(bits: int, *, controls: bool = False, strengths: bool = False) -> Study:
    base = Config()
    aligned = dataclasses.replace(base.detector, weight_bits=bits, input_bits=bits)
    plain = dataclasses.replace(aligned, align_query="no")
    arms = {
        "qdetr": {"detector": aligned},
        "LSQ": {"detector": plain, "distillation": 0.0},
        "DA alone": {"detector": aligned, "distillation": 0.0},
        "FQM alone": {"detector": plain},
    }
    if controls:
        arms |= {
            "scale from 1": {"detector": aligned, "align_start": "one"},
            "all queries by place": {"detector": aligned, "selection": "all"},
            "float student": {"detector": float_detector(plain), "distillation": 0.0},
        }
    if strengths:
        arms |= {
            "lambda 0.25": {"detector": aligned, "distillation": 0.25},
            "FQM alone, lambda 0.25": {"detector": plain, "distillation": 0.25},
            "tau 0": {"detector": aligned, "tau": 0.0},
        }
    return Study(
        claim=f"AP50 on unseen scenes of a DETR with {bits}-{bits}-8 bits (weights, inputs, attention)",
        metric="student/detection/ap50",
        method="qdetr",
        arms={**arms, "teacher": {"detector": aligned}},
        base=base,
        arm_metrics={"teacher": "teacher/detection/ap50"},
        baseline="LSQ",
        shared=1,
        shared_as="teacher",
    )


STUDIES = {
    "two-bits": _study(2, controls=True),
    "three-bits": _study(3),
    "four-bits": _study(4, strengths=True),
}
