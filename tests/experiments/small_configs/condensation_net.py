from experiments.methods.condensation_net import Config
from jaxface import data

CONFIG = Config(
    data=data.DigitCanvas(copies=1),
    channels=2,
    batch_size=8,
)
SMALLEST_BATCH = 1
