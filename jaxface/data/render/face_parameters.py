"""The parameters of a rendered face: everything that one image depends on."""

import flax.struct
import jax
import numpy as np

from jaxface.data.render.presentation import SPOOFS, Attack
from jaxface.data.render.styling import Shot, Style
from jaxface.errors import UserError


@flax.struct.dataclass
class Identity:
    """What all images of a person share. Leading axes are free (a batch, or none).

    Attributes:
      shape: [..., 24] alpha, standard deviations of the identity basis.
      albedo: [..., 8] gamma, standard deviations of the skin fields.
      tone: [...] in [0, 1], from the lightest to the darkest skin anchor.
      hair: [...] in [0, 1], gray level of hair and brows.
      lips: [...] > 0, brightness of the lips against the skin.
      style: features, hair, beard, glasses and skin, or None for the plain head.
    """

    shape: jax.Array
    albedo: jax.Array
    tone: jax.Array
    hair: jax.Array
    lips: jax.Array
    style: Style | None = None


@flax.struct.dataclass
class Sensor:
    """How the camera records the scene (RGB unless stated otherwise).

    Attributes:
      seed: [...] uint32, of the pixel noise.
      gain: [..., 3] > 0, exposure times white balance.
      noise: [...] >= 0, standard deviation of the RGB noise, in units of full scale.
      blur: [...] >= 0, standard deviation of the blur, pixels.
      depth_noise: [...] mm.
      depth_holes: [...] in [0, 1], fraction of depth pixels without a reading.
      occluder: [..., 5] center (x, y) and half size (x, y) of a soft rectangle before the face as fractions of the
        image, and its gray level; a half size of 0 means none.
    """

    seed: jax.Array
    gain: jax.Array
    noise: jax.Array
    blur: jax.Array
    depth_noise: jax.Array
    depth_holes: jax.Array
    occluder: jax.Array


@flax.struct.dataclass
class FaceParameters:
    """Everything that one rendered image depends on. Leading axes are free.

    Attributes:
      identity: who.
      expression: [..., 6] beta in about [-1, 1.5]; face_model.EXPRESSIONS[1:] names the entries.
      pose: [..., 3] (pitch, yaw, roll) radians, R = Rz(roll) Ry(yaw) Rx(pitch).
      scale: [...] > 0, pixels per mm as a fraction of the image size.
      translation: [..., 2] shift (x right, y down) of the head's origin from the image center, fraction of the size.
      ambient: [...] light from everywhere.
      light: [..., 9] spherical-harmonic coefficients of the other light (`directional_light`).
      background: [..., 3, 4, 4] cosine amplitudes per color (down, across).
      sensor: the camera.
      spoof: [...] int32, index into presentation.SPOOFS.
      attack: the presentation attack; read only where spoof is not live.
      shot: mouth, clothes, background and camera of a person with a style; None for one without.
    """

    identity: Identity
    expression: jax.Array
    pose: jax.Array
    scale: jax.Array
    translation: jax.Array
    ambient: jax.Array
    light: jax.Array
    background: jax.Array
    sensor: Sensor
    spoof: jax.Array
    attack: Attack
    shot: Shot | None = None


def validate(faces: FaceParameters) -> None:
    """Checks values that a compiled function cannot (call it on parameters that come from outside).

    Raises:
      UserError: non-finite coefficients, tone outside [0, 1], |yaw| above 100 degrees, spoof outside presentation.SPOOFS.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(faces):
        if not np.isfinite(np.asarray(leaf, np.float64)).all():
            raise UserError(f"{jax.tree_util.keystr(path, simple=True, separator='.')}: needs finite numbers")
    tone = np.asarray(faces.identity.tone)
    if ((tone < 0) | (tone > 1)).any():
        raise UserError(f"identity.tone: needs numbers in [0, 1], got {tone.min():g} to {tone.max():g}")
    yaw = np.rad2deg(np.abs(np.asarray(faces.pose)[..., 1]).max())
    if yaw > 100:
        raise UserError(f"pose: needs a yaw of at most 100 degrees to either side, got {yaw:.1f}")
    spoof = np.asarray(faces.spoof)
    if ((spoof < 0) | (spoof >= len(SPOOFS))).any():
        raise UserError(f"spoof: needs indices 0..{len(SPOOFS) - 1}, got {spoof.min()} to {spoof.max()}")
