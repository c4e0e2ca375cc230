import dataclasses

from experiments.methods.cloak import Config
from jaxface import attacks, data
from small_configs.shared import TEACHER

CONFIG = dataclasses.replace(
    Config.procedural(),
    data=data.ProceduralImages(12, 4, held_out_identities=8, held_out_per_identity=6),
    image_size=8,
    backbone="mlp_8",
    embedding=8,
    batch_size=8,
    targets=(TEACHER,),
    cloak=attacks.Cloak(steps=2, accumulate=1),
    people=5,
    photos=3,
)
