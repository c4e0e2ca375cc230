import dataclasses

from experiments.methods.lifelong import Config
from jaxface import data

CONFIG = dataclasses.replace(
    Config(), tasks=data.TaskSpec(count=2), hidden=(8,), image_size=8, memory=20, batch_size=16, steps=2
)
SMALLEST_BATCH = None
REFUSES_PACKS = "a classifier tells no pairs"
