"""What is claimed of IDA in the small, and against what: `python -m experiments.reproduce ida`."""

import dataclasses

from experiments.methods.ida import Config, EstimatorSpec
from experiments.recipes.gan import GanSpec
from experiments.study import Study
from jaxface import data as inputs

SCORES = ("gallery", "cosine", "mixed", "gaussian", "generated", "simulated", "learned", "snorm", "oracle")
"""All of them are reported by every run, so that these arms are one run."""
LITERAL = "generated, weight 1"
"""The formula as it is read from the abstract: λ = 1 whatever the candidates are."""
CROWDED = dataclasses.replace(
    Config.crowded(), gan=GanSpec(steps=500, batch_size=128, latent=32, channels=32, penalty=0.1)
)


def _side_by_side(metric: str, **others: dict) -> dict:
    """The arms and what each is measured by, `alignment/<score>/<metric>`; other arms are named `<score>, <why>`."""
    named = {score: f"alignment/{score}/{metric}" for score in SCORES}
    return dict(
        metric=named["gallery"],
        method="gallery",
        arms={**{score: {} for score in SCORES}, **others},
        arm_metrics=named | {arm: named[arm.partition(",")[0]] for arm in others},
    )


STUDIES = {
    "crowded": Study(
        claim="Verification of synthetic embeddings in crowded groups, by candidates of other people",
        base=CROWDED,
        conditions={"crowded groups": {}, "one group": {"crowd": inputs.Crowd(groups=1)}},
        shared=2,
        **_side_by_side("tar@1e-3"),
    ),
    "crowded-spread": Study(
        claim="How far the false accept rates of crowded groups are apart at one threshold, in powers of ten",
        base=CROWDED,
        larger_is_better=False,
        shared=2,
        **_side_by_side("spread@1e-3"),
    ),
    "candidates": Study(
        claim="What the number of neighbors and the candidates matter, on synthetic embeddings",
        metric="alignment/simulated/tar@1e-3",
        method="3000, K 50",
        arms={
            "3000, K 50": {},
            "K 10": {"neighbors": 10},
            "K 200": {"neighbors": 200},
            "cap": {"neighbors": 200, "cap": 0.3},
            "300 candidates": {"candidates": 300},
            "30,000 candidates": {"candidates": 30_000},
            "other groups": {"crowd": inputs.Crowd(candidates_crowding=0.0)},
            "cosine": {},
        },
        arm_metrics={"cosine": "alignment/cosine/tar@1e-3"},
        # At λ = 1, so that candidates are compared and not how much they are trusted.
        base=dataclasses.replace(Config.crowded(), weight=1.0, estimator=EstimatorSpec(steps=0)),
    ),
    "rendered": Study(
        claim="Verification of unseen rendered people of two skin tones with a network trained for it",
        base=Config(
            data=inputs.TonedFaces(
                identities=(60, 30), per_identity=10, held_out_identities=50, held_out_per_identity=6
            ),
            image_size=32,
            batch_size=32,
            steps=400,
            candidates=1000,
            gan=GanSpec(steps=100, channels=8),
        ),
        shared=3,
        **_side_by_side("tar@1e-3", **{LITERAL: {"weight": 1.0}}),
    ),
}
