"""PseCo: a detector that learns from pseudo boxes by what its teacher predicts for proposals (arXiv:2203.16317).

python -m experiments.launch pseco --workdir runs/pseco
python -m experiments.launch pseco --preset assignment --workdir runs/assignment   # what wrong pseudo boxes do to assignments
"""

import dataclasses
from typing import Annotated, Literal

from experiments.recipes import detection
from jaxface import data as inputs
from jaxface import training
from jaxface.checks import AtLeast, NonNegative
from jaxface.models.detection import RetinaNet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(detection.DetectorRecipe):
    """A student that learns from few labels and from its own moving average."""

    data: inputs.DataSpec = inputs.ObjectScenes(scenes=1560, held_out_scenes=300)
    """Images with objects to learn from; others are kept to evaluate on."""
    task: Literal["training", "assignment"] = "training"
    """Semi-supervised training, or the measurement of assignments alone, on dense detectors."""
    teacher_steps: Annotated[int, AtLeast(0)] = 900
    """assignment: training steps of the detector that finds the pseudo boxes."""
    student_steps: Annotated[int, AtLeast(0)] = 300
    """assignment: of the one that votes."""
    jitter: Annotated[float, NonNegative] = 0.0
    """assignment: standard deviation of the moves of pseudo boxes, in widths and heights."""

    @classmethod
    def assignment(cls) -> "Config":
        """What becomes of pseudo boxes that are wrong, without any training on them."""
        return cls(task="assignment")


def assignment_stages(config: Config, split: inputs.Split) -> list[training.Stage]:
    """A dense detector, a smaller one, and what they make of the first one's detections when these are moved."""
    teacher, student = RetinaNet.small(widths=(16, 32, 32)), RetinaNet.small(widths=(4, 8, 8))
    first = detection.detection_stage("teacher", config, split, teacher, steps=config.teacher_steps)
    second = detection.detection_stage("student", config, split, student, steps=config.student_steps)

    def init(rng, previous):
        state = second.init(rng, None)
        guide = {"params": previous.averaged_params["detector"], **training.statistics(previous.extra)}
        return state.replace(extra={**state.extra, "guide": guide})

    noise = training.AssignmentNoise(teacher, student, split.held_out, jitter=config.jitter, seed=config.seed)
    return [
        first,
        dataclasses.replace(second, init=init, evaluate=training.Evaluations(second.evaluate, noise)),
    ]


def build(config: Config) -> list[training.Stage]:
    """The stages of the task."""
    split = detection.load(config)
    return assignment_stages(config, split)
