import dataclasses

from experiments.methods.bamsprod import Config

CONFIG = dataclasses.replace(
    Config.heavy(),
    online_steps=20,
    batch_size=32,
)
