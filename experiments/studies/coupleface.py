"""What is claimed of CoupleFace in the small, and against what: `python -m experiments.reproduce coupleface`."""

from experiments.methods.coupleface import Config
from experiments.study import Study

STUDIES = {
    "vectors": Study(
        claim="Verification of unseen synthetic identities by a student of a much larger teacher",
        metric="student/verification/tar@1e-2",
        method="coupleface",
        arms={
            "coupleface": {},
            "consistency alone": {"relation_weight": 0.0},
            "alpha 1": {"relation_weight": 1.0},
            "random identities": {"relations": "random"},
            "K 50": {"neighbors": 50},
            "mean features": {"memory": "none"},
            "batch pairs, squared": {"relations": "batch", "norm": "l2"},
            "batch pairs, l1": {"relations": "batch"},
        },
        base=Config.vectors(),
        shared=1,
    ),
}
