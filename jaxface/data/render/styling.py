"""What makes rendered people look like photographed ones: features, hair, beards, glasses, clothes, backgrounds, cameras.

A `Style` belongs to a person, a `Shot` to one image. Both are drawn where `Variation` asks for them and absent otherwise, so that
a renderer without them is what it was. Like the rest of a head, everything is evaluated per pixel in closed form from
the position on it (design).
"""

import functools
import pathlib

import cv2
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxface.data.render.face_model import AXES
from jaxface.errors import UserError

FEATURES = (
    "brow thickness", "brow height", "brow length", "brow slant", "brow strength", "eye height", "eye width", "eye white",
    "lip height", "lip width", "nostrils", "folds", "bags", "sockets",
)  # fmt: skip
PAINTED = (
    "cheeks", "sockets", "bags", "folds", "lips", "beard", "brows", "hair", "sclera", "iris", "nostrils", "lids", "mouth",
    "opening", "lenses", "rims",
)  # fmt: skip
FRINGE = 66.0  # mm above the head's origin, where hair begins on everyone without a style
PHOTOGRAPHS = (
    "brick",
    "camera",
    "chelsea",
    "clock_motion",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "motorcycle_left",
)
_PHOTOGRAPH_SIDE = 128
_RIPPLES, _SPOTS = 6, 4


@flax.struct.dataclass
class Style:
    """What all images of a person share beside the shape of the head. Leading axes are free.

    Attributes:
      features: [..., 14] standard deviations of FEATURES.
      hair: [..., 6] thickness on top and at the sides, height of the hairline and how far it drops before the ears (mm), its
        slant, its recession at the temples (mm).
      hair_color: [..., 3] linear RGB of hair and, darker, of brows and beard.
      long_hair: [...] mm below the head's origin to which hair behind the head reaches; 0 for none.
      beard: [..., 3] opacity of moustache, chin and cheeks.
      glasses: [..., 5] opacity (0 for people without), half width, half height and thickness of the rims (mm), gray of the rims.
      ripples: [..., 6, 3] waves of the skin and of strands: radians per mm (x, y), phase.
      roughness: [...] relative deviation of the skin's reflectance by them.
      spots: [..., 4, 4] of the skin: x, y, radius (mm), strength in [-1, 1].
    """

    features: jax.Array
    hair: jax.Array
    hair_color: jax.Array
    long_hair: jax.Array
    beard: jax.Array
    glasses: jax.Array
    ripples: jax.Array
    roughness: jax.Array
    spots: jax.Array


@flax.struct.dataclass
class Shot:
    """How one image looks beside pose, light and sensor. Leading axes are free.

    Attributes:
      mouth: [..., 2] half height of the opened mouth (mm; 0 is closed) and the gray of what it shows, teeth or dark.
      lids: [...] 1 where the eyes are closed, else 0.
      glare: [..., 2] opacity and gray of the lenses, where there are glasses.
      clothes: [..., 6] opacity (0 for none), collar below the root of the neck (mm) and slope of the shoulders, linear RGB.
      photograph: [...] int32, which one the background is a part of; -1 for none.
      window: [..., 3] its left, top and side, as fractions of that photograph.
      exposure: [...] in [0, 1], how far the recorded brightness is evened out.
      vignette: [...] relative darkening at the corners, in [0, 1].
      response: [...] > 0, exponent of the recorded values.
      contrast: [...] > 0, slope of the recorded values at middle gray.
      gray: [...] 1 for a gray image, else 0.
    """

    mouth: jax.Array
    lids: jax.Array
    glare: jax.Array
    clothes: jax.Array
    photograph: jax.Array
    window: jax.Array
    exposure: jax.Array
    vignette: jax.Array
    response: jax.Array
    contrast: jax.Array
    gray: jax.Array


