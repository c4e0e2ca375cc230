"""Weights of examples from what a network says of them, by a rule of few numbers (LAW, arXiv:1905.11058).

A policy gives the rule's numbers, an action, for a stage of the training; the reward compares the network that is trained so
and a twin without weights. Equations are those of the authors' code.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxface.checks import AtLeast, Fraction, NonNegative, Positive, check_finite, check_number
from jaxface.errors import UserError

EntropyScale = Literal["loss", "entropy"]
"""What the entropies are divided by: the standard deviation of the losses, as in the authors' code, or their own."""
EPSILON = 1e-5  # beside a standard deviation


def num_features(use_label: bool) -> int:
    """F, features of an example: its loss, the entropy of its prediction, and its class where that counts."""
    return 3 if use_label else 2


def action_size(features: int, num_nodes: int = 1) -> int:
    """Numbers of an action: F + 1, or F k + k + 2 for a rule with k > 1 hidden nodes.

    Args:
      features: F, >= 1.
      num_nodes: k, >= 1.

    Example:
      >>> action_size(2), action_size(2, num_nodes=4)
      (3, 14)
    """
    check_number("features", features, AtLeast(1))
    check_number("num_nodes", num_nodes, AtLeast(1))
    return features + 1 if num_nodes == 1 else features * num_nodes + num_nodes + 2


def sample_features(
    logits: jax.Array,
    losses: jax.Array,
    labels: jax.Array,
    *,
    use_label: bool = False,
    entropy_scale: EntropyScale = "loss",
) -> jax.Array:
    """What a rule sees of the examples of a batch; no gradient passes.

        φ₁ᵢ = (ℓᵢ - mean ℓ) / (std ℓ + ε),   φ₂ᵢ = (Hᵢ - mean H) / (std ℓ + ε),   φ₃ᵢ = yᵢ

    H is the entropy of the softmax, std has n - 1 in the denominator, ε = 1e-5. With `entropy_scale="entropy"` φ₂ is divided by
    std H + ε instead. φ₃ is the index of the class, which means something where classes are ordered by their frequency.

    Args:
      logits: [B, C] float, B >= 2.
      losses: [B] float, cross-entropies.
      labels: [B] integers in [0, C).
      use_label: whether there is φ₃.
      entropy_scale: see above.

    Returns:
      [B, F] float32, F = 2, or 3 with the label.

    Raises:
      AssertionError: shapes that disagree.
      UserError: fewer than two examples, or losses known not to be finite.
      ValueError: another `entropy_scale`.

    Example:
      >>> losses = jnp.array([0.1, 0.5, 2.3, 4.0])
      >>> features = sample_features(jnp.zeros((4, 3)), losses, jnp.zeros(4, int))
      >>> print(features[:, 0].round(4))
      [-0.9062 -0.6831  0.3206  1.2686]
    """
    chex.assert_rank([logits, losses, labels], [2, 1, 1])
    chex.assert_equal_shape_prefix([logits, losses, labels], 1)
    if entropy_scale not in EntropyScale.__args__:
        raise ValueError(
            f"entropy_scale: needs one of {', '.join(EntropyScale.__args__)}, got {entropy_scale!r}"
        )
    if len(losses) < 2:
        raise UserError(f"losses: a standard deviation needs at least 2 examples, got {len(losses)}")
    check_finite("losses", losses)
    logits, losses = jax.lax.stop_gradient((logits.astype(jnp.float32), losses.astype(jnp.float32)))
    log_p = jax.nn.log_softmax(logits)
    entropies = -jnp.sum(jnp.exp(log_p) * jnp.where(jnp.isfinite(log_p), log_p, 0.0), axis=1)
    spread = jnp.std(losses, ddof=1) + EPSILON
    entropy_spread = spread if entropy_scale == "loss" else jnp.std(entropies, ddof=1) + EPSILON
    columns = [(losses - losses.mean()) / spread, (entropies - entropies.mean()) / entropy_spread]
    if use_label:
        columns.append(labels.astype(jnp.float32))
    return jnp.stack(columns, axis=1)


def weights_from_action(action: jax.Array, features: jax.Array, num_nodes: int = 1) -> jax.Array:
    """Weights that an action gives to examples.

        wᵢ = 1 + tanh(φᵢ · u + b),   a = (u, b)

    With k > 1 nodes the score is tanh(φᵢ W₀ + b₀) · w₁ + b₁ instead, a = (W₀ row by row, b₀, w₁, b₁), b₀ a scalar.

    Args:
      action: [A] float, A = `action_size(F, num_nodes)`.
      features: [B, F] float.
      num_nodes: k.

    Returns:
      [B] float32 in [0, 2], without a gradient.

    Raises:
      AssertionError: ranks disagree.
      UserError: an action of another length.

    Example:
      >>> features = jnp.array([[-0.906, -0.157], [1.269, 0.053]])
      >>> [round(w, 2) for w in weights_from_action(jnp.array([-0.8, 0.5, 0.2]), features).tolist()]
      [1.69, 0.34]
    """
    chex.assert_rank([action, features], [1, 2])
    size, count = action_size(features.shape[1], num_nodes), features.shape[1]
    if len(action) != size:
        raise UserError(
            f"action: {count} features and {num_nodes} nodes need {size} numbers, got {len(action)}"
        )
    action, features = jax.lax.stop_gradient((action.astype(jnp.float32), features.astype(jnp.float32)))
    if num_nodes == 1:
        scores = features @ action[:-1] + action[-1]
    else:
        first, bias, second, last = jnp.split(action, [count * num_nodes, count * num_nodes + 1, size - 1])
        scores = jnp.tanh(features @ first.reshape(count, num_nodes) + bias) @ second + last
    return 1.0 + jnp.tanh(scores)


