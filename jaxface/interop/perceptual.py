"""Published weights of LPIPS, DISTS and BRISQUE.

    VGG-16    torchvision's features.{0 2 5 7 10 12 14 17 19 21 24 26 28}.{weight bias}; its classifier is left out
    AlexNet   torchvision's features.{0 3 6 8 10}.{weight bias}
    LPIPS     lin{0-4}.model.1.weight [1, C, 1, 1], richzhang/PerceptualSimilarity, version 0.1
    DISTS     alpha and beta [1, 1475, 1, 1], dingkeyan93/DISTS
    BRISQUE   a model of libsvm as text (epsilon_svr, nu_svr; rbf or linear), and the ranges that svm-scale wrote

Methods: niqa_attack
"""

import pathlib
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from jaxface.errors import UserError
from jaxface.interop.state_dict import _checked, difference, unwrapped
from jaxface.interop.weights import read_tensors
from jaxface.metrics.image.kernel_regression import KernelRegression, LinearRegression
from jaxface.metrics.image.perceptual import (
    ALEX_CHANNELS,
    VGG_CHANNELS,
    VGG_DEPTHS,
    Convolutions,
    DistsWeights,
    LpipsWeights,
)
from jaxface.paths import local_path, reason_of

Path = str | pathlib.Path

_VGG = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_ALEX = (0, 3, 6, 8, 10)
_ALEX_SIDES = (11, 5, 3, 3, 3)
_LONGEST_TEXT = 1 << 28  # bytes; BRISQUE's model has 774 vectors, half a megabyte


