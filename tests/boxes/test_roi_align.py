"""RoIAlign by hand and against loops of float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.boxes import roi_align, roi_levels

RAMP = (jnp.arange(8.0) + 10 * jnp.arange(8.0)[:, None])[None, ..., None]  # f[y, x] = x + 10 y


def pooled(box, **options):
    box = jnp.array(box, jnp.float32).reshape(1, 1, 4)
    return np.asarray(roi_align([RAMP], box, strides=[1], output_size=2, **options))[0, 0, ..., 0].ravel()


def test_a_ramp_by_hand():
    np.testing.assert_allclose(pooled((1, 1, 5, 5)), [16.5, 18.5, 36.5, 38.5])
    np.testing.assert_allclose(pooled((1, 1, 5, 5), aligned=False), [22, 24, 42, 44])
    np.testing.assert_allclose(pooled((-4, -4, 4, 4)), [0, 0, 0, 16.5])  # points before -1 count as 0


def test_small_regions_of_the_first_version_are_one_cell():
    np.testing.assert_allclose(pooled((2, 3, 2, 3), aligned=False), pooled((2, 3, 3, 4), aligned=False))
    np.testing.assert_allclose(pooled((2.5, 3.5, 2.5, 3.5)), [23, 23, 23, 23])  # aligned: the point itself


def test_levels_by_size():
    sides = np.array([1.0, 111.9, 112.0, 224.0, 448.0, 9000.0])
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)
    assert roi_levels(boxes).tolist() == [0, 0, 1, 2, 3, 3]
    wide = jnp.array([[0.0, 0, 56, 224]])  # the geometric mean counts
    assert roi_levels(wide).tolist() == [1]
    assert roi_levels(jnp.zeros((1, 4))).tolist() == [0]


def slow(maps, box, stride, bins, samples, aligned):
    """One region over one map [H, W, C] by the definition, in float64."""
    height, width, channels = maps.shape
    y0, x0, y1, x1 = np.asarray(box, np.float64) / stride - (0.5 if aligned else 0.0)
    if not aligned:
        y1, x1 = max(y1, y0 + 1), max(x1, x0 + 1)
    result = np.zeros((bins, bins, channels))
    for i, j, a, b in np.ndindex(bins, bins, samples, samples):
        y = y0 + (i + (a + 0.5) / samples) * (y1 - y0) / bins
        x = x0 + (j + (b + 0.5) / samples) * (x1 - x0) / bins
        if not (-1 <= y <= height and -1 <= x <= width):
            continue
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        v, u = y - top, x - left
        result[i, j] += (
            (1 - v) * ((1 - u) * maps[top, left] + u * maps[top, right])
            + v * ((1 - u) * maps[bottom, left] + u * maps[bottom, right])
        ) / samples**2
    return result


@pytest.mark.parametrize(("samples", "aligned"), [(2, True), (1, False)])
def test_a_pyramid_against_the_definition(samples, aligned):
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(2, *shape, 3)).astype(np.float32) for shape in ((12, 16), (6, 8), (1, 2))]
    corner = rng.uniform(-20, 110, (2, 8, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 90, (2, 8, 2))], axis=2).astype(np.float32)
    levels = rng.integers(0, 3, (2, 8))
    strides, bins = (8, 16, 64), 3
    result = jax.jit(
        lambda f, b, l: roi_align(
            f, b, l, strides=strides, output_size=bins, samples=samples, aligned=aligned
        )
    )(features, boxes, levels)
    for image, region in np.ndindex(2, 8):
        level = levels[image, region]
        expected = slow(features[level][image], boxes[image, region], strides[level], bins, samples, aligned)
        np.testing.assert_allclose(result[image, region], expected, atol=2e-5)


def test_gradients_reach_the_maps_and_the_type_is_kept():
    box = jnp.array([[[0.0, 0, 4, 4], [0, 0, 1, 1]]])

    def loss(maps):
        return roi_align([maps], box, strides=[1], output_size=2).sum()

    gradient = np.asarray(jax.grad(loss)(RAMP))[0, ..., 0]
    assert gradient.sum() == pytest.approx(8)  # the weights of every bin sum to 1
    assert (gradient[6:] == 0).all() and (gradient >= 0).all()
    low = roi_align([RAMP.astype(jnp.bfloat16)], box, strides=[1], output_size=2)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        low.astype(jnp.float32), roi_align([RAMP], box, strides=[1], output_size=2), rtol=0.02
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda box: roi_align([RAMP], box, strides=[1, 2]), "strides: needs one for each of the 1 maps"),
        (lambda box: roi_align([RAMP, RAMP], box, strides=[1, 2]), "levels: needs the level of every box"),
        (lambda box: roi_align([RAMP], box[0], strides=[1]), r"boxes: needs \[1, R, 4\], got \(1, 4\)"),
        (lambda box: roi_align([RAMP[0]], box, strides=[1]), r"features\[0\]: needs \[8, H, W, 1\]"),
        (lambda box: roi_align([RAMP], box, strides=[1], samples=0), "samples: needs an integer from 1"),
        (lambda box: roi_align([RAMP], box - jnp.arange(4), strides=[1]), r"boxes: needs \(y0, x0, y1, x1\)"),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises(ValueError, match=f"^{words}") as refused:
        call(jnp.array([[[0.0, 0, 1, 1]]]))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("count", [3, 21])  # less than a block of regions, and several with a rest
def test_its_own_gradient_is_that_of_the_definition(count):
    """Of maps and of boxes, against what JAX derives from gathers alone."""
    rng = np.random.default_rng(count)
    maps = [jnp.asarray(rng.normal(size=(2, side, side, 3)), jnp.float32) for side in (8, 4)]
    corner = rng.uniform(-2, 20, (2, count, 2))
    boxes = jnp.asarray(np.concatenate([corner, corner + rng.uniform(2, 20, (2, count, 2))], -1), jnp.float32)
    levels = jnp.asarray(rng.integers(0, 2, (2, count)))
    target = jnp.asarray(rng.normal(size=(2, count, 3, 3, 3)), jnp.float32)

    def loss(maps, boxes, pool):
        return jnp.sum(target * pool(maps, boxes))

    def plain(maps, boxes):
        """Every region on every level, sample by sample."""

        def on_level(level_map, stride):
            cells = boxes / stride - 0.5
            steps = (jnp.arange(6) + 0.5) / 6
            points = cells[..., :2, None] + (cells[..., 2:, None] - cells[..., :2, None]) * steps
            size = level_map.shape[1]
            inside = (points >= -1) & (points <= size)
            points = jnp.clip(points, 0, size - 1)
            near = jnp.maximum(1 - jnp.abs(points[..., None] - jnp.arange(size)), 0) * inside[..., None]
            rows, columns = near[:, :, 0], near[:, :, 1]  # [B, R, samples, cells]
            values = jnp.einsum("brsy,brtx,byxc->brstc", rows, columns, level_map)
            return values.reshape(2, count, 3, 2, 3, 2, 3).mean(axis=(3, 5))

        both = jnp.stack([on_level(m, s) for m, s in zip(maps, (4, 8), strict=True)])
        return jnp.where((levels == 0)[..., None, None, None], both[0], both[1])

    def ours(maps, boxes):
        return roi_align(maps, boxes, levels, strides=(4, 8), output_size=3)

    np.testing.assert_allclose(ours(maps, boxes), plain(maps, boxes), atol=1e-5)
    expected = jax.grad(loss, argnums=(0, 1))(maps, boxes, plain)
    given = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)(maps, boxes, ours)
    for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
