import dataclasses

from benchmarks.methods.case import Case, stage
from experiments.methods.lifelong import Config, build

_CLEAN = dataclasses.replace(Config().fusion, second="clean")
CASES = (
    Case("lifelong", Config(), "joint replay", stage(build, "session5"), {"learns": "joint"}),
    Case("lifelong, attack", Config(), "two clean steps", stage(build, "session5"), {"fusion": _CLEAN}),
)
