"""What a search for cells has found: the cells, drawn, how it came to them, and the supernets' accuracy.

Methods: dcp_nas
"""

import functools
import pathlib

import jax
import numpy as np

from jaxface.data.sources.source import Source
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.models.cells import Genotype, SuperNet, discretize, edges
from jaxface.models.cells.genotype import KINDS, NONE
from jaxface.optimizers import flip_rate
from jaxface.training import figures
from jaxface.training.distributed import on_host
from jaxface.training.evaluations.needs import check_not_empty
from jaxface.training.map_source import map_source
from jaxface.training.stages import Figures
from jaxface.training.step import TrainState
from jaxface.training.workdir import write_atomically

GENOTYPE_FILE = "genotype.json"


class FoundCell:
    """The cell of a finished search: `evaluate` and `figures` of a stage.

    Reported are, of every trained supernet, `parent/accuracy` and `child/accuracy` on held-out images with all operations mixed;
    `signs/flip_rate` of the Child; where it was guided, means over its steps of the tangent term's size over g's,
    `child/ratio`, and of the cosines with t of the architecture's step, `child/cosine`, and of the term's part of it,
    `child/tangent_cosine`; `cell/entropy`, mean over the edges of the entropy of their shares, over its largest; and
    `cell/convolutions`, the part of the genes that are convolutions. Drawn are the cells and the shares over the search;
    `genotype.json` is the cell.

    Args:
      source: held-out records of the training classes.
      primitives: names of the operations.
      networks: "parent" and "child" -> supernet, those that the search trained.
      genotype: a cell that was not searched; the search's unless given.
    """

    def __init__(
        self,
        source: Source,
        primitives: tuple[str, ...],
        networks: dict[str, SuperNet],
        genotype: Genotype | None = None,
    ):
        check_not_empty(source)
        self.source, self.primitives, self.networks, self._given = source, primitives, networks, genotype

    def genotype(self, state: TrainState) -> Genotype:
        """The cell that a state's architecture says: the Child's where there is one, whose phase is the last."""
        if self._given is not None:
            return self._given
        last = "child" if "child" in self.networks else "parent"
        halves = np.split(on_host(state.params["architecture"][last]), len(KINDS))
        return Genotype(*(discretize(half, self.primitives) for half in halves))

    def __call__(self, state: TrainState) -> dict[str, float]:
        report = {}
        for name, network in self.networks.items():
            variables = {
                "params": state.params[name],
                "batch_stats": state.extra[f"{name}_statistics"],
                "alpha": state.params["architecture"][name],
            }
            answer = functools.partial(_answers, network=network)
            answers = map_source(answer, self.source, variables)
            report[f"{name}/accuracy"] = float((answers == self.source.labels).mean())
        if "child" in self.networks:
            report["signs/flip_rate"] = float(flip_rate(state.opt_state))
        if watched := self._watched(state):
            report |= watched
        if self.networks:
            shares = on_host(state.extra["trajectory"])[-1].astype(np.float64)
            bits = -np.sum(shares * np.log(np.maximum(shares, 1e-30)), axis=1)
            report["cell/entropy"] = float(bits.mean() / np.log(len(self.primitives)))
        genes = [gene for kind in self.genotype(state) for gene in kind]
        report["cell/convolutions"] = float(np.mean(["conv" in operation for operation, _ in genes]))
        return report

    def _watched(self, state: TrainState) -> dict[str, float]:
        """Means over the Child's steps, where it was guided."""
        sums = on_host(state.extra.get("watched", {"steps": 0}))
        steps = float(sums["steps"])
        return {f"child/{name}": float(sums[name]) / steps for name in sums if name != "steps" and steps}

    def figures(self, state: TrainState) -> Figures:
        """The cells, the search, and the genotype as a file."""
        genotype = self.genotype(state)
        cells = genotype._asdict()

        def write(path: pathlib.Path) -> pathlib.Path:
            write_atomically(path, genotype.to_json() + "\n")
            return path

        drawn = {
            "cells": functools.partial(figures.save_cells, cells, title="the cells"),
            GENOTYPE_FILE: write,
        }
        if self.networks:
            trajectory = on_host(state.extra["trajectory"])
            rows = [
                f"{kind} {source}→{node}"
                for kind in KINDS
                for source, node in edges(_nodes(trajectory.shape[1]))
            ]
            drawn["search"] = functools.partial(
                figures.save_shares,
                trajectory,
                rows,
                [name.replace("_", " ") for name in self.primitives],
                title=f"shares of the operations; {NONE} is never chosen",
            )
        return drawn


def _nodes(rows: int) -> int:
    nodes = 1
    while len(KINDS) * len(edges(nodes)) < rows:
        nodes += 1
    return nodes


@functools.partial(jax.jit, static_argnames="network")
def _answers(variables, batch, *, network):
    variables = dict(variables)
    alpha = variables.pop("alpha")
    return network.apply(variables, normalize_pixels(batch["image"]), alpha, train=False).argmax(-1)
