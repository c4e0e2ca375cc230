from benchmarks.methods.case import Case, stage
from experiments.methods.rbonn import Config, build

CASES = (
    Case(
        "rbonn",
        Config(backbone="binary_resnet_pico"),
        "plain estimator",
        stage(build, "binary"),
        {"weights": "straight_through"},
    ),
)
