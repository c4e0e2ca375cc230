"""Renders a morphable head: coefficients in; RGB, near-infrared, depth, normals, landmarks and box out.

Everything here is a pure function of `FaceParameters`, written for one face and mapped over the batch by `render`;
`jaxface.data.render.sampling` draws the parameters.
"""

import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxface.checks import AtLeast, check_number
from jaxface.data.render import appearance, presentation, styling
from jaxface.data.render.face_model import ALBEDO, EXPRESSION, GRID, IDENTITY, ellipsoid, face_model
from jaxface.data.render.face_parameters import FaceParameters
from jaxface.data.render.head_geometry import grid_normals, head, project, rotation_matrix, shading
from jaxface.data.render.rasterize import sample_grid, settle, visible_surface
from jaxface.data.transforms.pixels import fractions_to_bytes
from jaxface.errors import UserError

OUTPUTS = ("image", "infrared", "depth", "normals")


@flax.struct.dataclass
class Rendered:
    """Images and geometric labels; S = image size. What was not asked for is None.

    Attributes:
      image: [B, S, S, 3] float32 in [0, 1], RGB as recorded (gamma 1/2.2).
      infrared: [B, S, S] float32 in [0, 1].
      depth: [B, S, S] float32 mm before the head's origin, as measured (noise, holes = 0, 1 mm steps; 0 beside it).
      normals: [B, S, S, 3] float32 unit vectors of the live surface, 0 in the background.
      mask: [B, S, S] bool, pixels of the head.
      landmarks: [B, 5, 2] float32 (x, y) pixels: eyes, nose tip, mouth corners, left to right in the image.
      visible: [B, 5] bool, landmarks inside the image that nothing of the head hides.
      box: [B, 4] float32 (y0, x0, y1, x1) pixels of the mask, zeros when it is empty.
    """

    image: jax.Array | None
    infrared: jax.Array | None
    depth: jax.Array | None
    normals: jax.Array | None
    mask: jax.Array
    landmarks: jax.Array
    visible: jax.Array
    box: jax.Array


def _landmark_visibility(landmarks, depth_key, surface_z, mask, scale, size):
    pixel = jnp.round(landmarks).astype(jnp.int32)
    inside = ((pixel >= 0) & (pixel < size)).all(-1)
    column, row = jnp.clip(pixel, 0, size - 1).T
    # Half a pixel of a steep slope is not an occlusion.
    tolerance = 3.0 + 0.5 / scale
    return inside & (~mask[row, column] | (depth_key >= surface_z[row, column] - tolerance))


def _box(mask: jax.Array) -> jax.Array:
    rows, columns = mask.any(1), mask.any(0)
    size = mask.shape[0]
    first = lambda hit: jnp.argmax(hit)  # noqa: E731
    last = lambda hit: size - 1 - jnp.argmax(hit[::-1])  # noqa: E731
    box = jnp.stack([first(rows), first(columns), last(rows), last(columns)]).astype(jnp.float32)
    return jnp.where(mask.any(), box, 0.0)