def trunk_convolutions(
    state: Mapping[str, np.ndarray], trunk: str = "vgg16", *, source: str = "state dict", narrower: int = 1
) -> Convolutions:
    """The convolutions of torchvision's VGG-16 or AlexNet.

        [O, I, H, W] -> [H, W, I, O]

    Args:
      state: name -> array; what is not `features.…` is left out.
      trunk: "vgg16" or "alexnet".
      source: what to call the tensors in a refusal.
      narrower: every level has this fraction of the published channels, 1 for those.

    Returns:
      (kernel, bias) of each.

    Raises:
      UserError: another trunk, or another architecture (names the first tensor that differs and both shapes).
    """
    if trunk not in ("vgg16", "alexnet"):
        raise UserError(f"trunk: needs vgg16 or alexnet, got {trunk!r}")
    levels, depths, numbers, sides = (
        (VGG_CHANNELS, VGG_DEPTHS, _VGG, (3,) * 13)
        if trunk == "vgg16"
        else (ALEX_CHANNELS, (1,) * 5, _ALEX, _ALEX_SIDES)
    )
    outputs = [max(c // narrower, 1) for c, depth in zip(levels, depths, strict=True) for _ in range(depth)]
    state = unwrapped(state)
    convolutions = []
    for number, inputs, output, side in zip(numbers, [3, *outputs[:-1]], outputs, sides, strict=True):
        name = f"features.{number}"
        kernel = _checked(state, f"{name}.weight", (output, inputs, side, side), source)
        bias = _checked(state, f"{name}.bias", (output,), source)
        convolutions.append((jnp.asarray(kernel.transpose(2, 3, 1, 0)), jnp.asarray(bias)))
    expected = {f"features.{number}.{leaf}" for number in numbers for leaf in ("weight", "bias")}
    for name, array in state.items():
        if name.startswith("features.") and name not in expected:
            raise difference(source, name, np.shape(array), "nothing")
    return tuple(convolutions)


def _not_negative(values: np.ndarray, name: str, source: str) -> jnp.ndarray:
    if np.any(values < 0):
        raise UserError(f"weights: {source}: {name} needs weights of at least 0, got {values.min():.6g}")
    return jnp.asarray(values)


def read_lpips(
    trunk_path: Path, linear_path: Path, *, trunk: str = "vgg16", narrower: int = 1
) -> LpipsWeights:
    """The weights of LPIPS from two files of PyTorch or safetensors.

    Args:
      trunk_path: torchvision's VGG-16 or AlexNet, such as vgg16-397923af.pth.
      linear_path: the linear layers, such as vgg.pth of version 0.1.
      trunk: "vgg16" or "alexnet".
      narrower: every level has this fraction of the published channels, 1 for those.

    Raises:
      UserError: a file that cannot be read, another architecture, or a weight below 0.
    """
    convolutions = trunk_convolutions(
        read_tensors(trunk_path), trunk, source=str(trunk_path), narrower=narrower
    )
    state, source = unwrapped(read_tensors(linear_path)), str(linear_path)
    levels = [max(c // narrower, 1) for c in (VGG_CHANNELS if trunk == "vgg16" else ALEX_CHANNELS)]
    linear = []
    for level, channels in enumerate(levels):
        name = f"lin{level}.model.1.weight"
        values = _checked(state, name, (1, channels, 1, 1), source).reshape(-1)
        linear.append(_not_negative(values, name, source))
    return LpipsWeights(convolutions, tuple(linear))


def read_dists(trunk_path: Path, weights_path: Path, *, narrower: int = 1) -> DistsWeights:
    """The weights of DISTS from two files of PyTorch or safetensors.

    Args:
      trunk_path: torchvision's VGG-16.
      weights_path: alpha and beta, weights.pt of the release.
      narrower: every level has this fraction of the published channels, 1 for those.

    Raises:
      UserError: a file that cannot be read, another architecture, or a weight below 0.
    """
    convolutions = trunk_convolutions(read_tensors(trunk_path), source=str(trunk_path), narrower=narrower)
    state, source = unwrapped(read_tensors(weights_path)), str(weights_path)
    channels = 3 + sum(max(c // narrower, 1) for c in VGG_CHANNELS)
    alpha, beta = (
        _not_negative(_checked(state, name, (1, channels, 1, 1), source).reshape(-1), name, source)
        for name in ("alpha", "beta")
    )
    return DistsWeights(convolutions, alpha, beta)


def _text(name: str, path: Path) -> list[str]:
    path = local_path(name, path)
    try:
        if path.stat().st_size > _LONGEST_TEXT:
            raise UserError(f"{name}: needs at most {_LONGEST_TEXT >> 20} MB, {path} has more")
        return path.read_text("ascii").splitlines()
    except OSError as error:
        raise UserError(f"{name}: cannot read {path}: {reason_of(error)}") from None
    except UnicodeDecodeError:
        raise UserError(f"{name}: needs a text file, {path} has other bytes") from None


def _vector(words: list[str], features: int, where: str) -> np.ndarray:
    """Of "1:0.5 3:-1", with zeros for what is not told."""
    row = np.zeros(features, np.float64)
    try:
        for word in words:
            index, value = word.split(":")
            if not 1 <= int(index) <= features:
                raise ValueError
            row[int(index) - 1] = float(value)
    except ValueError:
        raise UserError(
            f"weights: needs words such as 3:-0.5 with up to {features} features in {where}"
        ) from None
    return row


def read_feature_ranges(path: Path, features: int) -> tuple[np.ndarray, np.ndarray]:
    """(least, largest) of each feature, as svm-scale wrote them: "x", "-1 1", then "number least largest" lines.

    Raises:
      UserError: a file that cannot be read, other targets than -1 and 1, or a feature that it lacks.
    """
    lines = [line.split() for line in _text("ranges", path) if line.strip()]
    if lines[:1] != [["x"]] or len(lines) < 2 or [_number(w) for w in lines[1]] != [-1.0, 1.0]:
        raise UserError(f"ranges: needs lines x and -1 1 first in {path}")
    low, high = np.full(features, np.nan), np.full(features, np.nan)
    for words in lines[2:]:
        numbers = [_number(word) for word in words]
        if (
            len(numbers) == 3
            and numbers[0] is not None
            and 1 <= numbers[0] <= features
            and numbers[0] % 1 == 0
        ):
            low[int(numbers[0]) - 1], high[int(numbers[0]) - 1] = numbers[1] or 0.0, numbers[2] or 0.0
    if (bad := np.flatnonzero(~(high > low))).size:
        raise UserError(f"ranges: needs a least and a larger value of feature {bad[0] + 1} in {path}")
    return low, high


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def read_svr(
    path: Path, ranges_path: Path | None = None, *, features: int = 36
) -> KernelRegression | LinearRegression:
    """A support vector regression of libsvm, as what `kernel_scores` or, of a linear kernel, `linear_scores` takes.

        Σ_k coef_k exp(-γ |f' - v_k|²) - ρ,   or (Σ_k coef_k v_k) · f' - ρ

    Args:
      path: the model, as libsvm's svm-train writes it.
      ranges_path: of the features, as svm-scale writes them; without it features are taken as they are.
      features: D, 36 of BRISQUE.

    Raises:
      UserError: a file that cannot be read, another kind of model, or damaged vectors.
    """
    lines = _text("weights", path)
    start = next((i for i, line in enumerate(lines) if line.strip() == "SV"), None)
    head = {}
    for line in lines[: start or 0]:
        key, _, value = line.strip().partition(" ")
        head[key] = value
    if start is None or head.get("svm_type") not in ("epsilon_svr", "nu_svr"):
        raise UserError(f"weights: needs a support vector regression of libsvm, {path} is none")
    if head.get("kernel_type") not in ("rbf", "linear"):
        raise UserError(f"weights: needs a kernel rbf or linear, {path} has {head.get('kernel_type')!r}")
    rho, gamma = (_number(head.get(key, "nan")) for key in ("rho", "gamma"))
    vectors = [line.split() for line in lines[start + 1 :] if line.strip()]
    if (
        rho is None
        or not np.isfinite(rho)
        or not vectors
        or head.get("total_sv") not in (None, str(len(vectors)))
    ):
        raise UserError(f"weights: {path} is damaged: it has no rho, or other vectors than it says")
    where = str(path)
    coefficients = np.array([_number(words[0]) for words in vectors], np.float64)
    centers = np.stack([_vector(words[1:], features, where) for words in vectors])
    if not (np.isfinite(coefficients).all() and np.isfinite(centers).all()):
        raise UserError(f"weights: {path} is damaged: a coefficient or a vector is no finite number")
    low, high = -np.ones(features), np.ones(features)
    if ranges_path is not None:
        low, high = read_feature_ranges(ranges_path, features)
    if head["kernel_type"] == "linear":
        parts = (low, high, coefficients @ centers, -rho)
        return LinearRegression(*(jnp.asarray(part, jnp.float32) for part in parts))
    if gamma is None or not gamma > 0:
        raise UserError(f"weights: needs a gamma above 0 in {path}")
    parts = (low, high, centers, coefficients, -rho, gamma)
    return KernelRegression(*(jnp.asarray(part, jnp.float32) for part in parts))
