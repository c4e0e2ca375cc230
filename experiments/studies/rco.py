"""What is claimed of RCO in the small, and against what: `python -m experiments.reproduce rco`."""

import dataclasses

from experiments.methods.rco import Config
from experiments.recipes.heads import HeadSpec
from experiments.recipes.teachers import TeacherSpec
from experiments.study import Study
from jaxface import data as inputs
from jaxface import training

_CLASSES = Config(
    data=inputs.Procedural(
        identities=40, per_identity=75, held_out_identities=0, held_out_per_identity=50, groups=40, noise=0.8
    ),
    augment=inputs.Augment(flip=0.0),
    backbone="mlp_6",
    embedding=40,
    form="logits",
    label_weight=0.0,
    head=HeadSpec(loss="softmax"),
    teacher=TeacherSpec(
        backbone="mlp_256x256",
        embedding=40,
        head=HeadSpec(loss="softmax"),
        optimizer=training.Optimizer(learning_rate=0.05, schedule="constant", weight_decay=0.0),
        steps=2040,
    ),
    recorded_at=(80, 240, 640, 2040),
    temperature=1.0,
    batch_size=128,
    steps=400,
    optimizer=training.adam(0.01),
)

_PEOPLE = dataclasses.replace(
    _CLASSES,
    data=inputs.Procedural(),
    backbone="mlp_24",
    embedding=64,
    form="mimic",
    teacher=dataclasses.replace(_CLASSES.teacher, embedding=64),
)

_ONE_CYCLE = {"anchors": 1, "steps": 4 * _CLASSES.steps}

STUDIES = {
    "classes": Study(
        claim="Test accuracy of a student six units wide after as many steps along its teacher's route or on its end alone",
        metric="student/classification/accuracy",
        method="rco",
        arms={
            "rco": {},
            "greedy search": {"selection": "greedy"},
            # It goes from the first record to the last: two runs, which are as long as the four with twice the steps.
            "greedy search, equal steps": {"selection": "greedy", "steps": 2 * _CLASSES.steps},
            "final teacher, same restarts": {"selection": "final"},
            "final teacher, one cycle": _ONE_CYCLE,
            "final teacher, one cycle, rate doubled": {
                **_ONE_CYCLE,
                "optimizer": dataclasses.replace(_CLASSES.optimizer, learning_rate=0.02),
            },
            "route in one cycle": {"restart": False, "steps": 4 * _CLASSES.steps},
        },
        base=_CLASSES,
        shared=4,
    ),
    "premise": Study(
        claim="What is left of the distillation loss on unseen records when a fresh student imitates one anchor",
        metric="student/congruence",
        method="after 80 steps",
        arms={
            f"after {step} steps": {"selection": "given", "given": (step,)} for step in _CLASSES.recorded_at
        },
        base=dataclasses.replace(_CLASSES, steps=1200, temperature=4.0),
        larger_is_better=False,
        shared=4,
    ),
    "people": Study(
        claim="Open-set identification of unseen people by a small student that mimics along the route or the end alone",
        metric="student/identification/tpir@1e-1",
        method="rco",
        arms={
            "rco": {},
            "final teacher, same restarts": {"selection": "final"},
            "final teacher, one cycle": _ONE_CYCLE,
        },
        base=_PEOPLE,
        shared=4,
    ),
}
