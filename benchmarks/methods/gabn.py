import dataclasses

from benchmarks.methods.case import Case, stage
from experiments.methods.gabn import Config, build
from experiments.studies.gabn import BASELINE, BOTH

CASES = (
    Case(
        "gabn, both terms",
        dataclasses.replace(Config(), **BOTH),
        "plain recognition",
        stage(build, "recognition"),
        BASELINE,
    ),
)
