"""What is claimed of CASSOD in the small, and against what: `python -m experiments.reproduce cassod`."""

from experiments.methods.cassod import Config
from experiments.study import Study
from jaxface import training

STUDIES = {
    "ellipses": Study(
        claim="Average precision over cells of the centers of faces among ellipses, by the context layer and its weights",
        metric="cells/average_precision",
        method="dc, 1088",
        arms={
            "dc, 1088": {"structure": "dc"},
            "3x3, dilation 2, 2304": {"structure": "dense"},
            "bottleneck of 7, 1120": {"structure": "bottleneck"},
            "separable 3x3, 400": {"structure": "separable"},
            "cc, 2048": {"structure": "cc"},
            "ddp, 384": {"structure": "ddp"},
            "3x3, dilation 1, 2304": {"structure": "dense", "dilation": 1},
            "1x1, 256": {"structure": "pointwise"},
        },
        baseline="3x3, dilation 2, 2304",
        base=Config(steps=600, optimizer=training.adam(2e-2)),
    ),
}
