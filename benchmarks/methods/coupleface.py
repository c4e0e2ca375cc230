from benchmarks.methods.case import Case, stage
from experiments.methods.coupleface import Config, build

CASES = (Case("coupleface", Config(), "embeddings alone", stage(build, "student"), {"relations": "none"}),)