def _render_one(face: FaceParameters, size: int, outputs: frozenset, attacks: bool) -> Rendered:
    identity, expression = face.identity, face.expression
    if attacks:
        identity, expression = presentation.behind_mask(identity, expression, face.spoof == presentation.MASK)
    rotation = rotation_matrix(face.pose)
    points = head(identity.shape, expression)
    if identity.style is not None:
        u, v = np.float32(2 / (GRID - 1)) * np.indices((GRID, GRID), np.float32)[::-1] - 1
        points = points + styling.hair_volume(identity.style, u, *ellipsoid(u, v))
    points = points @ rotation.T
    scale = face.scale * size
    grid = project(points, scale, face.translation * size, size, size)
    at, mask = settle(visible_surface(grid, height=size, width=size, spacing=_SPACING * size))

    normals = grid_normals(points)
    needed = {"surface_z": points[..., 2:], "light": shading(normals, face.ambient, face.light)[..., None]}
    if attacks or outputs & {"normals", "infrared"}:
        needed["normals"] = normals
    sampled = settle(sample_grid(settle(jnp.concatenate(list(needed.values()), -1)), at))
    surface_z, light = sampled[..., 0], sampled[..., 1]
    if "normals" in needed:
        normals = sampled[..., 2:5]
        normals = normals / (jnp.linalg.norm(normals, axis=-1, keepdims=True) + 1e-8) * mask[..., None]

    vertices = grid.reshape(-1, 3)[face_model().landmarks]
    landmarks = vertices[:, :2]
    scene = presentation.Scene(
        mask=mask, solid=mask, depth=surface_z * mask, landmarks=landmarks, image=None, infrared=None
    )
    uv = at[..., ::-1] * (2 / (GRID - 1)) - 1
    if "image" in outputs:
        color = settle(appearance.albedo(uv[..., 0], uv[..., 1], identity, face.shot))
        color = color * jnp.maximum(light, 0.0)[..., None]
        if attacks:
            color = presentation.gloss(color, normals, face.spoof == presentation.MASK)
        around = appearance.background(face.background, size)
        behind = None
        if face.shot is not None:
            around = styling.photographed(around, face.shot, size)
            # Hair and clothes have no geometry: their light is that of a wall.
            behind = jnp.maximum(
                shading(np.array([0.0, 0.0, 1.0], np.float32), face.ambient, face.light), 0.0
            )
            center = project(rotation @ np.zeros(3, np.float32), scale, face.translation * size, size, size)[
                :2
            ]
            around = styling.long_hair(
                around, identity.style, 0.8 * behind, (face.pose[2], scale, center), size
            )
        root = project(rotation @ NECK, scale, face.translation * size, size, size)[:2]
        around = appearance.neck(
            around,
            appearance.skin_color(identity.tone),
            lambda n: shading(n, face.ambient, face.light),
            (face.pose[2], scale, root),
            size,
        )
        if behind is not None:
            around = styling.clothes(around, face.shot, behind, (face.pose[2], scale, root), size)
        scene = scene.replace(image=settle(appearance.tone_map(jnp.where(mask[..., None], color, around))))
    if "infrared" in outputs:
        lamp = appearance.infrared_albedo(uv[..., 0], uv[..., 1], identity, face.shot) * jnp.maximum(
            normals[..., 2], 0.0
        )
        scene = scene.replace(infrared=lamp * mask)
    if attacks:
        scene = presentation.present(scene, face.attack, face.spoof)
    scene = appearance.record(scene, face.sensor)
    if face.shot is not None and scene.image is not None:
        scene = scene.replace(image=styling.develop(scene.image, face.shot))

    return Rendered(
        image=scene.image,
        infrared=scene.infrared,
        depth=scene.depth if "depth" in outputs else None,
        normals=normals if "normals" in outputs else None,
        mask=mask,
        landmarks=landmarks,
        visible=_landmark_visibility(landmarks, vertices[:, 2], surface_z, mask, scale, size),
        box=_box(mask),
    )


# Largest distance of neighboring vertices, as a fraction of the image: up to 5 mm on the mean head, framed at 0.005 image
# sizes per mm, and some room for stretched features.
_SPACING = 0.033
NECK = np.array([0.0, -70.0, -15.0], np.float32)  # mm, where the neck leaves the head


@functools.partial(jax.jit, static_argnames=("image_size", "outputs", "attacks"))
def render(
    faces: FaceParameters, *, image_size: int, outputs: Sequence[str] = ("image",), attacks: bool = True
) -> Rendered:
    """Renders a batch of faces; jitted, mapped over the first axis, deterministic.

    Args:
      faces: parameters with one leading axis B.
      image_size: height and width S in pixels, >= 8; heads drawn larger than
        faces.scale = 0.008 may show gaps.
      outputs: which of OUTPUTS to compute; mask, landmarks, visibility and box are always there. A tuple: it is
        static.
      attacks: False leaves out the presentation attacks (all faces are rendered live), which saves time.

    Returns:
      Rendered.

    Raises:
      UserError: image_size below 8, or an unknown output.
      ValueError: a coefficient vector of the wrong length.
    """
    check_number("image_size", image_size, AtLeast(8))
    unknown = set(outputs) - set(OUTPUTS)
    if unknown:
        raise UserError(f"outputs: needs names among {', '.join(OUTPUTS)}, got {sorted(unknown)}")
    for name, value, last in (
        ("identity.shape", faces.identity.shape, IDENTITY),
        ("identity.albedo", faces.identity.albedo, ALBEDO),
        ("expression", faces.expression, EXPRESSION),
        ("pose", faces.pose, 3),
        ("light", faces.light, 9),
    ):
        if value.ndim != 2 or value.shape[1] != last:
            raise ValueError(f"{name}: needs shape [B, {last}], got {value.shape}")
    one = functools.partial(_render_one, size=image_size, outputs=frozenset(outputs), attacks=attacks)
    return jax.vmap(one)(faces)


def to_uint8(image: jax.Array) -> jax.Array:
    """[0, 1] -> 0..255, rounded to nearest."""
    return fractions_to_bytes(image)
