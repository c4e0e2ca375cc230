"""Correlation congruence: a student whose embeddings relate to one another as the teacher's do (arXiv:1904.01802)."""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from jaxface.checks import AtLeast, Positive, check_number
from jaxface.errors import UserError
from jaxface.layers.prototypes import l2_normalize
from jaxface.losses.distillation import check_pair

Kernel = Literal["rbf_taylor", "rbf", "bilinear", "mmd"]
"""Kernels of `correlation_matrix`."""
KERNELS = ("rbf_taylor", "rbf", "bilinear", "mmd")
_SMALLEST_SQUARE = 1e-8  # under the root of the MMD kernel, where its derivative would be infinite


def _check_kernel(kernel: str, gamma, order: int, normalize: bool) -> None:
    if kernel not in KERNELS:
        raise UserError(f"kernel: needs one of {', '.join(KERNELS)}, got {kernel!r}")
    if kernel in ("rbf_taylor", "rbf"):
        check_number("gamma", gamma, Positive)
    if kernel == "rbf_taylor":
        check_number("order", order, AtLeast(1))  # order 0 is a constant
        if not normalize:
            raise UserError(
                "normalize: needs True for rbf_taylor, an expansion for vectors of length one, got False"
            )


def taylor_rbf_coeffs(gamma: float, order: int) -> tuple[float, ...]:
    """Coefficients of the Taylor expansion of the Gaussian kernel of unit vectors in their cosine.

        exp(-γ ‖x - y‖²) = e^{-2γ} e^{2γ ⟨x, y⟩} ≈ Σ_{p=0}^{P} a_p ⟨x, y⟩^p,        a_p = e^{-2γ} (2γ)^p / p!

    Args:
      gamma: γ > 0.
      order: P ≥ 1, inclusive.

    Returns:
      (a_0, …, a_P).

    Raises:
      UserError: `gamma` or `order` out of its range.

    Example:
      >>> [round(a, 3) for a in taylor_rbf_coeffs(0.4, 2)]
      [0.449, 0.359, 0.144]
    """
    _check_kernel("rbf_taylor", gamma, order, True)
    return tuple(math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) for p in range(order + 1))


def _correlations(
    rows: jax.Array,
    columns: jax.Array,
    *,
    kernel: str,
    gamma,
    order: int,
    normalize: bool,
    first: jax.Array | int = 0,
) -> jax.Array:
    """[M, N] float32 of rows [M, D], which are columns `first` to `first + M - 1`, with columns [N, D]."""
    rows, columns = (x.astype(jnp.float32) for x in (rows, columns))
    if normalize:
        rows, columns = l2_normalize(rows), l2_normalize(columns)
    # True float32 products, which TPUs and recent GPUs do not make by default: the differences of two matrices matter here.
    products = jnp.einsum("md,nd->mn", rows, columns, precision=jax.lax.Precision.HIGHEST)
    if kernel == "bilinear":
        return products
    if kernel == "rbf_taylor":
        # Σ_p x^p / p! with x = 2γ ⟨·, ·⟩, from the inside out.
        x, total = 2 * gamma * products, 1.0
        for p in range(order, 0, -1):
            total = 1.0 + x / p * total
        return jnp.exp(-2.0 * gamma) * total
    of_rows, of_columns = (jnp.sum(jnp.square(x), axis=1) for x in (rows, columns))
    distances = jnp.maximum(of_rows[:, None] + of_columns - 2 * products, 0.0)
    if kernel == "rbf":
        return jnp.exp(-gamma * distances)
    itself = jnp.arange(columns.shape[0]) == first + jnp.arange(rows.shape[0])[:, None]
    return jnp.where(itself, 0.0, jnp.sqrt(jnp.maximum(distances, _SMALLEST_SQUARE)))


def correlation_matrix(
    embeddings: jax.Array,
    *,
    kernel: Kernel = "rbf_taylor",
    gamma: float = 0.4,
    order: int = 2,
    normalize: bool = True,
) -> jax.Array:
    """How the examples of a batch relate to one another (arXiv:1904.01802).

        rbf_taylor   e^{-2γ} Σ_{p=0}^{P} (2γ)^p / p! ⟨f_i, f_j⟩^p     the next one in unit vectors, to order P inclusive
        rbf          exp(-γ ‖f_i - f_j‖²)
        bilinear     ⟨f_i, f_j⟩
        mmd          ‖f_i - f_j‖, the maximum mean discrepancy of single examples; √max(·, 1e-8), the diagonal exactly 0 (design)

    Args:
      embeddings: f [N, D] float, N ≥ 2.
      kernel: one of these.
      gamma: γ > 0 of the Gaussian kernels; may be traced.
      order: P ≥ 1 of rbf_taylor.
      normalize: give the rows length one first; a zero row stays zero, as if orthogonal to all. Needed by rbf_taylor.

    Returns:
      [N, N] float32, symmetric.

    Raises:
      ValueError: not a matrix of floats.
      UserError: fewer than two rows, an unknown kernel, or a parameter out of its range.

    Example:
      >>> embeddings = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> correlation_matrix(embeddings, kernel="bilinear").tolist()
      [[1.0, 0.0], [0.0, 1.0]]
      >>> [round(x, 3) for x in correlation_matrix(embeddings, kernel="rbf")[0].tolist()]  # exp(-0.4 · 2) beside the diagonal
      [1.0, 0.449]
    """
    check_pair(embeddings, embeddings, name="embeddings")
    _check_rows(embeddings.shape[0])
    _check_kernel(kernel, gamma, order, normalize)
    return _correlations(embeddings, embeddings, kernel=kernel, gamma=gamma, order=order, normalize=normalize)


