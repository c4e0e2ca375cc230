"""What is claimed of DCP-NAS in the small, and against what: `python -m experiments.reproduce dcp_nas`.

Searched cells are compared by training their binary network afresh, all in the same way, by the classes of one teacher per
seed. The architecture moves by plain steps of one rate in all arms, since Adam would hide the size of the tangent term; its λ is
set so that it has 0.3 of the gradient's length. Each search takes as many steps of weights and of the architecture.
"""

import dataclasses

from experiments.methods.dcp_nas import Config
from experiments.study import Study
from jaxface.training.dcp_nas import CellSearch


def _rule(**fields) -> dict:
    return {"rule": dataclasses.replace(CellSearch(repeats=9), **fields)}  # CP-NAS: 180 steps


_BASE = dataclasses.replace(
    Config(), rounds=3, phase_steps=30, channels=4, real_weight_steps=0, steps=250, **_rule()
)

_digits = Study(
    claim="Test accuracy of the binary network of the found cell on digits, trained afresh",
    metric="binary/classification/accuracy",
    method="dcp-nas",
    arms={
        "dcp-nas": {},
        "no tangent": _rule(ratio=0.0),
        "random cell": {"search": "random"},
        "Parent's cell": {"search": "parent", **_rule(decoupled=False)},  # DARTS on the real network
        "Child alone": {"search": "child", **_rule(decoupled=False)},  # DARTS on the binary network
    },
    base=_BASE,
    baseline="random cell",
    shared=1,
)

# One cell of one node and five operations, of which nothing is trained afresh: what the terms do needs no more.
_SEARCH = dataclasses.replace(
    _BASE,
    loss="labels",
    steps=0,
    primitives=("max_pool_3x3", "skip_connect", "conv_3x3", "conv_1x1", "none"),
    nodes=1,
    search_cells=1,
)


_curvature = Study(
    claim="Cosine of the tangent term's part of the architecture's step with the Parent's direction",
    metric="cell/child/tangent_cosine",
    method="ggn",
    arms={"ggn": {}, "exact": _rule(curvature="exact"), "printed": _rule(curvature="printed")},
    base=_SEARCH,
)

STUDIES = {
    "digits": _digits,
    "indicator": dataclasses.replace(
        _digits,
        claim="The same of a cell that CP-NAS finds by the accuracies of sampled architectures",
        method="CP-NAS",
        arms={"CP-NAS": {"search": "cp"}, "dcp-nas": {}, "random cell": {"search": "random"}},
        baseline=None,
    ),
    "curvature": _curvature,
    "curvature-step": dataclasses.replace(
        _curvature,
        claim="The same runs: cosine of the whole step of the architecture with the Parent's direction",
        metric="cell/child/cosine",
    ),
    "signs": Study(
        claim="Share of the Child's signs that change in a step, at the end of the search",
        metric="cell/signs/flip_rate",
        method="5e-5",
        arms={
            "5e-5": {},
            "0": _rule(reconstruction=0.0),
            "0.2": _rule(reconstruction=0.2),
            "0.2 of the mean": _rule(reconstruction=0.2, reconstruction_mean=True),
        },
        base=_SEARCH,
    ),
    "switches": Study(
        claim="Accuracy of the Child's supernet, all operations mixed, at the end of the search",
        metric="cell/child/accuracy",
        method="corrected",
        arms={
            "corrected": {},
            "not corrected": _rule(decoupled=False),
            "reflected": _rule(reflect=True),
            "gate by the sum": _rule(gate_norm="sum"),
            "strength 5e-3": _rule(ratio=None),
        },
        base=_SEARCH,
    ),
}
