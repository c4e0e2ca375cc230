import dataclasses

from benchmarks.methods.case import Case, stage
from experiments.methods.qvit import Config, build

CASES = (
    Case(
        "qvit",
        Config(),
        "LSQ and hard distillation, neither IRM nor DGD",
        stage(build, "student"),
        {"precision": dataclasses.replace(Config().precision, rectify=None), "dgd_weight": 0.0},
    ),
)
