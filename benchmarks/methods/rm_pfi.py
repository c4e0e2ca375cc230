from benchmarks.methods.case import EARLIER, Case, stage
from experiments.methods.rm_pfi import Config, build

CASES = (
    Case(
        "rm_pfi",
        Config(teacher_steps=EARLIER),
        "the student alone",
        stage(build, "student"),
        {"rank_weight": 0.0, "pfi_weight": 0.0},
    ),
    Case(
        "rm_pfi, soft labels",
        Config(teacher_steps=EARLIER),
        "soft labels of the same teacher",
        stage(build, "student"),
        {"rank_weight": 0.0, "pfi_weight": 0.0, "soft_label_weight": 0.3},
    ),
)
