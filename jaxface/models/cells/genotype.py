"""Cells: which operation joins which nodes, as a value that is hashed, compared and written as JSON.

A cell has two inputs, nodes 0 and 1, the outputs of the two cells before it, and intermediate nodes 2, 3, …, each of which may
read every node before it. In a search every such edge carries a mixture of operations; in a genotype every node reads two nodes.

Methods: dcp_nas
"""

import itertools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxface.errors import UserError

INPUTS = 2
NONE = "none"
KINDS = ("normal", "reduce")
DARTS = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
    NONE,
)
"""The eight operations of the published searches, in their order."""
SMALL = ("max_pool_3x3", "avg_pool_3x3", "skip_connect", "conv_3x3", "conv_1x1", NONE)
"""Six for small images."""

Gene = tuple[str, int]
"""An operation and the node that it reads."""
_LONGEST = 64  # genes of a cell


class Genotype(NamedTuple):
    """A network's two kinds of cells.

    Attributes:
      normal: genes of a cell that keeps the plane, two for each intermediate node, in the order of the nodes.
      reduce: of one that halves it: operations on the cell's inputs have stride 2.
    """

    normal: tuple[Gene, ...]
    reduce: tuple[Gene, ...]

    @property
    def nodes(self) -> int:
        """Intermediate nodes of a cell."""
        return len(self.normal) // 2

    def to_json(self) -> str:
        """The genotype as a JSON object, which `genotype_from_json` reads."""
        return json.dumps({kind: [list(gene) for gene in getattr(self, kind)] for kind in KINDS})


RELEASED = Genotype(
    normal=(
        ("sep_conv_5x5", 1),
        ("max_pool_3x3", 0),
        ("dil_conv_3x3", 2),
        ("skip_connect", 0),
        ("sep_conv_3x3", 3),
        ("avg_pool_3x3", 1),
        ("dil_conv_3x3", 4),
        ("avg_pool_3x3", 3),
    ),
    reduce=(
        ("max_pool_3x3", 0),
        ("sep_conv_3x3", 1),
        ("dil_conv_3x3", 1),
        ("sep_conv_3x3", 0),
        ("max_pool_3x3", 1),
        ("dil_conv_5x5", 2),
        ("dil_conv_5x5", 2),
        ("sep_conv_5x5", 1),
    ),
)
"""DDPNAS_MCN_2 of the authors' repository."""


def edges(nodes: int) -> list[tuple[int, int]]:
    """(node that is read, node that reads) of every edge of a cell, in the order of the rows of α.

    Args:
      nodes: intermediate ones, >= 1.

    Example:
      >>> edges(2)
      [(0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
      >>> len(edges(4))
      14
    """
    return [(source, node) for node in range(INPUTS, INPUTS + nodes) for source in range(node)]


def check_primitives(primitives: Sequence[str], known: Sequence[str]) -> None:
    """Raises UserError for operations that are unknown or twice, without `none`, or with nothing beside it."""
    if len(set(primitives)) != len(primitives):
        raise UserError(f"primitives: needs every operation once, got {', '.join(primitives)}")
    for name in primitives:
        if name not in known:
            raise UserError(f"primitives: needs operations among {', '.join(known)}, got {name!r}")
    if NONE not in primitives or len(primitives) < 2:
        raise UserError(
            f"primitives: needs {NONE!r}, no operation, beside others, got {', '.join(primitives) or 'nothing'}"
        )


def check_genotype(genotype: Genotype, primitives: Sequence[str]) -> Genotype:
    """The genotype.

    Raises:
      UserError: an operation that is not among `primitives` or is `none`, a gene that reads its own node or a later one, a node
        that reads one node twice, or kinds of other sizes.
    """
    if len(genotype.normal) != len(genotype.reduce) or len(genotype.normal) % 2 or not genotype.normal:
        raise UserError(
            f"genotype: needs two genes for each node, as many in both kinds of cells, got {len(genotype.normal)} and "
            f"{len(genotype.reduce)}"
        )
    allowed = [name for name in primitives if name != NONE]
    for kind in KINDS:
        for index, (operation, source) in enumerate(getattr(genotype, kind)):
            node = INPUTS + index // 2
            if operation not in allowed:
                raise UserError(
                    f"genotype: {kind} node {node} needs an operation among {', '.join(allowed)}, got {operation!r}"
                )
            if not 0 <= source < node:
                raise UserError(f"genotype: {kind} node {node} needs a node before it, got {source}")
        for node, pair in enumerate(itertools.batched(getattr(genotype, kind), 2), start=INPUTS):
            if pair[0][1] == pair[1][1]:
                raise UserError(f"genotype: {kind} node {node} needs two nodes, got {pair[0][1]} twice")
    return genotype


