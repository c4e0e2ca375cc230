"""What is claimed of INTERN in the small, and against what: `python -m experiments.reproduce intern`.

All arms of a seed come from one run: the experts, the generalists, and what they are compared with, each measured by a linear
probe of frozen features with a tenth of the labels, of digits that no expert has seen and of the number of squares.

The studies of captions are the second experiment: Up-A on rendered faces with captions, then linear classifiers of attributes of
people whom nobody has seen, from a tenth of the labels; against networks that learn from labels alone. Steps and batches are the
same in all arms that train.
"""

import dataclasses

from experiments.methods.intern import Config
from experiments.recipes.experts import AdaptationSpec, GeneralistSpec
from experiments.recipes.face_attributes import AttributeSpec
from experiments.recipes.general_vision import SourceSpec
from experiments.recipes.image_text import UpA
from experiments.study import Study
from jaxface import data as inputs
from jaxface import training
from jaxface.data.render.face_captions import ATTRIBUTES

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

_UP_A = UpA(steps=200, batch_size=48)
_UP_A = dataclasses.replace(_UP_A, optimizer=dataclasses.replace(_UP_A.optimizer, learning_rate=3e-3))
_LABELS = AttributeSpec(
    "labels", steps=_UP_A.steps, batch_size=_UP_A.batch_size, optimizer=training.adam(3e-3)
)


def _captions(attribute: str, told: str) -> Study:
    alone = ("labels alone, 10 %", "labels alone, 100 %", "random network, 10 %")  # runs of one stage
    return Study(
        claim=f"{told} of unseen people's faces, by linear classifiers on Up-A's frozen features with a tenth of the labels",
        metric=f"attributes/attributes/{attribute}",
        method="captions, 10 % of the labels",
        arms={
            "captions, 10 % of the labels": {},
            "without the places": {"up_a": dataclasses.replace(_UP_A, local_weight=0.0)},
            "labels alone, 10 %": {"attributes": dataclasses.replace(_LABELS, share=0.1)},
            "labels alone, 100 %": {"attributes": dataclasses.replace(_LABELS, share=1.0)},
            "random network, 10 %": {"attributes": AttributeSpec("nothing")},
        },
        base=Config(
            captions=inputs.CaptionedFaces(identities=1000, held_out_identities=100),
            image_size=32,
            backbone="plain_stages_wide",
            up_a=_UP_A,
            attributes=AttributeSpec("captions"),
        ),
        arm_metrics=dict.fromkeys(alone, f"attributes/{attribute}"),
        baseline="labels alone, 10 %",
    )


STUDIES = {
    "class-of-c": _study("c", "digits", _OWN.format(_DIGITS, "C")),
    "count-of-c": _study("c", "squares", _OTHER.format(_SQUARES, "C")),
    "class-of-d": _study("d", "digits", _OTHER.format(_DIGITS, "D")),
    "count-of-d": _study("d", "squares", _OWN.format(_SQUARES, "D")),
    "captions": _captions("accuracy", "Mean accuracy over six attributes"),
    **{f"captions-{name}": _captions(name, f"The same runs: accuracy of the {name}") for name in ATTRIBUTES},
}
