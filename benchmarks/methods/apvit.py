import dataclasses

from benchmarks.methods.case import Case, stage
from experiments.methods.apvit import Config, build

CASES = (
    Case(
        "apvit",
        dataclasses.replace(Config.clutter(), dense_steps=0, test_noises=()),
        "nothing dropped",
        stage(build, "classifier"),
        {"keep_num": None, "keep_rates": (1.0,) * 4},
    ),
)
