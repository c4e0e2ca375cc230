"""Five-point alignment: the landmark template, the similarity transform onto it, and the warp.

Coordinates are (x, y) in pixels with pixel centers at integers. The five landmarks are, in this order, left eye,
right eye, nose tip, left mouth corner, right mouth corner, where left and right are sides of the *image*. A
similarity cannot reflect: landmarks with left and right exchanged give a crop of a face shrunk to a quarter.
"""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from jaxface.data.sources.images import check_bytes
from jaxface.errors import UserError

_TEMPLATE_112 = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)


def template(height: int = 112, width: int | None = None) -> np.ndarray:
    """Where the five landmarks lie in an aligned crop (the ArcFace template, arXiv:1801.07698).

    A multiple of 112 scales the 112x112 template; a multiple of 128 centers it horizontally in a 128x128 crop (x moves
    by 8, y stays) and scales that; 112 high and 96 wide is the older, narrower crop (x smaller by 8).

    Args:
      height: of the crop, pixels.
      width: of the crop, pixels; `height` unless given.

    Returns:
      [5, 2] float32 (x, y).

    Raises:
      UserError: a size with no template.

    Example:
      >>> [round(x, 2) for x in template(112)[2].tolist()]  # the nose tip
      [56.03, 71.74]
    """
    width = height if width is None else width
    points = np.array(_TEMPLATE_112, np.float64)
    if (height, width) == (112, 96):
        points[:, 0] -= 8.0
    elif height == width > 0 and height % 112 == 0:
        points *= height / 112
    elif height == width > 0 and height % 128 == 0:
        points[:, 0] += 8.0
        points *= height / 128
    else:
        raise UserError(
            f"image_size: aligned faces need a multiple of 112 or of 128, or 112 high and 96 wide, got {height}x{width}"
        )
    return points.astype(np.float32)


TEMPLATES = ("arcface", "arcface_128", "sphereface")
"""Names that `named_template` knows."""


def named_template(name: str, size: tuple[int, int]) -> np.ndarray:
    """A template by name in crops of any size: that of the size it is published for, scaled.

        arcface      `template(112)`, and what rendered people are made to
        arcface_128  `template(128)`: the face smaller in a square
        sphereface   `template(112, 96)`: the older, narrower crop

    Args:
      name: one of `TEMPLATES`.
      size: (height, width) of the crop, pixels.

    Returns:
      [5, 2] float32 (x, y).

    Raises:
      UserError: no such name, or a size of other proportions than the template's.
    """
    published = {"arcface": (112, 112), "arcface_128": (128, 128), "sphereface": (112, 96)}
    if name not in published:
        raise UserError(f"alignment: needs one of {', '.join(published)}, got {name!r}")
    height, width = published[name]
    if size[0] * width != size[1] * height:
        raise UserError(f"alignment: {name} needs crops of {height}:{width}, got {size[0]}x{size[1]}")
    return (template(height, width).astype(np.float64) * size[0] / height).astype(np.float32)


def five_from_68(points: jax.Array) -> jax.Array:
    """Five landmarks from the 68-point mark-up.

    Eyes are the means of their corners (36, 39) and (42, 45), the nose tip is 30, mouth corners 48 and 54, from 0.

    Args:
      points: [..., 68, 2] (x, y).

    Returns:
      [..., 5, 2], in the order of the template.

    Example:
      >>> five_from_68(jnp.zeros((68, 2))).shape
      (5, 2)
    """
    xp = jnp if isinstance(points, jax.Array) else np
    points = xp.asarray(points)
    if points.ndim < 2 or points.shape[-2:] != (68, 2):
        raise ValueError(f"points: needs shape [..., 68, 2], got {points.shape}")
    eyes = [(points[..., a, :] + points[..., b, :]) / 2 for a, b in ((36, 39), (42, 45))]
    return xp.stack([*eyes, points[..., 30, :], points[..., 48, :], points[..., 54, :]], axis=-2)


