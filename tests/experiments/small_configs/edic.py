import dataclasses

from experiments.methods.edic import LAPTOP, Config
from jaxface import data

CONFIG = Config(
    data=data.DeadLeaves(images=8, held_out_images=4, leaves=6),
    image_size=8,
    codec=dataclasses.replace(LAPTOP, channels=4, latents=4, enhance=False),
    batch_size=8,
    ladder=(256.0,),
    steps=2,
    ladder_steps=2,
    files=0,
)
SMALLEST_BATCH = 1
