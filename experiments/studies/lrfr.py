"""What is claimed of LRFR in the small, and against what: `python -m experiments.reproduce lrfr`."""

from experiments.methods.lrfr import Config
from experiments.study import Study
from jaxface import data as inputs

FULL = {"sizes": (), "probabilities": ()}


def single(size: int) -> dict:
    """Overrides for copies of one size."""
    return {"sizes": (size,), "probabilities": (1.0,)}


WEIGHTS = {"l1": 0.280, "l2": 1.88, "logexp²": 2.71, "batch_log": 1.49}
"""Weights at which a distance pulls as LogExp does at weight 1: their gradients have one norm over the network's parameters, at
the start of the tuning seed on its first batch. Else the study would compare strengths."""


STUDIES = {
    "digits": Study(
        claim="Digits of 8 x 8 pixels after training on a few resolutions: test accuracy, mean over 2, 3, 4, 5 and 8 pixels",
        metric="resolution/accuracy",
        method="mixed sizes",
        arms={
            "mixed sizes": {},
            "full size only": FULL,
            "4 px": single(4),
            "3 px": single(3),
            "2 px": single(2),
        },
        base=Config.digits(),
    ),
    "distances": Study(
        claim="Digits: which distance, if any, all as strong at the start; rank 1 of probes of 2 pixels in a gallery of one "
        "full-size image per class",
        metric="resolution/rank1@2px",
        method="LogExp",
        arms={
            "LogExp": {},
            "none": {"distance": "none"},
            "L1": {"distance": "l1", "weight": WEIGHTS["l1"]},
            "L2": {"distance": "l2", "weight": WEIGHTS["l2"]},
            "LogExp, p = 2": {"power": 2.0, "weight": WEIGHTS["logexp²"]},
            "LogExp, one logarithm per batch": {"reduction": "batch_log", "weight": WEIGHTS["batch_log"]},
        },
        base=Config.digits(),
    ),
    "rendered": Study(
        claim="Verification of unseen rendered people of 32 x 32 pixels, both images shrunk: mean over 4 to 32 pixels",
        metric="resolution/accuracy",
        method="mixed sizes",
        arms={
            "mixed sizes": {},
            "full size only": FULL,
            "6 px": single(6),
        },
        base=Config(
            data=inputs.RenderedFaces(
                identities=64, per_identity=16, held_out_identities=40, held_out_per_identity=6
            ),
            image_size=32,
            probe_sizes=(4, 6, 10, 16, 32),
            steps=300,
        ),
    ),
}
