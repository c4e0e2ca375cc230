"""What is claimed of SFace in the small, and against what: `python -m experiments.reproduce sface`."""

from experiments.methods.sface import Config
from experiments.study import Study
from jaxface import data as inputs

NOISE = {f"{percent} % noise": {"label_noise": percent / 100} for percent in (0, 20, 40)}
BASELINES = {
    "softmax, s 16": {"loss": "softmax", "scale": 16.0},
    "softmax, s 64": {"loss": "softmax", "scale": 64.0},
    "arcface, s 16, m 0.3": {"loss": "arcface", "scale": 16.0, "margin": 0.3},
    "arcface, s 64, m 0.5": {"loss": "arcface"},
}


def _rendered(noise: str) -> Study:
    """ArcFace at its published scale and at the best one for so short a run, at one level of noise."""
    return Study(
        claim=f"Verification of unseen rendered people after training on {noise.partition(' noise')[0]} wrong labels",
        metric="verification/accuracy",
        method="sface",
        arms={"sface": {}} | {arm: BASELINES[arm] for arm in BASELINES if arm.startswith("arcface")},
        base=Config(
            data=inputs.RenderedFaces(identities=128, per_identity=64),
            sharpness=10.0,
            inter_angle=1.2,
            steps=600,
        ),
        conditions={noise: NOISE[noise]},
    )


STUDIES = {
    "rendered": _rendered("40 % noise"),
    "rendered-clean": _rendered("0 % noise"),
    "digits": Study(
        claim="Clean test accuracy on digits by the nearest prototype after training on wrong labels",
        metric="classification/accuracy",
        method="sface",
        arms={"sface": {}, **BASELINES},
        base=Config.digits(),
        conditions=NOISE,
    ),
}
