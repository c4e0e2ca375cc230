"""Features to scores, by a radial kernel or linearly: ridge regression, fitted here, and support vectors, which are loaded."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.checks import Positive, check_number, real_array
from jaxface.errors import UserError


class KernelRegression(NamedTuple):
    """A score of features, as a tree of arrays: it may be passed through `jit`.

    Attributes:
      low, high: [D], what becomes -1 and 1 of each feature.
      centers: [K, D] features in that scale.
      weights: [K].
      bias: [].
      gamma: [], of the kernel.
    """

    low: jax.Array
    high: jax.Array
    centers: jax.Array
    weights: jax.Array
    bias: jax.Array
    gamma: jax.Array


def kernel_scores(model: KernelRegression, features: jax.Array) -> jax.Array:
    """What a kernel regression gives.

        f' = 2 (f - low) / (high - low) - 1,   Σ_k w_k exp(-γ |f' - c_k|²) + b

    A support vector regression has its coefficients as weights and minus its ρ as b (`interop.read_svr`).

    Args:
      model: fitted or loaded.
      features: f [..., D] float.

    Returns:
      [...].

    Raises:
      ValueError: another number of features.

    Example:
      >>> model = KernelRegression(*map(jnp.asarray, ([0.0], [1.0], [[0.0]], [2.0], 1.0, 0.05)))
      >>> round(float(kernel_scores(model, jnp.array([0.5]))), 4)
      3.0
    """
    if features.shape[-1] != model.centers.shape[-1]:
        raise ValueError(f"features: needs {model.centers.shape[-1]} of them, got {features.shape}")
    scaled = 2 * (features - model.low) / (model.high - model.low) - 1
    # Sums of squared differences and no expansion of them: their digits are needed near a center.
    distance = jnp.sum(jnp.square(scaled[..., None, :] - model.centers), axis=-1)
    return jnp.exp(-model.gamma * distance) @ model.weights + model.bias


def fit_kernel_ridge(features, targets, *, gamma: float = 0.05, ridge: float = 1e-2) -> KernelRegression:
    """Kernel ridge regression with a radial kernel.

        (K + λ I) w = t - t̄,   K_ij = exp(-γ |f'_i - f'_j|²),   b = t̄

    Features are scaled to [-1, 1] by their ranges first.

    Args:
      features: f [N, D] float.
      targets: t [N] float.
      gamma: γ > 0.
      ridge: λ > 0.

    Returns:
      The regression, float32.

    Raises:
      UserError: fewer than two rows, a feature that is the same everywhere, a number out of its range, or NaN. ValueError: two
        lengths.

    Example:
      >>> x = np.linspace(0, 1, 40)[:, None]
      >>> model = fit_kernel_ridge(x, np.sin(6 * x[:, 0]), gamma=5.0, ridge=1e-4)
      >>> round(float(kernel_scores(model, jnp.array([0.3]))), 2), round(float(np.sin(1.8)), 2)
      (0.97, 0.97)
    """
    check_number("gamma", gamma, Positive)
    low, high, scaled, target = _scaled(features, targets, ridge)
    squares = np.sum(scaled**2, axis=1)
    distance = np.maximum(squares[:, None] + squares - 2 * scaled @ scaled.T, 0)
    mean = target.mean()
    weights = np.linalg.solve(np.exp(-gamma * distance) + ridge * np.eye(len(scaled)), target - mean)
    parts = (low, high, scaled, weights, mean, gamma)
    return KernelRegression(*(jnp.asarray(part, jnp.float32) for part in parts))


def _scaled(features, targets, ridge: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ranges of the features, the features in [-1, 1], and the targets, in float64."""
    check_number("ridge", ridge, Positive)
    rows = real_array("features", features, ndim=2).astype(np.float64)
    target = real_array("targets", targets, ndim=1).astype(np.float64)
    if len(rows) != len(target):
        raise ValueError(f"targets: needs one for each of {len(rows)} rows, got {len(target)}")
    if len(rows) < 2:
        raise UserError(f"features: needs at least 2 rows, got {len(rows)}")
    low, high = rows.min(0), rows.max(0)
    if (same := np.flatnonzero(high == low)).size:
        raise UserError(
            f"features: needs features that vary, number {same[0]} is {low[same[0]]:g} everywhere"
        )
    return low, high, 2 * (rows - low) / (high - low) - 1, target


class LinearRegression(NamedTuple):
    """A score that is linear in features, as a tree of arrays.

    Attributes:
      low, high: [D], what becomes -1 and 1 of each feature.
      weights: [D].
      bias: [].
    """

    low: jax.Array
    high: jax.Array
    weights: jax.Array
    bias: jax.Array


def linear_scores(model: LinearRegression, features: jax.Array) -> jax.Array:
    """What a linear regression gives: w · (2 (f - low) / (high - low) - 1) + b.

    Args:
      model: fitted or loaded.
      features: f [..., D] float.

    Returns:
      [...].

    Raises:
      ValueError: another number of features.

    Example:
      >>> model = LinearRegression(*map(jnp.asarray, ([0.0], [1.0], [2.0], 1.0)))
      >>> float(linear_scores(model, jnp.array([0.75])))
      2.0
    """
    if features.shape[-1] != len(model.weights):
        raise ValueError(f"features: needs {len(model.weights)} of them, got {features.shape}")
    return (2 * (features - model.low) / (model.high - model.low) - 1) @ model.weights + model.bias


def fit_linear_ridge(features, targets, *, ridge: float = 1.0) -> LinearRegression:
    """Linear ridge regression; features are scaled to [-1, 1] by their ranges first.

        w = f'ᵀ (f' f'ᵀ + λ I)⁻¹ (t - t̄),   f' centered,   b = t̄ - w · mean f'

    Args:
      features: f [N, D] float; D may be larger than N.
      targets: t [N] float.
      ridge: λ > 0.

    Returns:
      The regression, float32.

    Raises:
      UserError, ValueError: as `fit_kernel_ridge`.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(30, 2))
      >>> model = fit_linear_ridge(x, x @ [1.0, -2.0] + 3, ridge=1e-6)
      >>> round(float(linear_scores(model, jnp.array([0.5, 0.25]))), 4)
      3.0
    """
    low, high, scaled, target = _scaled(features, targets, ridge)
    center, mean = scaled.mean(0), target.mean()
    rows = scaled - center
    weights = rows.T @ np.linalg.solve(rows @ rows.T + ridge * np.eye(len(rows)), target - mean)
    parts = (low, high, weights, mean - weights @ center)
    return LinearRegression(*(jnp.asarray(part, jnp.float32) for part in parts))
