"""What is claimed of RBONN in the small, and against what: `python -m experiments.reproduce rbonn`.

Binary layers alone train: where the real layers do too, random signs that are held score as well as any. Step sizes are each
arm's best of 3e-3, 1e-2, 3e-2, 1e-1 and 3e-1 on seed 0, which is none of those compared.
"""

import dataclasses

from experiments.methods.rbonn import Config
from experiments.study import Study
from jaxface import training


def _rate(learning_rate: float) -> training.Optimizer:
    return training.adam(learning_rate, schedule="linear")


_digits = Study(
    claim="Test accuracy on digits of a network of which three binary layers alone train, the rest held at its random start",
    metric="classification/accuracy",
    method="rbonn",
    arms={
        "rbonn": {},
        "straight-through": {"weights": "straight_through"},
        "bilinear scale, gate shut": {"tau": 1.0},
        "released gate": {"weights": "released", "optimizer": _rate(1e-1)},
        "as printed": {"weights": "paper", "optimizer": _rate(1e-1)},
        "signs held at random": {"train_only": ()},
    },
    base=Config(),
)

STUDIES = {
    "digits": _digits,
    "digits-all-layers": Study(
        claim="Test accuracy on digits where the real layers train too: what cannot tell binary layers apart",
        metric="classification/accuracy",
        method="rbonn",
        arms={
            "rbonn": {},
            "straight-through": {"weights": "straight_through"},
            "signs held at random": {
                "train_only": ("input_dense", "threshold", "norm", "prototypes", "bias")
            },
        },
        base=dataclasses.replace(Config(), train_only=None, optimizer=_rate(3e-3)),
    ),
    "digits-flips": dataclasses.replace(
        _digits,
        claim="Share of binary weights that change their sign in a step, over the last 100 of 400",
        metric="signs/flip_rate",
        larger_is_better=False,
    ),
}
