import dataclasses

from experiments.methods.coupleface import Config
from small_configs.shared import STUDENT

CONFIG = dataclasses.replace(
    Config.vectors(),
    **STUDENT,
    neighbors=5,
)
