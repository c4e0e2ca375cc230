import dataclasses

from benchmarks.methods.case import Case, stage
from experiments.methods.edic import Config, build

_PLAIN = dataclasses.replace(Config().codec, enhance=False)
CASES = (
    Case(
        "edic",
        Config(),
        "mean-scale hyperprior",
        stage(build, "rate"),
        {"codec": dataclasses.replace(_PLAIN, entropy="mean_scale")},
    ),
    Case(
        "edic, mixture alone",
        Config(codec=_PLAIN),
        "mean-scale hyperprior",
        stage(build, "rate"),
        {"codec": dataclasses.replace(_PLAIN, entropy="mean_scale")},
    ),
)
