from experiments.methods.qvit import Config

CONFIG = Config(
    dim=4,
    depth=1,
    patch=4,
    calibration=8,
    batch_size=8,
)
SMALLEST_BATCH = 1
REFUSES_PACKS = "a classifier tells no pairs"