def sample_style(key: jax.Array, tone: jax.Array, hair: jax.Array, variation) -> Style:
    """The style of a person with that skin tone and that gray level of hair, as `variation` spreads them.

    Each dial has a key of its own, so that turning one leaves the others' draws alone.
    """
    keys = dict(zip(("features", "hair", "beard", "glasses", "skin"), jax.random.split(key, 5), strict=True))

    def uniforms(name, low, high):
        low = np.asarray(low, np.float32)
        return low + (np.asarray(high, np.float32) - low) * jax.random.uniform(keys[name], low.shape)

    features = variation.features * jax.random.normal(keys["features"], (len(FEATURES),))

    u = uniforms("hair", np.zeros(12), np.ones(12))
    styled, bald = u[0] < variation.hair, u[1] < 0.07
    cut = jnp.stack(
        [
            6 + 26 * u[2],
            3 + 19 * u[3],
            46 + 36 * u[4],
            40 + 50 * u[5],
            0.5 * (u[6] - 0.5) * (u[7] < 0.5),
            22 * u[8] ** 2,
        ]
    )
    cut = jnp.where(bald, jnp.array([0.0, 0.0, 130.0, 0.0, 0.0, 0.0]), cut)
    plain = jnp.array([0.0, 0.0, FRINGE, 70.0, 0.0, 0.0])
    # Black over brown to fair, and gray; darker skin has darker hair.
    level = 0.015 * (30.0 * (1 - 0.8 * tone)) ** u[9]
    warm = jnp.where(u[10] < 0.2, 0.0, 1.0)
    color = level * jnp.stack([1 + 0.35 * warm, 1.0, 1 - 0.35 * warm])
    long = styled & ~bald & (u[11] < 0.4)

    b = uniforms("beard", np.zeros(4), np.ones(4))
    bearded = b[0] < variation.beard
    beard = bearded * jnp.stack(
        [0.9 * b[1], jnp.where(b[3] < 0.4, 0.0, 0.9 * b[2]), jnp.where(b[3] < 0.6, 0.0, 0.9 * b[2])]
    )

    g = uniforms("glasses", (0, 0.4, 15, 10, 1.0, 0.0), (1, 1.0, 22, 17, 2.4, 0.35))
    glasses = jnp.concatenate([(g[1] * (g[0] < variation.glasses))[None], g[2:]])

    waves, phases, places, sizes = (jax.random.fold_in(keys["skin"], k) for k in range(4))
    direction = jax.random.normal(waves, (_RIPPLES, 2))
    direction = direction / (jnp.linalg.norm(direction, axis=-1, keepdims=True) + 1e-6)
    length = np.geomspace(9, 40, _RIPPLES).astype(np.float32)[:, None]  # mm
    ripples = jnp.concatenate(
        [2 * np.pi / length * direction, 2 * np.pi * jax.random.uniform(phases, (_RIPPLES, 1))], -1
    )
    place = np.array([55, 70], np.float32) * jax.random.uniform(places, (_SPOTS, 2), minval=-1.0)
    size = jax.random.uniform(sizes, (_SPOTS, 2))
    strength = jnp.clip(variation.skin * (2 * size[:, 1:] - 1.3), -0.9, 0.9)
    return Style(
        features=features,
        hair=jnp.where(styled, cut, plain),
        hair_color=jnp.where(styled, color, hair),
        long_hair=jnp.where(long, 40 + 110 * u[5], 0.0),
        beard=beard,
        glasses=glasses,
        ripples=ripples,
        roughness=jnp.float32(0.03 * variation.skin),
        spots=jnp.concatenate([place, 2 + 6 * size[:, :1] ** 2, strength], -1),
    )


