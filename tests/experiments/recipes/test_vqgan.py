"""The generator's stage: what it learns, what it writes down, what becomes of codes that nothing uses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_configs.ota import CONFIG

from experiments.recipes.recognition import Recipe, load
from experiments.recipes.vqgan import VqganSpec, generator_stage
from jaxface import data, training
from jaxface.errors import UserError

RECIPE = Recipe(data=data.StyledDigits(), augment=data.Augment(flip=0.0), image_size=8)
SPEC = dataclasses.replace(CONFIG.generator, steps=40, adversary_from=0.5, reseed_every=20)
SOURCE = load(RECIPE).train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    stage, generator = generator_stage(RECIPE, SPEC, SOURCE)
    outcome = training.run([stage], workdir=folder, cadence=training.Cadence(log_every=10))
    return folder, stage, generator, outcome


@pytest.mark.slow
def test_it_reconstructs_better_and_the_adversary_begins_when_it_shall(trained):
    folder, _, generator, outcome = trained
    rows = [row for row in training.read_records(folder / "metrics.jsonl") if row["kind"] == "train"]
    assert rows[-1]["generator/reconstruction_loss"] < 0.8 * rows[0]["generator/reconstruction_loss"]
    assert rows[0]["discriminator/loss"] == rows[0]["generator/adversarial_weight"] == 0.0
    assert rows[-1]["discriminator/loss"] > 0 and rows[-1]["generator/adversarial_weight"] > 0
    assert 2 < outcome.metrics["upstream/perplexity"] <= generator.model.codes


@pytest.mark.slow
def test_dead_codes_are_seeded_before_the_steps(trained):
    _, stage, _, outcome = trained
    state = outcome.state
    codebook = np.asarray(state.params["generator"]["quantizer"]["codebook"]).copy()
    codebook[3:] = 1e3
    changed = {**state.params["generator"], "quantizer": {"codebook": jnp.asarray(codebook)}}
    refreshed = stage.refresh(state.replace(params={**state.params, "generator": changed}))
    seeded = np.asarray(refreshed.params["generator"]["quantizer"]["codebook"])
    assert np.abs(seeded).max() < 100 and len(np.unique(seeded, axis=0)) == len(seeded)


@pytest.mark.slow
def test_another_run_takes_it_over_with_its_classes(trained):
    folder, _, generator, outcome = trained
    stage, again = generator_stage(RECIPE, VqganSpec(run=str(folder)), SOURCE)
    assert again.model == generator.model and again.description["classes"] == list("01234")
    state = stage.init(jax.random.key(0), None)
    jax.tree.map(np.testing.assert_array_equal, state.params["generator"], outcome.state.params["generator"])
    data.check_unseen_classes(again.description, ["5"], argument="generator.run")
    with pytest.raises(UserError, match=r"generator\.run: needs a run of other classes .* trained on '4'"):
        data.check_unseen_classes(again.description, ["4", "5"], argument="generator.run")
    color = data.ArraySource(np.zeros((2, 8, 8, 3), np.uint8), np.arange(2), ["x", "y"])
    with pytest.raises(UserError, match=r"images of 3 channels, that of .* has 1"):
        generator_stage(RECIPE, VqganSpec(run=str(folder)), color)


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"generator\.run: needs a run that trained a generator"):
        generator_stage(RECIPE, VqganSpec(run=str(tmp_path)), SOURCE)
    for changes, message in (
        ({"attention": (1,)}, "generator.attention: needs levels from 0 to 0"),
        ({"codes": 1}, "generator.codes"),
        ({"batch_size": 12}, "generator.batch_size: needs a multiple of the 8 devices"),
    ):
        with pytest.raises(UserError, match=message):
            generator_stage(RECIPE, dataclasses.replace(SPEC, **changes), SOURCE)


def test_the_release_for_imagenet():
    """Adam β 0.5 and 0.9, 4.5e-6 for each of 12 images a device; the adversary from step 250,001 on."""
    spec = VqganSpec.imagenet()
    assert spec.batch_size == 12 * jax.device_count() and round(spec.adversary_from * spec.steps) == 250_001
    assert (spec.optimizer.momentum, spec.optimizer.learning_rate) == (0.5, 4.5e-6 * spec.batch_size)
    assert (spec.beta, spec.adversarial, spec.patch_channels, spec.patch_layers) == (0.25, 0.8, 64, 3)
    assert spec.model((256, 256, 3)) == type(spec.model((256, 256, 3)))()
