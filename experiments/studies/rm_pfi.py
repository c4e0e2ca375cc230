"""What is claimed of RM + PFI in the small, and against what: `python -m experiments.reproduce rm_pfi`.

Strengths are each arm's best of a grid by the mean over three seeds that are none of those compared; the grids stand on the page.
"""

import dataclasses

from experiments.methods.rm_pfi import Config
from experiments.study import Study

_alone = {"rank_weight": 0.0, "pfi_weight": 0.0}


def _regression(claim: str, labelled: int, **strengths: float) -> Study:
    """Where features are to be imitated, without a detector; `strengths` are the weights of the arms."""
    base = Config.regression()
    locations = type(base.locations)(labelled=labelled)
    return Study(
        claim=claim,
        metric="locations/average_precision",
        method="pfi",
        arms={
            "pfi": {"locations": locations, "pfi_weight": strengths["pfi"]},
            "none": {"locations": locations, "pfi_weight": 0.0},
            "plain imitation": {
                "locations": locations,
                "pfi_weight": 0.0,
                "imitation_weight": strengths["plain"],
            },
            "pfi, detached": {
                "locations": locations,
                "pfi_weight": strengths["detached"],
                "detach_weight": True,
            },
            "pfi, matched": {
                "locations": locations,
                "pfi_weight": strengths["matched"],
                "weight_norm": "mean",
            },
            "predictions alone": {
                "locations": locations,
                "pfi_weight": 0.0,
                "prediction_weight": strengths["predictions"],
            },
        },
        base=base,
        baseline="none",
    )


_scenes = Study(
    claim="COCO AP of a small RetinaNet on digits in scenes, taught the order of an object's anchors",
    metric="student/detection/ap",
    method="rm",
    arms={
        "rm": {},
        "none": _alone,
        "rm, paper's: weight 4, temperature 1": {"rank_weight": 4.0, "temperature": 1.0},
        "weight 16, temperature 1": {"rank_weight": 16.0, "temperature": 1.0},
        "weight 40, temperature 1": {"rank_weight": 40.0, "temperature": 1.0},
        "logits, weight 1, temperature 1": {"rank_weight": 1.0, "temperature": 1.0, "rank_space": "logit"},
        "rm of scores and boxes": {"rank_weight": 0.1, "rank_boxes": True},
        "soft label": {**_alone, "soft_label_weight": 0.3},
    },
    base=Config(pfi_weight=0.0),
    baseline="none",
    shared=1,
)

_imitation = Study(
    claim="COCO AP of the same detector, taught features where the predictions differ",
    metric="student/detection/ap",
    method="pfi",
    arms={
        "pfi": {"pfi_weight": 0.5},
        "none": {},
        "plain imitation": {"imitation_weight": 0.1},
        "imitation of positive cells": {"imitation_weight": 0.1, "imitation_mask": "positive"},
        "imitation of the boxes": {"imitation_weight": 0.1, "imitation_mask": "boxes"},
        "pfi, detached": {"pfi_weight": 1.5, "detach_weight": True},
        "pfi, matched": {"pfi_weight": 0.3, "weight_norm": "mean"},
        "predictions alone": {"prediction_weight": 10.0},
        "pfi, paper's: logits, weight 1.5": {"pfi_weight": 1.5, "score_space": "logit"},
        "rm + pfi": {"rank_weight": 0.3, "pfi_weight": 0.5},
    },
    base=Config(rank_weight=0.0, pfi_weight=0.0),
    baseline="none",
    shared=1,
)


def _same_runs(claim: str, metric: str) -> Study:
    return dataclasses.replace(_scenes, claim=claim, metric=metric)


STUDIES = {
    "ranks": _scenes,
    "ranks-kendall": _same_runs(
        "The same runs: agreement of the order of an object's anchors with the teacher's, Kendall's",
        "student/ranks/kendall",
    ),
    "ranks-top1": _same_runs(
        "The same runs: share of objects whose best anchor is the teacher's", "student/ranks/top1"
    ),
    "imitation": _imitation,
    "labels-240": _regression(
        "Average precision of a regression of 2000 locations of which 240 have labels, a tenth matters",
        240,
        pfi=15.0,
        plain=0.001,
        detached=3.0,
        matched=0.01,
        predictions=10.0,
    ),
    "labels-2000": _regression(
        "The same with labels of all 2000 locations",
        2000,
        pfi=15.0,
        plain=0.03,
        detached=30.0,
        matched=0.3,
        predictions=3.0,
    ),
}
