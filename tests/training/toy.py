"""A small method for the tests of training: a linear classifier with batch statistics on fixed random images."""

import functools

import flax.linen as nn
import jax
import numpy as np
import optax

from jaxface import training
from jaxface.layers.norm import BatchNorm

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (64, 4, 4, 3), np.uint8)
LABELS = RNG.integers(0, 5, 64).astype(np.int32)


class Cycle:
    """Batches in a seeded order that can be put back to any position."""

    def __init__(self, batch_size: int = 16):
        self.batch_size, self.position = batch_size, 0

    def __next__(self):
        rows = np.random.default_rng(self.position).permutation(64)[: self.batch_size]
        self.position += 1
        return {"image": IMAGES[rows], "label": LABELS[rows]}

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(8, name="hidden")(x.reshape(x.shape[0], -1))
        x = BatchNorm(name="norm")(x, train=train)
        return nn.Dense(5, name="prototypes")(nn.relu(x))


def objective(optimizer=None, *, wrap=None, **fields):
    """The network's parameters are the state's, or the part of them called `wrap`."""

    def loss(params, extra, batch, rng):
        params = params if wrap is None else params[wrap]
        logits, extra = Net().apply(
            {"params": params, **extra}, batch["image"], train=True, mutable=["batch_stats"]
        )
        values = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return values.mean(), (extra, {"accuracy": (logits.argmax(-1) == batch["label"]).mean()})

    return training.Objective(loss, optimizer or optax.sgd(0.1, momentum=0.9), **fields)


GOAL = objective()
STEP = training.gradient_step(GOAL)


@functools.cache
def parallel(devices=8, mode="jit"):
    """For all runs on so many devices: it compiles `STEP` once."""
    return training.make_parallel(mode, devices=jax.devices()[:devices])


def run(stages, **options):
    return training.run(stages, **{"parallel": parallel(), **options})


def stage(name="toy", steps=6, *, batch_size=16, step=None, batches=None, **fields):
    def init(rng, previous):
        if previous is not None:
            return training.create_state(rng, previous.params, GOAL, extra=previous.extra)
        variables = Net().init(jax.random.key(1), np.zeros((1, 4, 4, 3), np.float32), train=False)
        params = variables.pop("params")
        return training.create_state(rng, params, GOAL, extra=variables)

    return training.Stage(
        name=name,
        init=init,
        step=step or STEP,
        batches=batches or (lambda state: Cycle(batch_size)),
        steps=steps,
        evaluate=lambda state: {"norm": float(optax.tree.norm(state.params))},
        **fields,
    )
