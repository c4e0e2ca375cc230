"""Draws face parameters: who a person is, and how each image of them differs.

Everything is a pure function of a key, so that image k of identity i is the same
whatever else is drawn.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.data.render.face_model import ALBEDO, EXPRESSION, IDENTITY, face_model
from jaxface.data.render.face_parameters import FaceParameters, Identity, Sensor
from jaxface.data.render.head_geometry import directional_light, head, rotation_matrix
from jaxface.data.render.presentation import SPOOFS, Attack
from jaxface.data.render.styling import sample_shot, sample_style
from jaxface.data.render.variation import MODERATE, Variation
from jaxface.data.transforms.alignment import template

GROUPS = 6  # skin-tone bins
_STYLE = 1 << 16  # numbers the keys of styles and shots, far from those of a `_Draw`
_EXPRESSION = (1 << 16) + 2  # and that of the strength of an expression
SHOWN, SLIGHT = (
    0.4,
    0.3,
)  # least coefficient of an expression that is named, and the most of others beside one that is asked for
ILLUMINATIONS = ("normal", "strong", "back", "dark")


def sample_identity(key: jax.Array, tone=(0.0, 1.0), variation: Variation = MODERATE) -> Identity:
    """A person: alpha, gamma ~ N(0, I), tone ~ U(0, 1), lips ~ U(.8, 1.2), hair gray ~ U(.03, .35) (1 - .7 tone).

    Args:
      key: typed jax.random key.
      tone: (low, high) of another range of tones in [0, 1].
      variation: the person has a style where it asks for one; nothing else of a person depends on it.

    Returns:
      Identity without leading axes; map over keys for a crowd.
    """
    low, high = tone
    shape, albedo, tone, hair, lips = jax.random.split(key, 5)
    shade = low + (high - low) * jax.random.uniform(tone)
    identity = Identity(
        shape=jax.random.normal(shape, (IDENTITY,)),
        albedo=jax.random.normal(albedo, (ALBEDO,)),
        tone=shade,
        hair=jax.random.uniform(hair, minval=0.03, maxval=0.35) * (1 - 0.7 * shade),
        lips=jax.random.uniform(lips, minval=0.8, maxval=1.2),
    )
    if not variation.styled:
        return identity
    style = sample_style(jax.random.fold_in(key, _STYLE), shade, identity.hair, variation)
    return identity.replace(style=style)


class _Draw:
    """Named draws from one key, so that a new quantity does not move the others."""

    def __init__(self, key):
        self._key, self._count = key, 0

    def _next(self):
        self._count += 1
        return jax.random.fold_in(self._key, self._count)

    def uniform(self, low, high, shape=()):
        # An affine map of [0, 1) instead of minval/maxval, which need low < high.
        return low + (high - low) * jax.random.uniform(self._next(), shape)

    def normal(self, shape=()):
        return jax.random.normal(self._next(), shape)

    def seed(self):
        return jax.random.bits(self._next(), (), jnp.uint32)

    def index(self, low, high):
        return jax.random.randint(self._next(), (), low, high)


def _background(draw: _Draw, strength: float) -> jax.Array:
    """Mostly gray cosines with a little color, as walls and interiors are."""
    order = np.arange(4)
    falloff = 1.0 / (1.0 + np.hypot(*np.meshgrid(order, order)))
    falloff[0, 0] = 0.0
    texture = 0.2 * (draw.normal((1, 4, 4)) + 0.3 * draw.normal((3, 4, 4))) * falloff.astype(np.float32)
    level = draw.uniform(0.05, 0.6) + draw.uniform(-0.08, 0.08, (3,))
    return (strength * texture).at[:, 0, 0].set(strength * level + (1 - strength) * 0.3)


def _attack(draw: _Draw) -> Attack:
    slopes = draw.uniform(-60.0, 60.0, (2,))
    offset = draw.uniform(40.0, 90.0)
    return Attack(
        plane=jnp.concatenate([slopes, offset[None]]),
        curvature=draw.uniform(0.0, 60.0),
        moire=jnp.stack([draw.uniform(0.03, 0.09), draw.uniform(18.0, 30.0), draw.uniform(0.0, np.pi)]),
        border=draw.uniform(-0.12, 0.12, (4,)),
        surround=draw.uniform(0.05, 0.8, (3,)),
        infrared=draw.uniform(0.5, 0.8),
        seed=draw.seed(),
    )


def sample_faces(key: jax.Array, identity: Identity, variation: Variation = MODERATE) -> FaceParameters:
    """One image of a person.

    Args:
      key: typed jax.random key.
      identity: without leading axes; map over (keys, identities) for a batch.
      variation: the ranges.

    Returns:
      FaceParameters without leading axes.
    """
    draw = _Draw(key)
    angles = np.deg2rad(np.array([variation.pitch, variation.yaw, variation.roll], np.float32))
    pose = angles * draw.uniform(-1.0, 1.0, (3,))
    expression = jnp.clip(variation.expression * draw.normal((EXPRESSION,)), -1.0, 1.5)
    sideways = variation.light_spread * draw.normal((2,))
    direction = jnp.concatenate([sideways + np.array([0.0, 0.25], np.float32), jnp.ones(1)])  # lamps hang
    direction = direction / jnp.linalg.norm(direction)
    ambient, intensity = draw.uniform(*variation.ambient), draw.uniform(*variation.light)
    dark = draw.uniform(0.0, 1.0) < variation.dark
    dimming = jnp.where(dark, draw.uniform(0.08, 0.25), 1.0)
    balance = 1 + variation.white_balance * draw.uniform(-1.0, 1.0, (3,))
    occluded = draw.uniform(0.0, 1.0) < variation.occlusion
    patch = jnp.concatenate(
        [
            draw.uniform(0.2, 0.8, (2,)),
            draw.uniform(0.06, 0.2, (2,)) * occluded,
            draw.uniform(0.05, 0.7, (1,)),
        ]
    )
    attacked = draw.uniform(0.0, 1.0) < variation.spoof
    shot = None
    if identity.style is not None:
        other = sample_style(jax.random.fold_in(key, _STYLE), identity.tone, identity.hair, variation)
        style, shot = sample_shot(jax.random.fold_in(key, _STYLE + 1), identity.style, other, variation)
        identity = identity.replace(style=style)
    return FaceParameters(
        identity=identity,
        expression=expression,
        pose=pose,
        scale=draw.uniform(*variation.scale) / 260,
        translation=variation.shift * draw.uniform(-1.0, 1.0, (2,)),
        ambient=ambient * dimming,
        light=directional_light(direction, intensity * dimming),
        background=_background(draw, variation.background) * dimming,
        sensor=Sensor(
            seed=draw.seed(),
            gain=draw.uniform(*variation.gain) * balance,
            noise=draw.uniform(*variation.noise),
            blur=draw.uniform(*variation.blur),
            depth_noise=draw.uniform(*variation.depth_noise),
            depth_holes=draw.uniform(*variation.depth_holes),
            occluder=patch,
        ),
        spoof=jnp.where(attacked, draw.index(1, len(SPOOFS)), 0).astype(jnp.int32),
        attack=_attack(draw),
        shot=shot,
    )


def align(face: FaceParameters, jitter: jax.Array) -> FaceParameters:
    """Chooses the camera so that the projected landmarks fit the five-point template by least squares.

    A weak-perspective camera composed with a similarity warp is again a weak-perspective camera: scale, roll and
    translation absorb the warp, and the aligned crop is rendered directly, without resampling. With p the landmarks
    (x, -y) at roll 0 and q the template as complex numbers, q ~ a p + t has a = sum conj(p-p̄)(q-q̄) / sum |p-p̄|²;
    scale = |a|, roll = -arg a (image y points down).

    Args:
      face: without leading axes; its scale, roll and translation are replaced.
      jitter: [4] relative scale, roll in radians, shift (x, y) as fractions of the size, beside the fit.

    Returns:
      FaceParameters.
    """
    pose = face.pose.at[2].set(0.0)
    vertices = head(face.identity.shape, face.expression).reshape(-1, 3)[face_model().landmarks]
    points = (vertices @ rotation_matrix(pose).T)[:, :2] * np.array([1.0, -1.0], np.float32)
    target = template(112) / 112
    p, q = points - points.mean(0), target - target.mean(0)
    real = (p * q).sum()
    imaginary = (p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]).sum()
    scale = jnp.hypot(real, imaginary) / (p**2).sum() * (1 + jitter[0])
    angle = jnp.arctan2(imaginary, real) + jitter[1]
    turned = jnp.stack(
        [
            jnp.cos(angle) * points[:, 0] - jnp.sin(angle) * points[:, 1],
            jnp.sin(angle) * points[:, 0] + jnp.cos(angle) * points[:, 1],
        ],
        -1,
    )
    translation = target.mean(0) - 0.5 - scale * turned.mean(0) + jitter[2:]
    return face.replace(pose=pose.at[2].set(-angle), scale=scale, translation=translation)


def sample_aligned(key: jax.Array, identity: Identity, variation: Variation = MODERATE) -> FaceParameters:
    """`sample_faces` seen by the camera of `align`, up to the jitter that a landmark detector would leave.

    The jitter is `zoom` in scale, a tenth of `roll` in angle and `shift` in position.
    """
    return nearly_aligned(key, sample_faces(key, identity, variation), variation)


def nearly_aligned(key: jax.Array, face: FaceParameters, variation: Variation) -> FaceParameters:
    """A face of `sample_faces` with the same key, as `sample_aligned` sees it."""
    size = jnp.array([variation.zoom, np.deg2rad(0.1 * variation.roll), variation.shift, variation.shift])
    return align(face, size * jax.random.uniform(jax.random.fold_in(key, 0), (4,), minval=-1.0, maxval=1.0))


def show_expression(
    key: jax.Array, face: FaceParameters, label: jax.Array, strengths: tuple[float, float]
) -> FaceParameters:
    """The same face with one expression, so that `expression_label` is `label`.

    Args:
      key: typed jax.random key of the image.
      face: without leading axes; what it shows besides is clipped to ±0.3.
      label: [] int32 into EXPRESSIONS; 0 shows none.
      strengths: (least, greatest) coefficient, drawn uniformly, above 0.4.

    Returns:
      FaceParameters.
    """
    low, high = strengths
    strength = low + (high - low) * jax.random.uniform(jax.random.fold_in(key, _EXPRESSION))
    others = jnp.clip(face.expression, -SLIGHT, SLIGHT)
    return face.replace(expression=jnp.where(jnp.arange(EXPRESSION) == label - 1, strength, others))


def group_label(identity: Identity) -> jax.Array:
    """Skin-tone bin [...] int32 in [0, GROUPS)."""
    return jnp.clip((identity.tone * GROUPS).astype(jnp.int32), 0, GROUPS - 1)


def expression_label(face: FaceParameters) -> jax.Array:
    """Index [...] int32 into EXPRESSIONS: the largest |beta|, or neutral where none reaches `SHOWN`."""
    size = jnp.abs(face.expression)
    return jnp.where(size.max(-1) < SHOWN, 0, size.argmax(-1) + 1).astype(jnp.int32)


def illumination_label(face: FaceParameters) -> jax.Array:
    """Index [...] int32 into ILLUMINATIONS, from the ambient light and the light along the camera axis.

    back: the light comes from behind or the side (its z coefficient is under 0.35 of its strength); dark: facing
    irradiance under 0.25; strong: above 1.1; else normal (design).
    """
    strength = face.light[..., 0] / 0.282095
    frontal = face.light[..., 2] / 0.488603
    facing = face.ambient + 0.25 * strength + 0.5 * frontal
    return jnp.select(
        [facing < 0.25, frontal < 0.35 * strength, facing > 1.1],
        [jnp.int32(3), jnp.int32(2), jnp.int32(1)],
        jnp.int32(0),
    )
