from benchmarks.methods.case import Case, stage
from experiments.methods.dpm import Config, build

CASES = (
    Case("dpm, semantic labels", Config(), "AENet", stage(build, "liveness"), {"lq": "none"}),
    Case(
        "dpm, quality",
        Config(corrections=("scaled",)),
        "a refitted margin",
        stage(build, "quality"),
        {"corrections": ("refit",)},
    ),
)
