"""The entropy decoder in whole numbers, from the bits to the tables: the same on every machine, whatever adds up in what order.

Floats differ in their last place between batch sizes, devices, compilers and threads, and one symbol that two sides take for
another loses all that follow. So the hyper-decoder is computed with fixed-point weights, exactly: |products| < 2^30 and fewer
than 2^13 of them stay below 2^53, where float64 holds every whole number, and so every order of summation gives the same.

Methods: edic
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxface.errors import UserError
from jaxface.layers.edic import factorized_logits
from jaxface.models.compression.networks import CENTERED, CodecSpec, context_mask

WEIGHT_BITS, FEATURE_BITS = 12, 6
_RESULT_BITS = WEIGHT_BITS + FEATURE_BITS
_MOST_WEIGHT, _MOST_TERMS, _MOST_FEATURE = 8.0, 1 << 13, (1 << 15) - 1
GRID = 16
"""Steps of means and logits in a unit."""
SCALES = 64
"""Scales of a table, in equal steps of their logarithm."""
_LEAST_SCALE, _MOST_SCALE, _SPAN = 0.11, 64.0, 256
TABLE_BITS, CDF_BITS = 24, 16
MOST_SYMBOL = (1 << 11) - 1
"""Largest |ŷ| that can be coded."""
MOST_HYPER = (1 << 14) - 1
"""Largest |ẑ|."""
_EXPONENTS = 192
_POSITIONS = 4096  # that go through a layer at once


class IntegerLayer(NamedTuple):
    """A convolution in fixed point."""

    kernel: np.ndarray
    """[k, k, C_in, C_out], whole numbers as float64."""
    bias: np.ndarray
    """[C_out]."""
    up: int
    """1, or 2 for a transposed convolution."""
    bits: int
    """Fractional bits of its sums; 0 leaves them."""


def _whole(name: str, values: np.ndarray, bits: int, most: float) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all() or np.abs(values).max(initial=0) >= most:
        raise UserError(f"run: {name} needs finite weights below {most:g} to be exported as whole numbers")
    return np.rint(values * 2.0**bits)


def export_layers(spec: CodecSpec, params: Mapping) -> dict[str, np.ndarray]:
    """Fixed-point weights int32 of the hyper-decoder, and of the context model where there is one.

    Args:
      spec: the network.
      params: of `EDIC`, as numpy arrays.

    Raises:
      UserError: a weight of 8 or more, or that is not finite.
    """
    arrays: dict[str, np.ndarray] = {}

    def add(name, kernel, bias, bits):
        if np.prod(kernel.shape[:3]) > _MOST_TERMS:
            raise UserError(
                f"run: {name} adds up {np.prod(kernel.shape[:3])} terms, at most {_MOST_TERMS} stay exact"
            )
        arrays[f"{name}/kernel"] = _whole(name, kernel, WEIGHT_BITS, _MOST_WEIGHT).astype(np.int32)
        arrays[f"{name}/bias"] = _whole(name, bias, bits, 2.0 ** (30 - bits)).astype(np.int32)

    for i in range(1, spec.hyper_halvings + 1):
        layer = params["h_s"][f"deconv{i}"]
        add(f"h_s/deconv{i}", layer["kernel"], layer["bias"], WEIGHT_BITS if i == 1 else _RESULT_BITS)
    add("h_s/conv", params["h_s"]["conv"]["kernel"], params["h_s"]["conv"]["bias"], _RESULT_BITS)
    if spec.entropy == "autoregressive":
        context = params["context"]
        add("context/seen", context["kernel"] * context_mask()[..., None, None], context["bias"], WEIGHT_BITS)
        for i in (1, 2, 3):
            add(
                f"context/layer{i}",
                context[f"layer{i}"]["kernel"],
                context[f"layer{i}"]["bias"],
                _RESULT_BITS,
            )
    return arrays


def _layer(
    arrays: Mapping[str, np.ndarray], name: str, *, up: int = 1, bits: int = _RESULT_BITS
) -> IntegerLayer:
    return IntegerLayer(
        arrays[f"{name}/kernel"].astype(np.float64), arrays[f"{name}/bias"].astype(np.float64), up, bits
    )


def _rounded(sums: np.ndarray, bits: int) -> np.ndarray:
    """ReLU and `FEATURE_BITS` fractional bits of sums with `bits`; whole numbers throughout."""
    shift = bits - FEATURE_BITS
    values = (np.maximum(sums, 0).astype(np.int64) + (1 << (shift - 1))) >> shift
    return np.minimum(values, _MOST_FEATURE).astype(np.float64)


def integer_conv(x: np.ndarray, layer: IntegerLayer) -> np.ndarray:
    """Sums [H, W, C_out] of whole numbers [H, W, C_in], exact: a gather and a product of matrices.

    Args:
      x: float64 that holds whole numbers below 2^15.
      layer: the convolution; a transposed one, with sums [2 H, 2 W, C_out], is four plain ones of the taps that meet values.
    """
    size = layer.kernel.shape[0]
    if layer.up == 1:
        return _sums(x, layer.kernel, ((size // 2, size // 2),) * 2) + layer.bias
    before = size - 1 - size // 2
    sums = np.empty((2 * x.shape[0], 2 * x.shape[1], layer.kernel.shape[3]))
    for phases in np.ndindex(2, 2):
        firsts = [(phase + before) % 2 for phase in phases]
        kernel = layer.kernel[firsts[0] :: 2, firsts[1] :: 2]
        starts = [(phase + first - before) // 2 for phase, first in zip(phases, firsts, strict=True)]
        pads = [(-start, start + taps - 1) for start, taps in zip(starts, kernel.shape[:2], strict=True)]
        sums[phases[0] :: 2, phases[1] :: 2] = _sums(x, kernel, pads)
    return sums + layer.bias


def _sums(x: np.ndarray, kernel: np.ndarray, pads: Sequence[tuple[int, int]]) -> np.ndarray:
    """[H', W', C_out] of a plain convolution of [H, W, C_in] between zeros."""
    x = np.pad(x, (*pads, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(0, 1))  # [H', W', C, k, k]
    height, width = windows.shape[:2]
    matrix = kernel.transpose(2, 0, 1, 3).reshape(windows[0, 0].size, kernel.shape[3])
    sums = np.empty((height, width, matrix.shape[1]))
    rows = max(_POSITIONS // width, 1)
    for top in range(0, height, rows):
        some = windows[top : top + rows]
        sums[top : top + rows] = (some.reshape(-1, len(matrix)) @ matrix).reshape(*some.shape[:2], -1)
    return sums


class IntegerParameters(NamedTuple):
    """What latents are coded under, [..., K] int64: steps of 1/16 for logits and means, numbers of scales."""

    logits: np.ndarray
    mu: np.ndarray
    scale: np.ndarray

    def rows(self, chosen) -> "IntegerParameters":
        """Those of some latents."""
        return IntegerParameters(*(values[chosen] for values in self))


@dataclasses.dataclass(frozen=True, eq=False)
class Tables:
    """All that the entropy decoder looks up: stored with the model, never computed again by whoever decodes.

    Attributes:
      spec: the network.
      arrays: int32 by name: the layers, "thresholds" [63] of log σ, "cdf" [64, 16, 514], "exp" [192], "prior" [N, 2 R + 2].
    """

    spec: CodecSpec
    arrays: Mapping[str, np.ndarray]

    def hyper(self, z: np.ndarray, channels: np.ndarray | None = None) -> np.ndarray:
        """What the hyper-decoder says of ẑ [a, b, N], whole numbers: sums with 18 fractional bits, or 2 M features.

        With `channels` [M], sums of these latents alone, the same numbers; an auto-regressive model needs all of its features.
        """
        if np.abs(z).max(initial=0) > MOST_HYPER:
            raise ValueError(f"z: needs whole numbers up to {MOST_HYPER}")
        x = np.asarray(z, np.float64)
        for i in range(1, self.spec.hyper_halvings + 1):
            bits = WEIGHT_BITS if i == 1 else _RESULT_BITS
            x = _rounded(integer_conv(x, _layer(self.arrays, f"h_s/deconv{i}", up=2)), bits)
        last = _layer(self.arrays, "h_s/conv")
        if channels is not None and self.spec.entropy != "autoregressive":
            columns = np.tile(channels, self.spec.outputs)
            last = last._replace(kernel=last.kernel[..., columns], bias=last.bias[columns])
        sums = integer_conv(x, last)
        return _rounded(sums, _RESULT_BITS) if self.spec.entropy == "autoregressive" else sums

    def parameters(self, sums: np.ndarray) -> IntegerParameters:
        """Quantized parameters [..., M, K] of sums [..., `outputs` M] with 18 fractional bits, of all latents or of some."""
        spec = self.spec
        raw = sums.astype(np.int64).reshape(*sums.shape[:-1], spec.outputs, sums.shape[-1] // spec.outputs)
        raw = np.moveaxis(raw, -2, -1)
        k = spec.components if spec.is_mixture else 1
        scale = np.searchsorted(self.arrays["thresholds"], raw[..., -k:], side="right")
        fine = (raw + (1 << (_RESULT_BITS - 5))) >> (_RESULT_BITS - 4)
        zeros = np.zeros_like(scale)
        if spec.entropy in ("laplace", "scale"):
            return IntegerParameters(zeros, zeros, scale)
        mu = fine[..., -2 * k : -k]
        return IntegerParameters(fine[..., :k] if spec.is_mixture else zeros, mu, scale)

    def offsets(self, parameters: IntegerParameters) -> np.ndarray | None:
        """μ [..., M] float32 that is added to what was coded; None where that is ŷ itself."""
        if self.spec.entropy not in CENTERED:
            return None
        return (parameters.mu[..., 0] / GRID).astype(np.float32)

    def coded_under(self, parameters: IntegerParameters) -> IntegerParameters:
        """The parameters of what is coded: a centered one has mean 0."""
        if self.spec.entropy not in CENTERED:
            return parameters
        return parameters._replace(mu=np.zeros_like(parameters.mu))

    def flat(self, parameters: IntegerParameters, channels: np.ndarray | None = None) -> IntegerParameters:
        """Parameters [S, K] of what is coded of [h, w, M, K], in the channels [M] that have symbols; in all unless given."""
        coded = self.coded_under(parameters)
        if channels is not None:
            coded = coded.rows((..., channels, slice(None)))
        return IntegerParameters(*(values.reshape(-1, values.shape[-1]) for values in coded))

    def frequencies(self, parameters: IntegerParameters, most: int) -> np.ndarray:
        """[S, 2 A + 1] int64 of S latents, each at least 1, with the sum 2^16.

            G(x) = Σ_k E[max - logit_k] C[i_k, μ_k mod 16, x - μ_k div 16] // Σ_k E[·],   G(-A) = 0, G(A + 1) = 2^24
            cdf(x) = (G(x) (2^16 - (2 A + 1)) >> 24) + x + A

        Args:
          parameters: [S, K].
          most: A, at least the largest |symbol|.
        """
        edges = np.arange(-most, most + 2)
        logits = parameters.logits.max(-1, keepdims=True) - parameters.logits
        weights = self.arrays["exp"].astype(np.int64)[np.minimum(logits, _EXPONENTS - 1)]
        whole, part = parameters.mu >> 4, parameters.mu & 15
        table = self.arrays["cdf"]
        flat, width = table.reshape(-1), table.shape[2]
        base = (parameters.scale * GRID + part) * width + _SPAN
        total = np.zeros((len(base), len(edges)), np.int64)
        for k in range(base.shape[1]):
            at = np.clip(edges - whole[:, k, None], -_SPAN, _SPAN + 1) + base[:, k, None]
            total += weights[:, k, None] * flat[at]
        total //= weights.sum(-1, keepdims=True)
        total[:, 0], total[:, -1] = 0, 1 << TABLE_BITS
        cdf = ((total * ((1 << CDF_BITS) - (2 * most + 1))) >> TABLE_BITS) + np.arange(2 * most + 2)
        return np.diff(cdf, axis=1)

    def bits(self, symbols: np.ndarray, parameters: IntegerParameters, most: int) -> float:
        """Bits of symbols [S] under the integer tables: what a perfect coder would need."""
        total = 0.0
        for start in range(0, len(symbols), _POSITIONS):
            some = slice(start, start + _POSITIONS)
            rows = self.frequencies(parameters.rows(some), most)
            counts = np.take_along_axis(rows, symbols[some, None] + most, axis=1)[:, 0]
            total += float((CDF_BITS - np.log2(counts)).sum())
        return total

    @property
    def prior_range(self) -> int:
        """R: ẑ from -R to R have a symbol of their own, what is beyond is escaped."""
        return (self.arrays["prior"].shape[1] - 2) // 2

    def context_layers(self) -> tuple[IntegerLayer, list[IntegerLayer]]:
        """The masked convolution and the layers 1x1 of an auto-regressive model."""
        seen = _layer(self.arrays, "context/seen", bits=WEIGHT_BITS)
        return seen, [_layer(self.arrays, f"context/layer{i}") for i in (1, 2, 3)]

    def contextual(
        self, seen: np.ndarray, features: np.ndarray, layers: list[IntegerLayer]
    ) -> IntegerParameters:
        """Parameters [S, M, K] of S positions from the sums of the masked convolution [S, 2 M] and the features [S, 2 M]."""
        x = np.concatenate([features, _rounded(seen, WEIGHT_BITS)], axis=-1)
        for number, layer in enumerate(layers):
            sums = x @ layer.kernel[0, 0] + layer.bias
            x = sums if number == len(layers) - 1 else _rounded(sums, _RESULT_BITS)
        return self.parameters(x)


def scale_table() -> np.ndarray:
    """[64] float64, 0.11 to 64 in equal ratios."""
    return np.exp(np.linspace(np.log(_LEAST_SCALE), np.log(_MOST_SCALE), SCALES))


_erfc = np.frompyfunc(math.erfc, 1, 1)


def _gaussian_cdf(t: np.ndarray) -> np.ndarray:
    return 0.5 * _erfc(-t / math.sqrt(2.0)).astype(np.float64)


def _laplace_cdf(t: np.ndarray) -> np.ndarray:
    half = 0.5 * np.exp(-np.abs(t))
    return np.where(t < 0, half, 1 - half)


@functools.cache
def _cumulative(family: str) -> np.ndarray:
    """[64, 16, 514] int32: F((n - ½ - f/16) / σ) of every scale and part f of a mean, in units of 2^-24."""
    edges = np.arange(-_SPAN, _SPAN + 2) - 0.5
    at = (edges - np.arange(GRID)[:, None] / GRID) / scale_table()[:, None, None]
    cdf = {"laplace": _laplace_cdf, "gaussian": _gaussian_cdf}[family](at)
    return np.rint(2.0**TABLE_BITS * cdf).astype(np.int32)


def make_tables(spec: CodecSpec, params: Mapping) -> Tables:
    """The tables of a trained network, made once: libraries' erfc and exp differ in the last place, stored numbers do not.

    Args:
      spec: the network.
      params: of `EDIC`, as numpy arrays.

    Raises:
      UserError: weights that fixed point does not hold.
    """
    arrays = export_layers(spec, params)
    logs = np.log(scale_table())
    arrays["thresholds"] = np.rint((logs[1:] + logs[:-1]) / 2 * 2.0**_RESULT_BITS).astype(np.int32)
    arrays["cdf"] = _cumulative("laplace" if spec.entropy == "laplace" else "gaussian").copy()
    arrays["exp"] = np.rint(2.0**15 * np.exp(-np.arange(_EXPONENTS) / GRID)).astype(np.int32)
    arrays["prior"] = prior_frequencies(params["prior"])
    return Tables(spec, arrays)


def layer_shapes(spec: CodecSpec) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every table but the prior's, whose range the training decides."""
    n, m, shapes = spec.channels, spec.latents, {}

    def add(name, size, inputs, outputs):
        shapes[f"{name}/kernel"], shapes[f"{name}/bias"] = (size, size, inputs, outputs), (outputs,)

    for i in range(1, spec.hyper_halvings + 1):
        add(f"h_s/deconv{i}", 5, n, n)
    context = spec.entropy == "autoregressive"
    add("h_s/conv", 3, n, 2 * m if context else spec.outputs * m)
    if context:
        add("context/seen", 5, m, 2 * m)
        widths = (4 * m, 10 * m // 3, 8 * m // 3, spec.outputs * m)
        for i in (1, 2, 3):
            add(f"context/layer{i}", 1, widths[i - 1], widths[i])
    return shapes | {"thresholds": (SCALES - 1,), "cdf": (SCALES, GRID, 2 * _SPAN + 2), "exp": (_EXPONENTS,)}


_LEAST_TAIL, _MOST_RANGE = 2.0**-14, 255


def prior_frequencies(prior: Mapping) -> np.ndarray:
    """[N, 2 R + 2] int32 frequencies of -R … R and of the escape, each at least 1, with the sum 2^16."""
    parts = {
        name: [np.asarray(prior[f"{name}{i}"], np.float64) for i in range(1, count + 1)]
        for name, count in (("h", 4), ("b", 4), ("a", 3))
    }
    edges = np.arange(-_MOST_RANGE, _MOST_RANGE + 2)[:, None] - 0.5
    with np.errstate(over="ignore"):
        cumulative = 1 / (1 + np.exp(-factorized_logits(parts, edges + np.zeros_like(parts["b"][0]))))
    tails = np.stack([cumulative, 1 - cumulative[::-1]]).max(
        (0, 2)
    )  # of -R … R is what lies beyond their edges
    enough = np.flatnonzero(tails[:_MOST_RANGE] < _LEAST_TAIL)
    skipped = int(enough[-1]) if len(enough) else 0
    masses = np.diff(cumulative[skipped : len(cumulative) - skipped], axis=0).T
    rows = np.concatenate([masses, np.maximum(1 - masses.sum(1, keepdims=True), 0)], axis=1)
    counts = np.floor(rows * (2.0**CDF_BITS - rows.shape[1])).astype(np.int64) + 1
    counts[np.arange(len(counts)), counts.argmax(1)] += (1 << CDF_BITS) - counts.sum(1)
    return np.ascontiguousarray(counts, np.int32)
