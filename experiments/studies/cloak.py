"""What is claimed of GA-OPOM in the small, and against what: `python -m experiments.reproduce cloak`."""

import dataclasses

from experiments.methods.cloak import Config
from experiments.study import Study


def arm(**fields) -> dict:
    """Overrides for a way of making masks, at ε of 24."""
    return {"cloak": dataclasses.replace(Config.procedural().cloak, **fields)}


FULL = {"batch": 0, "accumulate": 1, "rederive": True}
"""All photos in every step, as OPOM's release does it."""
SMALL = {"batch": 2, "accumulate": 1}


def small_epsilon(**fields) -> dict:
    """The same at ε of 8."""
    return arm(epsilon=8.0, step_size=1.0, **fields)


STUDIES = {
    "transfer": Study(
        claim="Images of waves, masks of ±24: share of queries that three black boxes do not find",
        metric="cloak/black_box/psr@1",
        method="GA, 20 of 2 photos",
        arms={
            "GA, 20 of 2 photos": arm(),
            "GA, 5 of 2 photos": arm(accumulate=5),
            "GA, 20 of 2 photos, no look-ahead": arm(look_ahead=0.0),
            "OPOM-ClassCenter": arm(**FULL),
            "OPOM-ClassCenter, equal gradients": arm(**FULL, steps=64),
            "OPOM-ConvexHull": arm(**FULL, hull="convex"),
            "OPOM, 2 photos": arm(**SMALL),
            "OPOM, 2 photos, equal gradients": arm(**SMALL, steps=320),
            "FI-UAP": arm(objective="fi_uap", **FULL),
        },
        base=Config.procedural(),
        shared=4,
    ),
    "surrogate": Study(
        claim="Images of waves, masks of ±8: share of queries with unseen photos that the surrogate itself does not find",
        metric="cloak/surrogate/psr@1",
        method="GA, 20 of 2 photos",
        arms={
            "GA, 20 of 2 photos": small_epsilon(),
            "GA, 5 of 2 photos": small_epsilon(accumulate=5),
            "OPOM-ClassCenter": small_epsilon(**FULL),
            "OPOM-ConvexHull": small_epsilon(**FULL, hull="convex"),
            "OPOM, 2 photos": small_epsilon(**SMALL),
            "OPOM, 1 photo": small_epsilon(batch=1, accumulate=1),
            "FI-UAP": small_epsilon(objective="fi_uap", **FULL),
        },
        base=Config.procedural(),
        shared=4,
    ),
}
