import dataclasses

from experiments.methods.gabn import Config

CONFIG = dataclasses.replace(
    Config.digits(),
    batch_size=32,
)
