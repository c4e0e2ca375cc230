"""What is claimed of PseCo in the small, and against what: `python -m experiments.reproduce pseco`.

All arms of a seed start from one student, trained on its labels alone. From "mean teacher", which assigns by overlap and weighs
all pseudo boxes alike, to the method one part comes after the other, each beside a control that has as many positives, as much
box loss or as much weight on images without labels. "soft teacher" is the mean teacher with Soft Teacher's two parts.
"""

import dataclasses

from experiments.methods.pseco import Config
from experiments.study import Study

_plain = {"assign": "overlap", "vote": "none", "second_view": "none"}
_soft = {**_plain, "background": "reliable", "vote": "steady"}
_guided = {**_plain, "assign": "predictions"}
_voted = {**_guided, "vote": "agreement"}

_scenes = Study(
    claim="COCO AP on scenes with other digits, of the teacher, with labels for 5 % of 1600 scenes",
    metric="pseco/detection/ap",
    method="pseco",
    arms={
        "pseco": {},
        "labels alone": {"unlabeled_weight": 0.0},
        "soft teacher": _soft,
        "mean teacher": _plain,
        "overlap, as few": {**_plain, "assign": "overlap_as_few"},
        "predictions": _guided,
        "predictions, votes": _voted,
        "predictions, mean vote": {**_guided, "vote": "mean"},
        "predictions, score vote": {**_guided, "vote": "score"},
        "predictions, votes, same view twice": {**_voted, "second_view": "same"},
    },
    baseline="mean teacher",
    base=dataclasses.replace(Config(), percent=5.0, batch_size=10, steps=300),
    shared=1,
    shared_as="start",
)

_CONDITIONS = {
    "moved by 0": {"jitter": 0.0},
    "moved by 0, teacher of 100 steps": {"jitter": 0.0, "teacher_steps": 100},
    "moved by 0.1": {"jitter": 0.1},
    "moved by 0.2": {"jitter": 0.2},
}
_assignment = Study(
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
)

STUDIES = {
    "scenes": _scenes,
    "scenes-1": dataclasses.replace(
        _scenes,
        claim="The same with labels for 1 % of the scenes",
        base=dataclasses.replace(_scenes.base, percent=1.0),
    ),
    "assignment": _assignment,
    "voting": dataclasses.replace(
        _assignment,
        claim="Spearman's correlation of the weight of a pseudo box with its true overlap, the same runs",
        metric="student/assignment/vote/correlation",
        method="agreement",
        arms={"agreement": {}, "score": {}},
        arm_metrics={"score": "student/assignment/score/correlation"},
    ),
}
