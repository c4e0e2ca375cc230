import dataclasses

from experiments.methods.cckd import Config
from small_configs.shared import STUDENT

CONFIG = dataclasses.replace(
    Config.procedural(),
    **STUDENT,
    sampler="class",
)
