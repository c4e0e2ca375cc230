import dataclasses

from experiments.methods.apvit import Config
from jaxface import data

CONFIG = dataclasses.replace(
    Config.clutter(),
    data=data.ClutteredDigits(scenes=48, test_scenes=8),
    dim=8,
    dense_steps=2,
    batch_size=8,
)
SMALLEST_BATCH = 1
REFUSES_PACKS = "a classifier tells no pairs"
