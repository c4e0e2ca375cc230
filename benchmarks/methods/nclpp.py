from benchmarks.methods.case import Case, stage
from experiments.methods.nclpp import Config, build

CASES = (Case("nclpp", Config(), "balanced softmax", stage(build, "experts"), {"loss": "balanced"}),)
