"""What is claimed of PseCo in the small, and against what: `python -m experiments.reproduce pseco`."""

from experiments.methods.pseco import Config
from experiments.study import Study

_CONDITIONS = {
    "moved by 0": {"jitter": 0.0},
    "moved by 0, teacher of 100 steps": {"jitter": 0.0, "teacher_steps": 100},
    "moved by 0.1": {"jitter": 0.1},
    "moved by 0.2": {"jitter": 0.2},
}

STUDIES = {
    "assignment": Study(
        claim="Share of the anchors made positive by pseudo boxes that overlap an object by half, as pseudo boxes are moved",
        metric="student/assignment/predictions/precision",
        method="predictions",
        arms={"predictions": {}, "overlap": {}, "overlap, as few": {}},
        arm_metrics={
            "overlap": "student/assignment/overlap/precision",
            "overlap, as few": "student/assignment/overlap_as_few/precision",
        },
        base=Config.assignment(),
        conditions=_CONDITIONS,
    ),
    "voting": Study(
        claim="Spearman's correlation of the weight of a pseudo box with its true overlap, the same runs",
        metric="student/assignment/vote/correlation",
        method="agreement",
        arms={"agreement": {}, "score": {}},
        arm_metrics={"score": "student/assignment/score/correlation"},
        base=Config.assignment(),
        conditions=_CONDITIONS,
    ),
}
