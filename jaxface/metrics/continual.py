"""What is left of earlier tasks while others are learned.

All are numbers of a matrix A [T, T]: A[i, j] is the accuracy on task j after learning task i, both from 0 here. Rows beyond the
diagonal are only read where it says so. The scenario, how a task is told at the test, belongs to the number: it is
task-incremental where the task is given, class-incremental where one image at a time is told from all classes seen, and
chunk-incremental where several images are known to be of one task, which is inferred (`infer_chunk_tasks`).

Methods: lifelong
"""

import numpy as np

from jaxface.checks import Integers, check_number, integer_array, real_array


def _matrix(accuracy, *, least: int = 1) -> np.ndarray:
    matrix = real_array("accuracy", accuracy, ndim=2)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"accuracy: needs one row and one column for each task, got shape {matrix.shape}")
    check_number("number of tasks", len(matrix), Integers(least))
    return matrix.astype(np.float64)


def average_accuracy(accuracy) -> float:
    """ACC, the mean accuracy over the tasks after the last one.

        1/T Σ_j A[T, j]

    Raises:
      ValueError: no square matrix. UserError: a value that is not finite.

    Example:
      >>> A = [[0.90, 0.10, 0.12], [0.70, 0.92, 0.15], [0.60, 0.80, 0.95]]
      >>> round(average_accuracy(A), 6)
      0.783333
    """
    return float(_matrix(accuracy)[-1].mean())


def average_incremental_accuracy(accuracy, sizes=None) -> float:
    """AIA, the mean over the sessions of the mean accuracy on the tasks seen so far.

        1/T Σ_i Σ_{j ≤ i} n_j A[i, j] / Σ_{j ≤ i} n_j

    Args:
      accuracy: [T, T]; nothing above the diagonal counts.
      sizes: [T] n_j, classes or records of each task; all alike unless given.

    Example:
      >>> A = [[0.90, 0.10, 0.12], [0.70, 0.92, 0.15], [0.60, 0.80, 0.95]]
      >>> round(average_incremental_accuracy(A), 6)
      0.831111
    """
    matrix = _matrix(accuracy)
    sizes = np.ones(len(matrix)) if sizes is None else real_array("sizes", sizes, ndim=1)
    if sizes.shape != matrix.shape[:1]:
        raise ValueError(f"sizes: needs one for each of {len(matrix)} tasks, got shape {sizes.shape}")
    rows = [np.average(row[: i + 1], weights=sizes[: i + 1]) for i, row in enumerate(matrix)]
    return float(np.mean(rows))


def backward_transfer(accuracy, *, ddof: int = 1) -> float:
    """BWT, what later tasks did to earlier ones; below 0 where they were forgotten (arXiv:1706.08840).

        1/(T - ddof) Σ_{j < T} (A[T, j] - A[j, j])

    Args:
      accuracy: [T, T] with T ≥ 2.
      ddof: 1; 0 is the mean over T terms, the last of which is 0, as the released code of GEM has it.

    Example:
      >>> A = [[0.90, 0.10, 0.12], [0.70, 0.92, 0.15], [0.60, 0.80, 0.95]]
      >>> round(backward_transfer(A), 6), round(backward_transfer(A, ddof=0), 6)
      (-0.21, -0.14)
    """
    check_number("ddof", ddof, Integers(0, 1))
    matrix = _matrix(accuracy, least=2)
    return float((matrix[-1] - np.diag(matrix)).sum() / (len(matrix) - ddof))


