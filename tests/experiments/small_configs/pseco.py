from experiments.methods.pseco import Config
from jaxface import data

CONFIG = Config(
    data=data.ObjectScenes(scenes=40, held_out_scenes=4),
    percent=10.0,
    batch_size=5,
    start_steps=2,
    unlabeled_weight=0.0,
)
SMALLEST_BATCH = None
