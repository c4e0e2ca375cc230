from benchmarks.methods.case import Case, stage
from experiments.methods.ddc import Config, build

CASES = (
    Case("ddc", Config(), "plain 3x3 filters", stage(build, "classifier"), {"dilations": (1, 1, 1)}),
    Case(
        "ddc, 5x5 filters",
        Config(depthwise_kernel=5, dilations=(1, 1, 1)),
        "plain 3x3 filters",
        stage(build, "classifier"),
        {"depthwise_kernel": 3},
    ),
)
