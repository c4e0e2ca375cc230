"""What is claimed of APViT in the small, and against what: `python -m experiments.reproduce apvit`.

Digits on noise of U(0.2, 0.9); a dense run stands in for the pretraining that the paper's score inherits, and every arm is
fine-tuned from it for the same steps. All studies are of the same runs. Read the ranking first: where it is near 0.5, pooling of
patches is random selection.
"""

import dataclasses

from experiments.methods.apvit import Config
from experiments.study import Study

_BASE = dataclasses.replace(
    Config.clutter(), dense_steps=800, steps=200
)  # the preset, cut so that five seeds take minutes
_WHOLE = (1.0,) * len(_BASE.keep_rates)
_ARMS = {
    "APP+ATP": {},
    "none": {"keep_num": None, "keep_rates": _WHOLE},
    "APP": {"keep_rates": _WHOLE},
    "ATP": {"keep_num": None},
    "random": {"app_score": "random", "atp_score": "random"},
    "lowest": {"app_score": "lowest", "atp_score": "lowest"},
}


def _ranking(noise: str) -> Study:
    """How the score ranks at three moments of one run."""
    metric = f"ranking/auc@{noise}"
    return Study(
        claim=f"Chance that a patch of the digit has a larger sum of absolute features than one of the clutter, noise {noise}",
        metric=f"classifier/{metric}",
        method="fine-tuned, APP+ATP",
        arms={"fine-tuned, APP+ATP": {}, "at initialization": {}, "after the dense run": {}},
        arm_metrics={"at initialization": f"start/{metric}", "after the dense run": f"dense/{metric}"},
        base=_BASE,
        shared=2,
        baseline="at initialization",
    )


def _accuracy(noise: str) -> Study:
    return Study(
        claim=f"Test accuracy under noise {noise} after as many steps of each kind of pooling from one dense run",
        metric=f"classifier/classification/accuracy@{noise}",
        method="APP+ATP",
        arms=_ARMS,
        base=_BASE,
        baseline="none",
        shared=2,
    )


STUDIES = {  # the first trains; the others read its runs
    "clutter": _accuracy("0.5"),
    "clutter-strong": _accuracy("0.9"),
    "ranking": _ranking("0.5"),
    "ranking-strong": _ranking("0.9"),
}
