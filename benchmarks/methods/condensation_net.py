from benchmarks.methods.case import Case, stage
from experiments.methods.condensation_net import Config, build

CASES = (Case("condensation_net", Config(), "one filter per map", stage(build, "classifier"), {"groups": 1}),)