def _similarity(src, dst, xp):
    """The least-squares similarity by complex numbers, in the namespace `xp`; and whether `src` coincides."""
    mean_src, mean_dst = src.mean(-2), dst.mean(-2)
    s, d = src - mean_src[..., None, :], dst - mean_dst[..., None, :]
    scatter = (s * s).sum((-2, -1))
    coincide = scatter <= 1e-8 * (1 + (mean_src * mean_src).sum(-1))
    safe = xp.where(coincide, 1.0, scatter)
    real = xp.where(coincide, 0.0, (s * d).sum((-2, -1)) / safe)
    imaginary = xp.where(coincide, 0.0, (s[..., 0] * d[..., 1] - s[..., 1] * d[..., 0]).sum(-1) / safe)
    linear = xp.stack([xp.stack([real, -imaginary], -1), xp.stack([imaginary, real], -1)], -2)
    shift = mean_dst - (linear * mean_src[..., None, :]).sum(-1)
    return xp.concatenate([linear, shift[..., None]], -1), coincide


def _check_landmarks(src, dst) -> None:
    for name, points in (("src", src), ("dst", dst)):
        if (
            points.ndim < 2
            or points.shape[-1] != 2
            or points.shape[-2] < 2
            or points.shape[-2] != src.shape[-2]
        ):
            raise ValueError(
                f"{name}: needs shape [..., n, 2] with n >= 2 alike in src and dst, got {points.shape}"
            )


def estimate_similarity(src: jax.Array, dst: jax.Array) -> jax.Array:
    """Least-squares similarity (turn, scale, shift) from `src` to `dst`, in closed form.

    With centered points read as complex numbers s, d the minimizer of sum |m s - d|^2 is

        m = sum(conj(s) d) / sum |s|^2,    M = [[Re m, -Im m, t_x], [Im m, Re m, t_y]],    t = mean(dst) - m mean(src)

    which is Umeyama's solution (IEEE TPAMI 13(4), 1991) wherever that one needs no reflection fix. Differentiable,
    and right under `jit` and `vmap`.

    Args:
      src: [..., n, 2] float landmarks in the image, n >= 2 (five in face alignment).
      dst: [..., n, 2] or [n, 2] where they are to lie.

    Returns:
      [..., 2, 3] float32, M with dst ~ M (x, y, 1). Where the landmarks of `src` coincide the scale is 0.

    Raises:
      ValueError: other shapes, or concrete values that are not finite or whose landmarks coincide. Under a trace the
        values are not known: coincident landmarks then give scale 0 and the warp an image of border.

    Example:
      >>> points = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
      >>> matrix = estimate_similarity(points, 2 * points + 5)
      >>> bool(jnp.allclose(matrix, jnp.array([[2.0, 0.0, 5.0], [0.0, 2.0, 5.0]]), atol=1e-5))
      True
    """
    src, dst = jnp.asarray(src, jnp.float32), jnp.asarray(dst, jnp.float32)
    _check_landmarks(src, dst)
    if not isinstance(src, jax.core.Tracer) and not bool(jnp.isfinite(src).all()):
        raise ValueError("src: needs finite landmarks")
    matrix, coincide = _similarity(src, dst, jnp)
    if not isinstance(coincide, jax.core.Tracer) and bool(coincide.any()):
        raise ValueError("src: the landmarks coincide, a similarity needs at least two different points")
    return matrix


