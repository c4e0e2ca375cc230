"""Networks of cells: the supernet, whose edges carry every operation at once, and the network of a genotype.

    stem       conv3x3, BN, real; for large images three of them with stride 2
    cells      every one reads the two before it; channels double where the plane halves
    head       mean over the plane, Dense, real

Methods: dcp_nas
"""

import dataclasses
import zlib
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxface.errors import UserError
from jaxface.layers import BatchNorm
from jaxface.layers.dcp_nas import Form, ScaleRule, packed_params
from jaxface.layers.remat import Remat, run_block
from jaxface.models.cells.genotype import (
    INPUTS,
    KINDS,
    NONE,
    RELEASED,
    SMALL,
    Gene,
    Genotype,
    check_primitives,
    edges,
    genotype_from_json,
)
from jaxface.models.cells.operations import OPERATIONS, FactorizedReduce, Preprocess, Style
from jaxface.models.depth import DepthOrder
from jaxface.models.registry import MODELS

_DEFAULT_SMALL = Genotype(
    normal=(("conv_3x3", 0), ("skip_connect", 1), ("conv_3x3", 1), ("avg_pool_3x3", 0)),
    reduce=(("max_pool_3x3", 0), ("conv_3x3", 1), ("conv_1x1", 2), ("max_pool_3x3", 1)),
)


class MixedOp(nn.Module):
    """Σ_m w_m o_m(x) over all operations but `none`, which adds nothing.

    Args:
      features, stride, style: of the operations.
      primitives: their names.
      remat: "block" computes each operation's inner arrays again in the backward pass.

    x [B, H, W, C], weights [M] -> [B, ⌈H / stride⌉, ⌈W / stride⌉, features].
    """

    features: int
    stride: int
    style: Style
    primitives: tuple[str, ...]
    remat: Remat = "none"

    @nn.compact
    def __call__(self, x: jax.Array, weights: jax.Array, *, train: bool) -> jax.Array:
        total = 0.0
        for name, weight in zip(self.primitives, weights, strict=True):
            if name == NONE:
                continue
            operation = OPERATIONS[name](self.features, self.stride, self.style, name=name)
            output = run_block(operation, x, remat=self.remat, train=train)
            total = total + weight.astype(output.dtype) * output
        return total


class _Edges(nn.Module):
    """The body of a loop over edges: reads a node, adds a mixture of operations to another.

    (nodes [n, B, H', W', C], sources [s, B, H, W, C] or None where nodes are read, (source, node, weights [M])) -> nodes.
    """

    features: int
    stride: int
    style: Style
    primitives: tuple[str, ...]
    remat: Remat
    train: bool

    @nn.compact
    def __call__(self, nodes, sources, row):
        source, node, weights = row
        mixed = MixedOp(self.features, self.stride, self.style, self.primitives, self.remat, name="mixed")
        x = (nodes if sources is None else sources)[source]
        return nodes.at[node].add(mixed(x, weights, train=self.train)), None


