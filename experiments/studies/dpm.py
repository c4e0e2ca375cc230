"""What is claimed of DPM in the small, and against what: `python -m experiments.reproduce dpm`.

`quality`: a detector of clean digits meets bad captures. One run of its arms fits every correction on the same draws; the joint
form and its control are runs of their own. `uncertain` and `no-harm`: semantic labels, some drawn anew, beside few or all labels
of live; λ is swept in the baseline, which has no codes. `faces`: both parts on rendered presentations.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.methods.dpm import Config
from experiments.study import Study
from jaxface import data, training

QUALITY: dict[str, dict[str, Any]] = {
    "dpm-dq": {},
    "raw": {},
    "one temperature": {},
    "refitted margin": {},
    "refitted margin in units of 1": {},
    "sampled loss": {},
    "variance in units of 1": {},
    "variance of raw features": {},
    "joint": {"joint": True},
    "bad captures in training": {"captures_in_training": True, "corrections": ()},
}
_MARGINS = {
    "dpm-dq": "quality/{}@scaled",
    "raw": "quality/{}@raw",
    "one temperature": "quality/{}@temperature",
    "refitted margin": "quality/{}@refit",
    "refitted margin in units of 1": "quality/{}@refit_unscaled",
    "sampled loss": "quality/{}@mc",
    "variance in units of 1": "quality/{}@unscaled",
    "variance of raw features": "quality/{}@plain",
    "joint": "{}@scaled",
    "bad captures in training": "{}@raw",
}


def _quality(metric: str, claim: str, *, larger: bool = True) -> Study:
    names = {arm: name.format(metric) for arm, name in _MARGINS.items()}
    return Study(
        claim=f"{claim}, digits of which 40 % are captured badly in the test",
        metric=names["dpm-dq"],
        method="dpm-dq",
        arms=QUALITY,
        arm_metrics=names,
        base=Config.digits(),
        larger_is_better=larger,
        baseline="raw",
    )


_SEMANTIC = dataclasses.replace(
    Config.digits(), projection=16, corrections=(), lam=1.0, lq="gaussian", beta=10.0, steps=900
)


def _digits(noise: float, labeled: int | None) -> data.DigitPresentations:
    return data.DigitPresentations(
        training=600, semantic_noise=noise, labeled=labeled, captures=data.CaptureNoise()
    )


def _plain(lam: float) -> dict[str, Any]:
    return {"lq": "none", "lam": lam}


UNCERTAIN: dict[str, dict[str, Any]] = {
    "dpm-lq": {"beta": 3.0},
    "β 10": {},
    "means alone, β 10": {"lq": "deterministic"},
    **{f"no codes, λ {lam:g}": _plain(lam) for lam in (0.0, 0.1, 1.0)},
}
_uncertain = Study(
    claim="Likelihood of live where 60 of 600 training images say whether they are, all a digit of which a share η is drawn anew",
    metric="nll@raw",
    method="dpm-lq",
    arms=UNCERTAIN,
    base=_SEMANTIC,
    conditions={f"η {noise:g}": {"data": _digits(noise, 60)} for noise in (0.0, 0.25, 0.5)},
    larger_is_better=False,
)
HARM: dict[str, dict[str, Any]] = {
    "dpm-lq": {"lam": 0.1},
    "means alone": {"lam": 0.1, "lq": "deterministic"},
    **{f"no codes, λ {lam:g}": _plain(lam) for lam in (0.0, 0.01, 0.1)},
}
_harm = Study(
    claim="Likelihood of live where all 600 training images say whether they are, and half of the digits are drawn anew",
    metric="nll@raw",
    method="dpm-lq",
    arms=HARM,
    base=dataclasses.replace(_SEMANTIC, data=_digits(0.5, None)),
    larger_is_better=False,
)
FACES: dict[str, dict[str, Any]] = {
    "dpm": {},
    "dpm-lq": {},
    "dpm-lq, one temperature": {},
    "dpm-lq, refitted margin": {},
    "AENet": {"lq": "none"},
    "AENet, dpm-dq": {"lq": "none"},
    "AENet, λ 0": {"lq": "none", "lam": 0.0},
    "means alone": {"lq": "deterministic"},
}
_FACE_MARGINS = {
    "dpm": "scaled",
    "dpm-lq, one temperature": "temperature",
    "dpm-lq, refitted margin": "refit",
    "AENet, dpm-dq": "scaled",
}


def _faces(metric: str, claim: str, *, larger: bool = True) -> Study:
    return Study(
        claim=f"{claim}, rendered presentations, semantic labels drawn anew with η 0.4, 40 % bad captures in the test",
        metric=f"quality/{metric}@scaled",
        method="dpm",
        arms=FACES,
        arm_metrics={arm: f"quality/{metric}@{_FACE_MARGINS.get(arm, 'raw')}" for arm in FACES},
        base=Config(steps=300, quality_steps=300, quality_batch=100, optimizer=training.adam(2e-3)),
        larger_is_better=larger,
        baseline="AENet",
    )


def _of(study: Study, metric: str, claim: str) -> Study:
    arms: Mapping[str, Mapping[str, Any]] = study.arms
    if metric.startswith("semantic"):
        arms = {name: changes for name, changes in arms.items() if changes.get("lam") != 0}
    return dataclasses.replace(study, claim=claim, metric=metric, arms=arms, larger_is_better=True)


STUDIES = {
    "quality": _quality("tpr_at_1e-2", "Live accepted where 1 % of the attacks is"),
    "quality-nll": _quality("nll", "Negative log-likelihood of live", larger=False),
    "quality-ece": _quality("ece", "Expected calibration error, ten bins", larger=False),
    "quality-accuracy": _quality("accuracy", "Accuracy at a probability of 1/2"),
    "uncertain": _uncertain,
    "uncertain-accuracy": _of(_uncertain, "accuracy@raw", "Accuracy of live in the same runs"),
    "uncertain-semantic": _of(
        _uncertain, "semantic/digit", "Accuracy of the digit, right labels, in the same runs"
    ),
    "no-harm": _harm,
    "no-harm-accuracy": _of(_harm, "accuracy@raw", "Accuracy of live in the same runs"),
    "faces": _faces("tpr_at_1e-2", "Live accepted where 1 % of the attacks is"),
    "faces-spoofs": _faces("spoof_tpr_at_1e-2", "Attacks found where 1 % of the live faces is refused"),
    "faces-nll": _faces("nll", "Negative log-likelihood of live", larger=False),
    "faces-acer": _faces("acer", "ACER at the development set's threshold", larger=False),
}
