import dataclasses

from experiments.methods.nclpp import Config

CONFIG = dataclasses.replace(Config(), backbone="mlp_8", copies=2, batch_size=8, steps=2)
SMALLEST_BATCH = 1
REFUSES_PACKS = "a classifier tells no pairs"
