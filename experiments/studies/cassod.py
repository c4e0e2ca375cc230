"""What is claimed of CASSOD in the small, and against what: `python -m experiments.reproduce cassod`."""

import dataclasses

from experiments.methods.cassod import Config
from experiments.study import Study
from jaxface import training

# Arms are named for the context layer and its weights.
_METHOD = {"dc, 1088": {"structure": "dc"}}
_DENSE = {"3x3, dilation 2, 2304": {"structure": "dense"}}
_ellipses = Study(
    claim="Average precision over cells of the centers of faces among ellipses, by the context layer and its weights",
    metric="cells/average_precision",
    method="dc, 1088",
    arms={
        **_METHOD,
        **_DENSE,
        "bottleneck of 7, 1120": {"structure": "bottleneck"},
        "separable 3x3, 400": {"structure": "separable"},
    },
    baseline="3x3, dilation 2, 2304",
    base=Config(steps=600, optimizer=training.adam(2e-2)),
)

STUDIES = {
    "ellipses": _ellipses,
    "structures": dataclasses.replace(
        _ellipses,
        claim="The same of the other cascades and of layers that see less far",
        arms={
            **_METHOD,
            **_DENSE,
            "cc, 2048": {"structure": "cc"},
            "ddp, 384": {"structure": "ddp"},
            "3x3, dilation 1, 2304": {"structure": "dense", "dilation": 1},
            "1x1, 256": {"structure": "pointwise"},
        },
    ),
}
