from experiments.methods.cassod import Config
from jaxface import data

CONFIG = Config(
    data=data.Ellipses(images=20, held_out_images=4),
    width=2,
    batch_size=8,
)
SMALLEST_BATCH = 1
