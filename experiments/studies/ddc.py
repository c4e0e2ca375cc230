"""What is claimed of DDC in the small, and against what: `python -m experiments.reproduce ddc`."""

import dataclasses

from experiments.methods.ddc import Config
from experiments.study import Study

_PLAIN = {"dilations": (1, 1, 1)}
_ARMS = {"ddc": {}, "3x3": _PLAIN, "5x5": {**_PLAIN, "depthwise_kernel": 5}}

_classes = Study(
    claim="Test accuracy on digits on a cluttered canvas after 900 steps, by the size and the dilations of the depthwise filters",
    metric="classification/accuracy",
    method="ddc",
    arms={
        **_ARMS,
        "3x3, wider": {**_PLAIN, "channels": 29},  # 4,031 parameters, where 5x5 filters make 4,128 of 2,976
        "3x3, dilation 2": {"dilations": (2, 2, 2)},
    },
    base=dataclasses.replace(Config(), batch_size=32),
    baseline="3x3",
)

STUDIES = {
    "classes": _classes,
    "classes-500": dataclasses.replace(
        _classes,
        claim="The same after 500 steps",
        arms=_ARMS,
        base=dataclasses.replace(_classes.base, steps=500),
    ),
}
