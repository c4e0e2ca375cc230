import dataclasses

from experiments.methods.ida import Config
from jaxface import data
from small_configs.shared import PEOPLE

CONFIG = Config(
    data=PEOPLE,
    augment=data.Augment(flip=0.0),
    backbone="mlp_8",
    embedding=8,
    batch_size=16,
    candidates=40,
    neighbors=5,
    gan=dataclasses.replace(Config().gan, steps=2, batch_size=16),
    estimator=dataclasses.replace(Config().estimator, steps=2, batch_size=16),
)
