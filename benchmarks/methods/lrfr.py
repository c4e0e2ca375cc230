from benchmarks.methods.case import Case, stage
from experiments.methods.lrfr import Config, build
from experiments.studies.lrfr import FULL

CASES = (Case("lrfr", Config(probe_sizes=(16,)), "full size only", stage(build, "recognition"), FULL),)
