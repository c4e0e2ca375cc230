"""What is claimed of ACW in the small, and against what: `python -m experiments.reproduce acw`."""

import dataclasses

from experiments.methods.acw import Config
from experiments.study import Study

# Fusions that learn nothing (or one weight): every run reports them of its own networks and probes.
_READ = {
    "sum": "fusion/sum/rank1",
    "best fixed weight": "fusion/fixed/rank1",
    "max": "fusion/max/rank1",
    "rgb alone": "fusion/rgb/rank1",
    "depth alone": "fusion/depth/rank1",
}
_ARMS = {"acw": {}, **{name: {} for name in _READ}, "concatenation": {"fusion": "concat"}}


RENDERED = dataclasses.replace(
    Config(),
    image_size=20,
    rgb=dataclasses.replace(Config().rgb, steps=300),
    depth=dataclasses.replace(Config().depth, steps=300),
    steps=300,
)
"""The default, small enough for five seeds: images of 20 pixels, 300 steps of every stage."""

DIGITS = Study(
    claim="Accuracy on halves of unseen digits, over clean ones and ones of which one half or both are noise",
    metric="fusion/rank1",
    method="acw",
    arms={**_ARMS, "acw, norms alone": {"features": False}, "acw, no norms": {"norms": False}},
    base=Config.digits(),
    shared=2,
    arm_metrics=_READ,
)

STUDIES = {
    "digits": DIGITS,
    "digits-clean": dataclasses.replace(
        DIGITS,
        claim="Accuracy on halves of unseen digits, the clean ones of study digits alone",
        metric="fusion/rank1@none",
        arm_metrics={name: f"{metric}@none" for name, metric in _READ.items()},
    ),
    "rendered": Study(
        claim="Rank-1 identification of unseen rendered people, over clean, dark, noisy-depth, twice bad and occluded probes",
        metric="fusion/rank1",
        method="acw",
        arms={**_ARMS, "acw, probe alone": {}},
        base=RENDERED,
        shared=2,
        arm_metrics={**_READ, "acw, probe alone": "fusion/acw_probe/rank1"},
    ),
}
