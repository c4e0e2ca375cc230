from benchmarks.methods.case import Case, stage
from experiments.methods.pseco import Config, build

CASES = (
    Case(
        "pseco",
        Config(),
        "mean teacher, by overlap",
        stage(build, "pseco"),
        {"assign": "overlap", "vote": "none", "second_view": "none"},
    ),
    Case(
        "pseco, one view",
        Config(second_view="none"),
        "mean teacher, by overlap",
        stage(build, "pseco"),
        {"assign": "overlap", "vote": "none"},
    ),
)
