"""What is claimed of ACW in the small, and against what: `python -m experiments.reproduce acw`."""

from experiments.methods.acw import Config
from experiments.study import Study

_BASELINES = {
    name: {"fusion": field}
    for name, field in (
        ("sum", "sum"),
        ("best fixed weight", "fixed"),
        ("max", "max"),
        ("concatenation", "concat"),
        ("rgb alone", "rgb"),
        ("depth alone", "depth"),
    )
}

STUDIES = {
    "digits": Study(
        claim="Accuracy on halves of unseen digits, over clean ones and ones of which one half or both are noise",
        metric="fusion/rank1",
        method="acw",
        arms={"acw": {}, **_BASELINES},
        base=Config.digits(),
        shared=2,
    ),
    "rendered": Study(
        claim="Rank-1 identification of unseen rendered people, over clean, dark, noisy-depth, twice bad and occluded probes",
        metric="fusion/rank1",
        method="acw",
        arms={
            "acw": {},
            "acw, probe alone": {"fusion": "acw_probe"},
            **_BASELINES,
            "acw, norms alone": {"features": False},
            "acw, no norms": {"norms": False},
        },
        base=Config(),
        shared=2,
    ),
}
