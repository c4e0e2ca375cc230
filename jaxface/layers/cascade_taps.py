"""Which 3×3 filters two cascaded 2×2 filters amount to: factorization on the host, in float64.

`pallas_kernels.dilated_conv.compose_taps` composes; this is the way back.

Methods: cassod
"""

import math
from typing import NamedTuple

import numpy as np

from jaxface.checks import AtLeast, check_number, real_array
from jaxface.errors import UserError


class CascadeFit(NamedTuple):
    """The two stages whose composite is nearest to a filter.

    Attributes:
      a: first stage, float64: [2, 2], [2, 2, C] or [2, 2, C, M].
      b: second stage: [2, 2], [2, 2, C] or [2, 2, M, O].
      relative_error: ‖a∗b - k‖ / ‖k‖ (Frobenius): one number, or one for each channel [C] of depthwise filters.
    """

    a: np.ndarray
    b: np.ndarray
    relative_error: float | np.ndarray


def cascade_residual(
    kernel, *, middle: int | None = None, starts: int = 12, rounds: int = 100, seed: int = 0
) -> CascadeFit:
    """The nearest cascade of two 2×2 filters, by damped Gauss-Newton steps from several random starts.

        min_{a,b} ‖ k - a∗b ‖,   (a∗b)[m,l] = Σ_{p+r=m, q+t=l} a[p,q]·b[r,t]

    The composites of one channel are a set of 7 dimensions (4 + 4 and a scale that may go to either) among the 9 of the 3×3
    filters; spatially separable filters are one of 5, and neither set holds the other.

    Args:
      kernel: k, finite: [3, 3], depthwise [3, 3, C], or dense [3, 3, C, O].
      middle: M, channels between dense stages; O unless given.
      starts: ≥ 1. rounds: steps of each, ≥ 1. seed: of the starts, ≥ 0.

    Raises:
      UserError: no 3×3 filter, or a number out of its range. ValueError: another rank.

    Example:
      >>> import numpy as np
      >>> round(cascade_residual(np.ones((3, 3))).relative_error, 6)
      0.447214
    """
    rank = np.ndim(kernel)
    kernel = real_array("kernel", kernel, ndim=rank if 2 <= rank <= 4 else 2).astype(np.float64)
    if kernel.shape[:2] != (3, 3):
        raise UserError(f"kernel: needs 3×3 taps, got {kernel.shape[0]}×{kernel.shape[1]}")
    for name, value, least in (("starts", starts, 1), ("rounds", rounds, 1), ("seed", seed, 0)):
        check_number(name, value, AtLeast(least))
    if middle is not None:
        if rank != 4:
            raise UserError(f"middle: needs a dense kernel [3, 3, C, O], got shape {kernel.shape}")
        check_number("middle", middle, AtLeast(1))
    # [problems, 3, 3, C, O]: filters of single channels are problems of their own.
    problems = kernel[None] if rank == 4 else np.moveaxis(np.atleast_3d(kernel), 2, 0)[..., None, None]
    a, b, errors = _fit(problems, middle or problems.shape[-1], starts, rounds, seed)
    if rank == 4:
        return CascadeFit(a[0], b[0], float(errors[0]))
    a, b = (np.moveaxis(taps[..., 0, 0], 0, 2) for taps in (a, b))
    if rank == 3:
        return CascadeFit(a, b, errors)
    return CascadeFit(a[..., 0], b[..., 0], float(errors[0]))