def umeyama(src: np.ndarray, dst: np.ndarray) -> np.ndarray:
    """The same transform by singular values, with the reflection fix (Umeyama, IEEE TPAMI 13(4), 1991); host, float64.

        A = d^T s / n = U S V^T,  G = diag(1, sign det A),  R = U G V^T,  scale = sum(S G) / var(s),  t = m_d - scale R m_s

    Differs from `estimate_similarity` only where the best orthogonal map is a reflection.

    Args:
      src: [n, 2] float.
      dst: [n, 2] float.

    Returns:
      [2, 3] float64.

    Raises:
      ValueError: other shapes, values that are not finite, or landmarks that coincide.

    Example:
      >>> points = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
      >>> (umeyama(points, 2 * points + 5).round(3) + 0.0).tolist()
      [[2.0, 0.0, 5.0], [0.0, 2.0, 5.0]]
    """
    src, dst = np.asarray(src, np.float64), np.asarray(dst, np.float64)
    _check_landmarks(src, dst)
    if src.ndim != 2 or not (np.isfinite(src).all() and np.isfinite(dst).all()):
        raise ValueError(f"src, dst: need finite landmarks [n, 2], got shape {src.shape}")
    mean_src, mean_dst = src.mean(0), dst.mean(0)
    s, d = src - mean_src, dst - mean_dst
    variance = (s * s).sum() / len(s)
    if not variance > 0:
        raise ValueError("src: the landmarks coincide, a similarity needs at least two different points")
    covariance = d.T @ s / len(s)
    u, singular, vt = np.linalg.svd(covariance)
    sign = np.array([1.0, -1.0 if np.linalg.det(covariance) < 0 else 1.0])
    rotation = (u * sign) @ vt
    scale = (singular * sign).sum() / variance
    return np.concatenate([scale * rotation, (mean_dst - scale * rotation @ mean_src)[:, None]], axis=1)


def warp_affine(image: jax.Array, matrix: jax.Array, out_hw: tuple[int, int]) -> jax.Array:
    """output(x, y) = image(M^-1 (x, y, 1)): bilinear, 0 outside, pixel centers at integers (OpenCV's convention).

    Args:
      image: [H, W, C], any real dtype.
      matrix: [2, 3] float from image to output coordinates.
      out_hw: (height, width) of the output; static.

    Returns:
      [height, width, C] float32, on the scale of `image`. All border where `matrix` cannot be inverted.

    Example:
      >>> image = jnp.arange(4.0).reshape(2, 2, 1)
      >>> warp_affine(image, jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]), (2, 2))[..., 0].tolist()  # one to the right
      [[0.0, 0.0], [0.0, 2.0]]
    """
    if image.ndim != 3 or matrix.shape != (2, 3):
        raise ValueError(
            f"image, matrix: need shapes [H, W, C] and [2, 3], got {image.shape} and {matrix.shape}"
        )
    height, width = out_hw
    (a, b, tx), (c, d, ty) = jnp.asarray(matrix, jnp.float32)
    determinant = a * d - b * c
    invertible = jnp.abs(determinant) > 1e-12
    determinant = jnp.where(invertible, determinant, 1.0)
    y, x = jnp.mgrid[:height, :width].astype(jnp.float32)
    x, y = x - tx, y - ty
    source_x = jnp.where(invertible, (d * x - b * y) / determinant, -2.0)
    source_y = jnp.where(invertible, (a * y - c * x) / determinant, -2.0)

    def sample(channel):
        return map_coordinates(channel, [source_y, source_x], order=1, mode="constant", cval=0.0)

    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image.astype(jnp.float32))


