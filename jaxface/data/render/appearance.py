"""How a head and its surroundings look: skin, features, background, and what the camera makes of them.

All of it is evaluated per pixel in closed form from the position on the head, so that brows and irises stay sharp
at any resolution although the geometry is a coarse grid (design).
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.data.render import styling
from jaxface.data.render.face_model import SKIN, WAVES, ellipsoid, face_model
from jaxface.data.render.rasterize import settle

_GAMMA = 1 / 2.2


def _bump(x, y, x0, y0, sx, sy):
    return jnp.exp(-0.5 * (((x - x0) / sx) ** 2 + ((y - y0) / sy) ** 2))


def _pair(x, y, x0, y0, sx, sy):
    return _bump(x, y, x0, y0, sx, sy) + _bump(x, y, -x0, y0, sx, sy)


def _cosines(x: jax.Array) -> list[jax.Array]:
    """cos(k x), k = 0..WAVES-1, by cos(kx) = 2 cos(x) cos((k-1)x) - cos((k-2)x)."""
    first = jnp.cos(x)
    waves = [jnp.ones_like(x), first]
    while len(waves) < WAVES:
        waves.append(2 * first * waves[-1] - waves[-2])
    return waves


def skin_color(tone: jax.Array) -> jax.Array:
    """Linear interpolation between the six skin anchors: [] in [0, 1] -> [3] RGB."""
    anchors = np.asarray(SKIN, np.float32)
    place = jnp.clip(tone, 0.0, 1.0) * (len(anchors) - 1)
    return jnp.stack(
        [jnp.interp(place, np.arange(len(anchors), dtype=np.float32), anchors[:, k]) for k in range(3)]
    )


def _layers(u, x, y, z):
    """Weights of the features at ellipsoid positions (mm), u the azimuth in [-1, 1]."""
    front = (z > 0).astype(x.dtype)
    hairline = 66 - 70 * jnp.maximum(jnp.abs(u) - 0.6, 0.0) / 0.4  # runs down in front of the ears
    return {
        "cheeks": 0.18 * _pair(x, y, 40, -8, 14, 12) * front,
        "lips": 0.75 * _bump(x, y, 0, -44, 17, 6) * front,
        "brows": 0.85 * _pair(x, y, 29, 37, 14, 2.6) * front,
        "hair": jax.nn.sigmoid((y - hairline) / 4),
        "sclera": 0.9 * jnp.clip(1.8 * _pair(x, y, 31, 24, 9, 3.6) - 0.4, 0, 1) * front,
        "iris": jnp.clip(1.8 * _pair(x, y, 31, 24, 3.8, 3.8) - 0.3, 0, 1) * front,
        "nostrils": 0.6 * _pair(x, y, 7, -17, 3, 2) * front,
        "lids": 0.8 * _pair(x, y, 31, 29, 10, 1.6) * front,
        "mouth": 0.6 * _bump(x, y, 0, -45, 14, 1.4) * front,
    }


def albedo(u: jax.Array, v: jax.Array, identity, shot=None) -> jax.Array:
    """Reflectance of the head at grid positions (u, v) in [-1, 1].

    Skin `lerp(SKIN, 5 tone) (1 + 0.06 T gamma)`, then cheeks, lips, brows, hair, sclera, irises, nostrils,
    lids and the line of the mouth blended over it in this order (design). With a style (`styling.layers`) these have a
    person's own forms, and shadows, beard, an open mouth and glasses come between and over them.

    Args:
      u, v: [...], along azimuth and elevation.
      identity: face_parameters.Identity of one face.
      shot: styling.Shot of a face with a style.

    Returns:
      [..., 3] linear RGB, about [0, 1].
    """
    x, y, z = ellipsoid(u, v, jnp)
    waves = jnp.einsum("k,kji->ji", identity.albedo, face_model().skin_waves)
    along_u, along_v = _cosines(jnp.pi * u), _cosines(jnp.pi * (v + 1) / 2)
    field = sum(along_v[j] * sum(waves[j, i] * along_u[i] for i in range(WAVES)) for j in range(WAVES))
    modulation = 1 + 0.06 * field
    base = skin_color(identity.tone)
    style = identity.style
    if style is None:
        weight = _layers(u, x, y, z)
        hair = brows = (identity.hair,) * 3
    else:
        waves = styling.ripple(style, x, y)
        weight, modulation, strands = settle(
            (
                styling.layers(style, shot, u, x, y, z),
                modulation * styling.spotted(style, waves, x, y),
                1 + 0.12 * waves,
            )
        )
        hair, brows = [level * strands for level in style.hair_color], 0.7 * style.hair_color
    channels = []
    for k in range(3):
        skin = base[k] * modulation
        color = skin
        paints = {
            "cheeks": skin * (1.15, 0.8, 0.8)[k],
            "lips": skin * (0.95, 0.55, 0.55)[k] * identity.lips,
            "brows": brows[k],
            "hair": hair[k],
            "sclera": (0.9, 0.9, 0.88)[k],
            "iris": (0.1, 0.07, 0.05)[k],
            "nostrils": 0.3 * skin,
            "lids": 0.25 * skin,
            "mouth": 0.3 * skin,
        }
        if style is not None:
            shadow = 0.45 * skin
            paints |= {"sockets": shadow, "bags": shadow, "folds": shadow, "beard": brows[k]}
            paints |= {"opening": shot.mouth[1], "lenses": shot.glare[1], "rims": style.glasses[4]}
        for name in weight if style is None else styling.PAINTED:
            color = color + weight[name] * (paints[name] - color)
        channels.append(color)
    return jnp.stack(channels, -1)


def infrared_albedo(u: jax.Array, v: jax.Array, identity, shot=None) -> jax.Array:
    """Near-infrared reflectance, almost the same for every tone: 0.75 - 0.05 tone, darker on hair and irises."""
    at = u, *ellipsoid(u, v, jnp)
    weight = _layers(*at) if identity.style is None else styling.layers(identity.style, shot, *at)
    value = 0.75 - 0.05 * identity.tone
    for name, over in (("brows", 0.35), ("hair", 0.3), ("iris", 0.15)):
        value = value + weight[name] * (over - value)
    return value


def background(amplitudes: jax.Array, size: int) -> jax.Array:
    """Smooth colors from a few cosines: [3, J, I] -> [size, size, 3], linear RGB >= 0."""
    _, down, across = amplitudes.shape
    place = (np.arange(size) + 0.5) / size
    basis_down = np.cos(np.pi * place[:, None] * np.arange(down)).astype(np.float32)
    basis_across = np.cos(np.pi * place[:, None] * np.arange(across)).astype(np.float32)
    return jnp.maximum(jnp.einsum("yj,cji,xi->yxc", basis_down, amplitudes, basis_across), 0.0)


def neck_cover(offset, size):
    """Where the neck is: (opacity [S, S], coordinate across it in [-1, 1] [S, S]).

    Args:
      offset: (angle of the head in the image plane in radians, pixels per mm, [2] pixel where the neck begins).
      size: S, pixels.
    """
    angle, scale, origin = offset
    v, u = jnp.mgrid[:size, :size].astype(jnp.float32)
    right, down = (u - origin[0]) / scale, (v - origin[1]) / scale
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    across, along = cos * right - sin * down, sin * right + cos * down
    return jax.nn.sigmoid((46.0 - jnp.abs(across)) * scale * 2) * (along > 0), jnp.clip(
        across / 46.0, -1.0, 1.0
    )


def neck(around, skin, shade, offset, size):
    """Paints a neck into the background, so that the head does not float.

    Args:
      around: [S, S, 3] linear RGB behind the head.
      skin: [3] color.
      shade: [..., 3] normals -> [...] irradiance.
      offset, size: see `neck_cover`.
    """
    cover, x = neck_cover(offset, size)
    cos, sin = jnp.cos(offset[0]), jnp.sin(offset[0])
    normals = jnp.stack([x * cos, x * sin, jnp.sqrt(1.001 - x**2)], -1)
    light = 0.6 * jnp.maximum(shade(normals), 0.0)  # the head's own shadow
    return around + cover[..., None] * (light[..., None] * skin - around)


def tone_map(linear: jax.Array) -> jax.Array:
    """clip(linear, 0, 1)^(1/2.2); the small floor keeps the gradient finite at black."""
    return jnp.clip(linear, 1e-4, 1.0) ** _GAMMA


def hash_noise(seed: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Cheap per-pixel noise from an integer hash of (seed, index); the same whatever else is in the batch.

    Returns:
      (normal [count], variance 1, as the sum of four uniform bytes; uniform [count] in [0, 1) of another hash).
    """
    x = jnp.arange(count, dtype=jnp.uint32) * np.uint32(0x9E3779B9) + seed.astype(jnp.uint32) * np.uint32(
        0x85EBCA6B
    )

    def mix(x):
        x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
        return x ^ (x >> 16)

    x = mix(x)
    bytes_ = sum(((x >> np.uint32(8 * k)) & np.uint32(255)).astype(jnp.float32) for k in range(4))
    second = mix(x + np.uint32(0x9E3779B9))
    deviation = np.sqrt(4 * (256**2 - 1) / 12)
    return (bytes_ - 510.0) / np.float32(deviation), (second >> 8).astype(jnp.float32) * np.float32(2**-24)


