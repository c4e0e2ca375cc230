from experiments.methods.sparsevit import Config
from jaxface import data

CONFIG = Config(
    data=data.ClutteredDigits(scenes=32, test_scenes=8),
    dim=8,
    depth=3,
    heads=2,
    batch_size=8,
    steps=2,
    prune_steps=2,
)
SMALLEST_BATCH = 1
REFUSES_PACKS = "a classifier tells no pairs"
