from benchmarks.methods.case import Case, stage
from experiments.methods.acw import Config, build

CASES = (
    Case("acw", Config(fusion_batch_size=64), "concatenation", stage(build, "fusion"), {"fusion": "concat"}),
)
