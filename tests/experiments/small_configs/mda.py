from experiments.methods.mda import Config

CONFIG = Config(backbone="mlp_8", batch_size=8)
