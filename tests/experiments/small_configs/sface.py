import dataclasses

from experiments.methods.sface import Config

CONFIG = dataclasses.replace(
    Config.digits(),
    label_noise=0.2,
)