def _fit(problems, middle, starts, rounds, seed):
    count, channels, outputs = len(problems), *problems.shape[-2:]
    rng = np.random.default_rng(seed)
    lengths = np.linalg.norm(problems.reshape(count, -1), axis=1)
    target = np.repeat(
        problems / np.where(lengths == 0, 1, lengths)[:, None, None, None, None], starts, axis=0
    )
    size_a = 4 * channels * middle
    x = rng.normal(size=(count * starts, size_a + 4 * middle * outputs)) / math.sqrt(8 * middle)

    def split(x):
        return x[:, :size_a].reshape(-1, 2, 2, channels, middle), x[:, size_a:].reshape(
            -1, 2, 2, middle, outputs
        )

    def residual(x):
        a, b = split(x)
        composite = np.zeros_like(target)
        for p, q, r, t in np.ndindex(2, 2, 2, 2):
            composite[:, p + r, q + t] += a[:, p, q] @ b[:, r, t]
        return (composite - target).reshape(len(x), -1)

    def jacobian(x):
        a, b = split(x)
        by_a = np.zeros((*target.shape, 2, 2, channels, middle))
        by_b = np.zeros((*target.shape, 2, 2, middle, outputs))
        for p, q, r, t in np.ndindex(2, 2, 2, 2):
            for c in range(channels):
                by_a[:, p + r, q + t, c, :, p, q, c] = np.swapaxes(b[:, r, t], 1, 2)
            for o in range(outputs):
                by_b[:, p + r, q + t, :, o, r, t, :, o] = a[:, p, q]
        rows = target[0].size
        return np.concatenate([by_a.reshape(len(x), rows, -1), by_b.reshape(len(x), rows, -1)], axis=2)

    r = residual(x)
    damping = np.full(len(x), 1e-2)
    eye = np.eye(x.shape[1])
    for _ in range(rounds):
        j = jacobian(x)
        normal = np.swapaxes(j, 1, 2) @ j + damping[:, None, None] * eye
        step = np.linalg.solve(normal, np.swapaxes(j, 1, 2) @ r[..., None])[..., 0]
        moved = residual(x - step)
        better = (moved**2).sum(1) <= (r**2).sum(1)
        x, r = np.where(better[:, None], x - step, x), np.where(better[:, None], moved, r)
        damping = np.clip(np.where(better, damping / 4, damping * 4), 1e-12, 1e6)
    errors = np.linalg.norm(r, axis=1).reshape(count, starts)
    best = errors.argmin(axis=1)
    a, b = split(x.reshape(count, starts, -1)[np.arange(count), best])
    # The length goes to both, as a gradient step would have it.
    scale = np.sqrt(lengths)[:, None, None, None, None]
    return a * scale, b * scale, errors[np.arange(count), best]


def cascade_defects(kernel) -> np.ndarray:
    """How far a 3×3 filter is from the necessary condition on a cascade, along either axis.

    Its polynomial K = r₀(w) + r₁(w) z + r₂(w) z² splits into two real factors of degree (1, 1) only if the quartic
    r₁² - 4 r₀ r₂ is the square of a real polynomial, and so with z and w exchanged.

    Args:
      kernel: [3, 3], finite.

    Returns:
      [2] float64: ‖quartic - square‖ / ‖r₁² - 4 r₀ r₂‖' of rows and of columns, where the norm in the denominator is that of
      the terms before they are subtracted; 0 where the condition holds.

    Raises:
      UserError: no 3×3 filter. ValueError: another rank.

    Example:
      >>> import numpy as np
      >>> cascade_defects(np.outer([1, 2, 1], [-1, 0, 1])).round(6).tolist()
      [0.0, 0.0]
    """
    kernel = real_array("kernel", kernel, ndim=2).astype(np.float64)
    if kernel.shape != (3, 3):
        raise UserError(f"kernel: needs 3×3 taps, got {kernel.shape[0]}×{kernel.shape[1]}")
    return np.array([_square_defect(k) for k in (kernel, kernel.T)])


def _square_defect(rows: np.ndarray) -> float:
    first, second = np.convolve(rows[1], rows[1]), 4 * np.convolve(rows[0], rows[2])
    size = np.linalg.norm(first) + np.linalg.norm(second)
    if size == 0:
        return 0.0
    quartic = (first - second) / size  # rising powers
    tiny = 1e-12
    # A square has an even number of vanishing terms at either end and begins and ends with positive ones.
    present = np.flatnonzero(np.abs(quartic) > tiny)
    if not present.size:
        return 0.0
    low, high = present[0], present[-1]
    if low % 2 or high % 2 or quartic[low] < 0 or quartic[high] < 0:
        return float(np.linalg.norm(quartic))
    least = np.inf
    middle = range(low // 2 + 1, high // 2)  # coefficients of the root between its ends
    for sign in (1, -1):
        root = np.zeros(3)
        root[high // 2] = math.sqrt(quartic[high])
        if high > low:
            root[low // 2] = sign * math.sqrt(quartic[low])
        for k in middle:  # at most one
            root[k] = quartic[high - 1] / (2 * root[high // 2])
        least = min(least, float(np.linalg.norm(quartic - np.convolve(root, root))))
    return least


def universal_width(inputs: int, outputs: int) -> int:
    """Fewest channels M between two dense 2×2 stages with as many parameters as the dense 3×3 filters have.

        4CM + 4MO - M² ≥ 9CO

    (M² is what an invertible matrix between the stages leaves as it is). For C = O that is M ≥ (4 - √7) C ≈ 1.354 C: a cascade
    no wider than its ends is not universal. With fewer there are filters that no cascade is; counting dimensions proves no more.

    Args:
      inputs: C ≥ 1. outputs: O ≥ 1.

    Raises:
      UserError: a number below 1.

    Example:
      >>> universal_width(3, 3), universal_width(64, 64)
      (5, 87)
    """
    check_number("inputs", inputs, AtLeast(1))
    check_number("outputs", outputs, AtLeast(1))
    total, needed = 4 * (inputs + outputs), 9 * inputs * outputs
    width = 1
    while width * (total - width) < needed:
        width += 1
    return width
