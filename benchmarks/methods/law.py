import dataclasses

from benchmarks.methods.case import Case, stage
from experiments.methods.law import Config, build

CASES = (
    Case(
        "law",
        dataclasses.replace(Config(), search="none", action=(-3.0, -3.0, -3.0)),
        "the same twins without weights",
        stage(build, "train"),
        {"action": (0.0, 0.0, 0.0)},
    ),
)
