"""What is claimed of INTERN in the small, and against what: `python -m experiments.reproduce intern`.

All arms of a seed come from one run: the experts, the generalists, and what they are compared with, each measured by a linear
probe of frozen features with a tenth of the labels, of digits that no expert has seen and of the number of squares.
"""

from experiments.methods.intern import Config
from experiments.recipes.experts import AdaptationSpec, GeneralistSpec
from experiments.recipes.general_vision import SourceSpec
from experiments.recipes.image_text import UpA
from experiments.study import Study
from jaxface import data as inputs

_CANVAS = inputs.TaskCanvas()
_BASE = Config(
    sources=(
        SourceSpec(name="digits_c", data=_CANVAS),
        SourceSpec(name="centers_d", data=_CANVAS, task="cells"),
    ),
    up_a=UpA(steps=0),
    experts=("c", "d"),
    heads="own",
    generalist=GeneralistSpec(steps=250),
    batch_size=64,
    steps=500,
    controls=True,
    squeeze_steps=0,
    adaptation=AdaptationSpec(steps=0),
    tasks=("digits", "squares"),
)


def _arms(main: str, task: str) -> dict[str, str]:
    """Arm -> its metric."""
    rows = {
        "generalist": f"up_g_{main}",
        "expert": f"up_e_{main}",
        "expert, continued": f"up_e_{main}, continued",
        "random trunk beside it": f"up_g_{main}, random trunk",
        "second of its type beside it": f"up_g_{main}, second of its type",
        "one trunk for both": "joint",
        "the other expert": f"up_e_{'d' if main == 'c' else 'c'}",
        "random trunk": "random",
    }
    return {arm: f"gvb/{row}/{task}" for arm, row in rows.items()}


def _study(main: str, task: str, claim: str) -> Study:
    metrics = _arms(main, task)
    return Study(
        claim=claim,
        metric=metrics["generalist"],
        method="generalist",
        arms={arm: {} for arm in metrics},
        base=_BASE,
        arm_metrics=metrics,
        baseline="expert, continued",
    )


_OWN = "Its own type, kept: {} with a tenth of the labels, frozen features of G-{} and of what it is to beat"
_OTHER = "What it gets of the other type: {} with a tenth of the labels, frozen features of G-{} and of what it is to beat"
_DIGITS, _SQUARES = "accuracy over five unseen digits", "mean accuracy over numbers of squares"

STUDIES = {
    "class-of-c": _study("c", "digits", _OWN.format(_DIGITS, "C")),
    "count-of-c": _study("c", "squares", _OTHER.format(_SQUARES, "C")),
    "class-of-d": _study("d", "digits", _OTHER.format(_DIGITS, "D")),
    "count-of-d": _study("d", "squares", _OWN.format(_SQUARES, "D")),
}
