"""How far predicted depths are from measured ones.

Methods: intern
"""

import numpy as np

from jaxface.errors import UserError


def depth_rmse(predicted: np.ndarray, depth: np.ndarray) -> float:
    """Root mean square error of the depth over all pixels that were measured; lower is better.

    Args:
      predicted: [...] float, finite. depth: of the same shape, 0 where nothing was measured.

    Raises:
      ValueError: shapes differ. UserError: no pixel was measured, or a prediction is not finite.

    Example:
      >>> depth_rmse(np.array([1.0, 2.0, 5.0]), np.array([1.0, 4.0, 0.0])).__round__(4)
      1.4142
    """
    predicted, depth = np.asarray(predicted, np.float64), np.asarray(depth, np.float64)
    if predicted.shape != depth.shape:
        raise ValueError(f"predicted: needs shape {depth.shape}, got {predicted.shape}")
    measured = depth > 0
    if not measured.any():
        raise UserError("depth: needs at least one pixel that was measured, got none")
    if not np.isfinite(predicted).all():
        raise UserError("predicted: needs finite depths")
    return float(np.sqrt(np.mean(np.square(predicted[measured] - depth[measured]))))