def forward_transfer(accuracy, untrained) -> float:
    """FWT, what earlier tasks did for those that had not come yet (arXiv:1706.08840).

        1/(T - 1) Σ_{j ≥ 2} (A[j - 1, j] - b_j)

    Args:
      accuracy: [T, T] with T ≥ 2; the values right above the diagonal count.
      untrained: [T] b_j, accuracy of the network before its first step.

    Example:
      >>> A = [[0.90, 0.10, 0.12], [0.70, 0.92, 0.15], [0.60, 0.80, 0.95]]
      >>> round(forward_transfer(A, [0.10, 0.08, 0.10]), 6)
      0.035
    """
    matrix = _matrix(accuracy, least=2)
    untrained = real_array("untrained", untrained, ndim=1)
    if untrained.shape != matrix.shape[:1]:
        raise ValueError(f"untrained: needs one for each of {len(matrix)} tasks, got shape {untrained.shape}")
    return float((np.diag(matrix, 1) - untrained[1:]).mean())


def forgetting(accuracy) -> float:
    """F, how far the accuracy on earlier tasks fell from the best that it ever was (arXiv:1801.10112).

        1/(T - 1) Σ_{j < T} ( max_{j ≤ i < T} A[i, j] - A[T, j] )

    It may be below 0. A network that learns little forgets little: read it beside `learning_accuracy`.

    Args:
      accuracy: [T, T] with T ≥ 2; nothing above the diagonal counts.

    Example:
      >>> A = [[0.90, 0.10, 0.12], [0.70, 0.92, 0.15], [0.60, 0.80, 0.95]]
      >>> round(forgetting(A), 6)
      0.21
    """
    matrix = _matrix(accuracy, least=2)
    last = len(matrix) - 1
    return float(np.mean([matrix[j:last, j].max() - matrix[last, j] for j in range(last)]))


def learning_accuracy(accuracy) -> float:
    """How well each task was known right after it was learned: the mean of the diagonal.

    Example:
      >>> A = [[0.90, 0.10, 0.12], [0.70, 0.92, 0.15], [0.60, 0.80, 0.95]]
      >>> round(learning_accuracy(A), 6)
      0.923333
    """
    return float(np.diag(_matrix(accuracy)).mean())


def infer_chunk_tasks(scores, groups, *, chunk: int = 20) -> np.ndarray:
    """The task of images of which some at a time are known to be of one, unknown task (iTAML, arXiv:2003.11652).

        t̂ = argmax_t  mean over the chunk of S_t(x)

    Args:
      scores: [N, T] S, how much an image looks like one of each task, such as the largest class score in it.
      groups: [N] integers; a chunk is made of images of one group, which are usually the true tasks, in their order. The last
        chunk of a group may be smaller.
      chunk: k ≥ 1, images of a chunk; 1 tells each image on its own.

    Returns:
      [N] int64 inferred task; of equal means the first.

    Raises:
      ValueError: shapes disagree. UserError: k < 1, or scores that are not finite.

    Example:
      >>> scores = [[0.9, 0.0], [0.4, 0.5], [0.1, 0.2]]
      >>> infer_chunk_tasks(scores, [0, 0, 1], chunk=2).tolist(), infer_chunk_tasks(scores, [0, 0, 1], chunk=1).tolist()
      ([0, 0, 1], [0, 1, 1])
    """
    check_number("chunk", chunk, Integers(1))
    scores = real_array("scores", scores, ndim=2)
    groups = integer_array("groups", groups, len(scores))
    inferred = np.empty(len(scores), np.int64)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            inferred[part] = scores[part].mean(axis=0).argmax()
    return inferred


def check_chunks(chunks, tasks) -> None:
    """Holds chunks to one task each.

    Args:
      chunks: [N] integers, the chunk of each image. tasks: [N] integers, its true task.

    Raises:
      ValueError: a chunk with images of two tasks.

    Example:
      >>> check_chunks([0, 0, 1], [3, 3, 4])
    """
    chunks = integer_array("chunks", chunks)
    tasks = integer_array("tasks", tasks, len(chunks))
    for chunk in np.unique(chunks):
        inside = np.unique(tasks[chunks == chunk])
        if len(inside) > 1:
            raise ValueError(f"chunks: needs one task in each, chunk {chunk} has images of {inside.tolist()}")
