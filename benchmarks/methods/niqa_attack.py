"""An attack trains nothing: a few steps of a whole ladder are timed, beside the same ladder of balls, which no distance holds."""

import dataclasses

import jax
import numpy as np

from benchmarks.methods.case import Case, Work
from experiments.methods import niqa_attack
from experiments.recipes import quality
from jaxface import attacks, data, models, training

STEPS = 8


def ladder(config: niqa_attack.Config, parallel: training.JitParallel) -> Work:
    """`STEPS` steps with every rung in both directions, on a batch of starts."""
    split = data.load(config.data, image_size=config.image_size)
    starts = np.stack([split.held_out[i]["image"] for i in range(config.starts)])
    model = models.create(quality.NETWORKS["cnn"][0], embedding=1)
    (fidelity,) = config.fidelities
    attack = dataclasses.replace(niqa_attack.attack_of(config, fidelity), steps=STEPS, keep_every=0)
    rungs = np.geomspace(1e-4, 1e-2, config.rungs, dtype=np.float32)

    def fresh():
        variables = model.init(jax.random.key(0), np.zeros((1, *starts.shape[1:]), np.float32))
        return {"variables": variables, "map": np.float32([0, 1])}

    def step(state, batch):
        rate = jax.tree_util.Partial(quality.NetworkRating(model, detail=True), state)
        images = (batch["image"] + 1) / 2
        told = attacks.perceptual_attack(
            rate, niqa_attack.distance_of(config, fidelity), images, jax.random.key(0), rungs, attack
        )
        return state, {"score": told.scores.mean()}

    return Work(step, parallel.create(fresh, rules={}), {"image": starts})


BASE = niqa_attack.Config(fidelities=("ssim",), data=data.DistortedLeaves(images=8, held_out_images=16))
CASES = (Case("niqa_attack", BASE, "balls alone, as many steps", ladder, {"fidelities": ("chebyshev",)}),)
