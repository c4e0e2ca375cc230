"""What is claimed of IDA in the small, and against what: `python -m experiments.reproduce ida`."""

import dataclasses

from experiments.methods.ida import Config, EstimatorSpec
from experiments.recipes.gan import GanSpec
from experiments.study import Study
from jaxface import data as inputs

ARMS = {name: {"score": name} for name in ("cosine", "gallery", "generated", "learned", "snorm", "oracle")}

STUDIES = {
    "crowded": Study(
        claim="Verification of synthetic embeddings in crowded groups, by candidates of other people",
        metric="alignment/verification/tar@1e-3",
        method="simulated",
        arms={"simulated": {}, **ARMS},
        base=Config.crowded(),
        conditions={"crowded groups": {}, "one group": {"crowd": inputs.Crowd(groups=1)}},
        shared=2,
    ),
    "crowded-spread": Study(
        claim="How far the false accept rates of crowded groups are apart at one threshold, in powers of ten",
        metric="alignment/verification/spread@1e-3",
        method="simulated",
        arms={"simulated": {}, **ARMS},
        base=Config.crowded(),
        larger_is_better=False,
        shared=2,
    ),
    "candidates": Study(
        claim="What the number of neighbors and the candidates matter, on synthetic embeddings",
        metric="alignment/verification/tar@1e-3",
        method="3000, K 50",
        arms={
            "3000, K 50": {},
            "K 10": {"neighbors": 10},
            "K 200": {"neighbors": 200},
            "cap": {"neighbors": 200, "cap": 0.3},
            "300 candidates": {"candidates": 300},
            "30,000 candidates": {"candidates": 30_000},
            "other groups": {"crowd": inputs.Crowd(candidates_crowding=0.0)},
            "cosine": {"score": "cosine"},
        },
        base=dataclasses.replace(Config.crowded(), gan=GanSpec(steps=0), estimator=EstimatorSpec(steps=0)),
    ),
    "rendered": Study(
        claim="Verification of unseen rendered people of two skin tones with a network trained for it",
        metric="alignment/verification/tar@1e-3",
        method="simulated",
        arms={"simulated": {}, **ARMS},
        base=Config(
            data=inputs.TonedFaces(), image_size=32, score="simulated", steps=600, gan=GanSpec(steps=300)
        ),
        shared=3,
    ),
}
