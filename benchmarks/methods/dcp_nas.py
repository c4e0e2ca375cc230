import dataclasses

from benchmarks.methods.case import Case, stage
from experiments.methods.dcp_nas import Config, build
from jaxface.training.dcp_nas import CellSearch

# One cell of one node, wider than by default: a program of minutes otherwise.
_BASE = Config(loss="labels", rounds=1, search_cells=1, nodes=1, search_channels=16)
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
        dataclasses.replace(_BASE, remat="block"),
        "branches stored",
        stage(build, "child2"),
        {"remat": "none"},
    ),
)