def _check_rows(rows: int) -> None:
    if rows < 2:
        raise UserError(f"embeddings: needs at least two rows to relate to each other, got {rows}")


def _everyone(x: jax.Array, axis_name: str | None) -> jax.Array:
    """The rows of all replicas, in the order of the batch."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


def _mean(values: jax.Array, where: jax.Array | None, axis_name: str | None) -> jax.Array:
    """Mean over the valid rows; replicas get shares whose mean over the axis is the mean over all of them."""
    if where is None:
        return values.mean()
    count = jnp.sum(where.astype(jnp.float32))
    if axis_name is not None:
        count = jax.lax.pmean(count, axis_name)
    return jnp.sum(jnp.where(where, values, 0.0)) / jnp.maximum(count, 1e-6)


def correlation_congruence_loss(
    student: jax.Array,
    teacher: jax.Array,
    *,
    kernel: Kernel = "rbf_taylor",
    gamma: float = 0.4,
    order: int = 2,
    normalize: bool = True,
    where: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Correlation congruence (arXiv:1904.01802): the relations between examples are those that the teacher sees.

        L = 1/N² Σ_{i,j} ( φ(f_i^s, f_j^s) - φ(f_i^t, f_j^t) )²

    over all pairs, with φ of `correlation_matrix`. With E = K_s - K_t and S the student's cosines, rbf_taylor has
    ∂L/∂S = 2/N² · E ⊙ 2γ φ_{P-1}(S). Turning or scaling all embeddings changes nothing where they are normalized. The size of
    an entry of E, and with it the useful weight of the loss, depends on the kernel and on `normalize`: the paper's weights
    (0.003 to 0.005) are for features of another scale, unit vectors want 10 to 100.

    Args:
      student: f^s [B, D_s] float.
      teacher: f^t [B, D_t] float; a constant. The sizes may differ.
      kernel, gamma, order, normalize: as `correlation_matrix`.
      where: [B] bool, False for rows to leave out; the mean is over the pairs of the others (0 where there are none).
      axis_name: mapped axis over which the batch is split. The loss is then about all pairs of the *global* batch: each replica
        compares its rows with everybody's, and the mean over the axis is the loss (as is the mean of gradients its gradient).

    Returns:
      float32 scalar ≥ 0.

    Raises:
      AssertionError, ValueError: other shapes or dtypes.
      UserError: as `correlation_matrix`.

    Example:
      >>> teacher = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> turned = teacher @ jnp.array([[0.0, 1.0], [-1.0, 0.0]])  # other embeddings, the same relations
      >>> float(correlation_congruence_loss(turned, teacher))
      0.0
      >>> float(correlation_congruence_loss(jnp.ones((2, 2)), teacher)) > 0
      True
    """
    check_pair(student, teacher, name="embeddings", same_size=False)
    replicas = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    _check_rows(student.shape[0] * replicas)
    _check_kernel(kernel, gamma, order, normalize)
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * student.shape[0]
    if where is not None:
        # Whatever stands there, NaN too, it may reach neither the loss nor a gradient.
        student, teacher = (jnp.where(where[:, None], x, 0.0) for x in (student, teacher))

    def correlations(x):
        return _correlations(
            x,
            _everyone(x, axis_name),
            kernel=kernel,
            gamma=gamma,
            order=order,
            normalize=normalize,
            first=first,
        )

    squares = jnp.square(correlations(student) - correlations(jax.lax.stop_gradient(teacher)))
    if where is None:
        return squares.mean()
    among = _everyone(where, axis_name)
    valid = jnp.sum(among.astype(jnp.float32))
    of_row = jnp.sum(jnp.where(among, squares, 0.0), axis=1) / jnp.maximum(valid, 1.0)
    return _mean(of_row, where, axis_name)


def adjacent_correlation_loss(
    student: jax.Array, teacher: jax.Array, *, axis_name: str | None = None
) -> jax.Array:
    """The loss that RepDistiller (arXiv:1910.10699) benchmarks under the name of correlation congruence.

        L = 1/(B-1) Σ_{i=1}^{B-1} Σ_d δ_id δ_{i+1,d},        δ = |f^s - f^t|

    Another loss than the paper's: it looks at neighbors in the batch and changes with its order. There, both embeddings pass
    trained linear layers to 128 first, and the weight is 0.02.

    Args:
      student: [B, D] float, B ≥ 2.
      teacher: [B, D] float; a constant.
      axis_name: mapped axis over which the batch is split; every replica returns the loss of the whole.

    Returns:
      float32 scalar ≥ 0.

    Raises:
      AssertionError, ValueError, UserError: as `correlation_congruence_loss`; sizes that differ.

    Example:
      >>> student, teacher = jnp.array([[1.0, 0.5], [1.0, 0.0]]), jnp.zeros((2, 2))
      >>> float(adjacent_correlation_loss(student, teacher)), float(adjacent_correlation_loss(student, student))
      (1.0, 0.0)
    """
    check_pair(student, teacher, name="embeddings")
    _check_rows(student.shape[0] * (1 if axis_name is None else jax.lax.axis_size(axis_name)))
    student, teacher = (x.astype(jnp.float32) for x in (student, jax.lax.stop_gradient(teacher)))
    delta = _everyone(jnp.abs(student - teacher), axis_name)
    return jnp.mean(jnp.sum(delta[:-1] * delta[1:], axis=1))
