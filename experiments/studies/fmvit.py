"""What is claimed of FM-ViT in the small, and against what: `python -m experiments.reproduce fmvit`.

Every arm is one network for all sensors, tested with every subset of them; the threshold is taken on other people with the same
subset. The studies read different numbers of the same runs. Branches of ordinary blocks never see each other: *dedicated* is a
network for each sensor, trained side by side, and with several sensors the mean of those that are there.
"""

import dataclasses

from experiments.methods.fmvit import Config
from experiments.study import Study
from jaxface import data

_APART = {"blocks": ("self",) * 2}
ARMS = {
    "fm-vit": {},
    "dedicated": _APART,  # honest late fusion, too: the mean of the branches that are there
    "dedicated, crossing": {"partners": "itself"},  # the same parameters and losses, but nobody to look at
}
PAIRS = {**ARMS, "pairs look at each other": {"unseen_subsets": "together"}}
# Training sees all sensors and each alone, never two of three, unless subsets are drawn.
SAMPLED = {"fm-vit": {}, "dedicated": _APART, "sampled sensors": {"solo": "sampled"}}
CONTROLS = {
    "fm-vit": {},
    "dedicated": _APART,
    "zero-filled": {**_APART, "fusion": "sum", "solo": "none"},
    "zero-filled, dropout": {**_APART, "fusion": "sum", "solo": "sampled"},
    "no guide": {"guide": "none"},
    "random guide": {"guide": "random"},
    "union": {"guide": "union"},
    "no solo term": {"solo": "none"},
}
# Half the blocks, fewer people and steps than a run of its own, so that nine arms of five seeds take minutes.
BASE = dataclasses.replace(
    Config(),
    data=data.Presentations(identities=100, development_identities=50, held_out_identities=100),
    blocks=("self", "cross"),
    dim=32,
    heads=2,
    batch_size=16,
    steps=200,
)


def _study(claim: str, metric: str, arms=ARMS) -> Study:
    return Study(
        claim=f"Rendered attacks, pooled ACER at the threshold of other people: {claim}",
        metric=metric,
        method="fm-vit",
        arms=arms,
        base=BASE,
        larger_is_better=False,
        baseline="dedicated",
    )


STUDIES = {
    "single": _study("mean over the single sensors", "acer@single"),
    "together": _study("all three sensors", "acer@rgb+depth+infrared"),
    "rgb": _study("the photograph alone", "acer@rgb"),
    "depth": _study("depth alone", "acer@depth"),
    "infrared": _study("infrared alone", "acer@infrared"),
    "pair": _study("the photograph and depth, two of three sensors", "acer@rgb+depth", PAIRS),
    "sampled": _study("the photograph and depth, subsets drawn in training", "acer@rgb+depth", SAMPLED),
    "sampled-single": _study(
        "mean over the single sensors, subsets drawn in training", "acer@single", SAMPLED
    ),
    "controls": _study("mean over the single sensors, other controls", "acer@single", CONTROLS),
    "controls-together": _study("all three sensors, other controls", "acer@rgb+depth+infrared", CONTROLS),
    "controls-rgb": _study("the photograph alone, other controls", "acer@rgb", CONTROLS),
}
