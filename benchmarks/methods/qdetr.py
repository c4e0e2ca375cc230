import dataclasses

from benchmarks.methods.case import Case, stage
from experiments.methods.qdetr import Config, build

CASES = (
    Case(
        "qdetr",
        Config(),
        "LSQ, neither alignment nor distillation",
        stage(build, "student"),
        {"detector": dataclasses.replace(Config().detector, align_query="no"), "distillation": 0.0},
    ),
)
