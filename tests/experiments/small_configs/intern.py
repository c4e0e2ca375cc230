import dataclasses

from experiments.methods.intern import Config
from experiments.recipes.experts import AdaptationSpec, GeneralistSpec
from experiments.recipes.general_vision import SourceSpec
from experiments.recipes.image_text import TextTowerSpec, UpA
from experiments.recipes.vqgan import VqganSpec
from jaxface import data

_CANVAS = data.TaskCanvas(scenes=40, test_scenes=12, digits=(0, 3))
CONFIG = Config(
    data=data.TaskCanvas(scenes=40, test_scenes=12, digits=(5, 7)),
    sources=(
        SourceSpec(name="digits", data=_CANVAS),
        SourceSpec(name="again", data=dataclasses.replace(_CANVAS, background=0.1)),
        SourceSpec(name="centers", data=_CANVAS, task="cells"),
    ),
    captions=data.CaptionedCanvas(scenes=20, test_scenes=6, digits=(0, 3)),
    up_a=UpA(
        steps=1,
        batch_size=8,
        features=8,
        text=TextTowerSpec(dim=8, depth=1, heads=2, length=12, vocabulary=280),
        projected=8,
        predicted=4,
        local_level=0,
    ),
    experts=("c", "d"),
    backbone="plain_stages_small",
    generalist=GeneralistSpec(mains=("c",), steps=3, bridges_first=0.4),
    squeeze_steps=1,
    adaptation=AdaptationSpec(
        fractions=(0.5,),
        modes=("direct",),
        steps=2,
        batch_size=8,
        generator=VqganSpec(channels=8, latent=8, groups=8, perceptual=0.0, adversarial=0.0, steps=1),
    ),
    tasks=("digits",),
    image_size=16,
    batch_size=8,
    steps=2,
)
SMALLEST_BATCH = None
