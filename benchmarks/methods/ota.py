from benchmarks.methods.case import Case, stage
from experiments.methods.ota import Config, build

CASES = (
    Case("ota, images", Config(), "R of real images", stage(build, "images"), {"images": "re_represented"}),
)