def blur(image: jax.Array, sigma: jax.Array) -> jax.Array:
    """Separable Gaussian of five taps, edges repeated: [H, W, C] -> [H, W, C]; for sigma up to 1.5 pixels."""
    taps = jnp.exp(-0.5 * (np.arange(-2.0, 3.0, dtype=np.float32) / jnp.maximum(sigma, 1e-3)) ** 2)
    taps = taps / taps.sum()
    height, width, _ = image.shape
    rows = jnp.pad(image, ((2, 2), (0, 0), (0, 0)), mode="edge")
    image = settle(sum(taps[k] * rows[k : k + height] for k in range(5)))
    columns = jnp.pad(image, ((0, 0), (2, 2), (0, 0)), mode="edge")
    return sum(taps[k] * columns[:, k : k + width] for k in range(5))


def record(scene, sensor):
    """The sensor: occluder, blur, gain and noise in RGB; noise, holes and 1 mm steps in depth."""
    size = scene.mask.shape[0]
    if scene.image is not None:
        image = scene.image
        place = (np.arange(size, dtype=np.float32) + 0.5) / size
        x0, y0, half_x, half_y, gray = sensor.occluder
        edge = 60.0
        cover = (
            jax.nn.sigmoid(edge * (half_x - jnp.abs(place - x0)))[None, :]
            * jax.nn.sigmoid(edge * (half_y - jnp.abs(place - y0)))[:, None]
            * ((half_x > 0) & (half_y > 0))
        )[..., None]
        image = image + cover * (gray - image)
        image = blur(settle(image), sensor.blur) * sensor.gain
        normal, _ = hash_noise(sensor.seed, size * size * 3)
        image = jnp.clip(image + sensor.noise * normal.reshape(size, size, 3), 0.0, 1.0)
        scene = scene.replace(image=image)
    normal, uniform = hash_noise(sensor.seed + np.uint32(1), size * size)
    measured = jnp.round(scene.depth + sensor.depth_noise * normal.reshape(size, size))
    has_depth = scene.solid & (uniform.reshape(size, size) >= sensor.depth_holes)
    return scene.replace(depth=jnp.where(has_depth, measured, 0.0))


def normalized_depth(depth: jax.Array) -> jax.Array:
    """clip(z/110, 0, 1.2): mm before the head's origin to about [0, 1]."""
    return jnp.clip(depth / 110, 0.0, 1.2)
