"""The difficulty dial of the rendered faces."""

import dataclasses
from typing import Annotated

from jaxface.checks import Fraction, NonNegative, Ordered, Range, check_fields

_STYLED = (
    "features", "skin", "hair", "beard", "glasses", "restyle", "mouth", "clothes", "photographs", "exposure",
    "vignette", "gray",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Variation:
    """How much the images of one person differ: the difficulty dial (design).

    Ranges are (low, high) of a uniform draw.
    """

    yaw: Annotated[float, Range(0, 100)] = 30.0
    """Largest turn of the head to either side, degrees."""
    pitch: Annotated[float, Range(0, 90)] = 12.0
    """Largest nod up or down, degrees."""
    roll: Annotated[float, Range(0, 180)] = 8.0
    """Largest tilt to either side, degrees."""
    expression: Annotated[float, Range(0, 2, below=True)] = 0.6
    """Standard deviation of the expression coefficients, which are clipped to [-1, 1.5]."""
    ambient: Annotated[tuple[float, float], NonNegative, Ordered()] = (0.15, 0.45)
    """Light from everywhere."""
    light: Annotated[tuple[float, float], NonNegative, Ordered()] = (0.35, 0.75)
    """Intensity of the directional light."""
    light_spread: Annotated[float, Range(0, 2, below=True)] = 0.7
    """Sideways spread of its direction against the camera's; 0 is a lamp at the camera."""
    scale: Annotated[tuple[float, float], NonNegative, Ordered()] = (0.95, 1.1)
    """Scale of the head, pixels per mm times 260 over the image size; faces that are aligned have another."""
    shift: Annotated[float, Range(0, 2, below=True)] = 0.01
    """Largest translation to either side as a fraction of the image size, of aligned faces as well."""
    zoom: Annotated[float, Range(0, 2, below=True)] = 0.03
    """Largest relative change of scale that alignment leaves."""
    gain: Annotated[tuple[float, float], NonNegative, Ordered()] = (0.75, 1.2)
    """Exposure."""
    white_balance: Annotated[float, Range(0, 2, below=True)] = 0.07
    """Largest relative change per channel."""
    noise: Annotated[tuple[float, float], NonNegative, Ordered()] = (0.01, 0.025)
    """Standard deviation of the noise in the colors, which are in [0, 1]."""
    blur: Annotated[tuple[float, float], NonNegative, Ordered()] = (0.4, 0.8)
    """Standard deviation of the camera's blur, pixels."""
    depth_noise: Annotated[tuple[float, float], NonNegative, Ordered()] = (2.0, 6.0)
    """Standard deviation of the noise in the depth, mm."""
    depth_holes: Annotated[tuple[float, float], NonNegative, Ordered()] = (0.02, 0.1)
    """Fraction of the depth pixels without a reading."""
    background: Annotated[float, Fraction] = 1.0
    """Strength of the background's texture, in [0, 1]."""
    dark: Annotated[float, Fraction] = 0.0
    """Fraction of images under-exposed by a factor 4 to 12."""
    occlusion: Annotated[float, Fraction] = 0.0
    """Fraction of images with a patch before the face."""
    spoof: Annotated[float, Fraction] = 0.0
    """Fraction of presentation attacks: print, replay, mask and cut-out in equal parts."""
    features: Annotated[float, Range(0, 2, below=True)] = 0.0
    """How much people differ in brows, eyes, lips, nostrils, folds and shadows (styling.FEATURES), standard deviations."""
    skin: Annotated[float, Range(0, 2, below=True)] = 0.0
    """Texture and spots of a person's skin, relative to 3 % of its reflectance."""
    hair: Annotated[float, Fraction] = 0.0
    """Fraction of people with hair of their own in volume, hairline, length and color; the others have a plain cap."""
    beard: Annotated[float, Fraction] = 0.0
    """Fraction of people with a moustache or a beard."""
    glasses: Annotated[float, Fraction] = 0.0
    """Fraction of people who wear glasses, on three of four images."""
    restyle: Annotated[float, Fraction] = 0.0
    """Fraction of images with other hair, and half of them with another beard, than the person's."""
    mouth: Annotated[float, Fraction] = 0.0
    """Fraction of images with an open mouth; three tenths as many have closed eyes."""
    clothes: Annotated[float, Fraction] = 0.0
    """Fraction of images with shoulders."""
    photographs: Annotated[float, Fraction] = 0.0
    """Fraction of images before a part of a photograph that scikit-image or scikit-learn brings."""
    exposure: Annotated[float, Fraction] = 0.0
    """How far the camera evens the brightness of its images out, in [0, 1]."""
    vignette: Annotated[float, Fraction] = 0.0
    """Largest relative darkening at the corners."""
    response: Annotated[tuple[float, float], Range(0.1, 10), Ordered()] = (1.0, 1.0)
    """Exponent of the recorded values, which are in [0, 1]."""
    contrast: Annotated[tuple[float, float], Range(0.1, 10), Ordered()] = (1.0, 1.0)
    """Slope of the recorded values at middle gray."""
    gray: Annotated[float, Fraction] = 0.0
    """Fraction of gray images."""

    def __post_init__(self):
        check_fields(self)

    @property
    def styled(self) -> bool:
        """Whether people and images have a `styling.Style` and a `styling.Shot`: any of these dials is not at rest."""
        return (
            any(getattr(self, name) > 0 for name in _STYLED)
            or (self.response, self.contrast) != ((1.0, 1.0),) * 2
        )

    @classmethod
    def none(cls) -> "Variation":
        """Passport photographs before a gray wall: the images of a person differ by a little noise alone."""
        return cls(
            yaw=0.0, pitch=0.0, roll=0.0, expression=0.0, ambient=(0.3, 0.3), light=(0.5, 0.5), light_spread=0.0,
            scale=(1.0, 1.0), shift=0.0, zoom=0.0, gain=(1.0, 1.0), white_balance=0.0, noise=(0.01, 0.01),
            blur=(0.5, 0.5), depth_noise=(0.0, 0.0), depth_holes=(0.0, 0.0), background=0.0,
        )  # fmt: skip

    @classmethod
    def frontal(cls) -> "Variation":
        """Cooperative capture: small angles, soft light, weak expressions."""
        return cls(
            yaw=8.0,
            pitch=5.0,
            roll=4.0,
            expression=0.3,
            ambient=(0.25, 0.4),
            light=(0.4, 0.6),
            light_spread=0.3,
        )

    @classmethod
    def hard(cls) -> "Variation":
        """Surveillance: half profiles, strong expressions, hard side light, dark and occluded images."""
        return cls(
            yaw=55.0, pitch=20.0, roll=20.0, expression=0.9, ambient=(0.05, 0.4), light=(0.3, 1.0), light_spread=1.2,
            shift=0.03, zoom=0.08, gain=(0.6, 1.3), noise=(0.015, 0.04), blur=(0.5, 1.3), depth_noise=(4.0, 8.0),
            depth_holes=(0.05, 0.3), dark=0.1, occlusion=0.3,
        )  # fmt: skip

    @classmethod
    def spoofing(cls) -> "Variation":
        """Anti-spoofing: cooperative to moderate live faces (40 %) and four attacks (15 % each)."""
        return cls(
            yaw=20.0, pitch=10.0, ambient=(0.1, 0.4), gain=(0.7, 1.3), noise=(0.015, 0.03), depth_noise=(4.0, 8.0),
            depth_holes=(0.05, 0.3), dark=0.1, spoof=0.6,
        )  # fmt: skip

    @classmethod
    def photographed(cls) -> "Variation":
        """People and cameras as photographs have them, to learn from before photographs; docs/guides/photographs.md."""
        return cls(
            yaw=32.0, pitch=15.0, roll=20.0, expression=0.7, ambient=(0.15, 0.45), light=(0.35, 0.8), light_spread=0.8,
            shift=0.04, zoom=0.12, gain=(0.85, 1.15), white_balance=0.1, noise=(0.0, 0.015), blur=(0.2, 0.7),
            occlusion=0.05, features=1.0, skin=0.5, hair=0.9, beard=0.25, glasses=0.3, restyle=0.15, mouth=0.35,
            clothes=0.8, photographs=0.4, exposure=0.6, vignette=0.3, response=(0.8, 1.3), contrast=(1.0, 1.9), gray=0.5,
        )  # fmt: skip


MODERATE = Variation()  # the default everywhere
