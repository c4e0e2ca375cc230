from experiments.methods.lrfr import Config

CONFIG = Config.digits()