def weighted_mean(
    losses: jax.Array, weights: jax.Array, eps: float = 1e-6, *, axis_name: str | None = None
) -> jax.Array:
    """The loss of a weighted batch; constant weights give the mean.

        L = Σᵢ wᵢ ℓᵢ / max(Σᵢ wᵢ, ε),   ∂L/∂ℓᵢ = wᵢ / Σ w

    The sum of the weights does not change the length of a step, so that a policy cannot choose the learning rate.

    Args:
      losses: [B] float.
      weights: [B] float, >= 0; no gradient passes.
      eps: ε > 0.
      axis_name: mapped axis over which the batch is spread; the mean of the results over it is then L.

    Returns:
      float32 scalar.

    Raises:
      AssertionError: shapes that disagree.
      UserError: ε that is not positive.

    Example:
      >>> float(weighted_mean(jnp.array([1.0, 3.0]), jnp.array([1.5, 0.5])))
      1.5
    """
    chex.assert_equal_shape([losses, weights])
    check_number("eps", eps, Positive)
    weights = jax.lax.stop_gradient(weights.astype(jnp.float32))
    total = jnp.sum(weights)
    if axis_name is not None:
        total = jax.lax.pmean(total, axis_name)
    return jnp.sum(weights * losses.astype(jnp.float32)) / jnp.maximum(total, eps)


def stage_reward(
    target: jax.Array,
    reference: jax.Array,
    epoch: jax.Array,
    epochs: float,
    kappa: float = 5.0,
    scale: float = 2.0,
) -> jax.Array:
    """What the end of a stage is worth: how much better the weighted network is than its twin, late stages counting most.

        r = (a_target - a_reference) / 10 · exp(κ e / E) / exp(κ) · ρ

    Args:
      target, reference: accuracies on a clean validation split, percent.
      epoch: e, whole epochs since the beginning of the training.
      epochs: E of the training, > 0.
      kappa: κ.
      scale: ρ.

    Returns:
      float32, of the shape of the accuracies.

    Raises:
      UserError: no epochs.

    Example:
      >>> [round(float(stage_reward(62.0, 60.0, epoch, 60)), 4) for epoch in (0, 30, 59)]
      [0.0027, 0.0328, 0.368]
    """
    check_number("epochs", epochs, Positive)
    gap = (jnp.asarray(target, jnp.float32) - reference) / 10
    return gap * jnp.exp(kappa * (jnp.asarray(epoch, jnp.float32) / epochs - 1)) * scale


def stage_steps(images: int, epochs: int, stages: int, batch_size: int = 100) -> int:
    """Optimization steps of a stage: ⌊⌊N / B⌋ E / S⌋.

    Args:
      images: N of the training set, >= B.
      epochs: E of the whole training, >= 1.
      stages: S, >= 1.
      batch_size: B, >= 1.

    Raises:
      UserError: a number out of its range, or stages without a step.

    Example:
      >>> stage_steps(20_000, 60, 40), stage_steps(50_000, 100, 20)
      (300, 2500)
    """
    for name, value in (("epochs", epochs), ("stages", stages), ("batch_size", batch_size)):
        check_number(name, value, AtLeast(1))
    check_number("images", images, AtLeast(batch_size))
    steps = images // batch_size * epochs // stages
    if not steps:
        raise UserError(f"stages: {images // batch_size * epochs} steps are not enough for {stages} stages")
    return steps


def self_paced_weights(losses: jax.Array, fraction: jax.Array | float) -> jax.Array:
    """Self-paced learning's weights: 1 for the easiest part of a batch, 0 for the rest.

        wᵢ = [ rank(ℓᵢ) < max(1, round(f B)) ]

    Args:
      losses: [B] float, B >= 1.
      fraction: f in [0, 1], the part that counts; it usually grows.

    Returns:
      [B] float32 in {0, 1}; of equal losses the first count.

    Example:
      >>> print(self_paced_weights(jnp.array([0.3, 2.0, 0.1, 0.9]), 0.5))
      [1. 0. 1. 0.]
    """
    chex.assert_rank(losses, 1)
    check_number("fraction", fraction, Fraction)
    ranks = jnp.argsort(jnp.argsort(jax.lax.stop_gradient(losses)))
    return (ranks < jnp.maximum(jnp.round(fraction * len(losses)), 1)).astype(jnp.float32)


def focal_loss(losses: jax.Array, gamma: float = 2.0) -> jax.Array:
    """Focal loss of a softmax from its cross-entropies (arXiv:1708.02002): (1 - p)^γ ℓ, p = exp(-ℓ).

    Args:
      losses: [B] float, >= 0.
      gamma: γ >= 0; 0 is the cross-entropy.

    Returns:
      [B] float32, with the gradient of both factors, bounded where p = 1.

    Example:
      >>> print(focal_loss(jnp.array([0.0, 0.6931472]), gamma=2.0).round(4))
      [0.     0.1733]
    """
    check_number("gamma", gamma, NonNegative)
    losses = losses.astype(jnp.float32)
    wrong = -jnp.expm1(-losses)
    # A power below 1 has no slope at 0, where the loss is 0 anyway.
    factor = jnp.where(wrong > 0, jnp.where(wrong > 0, wrong, 1.0) ** gamma, float(gamma == 0))
    return factor * losses
