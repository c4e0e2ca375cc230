from experiments.methods.fmvit import Config
from jaxface import data

CONFIG = Config(
    data=data.Presentations(identities=8, per_identity=4, development_identities=8, held_out_identities=8),
    dim=16,
    heads=2,
    blocks=("self", "cross"),
    batch_size=8,
)
SMALLEST_BATCH = 1