def sample_shot(key: jax.Array, style: Style, fresh: Style, variation) -> tuple[Style, Shot]:
    """How a person with that style looks in one image, and how that image is taken.

    A fraction `restyle` of the images has the hair, and every second of those the beard, of the style `fresh`. Of a wearer's
    images one in four is without the glasses.
    """
    names = (
        "restyle",
        "glasses",
        "mouth",
        "clothes",
        "background",
        "vignette",
        "response",
        "contrast",
        "gray",
    )
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))

    def uniforms(name, count):
        return jax.random.uniform(keys[name], (count,))

    def between(name, low, high):
        return low + (high - low) * uniforms(name, 1)[0]

    u = uniforms("restyle", 2)
    changed = u[0] < variation.restyle
    pick = lambda when, name: jnp.where(when, getattr(fresh, name), getattr(style, name))  # noqa: E731
    g, m = uniforms("glasses", 4), uniforms("mouth", 5)
    style = style.replace(
        hair=pick(changed, "hair"),
        hair_color=pick(changed, "hair_color"),
        long_hair=pick(changed, "long_hair"),
        beard=pick(changed & (u[1] < 0.5), "beard"),
        glasses=style.glasses.at[0].multiply(g[0] < 0.75),
    )
    c, b = uniforms("clothes", 8), uniforms("background", 5)
    dull = c[3] + 0.5 * (c[4:7] - 0.5) * (c[7] < 0.5)
    side = 0.25 + 0.6 * b[2]
    return style, Shot(
        mouth=jnp.stack(
            [(2 + 8 * m[1]) * (m[0] < variation.mouth), jnp.where(m[2] < 0.5, 0.02, 0.2 + 0.5 * m[3])]
        ),
        lids=(m[4] < 0.3 * variation.mouth).astype(jnp.float32),
        glare=jnp.stack([0.3 * g[1] * (g[2] < 0.6), jnp.where(g[3] < 0.5, 0.03, 0.8)]),
        clothes=jnp.concatenate(
            [
                (c[0] < variation.clothes).astype(jnp.float32)[None],
                jnp.stack([5 + 30 * c[1], 0.2 + 0.5 * c[2]]),
                jnp.clip(dull, 0.01, 1.0) ** 2,
            ]
        ),
        photograph=jnp.where(b[0] < variation.photographs, (b[1] * len(_names())).astype(jnp.int32), -1),
        window=jnp.stack([b[3] * (1 - side), b[4] * (1 - side), side]),
        exposure=jnp.float32(variation.exposure),
        vignette=between("vignette", 0.0, variation.vignette),
        response=between("response", *variation.response),
        contrast=between("contrast", *variation.contrast),
        gray=(uniforms("gray", 1)[0] < variation.gray).astype(jnp.float32),
    )


def _bump(x, y, x0, y0, sx, sy):
    return jnp.exp(-0.5 * (((x - x0) / sx) ** 2 + ((y - y0) / sy) ** 2))


def _pair(x, y, x0, y0, sx, sy):
    return _bump(jnp.abs(x), y, x0, y0, sx, sy)


def hairline(style: Style, u, x, xp=jnp):
    """Height (mm) above which hair grows, at azimuth u in [-1, 1] and x mm: runs down before the ears as far as `style` says."""
    top, side = style.hair[2], style.hair[3]
    middle = top + style.hair[4] * x + style.hair[5] * xp.clip((xp.abs(x) - 12) / 30, 0, 1)
    return middle - side * xp.maximum(xp.abs(u) - 0.6, 0.0) / 0.4


def hair_volume(style: Style, u, x, y, z):
    """[..., 3] mm by which hair and ears move the surface of the head outwards, at ellipsoid positions."""
    a, b, c = AXES
    outwards = jnp.stack([x / a**2, y / b**2, z / c**2], -1)
    outwards = outwards / (jnp.linalg.norm(outwards, axis=-1, keepdims=True) + 1e-6)
    high = jnp.clip((y - 40) / 50, 0, 1)
    thickness = style.hair[1] + (style.hair[0] - style.hair[1]) * high
    grown = thickness * jax.nn.sigmoid((y - hairline(style, u, x) - 6) / 5)
    ears = 13 * jnp.exp(-0.5 * ((y - 8) / 16) ** 2) * jax.nn.sigmoid((jnp.abs(u) - 0.85) * 40)
    return jnp.maximum(grown, ears)[..., None] * outwards


def ripple(style: Style, x, y):
    """Fine texture with variance 1 at ellipsoid positions, from the waves of the skin."""
    kx, ky, phase = style.ripples.T
    return jnp.sin(kx * x[..., None] + ky * y[..., None] + phase).sum(-1) / np.float32(np.sqrt(_RIPPLES / 2))