def align_faces(
    images: jax.Array,
    image_ids: jax.Array,
    landmarks: jax.Array,
    target: jax.Array,
    size: tuple[int, int],
    *,
    valid_size: jax.Array | None = None,
) -> jax.Array:
    """`align_face` of many faces at once, on the device: pure, right under `jit`, shapes static.

        crop_n(x, y) = image(M_n^-1 (x, y, 1)),    M_n = estimate_similarity(landmarks_n, target)

    bilinear with 0 outside and pixel centers at integers. OpenCV, which `align_face` warps with, places a sample to 1/32 of a
    pixel; this does not round.

    Args:
      images: [B, H, W, C] uint8 or float.
      image_ids: [N] integers in [0, B), the image that each face is in.
      landmarks: [N, 5, 2] (x, y) pixels.
      target: [5, 2] (x, y) where they are to lie, such as `template()`.
      size: (height, width) of a crop; static.
      valid_size: [B, 2] integers (height, width) of the images before they were padded at the bottom and the right; what lies
        outside is 0. Those of the images unless given.

    Returns:
      [N, height, width, C] float32, on the scale of `images`. All 0 where the landmarks of a face coincide.
    """
    if images.ndim != 4 or landmarks.ndim != 3 or landmarks.shape[1:] != (5, 2):
        raise ValueError(
            f"images, landmarks: need [B, H, W, C] and [N, 5, 2], got {images.shape} and {landmarks.shape}"
        )
    batch, height, width, channels = images.shape
    sizes = jnp.array((height, width)) if valid_size is None else valid_size[image_ids]
    sizes = jnp.broadcast_to(sizes, (len(landmarks), 2)).astype(jnp.int32)
    # The inverse of z -> m z + t is z -> conj(m) (z - t) / |m|^2.
    matrix, _ = _similarity(landmarks.astype(jnp.float32), jnp.asarray(target, jnp.float32), jnp)
    a, b = matrix[:, 0, 0], matrix[:, 1, 0]
    squared = a * a + b * b
    possible = squared > 1e-12
    a, b = (jnp.where(possible, part / jnp.where(possible, squared, 1.0), 0.0) for part in (a, b))
    y, x = (axis.astype(jnp.float32) for axis in jnp.mgrid[: size[0], : size[1]])
    x = x - matrix[:, 0, 2, None, None]
    y = y - matrix[:, 1, 2, None, None]
    a, b, possible = (part[:, None, None] for part in (a, b, possible))
    source_x = jnp.where(possible, a * x + b * y, -2.0)
    source_y = jnp.where(possible, a * y - b * x, -2.0)
    # Far outside is as good as just outside, and stays an integer.
    source_x, source_y = jnp.clip(source_x, -2.0, width + 1.0), jnp.clip(source_y, -2.0, height + 1.0)
    left, top = jnp.floor(source_x), jnp.floor(source_y)
    share_x, share_y = source_x - left, source_y - top
    left, top = left.astype(jnp.int32), top.astype(jnp.int32)
    rows = jnp.asarray(images).reshape(batch * height * width, channels)
    first = (image_ids * (height * width)).astype(jnp.int32)[:, None, None]
    limit_y, limit_x = sizes[:, 0, None, None], sizes[:, 1, None, None]

    def tap(dy: int, dx: int) -> jax.Array:
        """The pixels at one corner of the places, times their share of the result."""
        at_y, at_x = top + dy, left + dx
        share = (share_y if dy else 1 - share_y) * (share_x if dx else 1 - share_x)
        inside = (at_y >= 0) & (at_y < limit_y) & (at_x >= 0) & (at_x < limit_x)
        index = first + jnp.clip(at_y, 0, height - 1) * width + jnp.clip(at_x, 0, width - 1)
        pixels = rows.at[index].get(mode="promise_in_bounds").astype(jnp.float32)
        return pixels * jnp.where(inside, share, 0.0)[..., None]

    return tap(0, 0) + tap(0, 1) + tap(1, 0) + tap(1, 1)


def align_face(image: np.ndarray, landmarks: np.ndarray, size: int | tuple[int, int] = 112) -> np.ndarray:
    """Crops a face to the template on the host.

    Args:
      image: [H, W, 3] uint8.
      landmarks: [5, 2] (x, y) pixels, in the order of the template.
      size: side of the crop, or its (height, width); see `template`.

    Returns:
      [height, width, 3] uint8, 0 where the crop leaves the image.

    Raises:
      ValueError: an image of another type or shape.
      UserError: a size without a template; landmarks that are not five finite points or that coincide.

    Example:
      >>> photo = np.zeros((250, 250, 3), np.uint8)
      >>> landmarks = 2 * template(112) + 10  # the face of the template, twice as large
      >>> align_face(photo, landmarks).shape
      (112, 112, 3)
    """
    check_bytes("image", image)
    height, width = (size, size) if np.ndim(size) == 0 else size
    target = template(height, width).astype(np.float64)
    landmarks = np.asarray(landmarks, np.float64)
    if landmarks.shape != (5, 2) or not np.isfinite(landmarks).all():
        raise UserError(f"landmarks: alignment needs five finite (x, y) points, got shape {landmarks.shape}")
    matrix, coincide = _similarity(landmarks, target, np)
    if coincide:
        raise UserError("landmarks: alignment needs different points, these coincide")
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=0)
