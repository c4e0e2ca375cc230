"""Presentation attacks: what a print, a replay on a screen, a mask or a cut-out photograph shows to the camera.

A print is a bent sheet, a replay a flat screen with moire, a mask a real but averaged face with gloss, a cut-out a
print with holes for eyes and mouth through which the live face looks (design).
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxface.data.render.appearance import blur, hash_noise

SPOOFS = ("live", "print", "replay", "mask", "cut-out")
LIVE, PRINT, REPLAY, MASK, CUTOUT = range(5)


@flax.struct.dataclass
class Attack:
    """One presentation attack. Leading axes are free; lengths are fractions of the image size.

    Attributes:
      plane: [..., 3] depth of the sheet a x + b y + c, mm over the image, x and y in [-1/2, 1/2].
      curvature: [...] mm, minus k (2x)^2 for a bent sheet.
      moire: [..., 3] amplitude, cycles over the image, direction in radians.
      border: [..., 4] margins (top, left, bottom, right) outside the sheet or screen; negative: beyond the image.
      surround: [..., 3] color beside the sheet.
      infrared: [...] reflectance of the sheet (print) or of the mask against skin, in [0, 1].
      seed: [...] uint32, of the print's grain.
    """

    plane: jax.Array
    curvature: jax.Array
    moire: jax.Array
    border: jax.Array
    surround: jax.Array
    infrared: jax.Array
    seed: jax.Array


@flax.struct.dataclass
class Scene:
    """What stands before the camera, S x S pixels.

    Attributes:
      mask: [S, S] bool, the head (also where it is only a picture).
      solid: [S, S] bool, what a depth sensor sees: the head, or the sheet.
      depth: [S, S] mm.
      landmarks: [5, 2] (x, y) pixels.
      image: [S, S, 3] in [0, 1], or None.
      infrared: [S, S] in [0, 1], or None.
    """

    mask: jax.Array
    solid: jax.Array
    depth: jax.Array
    landmarks: jax.Array
    image: jax.Array | None
    infrared: jax.Array | None


def behind_mask(identity, expression, masked):
    """A mask shows a face near the average and no expression: alpha x 0.4, gamma x 0.2, beta = 0."""
    identity = identity.replace(
        shape=jnp.where(masked, 0.4, 1.0) * identity.shape,
        albedo=jnp.where(masked, 0.2, 1.0) * identity.albedo,
    )
    return identity, jnp.where(masked, 0.0, expression)


def gloss(color: jax.Array, normals: jax.Array, masked: jax.Array) -> jax.Array:
    """Shine of a mask, + 0.1 n_z^3 on linear color."""
    return color + jnp.where(masked, 0.1, 0.0) * jnp.maximum(normals[..., 2:], 0.0) ** 3


def _holes(landmarks: jax.Array, u: jax.Array, v: jax.Array) -> jax.Array:
    """[S, S] bool, boxes around eyes and mouth."""
    eyes, mouth = landmarks[:2].mean(0), landmarks[3:].mean(0)
    unit = jnp.maximum(jnp.linalg.norm(landmarks[1] - landmarks[0]), jnp.linalg.norm(mouth - eyes))

    def box(center, half_x, half_y):
        return (jnp.abs(u - center[0]) < half_x * unit) & (jnp.abs(v - center[1]) < half_y * unit)

    return box(landmarks[0], 0.25, 0.13) | box(landmarks[1], 0.25, 0.13) | box(mouth, 0.42, 0.2)


def present(scene: Scene, attack: Attack, spoof: jax.Array) -> Scene:
    """Replaces the live scene by the attack `spoof` (index; live and mask leave the geometry as it is).

    print   0.78 rgb + 0.12, blurred (sigma 0.8), noise 0.02; depth a x + b y + c - k (2x)^2; infrared uniform
    replay  rgb + A sin(2 pi f (x cos w + y sin w)), blue cast; depth flat; infrared near 0
    mask    infrared x U(0.5, 0.75)
    cut-out print, live inside the boxes of eyes and mouth
    """
    size = scene.mask.shape[0]
    v, u = jnp.mgrid[:size, :size].astype(jnp.float32)
    x, y = (u + 0.5) / size, (v + 0.5) / size
    printed, replayed = (spoof == PRINT) | (spoof == CUTOUT), spoof == REPLAY
    top, left, bottom, right = attack.border
    margin = jnp.minimum(jnp.minimum(x - left, 1 - right - x), jnp.minimum(y - top, 1 - bottom - y))
    sheet = margin > 0
    holes = (spoof == CUTOUT) & _holes(scene.landmarks, u, v) & scene.mask & sheet
    flat = (printed | replayed) & ~holes

    a, b, c = attack.plane
    bent = a * (x - 0.5) + b * (y - 0.5) + c - attack.curvature * (2 * x - 1) ** 2
    depth = jnp.where(printed, bent, c)
    result = scene.replace(
        depth=jnp.where(flat, depth * sheet, scene.depth), solid=jnp.where(flat, sheet, scene.solid)
    )

    if scene.image is not None:
        image = scene.image
        grain, _ = hash_noise(attack.seed, size * size * 3)
        paper = 0.78 * blur(image, jnp.float32(0.8)) + 0.12 + 0.02 * grain.reshape(size, size, 3)
        paper = jnp.where((margin < 0.03)[..., None], 0.92, paper)
        amplitude, cycles, direction = attack.moire
        stripes = jnp.sin(2 * jnp.pi * cycles * (x * jnp.cos(direction) + y * jnp.sin(direction)))
        screen = (image + amplitude * stripes[..., None]) * np.array([0.9, 0.97, 1.1], np.float32)
        screen = jnp.where((margin < 0.03)[..., None], 0.05, screen)
        shown = jnp.where(sheet[..., None], jnp.where(replayed, screen, paper), attack.surround)
        result = result.replace(image=jnp.clip(jnp.where(flat[..., None], shown, image), 0.0, 1.0))
    if scene.infrared is not None:
        level = jnp.where(printed, attack.infrared, 0.02)
        masked = scene.infrared * jnp.where(spoof == MASK, 0.95 * attack.infrared, 1.0)
        result = result.replace(infrared=jnp.where(flat, level * sheet, masked))
    return result
