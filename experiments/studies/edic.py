"""What is claimed of EDIC in the small, and against what: `python -m experiments.reproduce edic`.

Codecs of two stages on dead leaves, by L = λ MSE + bpp under rounding, every arm from one start and for as many steps. The
enhancer's control is a decoder as costly as decoder and enhancer together. Clips: three frames, the first as a picture by one
codec in all arms, the loss that of the other two.
"""

import dataclasses

from experiments.methods.edic import LAPTOP, SMALL_VIDEO, Config
from experiments.recipes.video import PredictionSpec
from experiments.study import Study
from jaxface.data import MovingLeaves

_plain = dataclasses.replace(LAPTOP, attention=None, enhance=False)


def _with(**changes):
    return {"codec": dataclasses.replace(_plain, **changes)}


_ARMS = {
    "mixture + enhancement": _with(enhance=True),
    "mixture + as many MACs": {**_with(enhance=True), "equal_macs": True},
    "mixture": _with(),
    "mixture, probabilities": {**_with(), "log_space": False},
    "mixture + attention, gain 2": _with(attention=2.0),
    "mixture + attention, gain 1": _with(attention=1.0),
    "mean-scale": _with(entropy="mean_scale"),
    "scale": _with(entropy="scale"),
    "auto-regressive": _with(entropy="autoregressive"),
}

_leaves = Study(
    claim="λ MSE + bpp of dead leaves at λ = 512",
    metric="codec/loss",
    method="mixture + enhancement",
    arms=_ARMS,
    base=dataclasses.replace(Config(), steps=400, files=0),
    larger_is_better=False,
    baseline="mixture",
)


def _same_runs(claim: str, metric: str, larger: bool) -> Study:
    return dataclasses.replace(_leaves, claim=claim, metric=metric, larger_is_better=larger)


_base = dataclasses.replace(
    Config.video(), data=MovingLeaves(clips=200, held_out_clips=40), steps=300, prediction=PredictionSpec()
)
_dvc = dataclasses.replace(
    SMALL_VIDEO, residual=dataclasses.replace(SMALL_VIDEO.residual, entropy="laplace"), enhance=False
)


def _predicted(network):
    return {"prediction": PredictionSpec(network=network, steps=300)}


_clips = Study(
    claim="λ MSE + bpp of predicted frames of moving leaves at λ = 512",
    metric="video_512/video/loss",
    method="DVC with EDIC",
    arms={
        "DVC with EDIC": _predicted(SMALL_VIDEO),
        "DVC": _predicted(_dvc),
        "the frame before": _predicted(dataclasses.replace(_dvc, prediction="previous")),
        "as pictures": _predicted(dataclasses.replace(_dvc, prediction="previous")),
    },
    arm_metrics={"as pictures": "video_512/video/intra_loss"},
    base=_base,
    larger_is_better=False,
    shared=1,
)

STUDIES = {
    "leaves": _leaves,
    "leaves-bpp": _same_runs("The same runs: bits per pixel", "codec/bpp", False),
    "leaves-psnr": _same_runs("The same runs: PSNR, dB", "codec/psnr", True),
    "clips": _clips,
}