class Cell(nn.Module):
    """Two inputs, some nodes; the nodes' outputs side by side.

    A mixture is one loop over its edges, whose weights are stacked [E, ...]: a program of one body, however many edges there are.

    Args:
      features: channels of a node.
      nodes: intermediate ones.
      reduction: whether the plane halves here; reduced_before: whether it did in the cell before.
      style: of the operations.
      genes: which edges there are, and what is on them; every one with `primitives` where None.
      primitives, remat: of a mixture.

    before, last [B, H, W, C], of the two cells before; weights [E, M] of a mixture -> [B, H', W', nodes · features].
    """

    features: int
    nodes: int
    reduction: bool
    reduced_before: bool
    style: Style
    genes: tuple[Gene, ...] | None = None
    primitives: tuple[str, ...] = ()
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self, before: jax.Array, last: jax.Array, weights: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        first = FactorizedReduce if self.reduced_before else Preprocess
        states = [
            first(self.features, self.style, name="input0")(before, train=train),
            Preprocess(self.features, self.style, name="input1")(last, train=train),
        ]
        if self.genes is None:
            return self._mixed(jnp.stack(states), weights, train)
        for node in range(INPUTS, INPUTS + self.nodes):
            pair = self.genes[2 * (node - INPUTS) :][:2]
            terms = [self._one(states, gene, node, i, train) for i, gene in enumerate(pair)]
            states.append(sum(terms[1:], terms[0]))
        return jnp.concatenate(states[INPUTS:], axis=-1)

    def _mixed(self, inputs, weights, train):
        table = np.array(edges(self.nodes))
        if not self.reduction:
            empty = jnp.zeros((self.nodes, *inputs.shape[1:]), inputs.dtype)
            states = jnp.concatenate([inputs, empty])
            nodes = self._loop("edges", 1, states, None, table, weights, train)[INPUTS:]
        else:
            _, batch, height, width, channels = inputs.shape
            half = (batch, -(-height // 2), -(-width // 2), channels)
            nodes = jnp.zeros((self.nodes, *half), inputs.dtype)
            outer = table[:, 0] < INPUTS
            # Edges from the inputs halve the plane and wait for nothing; those between nodes follow in order.
            rows = table[outer] - [0, INPUTS]
            nodes = self._loop("outer", 2, nodes, inputs, rows, weights[outer], train)
            if not outer.all():
                rows = table[~outer] - INPUTS
                nodes = self._loop("inner", 1, nodes, None, rows, weights[~outer], train)
        return jnp.concatenate(list(nodes), axis=-1)

    def _loop(self, name, stride, nodes, sources, table, weights, train):
        loop = nn.scan(
            _Edges,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0),
            length=len(table),
        )
        body = loop(self.features, stride, self.style, self.primitives, self.remat, train, name=name)
        source, node = jnp.asarray(table, jnp.int32).T
        return body(nodes, sources, (source, node, weights))[0]

    def _one(self, states, gene, node, index, train):
        name, source = gene
        stride = 2 if self.reduction and source < INPUTS else 1
        operation = OPERATIONS[name](self.features, stride, self.style, name=f"node{node}_{index}")
        return run_block(operation, states[source], remat=self.remat, train=train)


def _conv(features: int, stride: int, **fields) -> nn.Conv:
    return nn.Conv(features, (3, 3), stride, padding=1, use_bias=False, **fields)


class _Stem(nn.Module):
    """Two inputs of the first cell: one real convolution for small images, three of stride 2 for large ones."""

    channels: int
    small_images: bool
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = image.astype(self.dtype)
        if self.small_images:
            x = BatchNorm(name="norm", **types)(_conv(self.channels, 1, name="conv", **types)(x), train=train)
            return x, x
        outputs = []
        for index, features in enumerate((self.channels // 2, self.channels, self.channels)):
            if index:
                x = nn.relu(x)
            x = _conv(features, 2, name=f"conv{index}", **types)(x)
            x = BatchNorm(name=f"norm{index}", **types)(x, train=train)
            outputs.append(x)
        return outputs[1], outputs[2]


def check_sizes(channels: int, cells: int, reductions: tuple[int, ...]) -> None:
    """Raises UserError for fewer than two channels, no cell, or a reduction that is no cell or there twice."""
    if channels < 2 or cells < 1:
        raise UserError(f"channels, cells: need at least 2 and 1, got {channels} and {cells}")
    if len(set(reductions)) != len(reductions) or not all(0 <= cell < cells for cell in reductions):
        raise UserError(f"reductions: needs cells from 0 to {cells - 1}, each once, got {reductions}")


def _run_cells(module, stem, make_cell, train):
    """The last cell's output; `make_cell(index, features, reduction, reduced_before)` runs one of them."""
    before, last = stem
    features, reduced = module.channels, not module.small_images
    for index in range(module.cells):
        reduction = index in module.reductions
        features *= 2 if reduction else 1
        before, last = last, make_cell(index, features, reduction, reduced, before, last, train)
        reduced = reduction
    return last


class SuperNet(nn.Module):
    """Every operation on every edge, mixed by the softmax of an architecture; Parent and Child are two forms of it.

    Normalizations have no scale and no bias, as usual in searches: a scale would be another weight of an operation.

    Args:
      classes: N.
      channels: of a node in the first cell.
      cells: how many; reductions: which of them halve the plane.
      nodes: intermediate ones of a cell.
      primitives: operations of an edge.
      form: "real" for the Parent, "binary" for the Child (`jaxface.layers.dcp_nas`).
      small_images: one convolution as the stem, else three of stride 2.
      remat: "block" stores the inputs of operations alone for the backward pass: M times fewer branches.

    image [B, H, W, C], alpha [2E, M] (rows of the normal cells, then those of the reducing ones) -> logits [B, N] float32.

    Raises:
      UserError: an α of another shape, unknown operations, none without others, or sizes that cannot be.
    """

    classes: int
    channels: int = 16
    cells: int = 8
    reductions: tuple[int, ...] = (2, 5)
    nodes: int = 4
    primitives: tuple[str, ...] = SMALL
    form: Form = "real"
    small_images: bool = True
    remat: Remat = "none"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def __post_init__(self):
        check_primitives(self.primitives, (*OPERATIONS, NONE))
        check_sizes(self.channels, self.cells, self.reductions)
        super().__post_init__()

    @property
    def alpha_shape(self) -> tuple[int, int]:
        """(2E, M)."""
        return len(KINDS) * len(edges(self.nodes)), len(self.primitives)

    def fresh(self, rng: jax.Array, image_shape: tuple[int, int, int]) -> dict:
        """Variables as `init` draws them, {"params", "batch_stats"}, without a program of the whole network.

        Kernels are normal of variance 2 / fan_in, those of stem and head 1 / fan_in; β is mean |w|.
        """
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        alpha = jax.ShapeDtypeStruct(self.alpha_shape, jnp.float32)
        shapes = jax.eval_shape(self.init, jax.eval_shape(lambda: jax.random.key(0)), image, alpha)
        return {kind: _drawn(tree, rng, "") for kind, tree in shapes.items()}

    @nn.compact
    def __call__(self, image: jax.Array, alpha: jax.Array, *, train: bool = False) -> jax.Array:
        if alpha.shape != self.alpha_shape:
            rows, columns = self.alpha_shape
            raise UserError(
                f"alpha: needs [{rows}, {columns}], a row for each edge of both kinds of cells, got {alpha.shape}"
            )
        style = Style(
            self.form, affine=False, forward_mode=True, dtype=self.dtype, param_dtype=self.param_dtype
        )
        shares = jnp.split(jax.nn.softmax(alpha, axis=-1), len(KINDS))

        def cell(index, features, reduction, reduced, before, last, train):
            module = Cell(
                features,
                self.nodes,
                reduction,
                reduced,
                style,
                primitives=self.primitives,
                remat=self.remat,
                name=f"cell{index}",
            )
            return module(before, last, shares[int(reduction)], train=train)

        stem = _Stem(self.channels, self.small_images, self.dtype, self.param_dtype, name="stem")
        x = _run_cells(self, stem(image, train=train), cell, train)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.classes, param_dtype=self.param_dtype, name="head_dense")(x)


_CONSTANTS = {"slope": 0.25, "bias": 0.0, "mean": 0.0, "var": 1.0, "scale": 1.0}


def _drawn(shapes, rng, path):
    drawn = {}
    for name, leaf in sorted(shapes.items()):  # a kernel before the scale that belongs to it
        inner = f"{path}/{name}"
        if isinstance(leaf, dict):
            drawn[name] = _drawn(leaf, rng, inner)
        elif name == "kernel":
            fan_in = np.prod(leaf.shape[-4:-1])
            variance = (2.0 if inner.startswith("/cell") else 1.0) / fan_in
            key = jax.random.fold_in(rng, zlib.crc32(inner.encode()))
            drawn[name] = variance**0.5 * jax.random.normal(key, leaf.shape, leaf.dtype)
        elif name == "scale" and "kernel" in drawn:
            drawn[name] = jnp.mean(jnp.abs(drawn["kernel"]), axis=(-4, -3, -2))
        else:
            drawn[name] = jnp.full(leaf.shape, _CONSTANTS[name], leaf.dtype)
    return drawn


class CellNetwork(nn.Module):
    """The network of a genotype.

    Args:
      embedding: features of the last Dense layer; None leaves it out.
      genotype: JSON, as `Genotype.to_json` writes it.
      channels, cells, reductions, small_images: as `SuperNet`.
      form, scale: of the convolutions inside of cells (`jaxface.layers.dcp_nas.OneBitConv`): "real", "signs", "binary", "packed".
      remat: "block" stores the inputs of operations alone for the backward pass.

    image [B, H, W, C] -> [B, embedding] float32.

    Raises:
      UserError: a genotype that is none, of other operations, or that reads a later node; sizes that cannot be.
    """

    embedding: int | None = None
    genotype: str = RELEASED.to_json()
    channels: int = 108
    cells: int = 10
    reductions: tuple[int, ...] = (3, 6)
    form: Form = "binary"
    scale: ScaleRule = "released"
    small_images: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    def __post_init__(self):
        genotype_from_json(self.genotype)
        check_sizes(self.channels, self.cells, self.reductions)
        super().__post_init__()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        genotype = genotype_from_json(self.genotype)
        style = Style(self.form, self.scale, dtype=self.dtype, param_dtype=self.param_dtype)

        def cell(index, features, reduction, reduced, before, last, train):
            genes = genotype[int(reduction)]
            module = Cell(
                features,
                genotype.nodes,
                reduction,
                reduced,
                style,
                genes,
                remat=self.remat,
                name=f"cell{index}",
            )
            return module(before, last, train=train)

        stem = _Stem(self.channels, self.small_images, self.dtype, self.param_dtype, name="stem")
        x = _run_cells(self, stem(image, train=train), cell, train)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        if self.embedding is None:
            return x
        return nn.Dense(self.embedding, param_dtype=self.param_dtype, name="head_dense")(x)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        return ("stem",), *((f"cell{i}",) for i in range(self.cells))


def to_packed_cells(model: CellNetwork, variables: dict) -> tuple[CellNetwork, dict]:
    """The deployment form of a trained network of cells: latent weights become bits, one each, and products of signs are counted.

    Depthwise convolutions and those before a cell read real values: their weights are stored as bits, their products are real.
    Stem, normalizations and the head stay as they are.

    Args:
      model: of form "binary".
      variables: {"params", "batch_stats"} of it.

    Returns:
      A network and its variables; `apply(variables, image, train=False)` gives what the training form gives.

    Raises:
      UserError: another form, or a latent weight of exactly 0.
    """
    if model.form != "binary":
        raise UserError(f"form: needs a network of binary weights to pack, got {model.form!r}")
    params = {
        name: packed_params(value, model.scale) if name.startswith("cell") else value
        for name, value in variables["params"].items()
    }
    fields = {
        f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in ("parent", "name")
    }
    return CellNetwork(**{**fields, "form": "packed"}), {**variables, "params": params}


MODELS.update(
    {
        "dcp_nas_large": CellNetwork,
        # For images as small as digits.
        "dcp_nas_pico": partial(
            CellNetwork,
            genotype=_DEFAULT_SMALL.to_json(),
            channels=8,
            cells=2,
            reductions=(1,),
            scale="learned",
            small_images=True,
        ),
    }
)
