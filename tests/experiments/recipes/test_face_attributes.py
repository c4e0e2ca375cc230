"""The second experiment: what learns from captions, from labels and from nothing reports the same attributes."""

import dataclasses

import pytest

from experiments.methods.intern import Config
from experiments.methods.intern import build as build_method
from experiments.recipes.face_attributes import AttributeSpec, attribute_stages
from experiments.recipes.image_text import TextTowerSpec, UpA
from jaxface import data, models, training
from jaxface.errors import UserError
from jaxface.training.probe import ProbeSpec

UP_A = UpA(
    steps=2, batch_size=16, features=8, text=TextTowerSpec(dim=8, heads=2, length=24, vocabulary=300),
    projected=8, predicted=4, local_level=0,
)  # fmt: skip
CAPTIONS = data.CaptionedCanvas(scenes=60, test_scenes=16, digits=(0, 3), background=0.05)
SPEC = AttributeSpec(share=0.5, steps=2, batch_size=16, probe=ProbeSpec(steps=20, standardize=True))
WHERE = dict(image_size=16, seed=0, data_seed=0)


def backbone():
    return models.create("plain_stages", embedding=None, channels=(4, 8), steps=(2, 2), norm=True)


def test_images_without_attributes_are_refused():
    with pytest.raises(UserError, match="captions: needs images with captions, such as captioned_faces"):
        next(attribute_stages(SPEC, UP_A, backbone(), data.TaskCanvas(), **WHERE))


@pytest.mark.slow
@pytest.mark.parametrize("learn", ["captions", "labels", "nothing"])
def test_all_report_the_same(learn):
    stages = attribute_stages(dataclasses.replace(SPEC, learn=learn), UP_A, backbone(), CAPTIONS, **WHERE)
    metrics = training.run(stages).metrics
    # A run of several stages puts the stage's name before each.
    reported = {name.rpartition("attributes/")[2]: metrics[name] for name in metrics if "attributes/" in name}
    assert reported.keys() == {"digit", "squares", "place", "accuracy"}
    assert 0 <= reported["accuracy"] <= 1
    assert ("up_a/retrieval/image_to_text" in metrics) == (learn == "captions")


def test_the_method_runs_it_in_the_place_of_all_else():
    config = dataclasses.replace(
        Config(), captions=CAPTIONS, attributes=dataclasses.replace(SPEC, learn="labels"), image_size=16
    )
    (stage,) = list(build_method(config))
    assert stage.name == "attributes" and stage.steps == SPEC.steps
