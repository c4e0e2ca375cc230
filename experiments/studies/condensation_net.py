"""What is claimed of Condensation-Net in the small, and against what: `python -m experiments.reproduce condensation-net`."""

from experiments.methods.condensation_net import Config
from experiments.study import Study

STUDIES = {
    "classes": Study(
        claim="Test accuracy on digits on a cluttered canvas: M stored maps of R filters each, 900 steps",
        metric="classification/accuracy",
        method="M=6 R=2",
        arms={
            "M=6 R=2": {},
            "M=6 R=1": {"groups": 1},  # equal memory
            "M=12 R=1": {"groups": 1, "channels": 12},  # equal weights with R=4, twice the memory
            "M=6 R=4": {"groups": 4},
            "M=6 R=2, mean before activation": {"reduce": "mean"},
            "M=6 R=2, He's gain": {"corrected": False},
        },
        base=Config(),
        baseline="M=6 R=1",
    ),
    "quantized": Study(
        claim="The same, binary weights and 2-bit activations in all layers but the first and the last",
        metric="classification/accuracy",
        method="M=6 R=2",
        arms={
            "M=6 R=2": {},
            "M=6 R=1": {"groups": 1},
            "M=6 R=4": {"groups": 4},
            "M=12 R=1": {"groups": 1, "channels": 12},
        },
        base=Config(quantized=True),
        baseline="M=6 R=1",
    ),
}
