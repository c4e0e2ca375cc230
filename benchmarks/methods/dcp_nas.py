from benchmarks.methods.case import Case, stage
from experiments.methods.dcp_nas import Config, build
from jaxface.training.dcp_nas import CellSearch

_BASE = Config(loss="labels", rounds=1)
CASES = (
    Case(
        "dcp_nas",
        _BASE,
        "exact Hessian product",
        stage(build, "child2"),
        {"rule": CellSearch(curvature="exact")},
    ),
    Case(
        "dcp_nas, branches computed again",
        Config(loss="labels", rounds=1, remat="block"),
        "branches stored",
        stage(build, "child2"),
        {"remat": "none"},
    ),
)
