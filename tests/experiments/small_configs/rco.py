from experiments.methods.rco import Config
from jaxface import data
from small_configs.shared import STUDENT

CONFIG = Config(
    **STUDENT,
    augment=data.Augment(flip=0.0),
    recorded=2,
    anchors=2,
    validation=0.2,
)
