from experiments.methods.dpm import Config
from jaxface import data

CONFIG = Config(
    data=data.DigitPresentations(training=60, development=40),
    augment=data.Augment(flip=0.0),
    image_size=8,
    backbone="mlp_8",
    dim=4,
    batch_size=8,
    steps=2,
    quality_steps=2,
    quality_batch=8,
    hidden=4,
)
SMALLEST_BATCH = 1