def layers(style: Style, shot: Shot, u, x, y, z) -> dict[str, jax.Array]:
    """Weights of what is painted over the skin, PAINTED in this order, at ellipsoid positions (mm), u the azimuth in [-1, 1]."""
    f = dict(zip(FEATURES, style.features, strict=True))
    front, side = (z > 0).astype(x.dtype), jnp.abs(x)
    open_eyes = 1 - shot.lids
    brow = jnp.exp(-0.5 * (((side - 29) / (14 * jnp.exp(0.15 * f["brow length"]))) ** 2
                           + ((y - 37 - 2.5 * f["brow height"] - 0.12 * f["brow slant"] * (side - 29))
                              / (2.6 * jnp.exp(0.35 * f["brow thickness"]))) ** 2))  # fmt: skip
    tall, wide = jnp.exp(0.2 * f["eye height"]), jnp.exp(0.1 * f["eye width"])
    lip_height, lip_width = jnp.exp(0.25 * f["lip height"]), jnp.exp(0.12 * f["lip width"])
    edge = side - 12 + 0.5 * (y + 18)  # of the fold from the nose to the corner of the mouth
    mouth_height, _ = shot.mouth
    inside = 1 - (x / (13 * lip_width)) ** 2 - ((y + 45) / jnp.maximum(mouth_height, 0.1)) ** 2
    worn, rim_width, rim_height, thickness, _ = style.glasses
    radius = jnp.sqrt(((side - 31) / rim_width) ** 2 + ((y - 22) / rim_height) ** 2 + 1e-6)
    rim = jnp.exp(-0.5 * ((radius - 1) * rim_height / thickness) ** 2)
    bridge = _bump(x, y, 0, 26, 8, thickness)
    moustache, chin, cheeks = style.beard
    below = jax.nn.sigmoid((-50 - y + 0.02 * x**2) / 4) * jax.nn.sigmoid((40 - side) / 5)
    jaw = jax.nn.sigmoid((-32 - y + 0.035 * x**2) / 5)
    lips = _bump(x, y, 0, -45, 17 * lip_width, 7)
    beard = jnp.maximum(
        moustache * _bump(x, y, 0, -33, 17, 4.5), jnp.maximum(chin * below, cheeks * jaw) * (1 - lips)
    )
    return {
        "cheeks": 0.18 * _pair(x, y, 40, -8, 14, 12) * front,
        "sockets": jnp.clip(0.25 * f["sockets"], 0, 0.7) * _pair(x, y, 31, 24, 14, 8) * front,
        "bags": jnp.clip(0.2 * f["bags"], 0, 0.6) * _pair(x, y, 31, 12, 10, 2.5) * front,
        "folds": jnp.clip(0.25 * f["folds"], 0, 0.6)
        * jnp.exp(-0.5 * (edge / 3) ** 2) * jnp.exp(-0.5 * ((y + 30) / 12) ** 2) * front,
        "lips": 0.75 * _bump(x, y, 0, -44, 17 * lip_width, 6 * lip_height) * front,
        "beard": beard * front,
        "brows": 0.85 * jnp.clip(1 + 0.35 * f["brow strength"], 0, 1.15) * brow * front,
        "hair": jax.nn.sigmoid((y - hairline(style, u, x)) / 4),
        "sclera": 0.9 * open_eyes * jnp.exp(-0.7 * jnp.abs(f["eye white"]))
        * jnp.clip(1.8 * _pair(x, y, 31, 24, 9 * wide, 3.6 * tall) - 0.4, 0, 1) * front,
        "iris": open_eyes * jnp.clip(1.8 * _pair(x, y, 31, 24, 3.8, 3.8) - 0.3, 0, 1) * front,
        "nostrils": jnp.clip(0.6 + 0.15 * f["nostrils"], 0, 1) * _pair(x, y, 7, -17, 3, 2) * front,
        "lids": 0.8 * jnp.maximum(_pair(x, y, 31, 29, 10, 1.6), shot.lids * _pair(x, y, 31, 22, 9, 1.6)) * front,
        "mouth": 0.6 * _bump(x, y, 0, -45, 14 * lip_width, 1.4) * front,
        "opening": jax.nn.sigmoid(6 * inside) * (mouth_height > 0) * front,
        "lenses": worn * shot.glare[0] * jax.nn.sigmoid(8 * (1 - radius)) * front,
        "rims": worn * jnp.maximum(rim, bridge) * front,
    }  # fmt: skip


def spotted(style: Style, waves, x, y):
    """What the skin's texture, of those `ripple` waves, and its spots multiply its reflectance by."""
    marks = sum(strength * _bump(x, y, x0, y0, size, size) for x0, y0, size, strength in style.spots)
    return (1 + style.roughness * waves) * (1 + marks)


def _across(offset, size):
    """Coordinates (mm) across and along a head's axis from a pixel: [S, S] each; `offset` as in `appearance.neck_cover`."""
    angle, scale, origin = offset
    v, u = jnp.mgrid[:size, :size].astype(jnp.float32)
    right, down = (u - origin[0]) / scale, (v - origin[1]) / scale
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return cos * right - sin * down, sin * right + cos * down


