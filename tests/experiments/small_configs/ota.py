import dataclasses

from experiments.methods.ota import Config

_DEFAULT = Config()
CONFIG = dataclasses.replace(
    _DEFAULT,
    foundation=dataclasses.replace(_DEFAULT.foundation, backbone="mlp_8", steps=2),
    generator=dataclasses.replace(
        _DEFAULT.generator,
        codes=8,
        features=2,
        latent=2,
        channels=2,
        multipliers=(1,),
        groups=1,
        patch_channels=2,
        adversary_from=0.5,
        batch_size=8,
        steps=2,
        reseed_images=16,
    ),
    task_steps=4,
    generated=16,
    chunk=5,
    digg=dataclasses.replace(_DEFAULT.digg, steps=2),
    backbone="mlp_4",
    batch_size=16,
    steps=2,
)
SMALLEST_BATCH = None
REFUSES_PACKS = "a classifier tells no pairs"
