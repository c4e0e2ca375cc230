from benchmarks.methods.case import Case, stage
from experiments.methods.mda import Config, build

CASES = (
    Case(
        "mda",
        Config(),
        "JoCoR",
        stage(build, "pair"),
        {"selection": "batch", "mirrored": False, "agreement_weight": 0.0},
    ),
)
