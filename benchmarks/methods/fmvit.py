from benchmarks.methods.case import Case, stage
from experiments.methods.fmvit import Config, build

CASES = (
    Case(
        "fmvit",
        Config(),
        "a ViT per sensor",
        stage(build, "branches"),
        {"blocks": ("self",) * 4, "solo": "none"},
    ),
    Case(
        "fmvit, sampled sensors",
        Config(solo="sampled"),
        "a ViT per sensor",
        stage(build, "branches"),
        {"blocks": ("self",) * 4, "solo": "none"},
    ),
)
