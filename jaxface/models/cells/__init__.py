"""Networks of cells that a search finds: genotypes, supernets, networks of a genotype, and their packed form."""

from jaxface.models.cells.genotype import (
    DARTS,
    RELEASED,
    SMALL,
    Genotype,
    check_genotype,
    check_primitives,
    discretize,
    edges,
    genotype_from_json,
    random_genotype,
)
from jaxface.models.cells.networks import CellNetwork, MixedOp, SuperNet, to_packed_cells
from jaxface.models.cells.operations import OPERATIONS, WEIGHTLESS, Style

__all__ = [
    "DARTS",
    "OPERATIONS",
    "RELEASED",
    "SMALL",
    "WEIGHTLESS",
    "CellNetwork",
    "Genotype",
    "MixedOp",
    "Style",
    "SuperNet",
    "check_genotype",
    "check_primitives",
    "discretize",
    "edges",
    "genotype_from_json",
    "random_genotype",
    "to_packed_cells",
]
