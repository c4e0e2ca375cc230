from benchmarks.methods.case import EARLIER, Case, stage
from experiments.methods.rco import Config, build

CASES = (
    Case(
        "rco",
        Config(recorded=EARLIER),
        "final teacher alone",
        stage(build, "student"),
        {"selection": "final"},
    ),
)
