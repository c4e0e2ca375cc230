"""What is claimed of BAMSProd in the small, and against what: `python -m experiments.reproduce bamsprod`.

Binary layers alone train. Step sizes are each arm's best of 0.03, 0.1 and 0.3, and Bop's rate, schedule and threshold its best
of a grid, by the mean accuracy (under `heavy` the mean recall) of seeds 0, 6 and 7, none of which is compared. Where another
step size was faster it is an arm too, and Adam stands there at BAMSProd's besides. No arm corrects the bias of its moments but
the one that says so.
"""

import dataclasses

from experiments.methods.bamsprod import Config
from experiments.study import Study
from jaxface import training


def _rule(name: str, learning_rate: float, schedule: str = "linear") -> dict:
    return {
        "optimizer": training.Optimizer(
            name=name, learning_rate=learning_rate, schedule=schedule, weight_decay=0.0
        )
    }


_digits = Study(
    claim="Test accuracy on digits of a network of which three binary layers alone train, the rest held at its random start",
    metric="classification/accuracy",
    method="bamsprod",
    arms={
        "bamsprod": {},
        "bamsprod, fastest step": _rule("bamsprod", 0.03),
        "bamsprod, literal bound": {**_rule("bamsprod", 0.3), "gradient_bound": "max"},
        "adam": _rule("uncorrected_adam", 0.3),
        "adam, equal step": _rule("uncorrected_adam", 0.1),
        "adam, fastest step": _rule("uncorrected_adam", 0.03),
        "adam, bias corrected": _rule("adam", 0.3),
        "amsgrad": _rule("amsgrad", 0.03),
        "bop": {**_rule("sgd", 0.1), "bop_threshold": 3e-4},
        "bop, fastest": {**_rule("sgd", 0.01), "bop_threshold": 3e-5},
        "signs held at random": {"train_only": ()},
    },
    base=Config(online_steps=0),
)
_heavy = Study(
    claim="Recall of a class of one example in 101, each of which counts a hundred times in the loss",
    metric="heavy/recall",
    method="bamsprod",
    arms={
        "bamsprod": {},
        "adam": _rule("uncorrected_adam", 0.03),
        "adam, equal step": _rule("uncorrected_adam", 0.1),
        "amsgrad": _rule("amsgrad", 0.03),
        "bop": {**_rule("sgd", 0.01), "bop_threshold": 1e-5},
    },
    base=Config.heavy(),
)

STUDIES = {
    "digits": _digits,
    "digits-speed": dataclasses.replace(
        _digits,
        claim="Steps until the accuracy of the last five batches is 0.9; 401 where it never is",
        metric="steps_to_threshold",
        larger_is_better=False,
    ),
    "digits-flips": dataclasses.replace(
        _digits,
        claim="Share of binary weights that change their sign in a step, over the last 100 of 400",
        metric="signs/flip_rate",
        larger_is_better=False,
    ),
    "heavy": _heavy,
    "heavy-accuracy": dataclasses.replace(
        _heavy,
        claim="Accuracy on all classes where one class is rare and counts a hundred times in the loss",
        metric="classification/accuracy",
    ),
}