def long_hair(around: jax.Array, style: Style, light: jax.Array, offset, size: int) -> jax.Array:
    """Paints hair that hangs behind the head into the background [S, S, 3], under that irradiance; `offset` from its origin."""
    across, along = _across(offset, size)
    scale, half = offset[1], AXES[0] + style.hair[1]
    cover = jax.nn.sigmoid((half - jnp.abs(across)) * scale * 2) * (along > -40)
    cover = cover * jax.nn.sigmoid((style.long_hair - along) * scale) * (style.long_hair > 0)
    strands = 1 + 0.3 * ripple(style, across, 0.2 * along)
    return around + cover[..., None] * (light * strands[..., None] * style.hair_color - around)


def clothes(around: jax.Array, shot: Shot, light: jax.Array, offset, size: int) -> jax.Array:
    """Paints shoulders into the background [S, S, 3], with that irradiance; `offset` from the root of the neck."""
    across, along = _across(offset, size)
    worn, collar, slope = shot.clothes[:3]
    shoulder = collar + slope * jnp.abs(across)
    cover = worn * jax.nn.sigmoid((along - shoulder) * offset[1] * 2)
    return around + cover[..., None] * (light * shot.clothes[3:] - around)


@functools.cache
def _names() -> tuple[str, ...]:
    return (*PHOTOGRAPHS, "china", "flower")


@functools.cache
def photographs() -> np.ndarray:
    """The bundled photographs of scikit-image and scikit-learn that serve as backgrounds: [P, 128, 128, 3] uint8 RGB.

    Raises:
      UserError: one of the two packages is not installed.
    """
    try:
        from skimage import data
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise UserError(
            f"photographs: needs scikit-image and scikit-learn for backgrounds, pip install 'jaxface[sets]' ({error})"
        ) from error
    folder = pathlib.Path(data.__file__).parent
    pictures = [
        cv2.cvtColor(cv2.imread(str(folder / f"{name}.png")), cv2.COLOR_BGR2RGB) for name in PHOTOGRAPHS
    ]
    pictures += [load_sample_image(f"{name}.jpg") for name in ("china", "flower")]
    squares = []
    for picture in pictures:
        side = min(picture.shape[:2])
        top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
        square = np.ascontiguousarray(picture[top : top + side, left : left + side])
        squares.append(cv2.resize(square, (_PHOTOGRAPH_SIDE,) * 2, interpolation=cv2.INTER_AREA))
    stacked = np.stack(squares)
    stacked.flags.writeable = False
    return stacked


def photographed(around: jax.Array, shot: Shot, size: int) -> jax.Array:
    """Linear RGB [S, S, 3] with a part of a photograph instead of `around`, as bright on average, where the shot has one."""
    pictures = photographs()
    left, top, side = shot.window
    place = (jnp.arange(size) + 0.5) / size * side
    columns = ((left + place) * _PHOTOGRAPH_SIDE).astype(jnp.int32)
    rows = ((top + place) * _PHOTOGRAPH_SIDE).astype(jnp.int32)
    flat = jnp.asarray(pictures.reshape(-1, 3))
    index = jnp.maximum(shot.photograph, 0) * _PHOTOGRAPH_SIDE**2 + rows[:, None] * _PHOTOGRAPH_SIDE + columns
    part = (flat[index].astype(jnp.float32) / 255) ** 2.2
    part = part * (around.mean() / (part.mean() + 1e-3))
    return jnp.where(shot.photograph >= 0, part, around)


def develop(image: jax.Array, shot: Shot) -> jax.Array:
    """What the camera makes of a recorded image [S, S, 3] in [0, 1]: exposure, vignette, response, contrast, gray.

    The mean is drawn to 0.45 as far as the exposure says, by (0.45 / mean)^exposure. Then come x^response and the curve
    x^c / (x^c + (1 - x)^c), whose slope at 1/2 is c; both rise from 0 to 1. A gray image has its luma in all channels.
    """
    size = image.shape[0]
    place = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    radius = np.float32(0.5) * (place[:, None] ** 2 + place**2)
    image = image * ((0.45 / (image.mean() + 0.02)) ** shot.exposure)
    image = image * (1 - shot.vignette * radius)[..., None]
    x = jnp.clip(image, 1e-4, 1.0) ** shot.response
    x = jnp.clip(x, 1e-4, 1 - 1e-4)
    high, low = x**shot.contrast, (1 - x) ** shot.contrast
    image = high / (high + low)
    luma = image @ np.array([0.299, 0.587, 0.114], np.float32)
    return jnp.where(shot.gray > 0, jnp.broadcast_to(luma[..., None], image.shape), image)
