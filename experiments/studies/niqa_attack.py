"""What is claimed of perceptual attacks in the small, and against what: `python -m experiments.reproduce niqa_attack`.

Twelve images and their twelve counterexamples, which inherit the opinions of the images. All arms of a seed are one run: the same
models, images, attacks and random changes. A random change has the root mean square and the maximum of the counterexample that it
stands beside; of ten the one that moves the score most is what an attack that only tries much would find.
"""

from experiments.methods.niqa_attack import Config
from experiments.study import Study

_OTHER = {"nss": "cnn", "cnn": "nss"}
_STARTS = "starts twice"


def _broken(model: str, fidelity: str) -> Study:
    stage, other = f"{fidelity}_on_{model}/{model}", f"{fidelity}_on_{_OTHER[model]}/{model}"
    arm_metrics = {
        _STARTS: f"{stage}/srcc_starts",
        "random, mean of ten": f"{stage}/srcc_random",
        "random, best of ten": f"{stage}/srcc_random_best",
        "ends of rungs alone": f"{stage}/srcc_ends",
        f"counterexamples of {_OTHER[model]}": f"{other}/srcc",
    }
    return Study(
        claim=f"SRCC of {model} over twelve images and their counterexamples, attacked under {fidelity}; lower is more broken",
        metric=f"{stage}/srcc",
        method="counterexamples",
        arms={"counterexamples": {}, **{arm: {} for arm in arm_metrics}},
        arm_metrics=arm_metrics,
        base=Config(),
        larger_is_better=False,
        baseline=_STARTS,
    )


STUDIES = {
    f"{model}-{fidelity}": _broken(model, fidelity)
    for fidelity in ("ssim", "chebyshev")
    for model in ("nss", "cnn")
}
