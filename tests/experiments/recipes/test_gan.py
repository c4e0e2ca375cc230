import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.recipes.gan import GanSpec, gan_stage, generated_faces, trained_generator
from experiments.recipes.recognition import Recipe
from jaxface import data
from jaxface.checks import check_fields
from jaxface.errors import UserError
from jaxface.models.generative.gan import Discriminator, Generator

SPEC = GanSpec(steps=2, batch_size=16, latent=4, channels=2)
SHAPE = (1, 8, 1)


def test_one_step_of_both_networks():
    people = data.crowded_embeddings(12, 4, seed=0, size=8)
    stage = gan_stage(
        Recipe(),
        SPEC,
        data.VectorSource(*people),
        augment=data.Augment(flip=0.0),
        carry=lambda state: {"x": state},
    )
    assert (stage.name, stage.steps) == ("gan", 2)
    state = jax.jit(stage.init)(jax.random.key(0), jnp.ones(3))
    batch = next(stage.batches(state))
    assert batch["image"].shape == (16, *SHAPE)
    after, report = jax.jit(stage.step)(state, batch)
    assert {"discriminator/loss", "generator/loss", "discriminator/accuracy"} <= set(report)
    np.testing.assert_array_equal(after.extra["x"], np.ones(3))
    for part in ("generator", "discriminator"):
        moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), after.params[part], state.params[part])
        assert min(jax.tree.leaves(moved)) > 0
    assert after.ema is not None
    # The discriminator goes first: its loss is that of the first parameters and of the first latents.
    rng = jax.random.fold_in(jax.random.fold_in(state.rng, 0), 0)
    generator, discriminator = Generator(SHAPE, 2), Discriminator(SHAPE, 2)
    fake = generator.apply({"params": state.params["generator"]}, jax.random.normal(rng, (16, 4)))

    def logits(x):
        return discriminator.apply({"params": state.params["discriminator"]}, x)

    gradient = jax.grad(lambda x: logits(x).sum())(jnp.asarray(batch["image"]))
    expected = np.logaddexp(0, -logits(batch["image"])).mean() + np.logaddexp(0, logits(fake)).mean()
    expected += SPEC.penalty / 2 * np.square(gradient).sum((1, 2, 3)).mean()
    np.testing.assert_allclose(report["discriminator/loss"], expected, rtol=1e-4)


def test_faces_are_the_same_however_many_are_made():
    params = Generator(SHAPE, 2).init(jax.random.key(1), jnp.zeros((1, 4)))["params"]
    generate = trained_generator(SPEC, SHAPE, params)

    def faces(count):
        options = dict(latent=4, image_shape=SHAPE, seed=3, block=16)
        return list(generated_faces(generate, count, **options))

    blocks, fewer = faces(40), faces(20)
    assert [len(block) for block in blocks] == [16, 16, 8]
    np.testing.assert_array_equal(np.concatenate(fewer), np.concatenate(blocks)[:20])
    assert len(np.unique(np.concatenate(blocks).reshape(40, -1), axis=0)) == 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(steps=-1), "gan.steps: needs an integer from 0, got -1"),
        (dict(latent=0), "gan.latent: needs an integer from 1, got 0"),
        (dict(batch_size=12), "gan.batch_size: needs a multiple of the 8 devices, got 12"),
        (dict(penalty=-1.0), "gan.penalty: needs a finite number from 0, got -1"),
        (dict(penalty=float("nan")), "gan.penalty: needs a finite number from 0, got nan"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        spec = dataclasses.replace(SPEC, **changes)
        check_fields(spec, "gan.")
        spec.check()
    dataclasses.replace(SPEC, steps=0, batch_size=12).check()


def test_a_generator_of_other_faces_is_refused():
    with pytest.raises(UserError, match=r"^generator: needs faces of shape \(1, 8, 1\), got \(1, 9, 1\)"):
        next(generated_faces(lambda z: jnp.zeros((len(z), 1, 9, 1)), 3, latent=4, image_shape=SHAPE, seed=0))
