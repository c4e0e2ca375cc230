"""What attention maps look like: reported, never optimized.

Maps are [N, h, w] ≥ 0 that sum to 1, or to 0 where a network gave none; those without are left out of every mean. Those of a
transformer, softmaxes [B, heads, N, N] of tokens over tokens, become such maps by `class_attention` or `attention_rollout`.

Methods: gabn
"""

from collections.abc import Sequence

import numpy as np

from jaxface import checks
from jaxface.errors import UserError


def _flat(maps) -> np.ndarray:
    """[N, h w] float64, each row summing to 1 or 0."""
    maps = checks.real_array("maps", maps, ndim=3).astype(np.float64)
    if maps.min() < 0:
        raise UserError(f"maps: needs values of at least 0, got {maps.min():g}")
    flat = maps.reshape(len(maps), -1)
    total = flat.sum(axis=1, keepdims=True)
    return flat / np.where(total > 0, total, 1.0)


def attention_coverage(maps) -> np.ndarray:
    """Spread of attention, [N] in [0, 1]: C = -Σ G log G / log(h w); 1 for a uniform map, 0 for one place; NaN for no map.

    Raises:
      ValueError: not three axes. UserError: a negative or infinite value, or a map of one place.

    Example:
      >>> maps = np.array([[[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]])
      >>> attention_coverage(maps).round(3).tolist()  # spread over all four places, over two of them
      [1.0, 0.5]
    """
    flat = _flat(maps)
    if flat.shape[1] < 2:
        raise UserError("maps: needs at least two places to spread over, got one")
    entropy = -(flat * np.log(np.where(flat > 0, flat, 1.0))).sum(axis=1)
    return np.where(flat.any(axis=1), entropy / np.log(flat.shape[1]), np.nan)


def sensitive_area(maps, *, share: float = 0.5) -> np.ndarray:
    """Fraction of the places, the strongest first, that hold `share` of a map's mass: [N] in (0, 1]; NaN for no map.

    Raises:
      ValueError: not three axes. UserError: a negative or infinite value, or a share outside (0, 1].

    Example:
      >>> sensitive_area(np.array([[[0.6, 0.2], [0.1, 0.1]]])).tolist()  # one of four places holds half
      [0.25]
    """
    flat = _flat(maps)
    checks.check_number("share", share, checks.Range(0, 1, above=True))
    mass = np.cumsum(-np.sort(-flat, axis=1), axis=1)
    # A hair below the share: sums of many small numbers may miss it by rounding.
    needed = (mass < share - 1e-9).sum(axis=1) + 1
    return np.where(flat.any(axis=1), needed / flat.shape[1], np.nan)


def attention_gap(maps, groups, first: int = 0, second: int = 1) -> float:
    """How far the mean maps of two groups are apart: Σ_hw |mean_a G - mean_b G|, in [0, 2].

    Args:
      maps: [N, h, w].
      groups: [N] integers.
      first, second: the groups a and b.

    Raises:
      ValueError: shapes disagree. UserError: no map of one of the groups.

    Example:
      >>> maps = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
      >>> attention_gap(maps, np.array([0, 1]))  # two groups, looked at in two places
      2.0
    """
    flat = _flat(maps)
    groups = checks.integer_array("groups", groups, len(flat))
    means = []
    for group in (first, second):
        group_maps = flat[(groups == group) & flat.any(axis=1)]
        if not len(group_maps):
            raise UserError(f"groups: needs maps of each group, got none of group {group}")
        means.append(group_maps.mean(axis=0))
    return float(np.abs(means[0] - means[1]).sum())


def attention_mass(maps, region) -> np.ndarray:
    """Share of each map's mass inside a region of the image, [N] in [0, 1]; NaN for no map.

    Args:
      maps: [N, h, w]; a place stands for a block of the image, over which its mass is even.
      region: [H, W] bool, H and W multiples of h and w.

    Raises:
      ValueError: shapes that do not fit.

    Example:
      >>> region = np.array([[True, False]])
      >>> attention_mass(np.array([[[0.25, 0.75]]]), region).tolist()
      [0.25]
    """
    flat = _flat(maps)
    height, width = np.shape(maps)[1:]
    region = np.asarray(region)
    region = checks.truth_array("region", region.ravel(), region.size).reshape(region.shape)
    if region.ndim != 2 or region.shape[0] % height or region.shape[1] % width:
        raise ValueError(f"region: needs multiples of the map's {height}x{width}, got {region.shape}")
    blocks = region.reshape(height, region.shape[0] // height, width, region.shape[1] // width)
    return np.where(flat.any(axis=1), flat @ blocks.mean(axis=(1, 3)).reshape(-1), np.nan)


def class_attention(maps, *, extra: int = 1) -> np.ndarray:
    """What the first token attends to among the patches: the mean over the heads, [B, N - extra], each row summing to 1.

    Args:
      maps: [B, heads, N, N] attention of one layer, or [B, N, N] of `attention_rollout`; the first token is that of the class.
      extra: tokens before those of the patches.

    Raises:
      ValueError: another shape. UserError: a negative or infinite value, or no patch left.

    Example:
      >>> maps = np.array([[[[0.5, 0.4, 0.1], [0, 1, 0], [0, 0, 1]]]])  # one image, one head, a class token and two patches
      >>> class_attention(maps).tolist()
      [[0.8, 0.2]]
    """
    maps = _layer("maps", maps)
    if not 1 <= extra < maps.shape[-1]:
        raise UserError(f"extra: needs 1 to {maps.shape[-1] - 1} of {maps.shape[-1]} tokens, got {extra}")
    patches = maps[:, 0, extra:]
    total = patches.sum(axis=-1, keepdims=True)
    return patches / np.where(total > 0, total, 1.0)


def attention_rollout(layers: Sequence) -> np.ndarray:
    """How much of each input token reaches each output token through attention and residuals (arXiv:2005.00928).

        R = Ã_L … Ã_2 Ã_1,    Ã = ½ (mean over the heads of A) + ½ I

    Args:
      layers: [B, heads, N, N] of each layer, from the first; every row sums to 1, and N is the same in all of them.

    Returns:
      [B, N, N] float64, row i of output token i, summing to 1; `class_attention` makes maps of it.

    Raises:
      ValueError: no layer, or shapes that differ. UserError: a negative or infinite value.

    Example:
      >>> swap = np.array([[[[0.0, 1.0], [1.0, 0.0]]]])  # each of two tokens looks at the other one
      >>> attention_rollout([swap]).tolist()
      [[[0.5, 0.5], [0.5, 0.5]]]
    """
    means = [_layer(f"layers[{i}]", maps) for i, maps in enumerate(layers)]
    shapes = {mean.shape for mean in means}
    if len(shapes) != 1:
        raise ValueError(f"layers: need at least one, and one shape; got {sorted(shapes)}")
    rollout = np.eye(means[0].shape[-1])
    for mean in means:
        rollout = (mean @ rollout + rollout) / 2
    return rollout


def _layer(name: str, maps) -> np.ndarray:
    """The mean over the heads: [B, N, N] float64."""
    maps = np.asarray(maps)
    maps = maps[:, None] if maps.ndim == 3 else maps
    maps = checks.real_array(name, maps, ndim=4).astype(np.float64).mean(axis=1)
    if maps.shape[-1] != maps.shape[-2]:
        raise ValueError(f"{name}: needs as many queries as keys, got {maps.shape[-2:]}")
    if maps.min() < 0:
        raise UserError(f"{name}: needs values of at least 0, got {maps.min():g}")
    return maps
