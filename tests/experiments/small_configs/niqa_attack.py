from experiments.methods.niqa_attack import Config
from jaxface import attacks, data

CONFIG = Config(
    data=data.DistortedLeaves(images=16, held_out_images=8, leaves=6),
    image_size=16,
    models=("cnn",),
    fidelities=("chebyshev",),
    attack=attacks.PerceptualAttack(steps=2, keep_every=0),
    radii=(4.0,),
    starts=2,
    start_scores=(0.0, 10.0),
    batch_size=8,
    steps=2,
)
SMALLEST_BATCH = 1
