from benchmarks.methods.case import Case, stage
from experiments.methods.cassod import Config, build

CASES = (
    Case(
        "cassod", Config.detector(), "dilated 3x3 context", stage(build, "detector"), {"context": "dilated"}
    ),
)