def genotype_from_json(text: str, primitives: Sequence[str] = (*DARTS, *SMALL)) -> Genotype:
    """The inverse of `Genotype.to_json`, of text that may be from anywhere.

    Raises:
      UserError: no JSON, no genotype, or one that `check_genotype` refuses.

    Example:
      >>> genotype_from_json(RELEASED.to_json()) == RELEASED
      True
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError("genotype: needs a JSON object, got other text") from None
    if not isinstance(value, dict) or set(value) != set(KINDS):
        raise UserError(f"genotype: needs a JSON object with {' and '.join(KINDS)}")
    return check_genotype(Genotype(*(_genes(kind, value[kind]) for kind in KINDS)), primitives)


def _genes(kind: str, value: Any) -> tuple[Gene, ...]:
    good = isinstance(value, list) and 0 < len(value) <= _LONGEST
    for gene in value if good else ():
        good = good and isinstance(gene, list) and len(gene) == 2
        good = (
            good and isinstance(gene[0], str) and isinstance(gene[1], int) and not isinstance(gene[1], bool)
        )
    if not good:
        raise UserError(f"genotype: {kind} needs a list of [operation, node], at most {_LONGEST}")
    return tuple((gene[0], gene[1]) for gene in value)


def discretize(alpha: np.ndarray, primitives: Sequence[str], *, exclude: str = NONE) -> tuple[Gene, ...]:
    """The genes of one kind of cell: for every node the two edges whose best operation has the highest score.

    An operation's score is its share in the softmax over the row, so that a constant added to a row changes nothing; `none` takes
    part in the softmax and is never chosen.

    Args:
      alpha: [E, M], a row for each of `edges`.
      primitives: M names, `none` among them.
      exclude: the operation that is never chosen.

    Returns:
      Two genes for each node, of two nodes that are read, the better one first.

    Raises:
      UserError: α that is not [E, M], no cell's number of edges, values that are not finite, or primitives without `exclude`.

    Example:
      >>> alpha = np.zeros((5, 3))
      >>> alpha[:, 1] = [3.0, 2.0, 0.0, 1.0, 4.0]
      >>> discretize(alpha, ("skip_connect", "conv_3x3", "none"))
      (('conv_3x3', 0), ('conv_3x3', 1), ('conv_3x3', 2), ('conv_3x3', 1))
    """
    alpha = np.asarray(alpha, np.float64)
    if exclude not in primitives:
        raise UserError(f"primitives: needs {exclude!r} among them, got {', '.join(primitives)}")
    nodes = 1
    while len(edges(nodes)) < len(alpha):
        nodes += 1
    if alpha.ndim != 2 or alpha.shape != (len(edges(nodes)), len(primitives)):
        raise UserError(
            f"alpha: needs [E, M] with M = {len(primitives)} operations and E = 2, 5, 9, 14, … edges, got {alpha.shape}"
        )
    if not np.isfinite(alpha).all():
        raise UserError("alpha: needs finite values")
    shares = np.exp(alpha - alpha.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    columns = [i for i, name in enumerate(primitives) if name != exclude]
    best = shares[:, columns]
    genes = []
    for node in range(INPUTS, INPUTS + nodes):
        rows = [i for i, (_, reads) in enumerate(edges(nodes)) if reads == node]
        chosen = sorted(rows, key=lambda row: -best[row].max())[:2]  # stable: of equals the earlier one
        genes += [(primitives[columns[best[row].argmax()]], edges(nodes)[row][0]) for row in chosen]
    return tuple(genes)


def random_genotype(seed: int, primitives: Sequence[str], nodes: int) -> Genotype:
    """A genotype drawn uniformly: for each node two nodes to read, for each of these an operation other than `none`."""
    rng = np.random.default_rng(seed)
    names = [name for name in primitives if name != NONE]

    def genes():
        for node in range(INPUTS, INPUTS + nodes):
            for source in rng.choice(node, 2, replace=False):
                yield names[rng.integers(len(names))], int(source)

    return Genotype(tuple(genes()), tuple(genes()))
