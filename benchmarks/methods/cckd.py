from benchmarks.methods.case import Case, stage
from experiments.methods.cckd import Config, build

CASES = (Case("cckd", Config(), "mimic alone", stage(build, "student"), {"congruence_weight": 0.0}),)
