from experiments.methods.mda import Config

CONFIG = Config(backbone="mlp_8", batch_size=8)
SMALLEST_BATCH = 1
REFUSES_PACKS = "a classifier tells no pairs"
