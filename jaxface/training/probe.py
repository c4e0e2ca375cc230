"""A linear classifier on features that were computed once: what a frozen backbone tells of classes.

Methods: intern
"""

import dataclasses
import functools
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxface.checks import (
    AtLeast,
    Increasing,
    NonNegative,
    OpenFraction,
    Positive,
    ProperFraction,
    check_fields,
)
from jaxface.data.sources.near_duplicates import check_apart
from jaxface.data.sources.source import Source
from jaxface.errors import UserError
from jaxface.training.evaluations.task_answers import frozen_features
from jaxface.training.map_source import map_source


@dataclasses.dataclass(frozen=True)
class ProbeSpec:
    """How a linear classifier is trained; the defaults are those of GV-B."""

    learning_rate: Annotated[float, Positive] = 0.01
    """Peak rate of SGD."""
    momentum: Annotated[float, ProperFraction] = 0.9
    """Of SGD."""
    weight_decay: Annotated[float, NonNegative] = 1e-3
    """Of the weights, not of the bias."""
    batch_size: Annotated[int, AtLeast(1)] = 64
    """Examples of a step; all there are where there are fewer."""
    steps: Annotated[int, AtLeast(1)] = 10_000
    """Steps."""
    decay_at: Annotated[tuple[float, ...], OpenFraction, Increasing()] = (0.3, 0.6, 0.9)
    """Fractions of the steps at which the rate falls to a tenth."""
    standardize: bool = False
    """Features less their mean, over their standard deviation, of the training part (design)."""

    @classmethod
    def small(cls) -> "ProbeSpec":
        """For some hundred examples: standardized features and 400 steps."""
        return cls(learning_rate=0.1, steps=400, standardize=True)


class LinearProbe(NamedTuple):
    """A trained classifier.

    Attributes:
      weights: [D, C]. bias: [C]. mean, deviation: [D], of the features.
    """

    weights: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        """[N] int64 classes of features [N, D]."""
        scores = (np.asarray(features) - self.mean) / self.deviation @ self.weights + self.bias
        return scores.argmax(axis=1)


def check_evaluation_mode(train: bool) -> None:
    """Raises UserError where the backbone of a probe would be in training mode, whose statistics are those of a batch."""
    if train:
        raise UserError("train: needs False, a probe reads a frozen backbone in evaluation mode")


def pooled_features(
    backbone: nn.Module, variables: Any, source: Source, *, batch_size: int = 64, train: bool = False
) -> np.ndarray:
    """[N, D] float32, what a frozen backbone pools of every record, by one forward pass.

    Args:
      backbone: a `StagedBackbone`, or a module with `features`.
      variables: of it.
      source: the records. batch_size: images at a time.
      train: of the backbone; needs to be False.

    Raises:
      UserError: `train`.
    """
    check_evaluation_mode(train)

    def pooled(variables, batch):
        return frozen_features(variables, batch["image"], backbone=backbone)["pooled"]

    return map_source(pooled, source, variables, batch_size=batch_size)


@functools.partial(jax.jit, static_argnames=("spec", "num_classes"))
def _fit(features, labels, rows, spec: ProbeSpec, num_classes: int):
    boundaries = {int(at * spec.steps): 0.1 for at in spec.decay_at}
    optimizer = optax.chain(
        optax.add_decayed_weights(spec.weight_decay, {"weights": True, "bias": False}),
        optax.sgd(optax.piecewise_constant_schedule(spec.learning_rate, boundaries), spec.momentum),
    )
    params = {"weights": jnp.zeros((features.shape[1], num_classes)), "bias": jnp.zeros(num_classes)}

    def step(carry, batch):
        params, state = carry

        def loss(params):
            logits = features[batch] @ params["weights"] + params["bias"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), rows)
    return params


def linear_probe(
    features: np.ndarray,
    labels: np.ndarray,
    spec: ProbeSpec = ProbeSpec(),
    *,
    num_classes: int,
    seed: int = 0,
) -> LinearProbe:
    """Trains a softmax classifier on features by SGD in one compiled loop.

    Args:
      features: [N, D] float.
      labels: [N] integers in [0, num_classes).
      spec: how. seed: of the order of the examples.

    Returns:
      The classifier.

    Raises:
      UserError: no example, or other numbers of features and labels.

    Example:
      >>> x = np.array([[2.0, 0.0], [0.0, 2.0]], np.float32)
      >>> linear_probe(x, np.array([0, 1]), ProbeSpec(steps=10), num_classes=2).predict(x).tolist()
      [0, 1]
    """
    check_fields(spec, "probe.")
    features, labels = np.asarray(features, np.float32), np.asarray(labels)
    if not len(features) or len(features) != len(labels):
        raise UserError(f"features: needs one row for each of {len(labels)} labels, got {len(features)}")
    mean, deviation = np.zeros(features.shape[1], np.float32), np.ones(features.shape[1], np.float32)
    if spec.standardize:
        mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-6
    rng, size = np.random.default_rng([seed, 18]), min(spec.batch_size, len(features))
    epochs = -(-spec.steps * size // len(features))
    order = np.concatenate([rng.permutation(len(features)) for _ in range(epochs)])
    rows = order[: spec.steps * size].reshape(spec.steps, size)
    params = _fit((features - mean) / deviation, labels, rows, spec, num_classes)
    return LinearProbe(np.asarray(params["weights"]), np.asarray(params["bias"]), mean, deviation)


def check_different_records(train: Source, test: Source) -> None:
    """Raises UserError where both parts name their records, and one of them is in both."""
    names = [getattr(source, "record_names", None) for source in (train, test)]
    if all(part is not None for part in names):
        check_apart(*names)
