"""Rendered faces in words: who it is, where the head is turned, what the face shows, and what the person looks like.

Methods: intern
"""

import functools
from collections.abc import Mapping

import numpy as np

from jaxface.data.render.face_model import EXPRESSIONS
from jaxface.data.render.face_parameters import FaceParameters
from jaxface.data.render.rendered import RenderedSource, draw_faces
from jaxface.data.render.sampling import expression_label
from jaxface.data.render.variation import Variation
from jaxface.data.sources.source import Record
from jaxface.data.transforms.text import caption_bytes

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "expression": EXPRESSIONS,
    "pose": ("left", "ahead", "right"),
    "glasses": ("none", "glasses"),
    "beard": ("none", "beard"),
    "hair": ("bald", "black", "brown", "blond", "gray"),
    "skin": ("light", "medium", "dark"),
}
"""What captions tell, and the values that each has; sides are those of the image."""

CAPTIONED = Variation(
    yaw=40.0,
    roll=5.0,
    expression=0.15,
    ambient=(0.25, 0.4),
    light=(0.4, 0.6),
    light_spread=0.4,
    scale=(1.25, 1.35),
    noise=(0.0, 0.01),
    blur=(0.2, 0.4),
    background=0.6,
    features=0.5,
    skin=0.3,
    hair=1.0,
    beard=0.4,
    glasses=0.5,
    clothes=0.5,
    exposure=0.4,
)
"""People who differ in what their captions tell."""

SYNONYMS: tuple[tuple[str, ...], ...] = (
    ("photo", "picture", "image", "portrait"),
    ("smiling", "grinning", "happy"),
    ("frowning", "scowling"),
    ("surprised", "astonished"),
    ("glasses", "spectacles"),
    ("beard", "whiskers"),
    ("looking", "facing", "turned"),
    ("blond", "fair"),
    ("gray", "silver"),
    ("bald", "hairless"),
    ("neutral", "calm"),
    ("wearing", "in"),
)
"""Words that stand for each other in these captions."""

_TURNED = 12.0  # degrees of yaw from which a head looks to a side
_SYLLABLES = ("ba", "do", "fe", "gi", "ka", "lu", "mo", "na", "pe", "ri", "so", "tu", "va", "we", "yo", "zi")
_STARTS = ("a photo of {}", "a picture of {}", "{}", "portrait of {}", "this is {}")
_WORDS = {
    "expression": (
        ("with a neutral face", "neutral"),
        ("smiling", "with a smile"),
        ("with an open mouth", "mouth open"),
        ("surprised", "with raised brows"),
        ("frowning", "with a frown"),
        ("pouting", "with pursed lips"),
        ("with puffed cheeks", "cheeks puffed"),
    ),
    "pose": (
        ("looking left", "turned to the left"),
        ("looking ahead", "facing the camera"),
        ("looking right", "turned to the right"),
    ),
    "glasses": (("without glasses",), ("wearing glasses", "with glasses")),
    "beard": (("shaved", "without a beard"), ("with a beard", "bearded")),
    "hair": (
        ("bald", "without hair"),
        *((f"{c} hair", f"with {c} hair") for c in ("black", "brown", "blond", "gray")),
    ),
    "skin": (("light skin",), ("medium skin",), ("dark skin",)),
}


def person_name(number: int) -> str:
    """A name of three to six syllables, another one for every person.

    Example:
      >>> person_name(0), person_name(1), person_name(273)
      ('bababa', 'dobaba', 'dododo')
    """
    syllables = []
    while number or len(syllables) < 3:
        number, digit = divmod(number, len(_SYLLABLES))
        syllables.append(_SYLLABLES[digit])
    return "".join(syllables)


def face_attributes(faces: FaceParameters) -> dict[str, np.ndarray]:
    """The value of each of `ATTRIBUTES`, as an index into its names.

    Args:
      faces: [N]; people with a style.

    Returns:
      name -> [N] int32.
    """
    style = faces.identity.style
    if style is None:
        raise ValueError("variation: needs people with a style, whose hair, beard and glasses vary")
    yaw = np.rad2deg(np.asarray(faces.pose)[:, 1])
    color, hairline = np.asarray(style.hair_color), np.asarray(style.hair)[:, 2]
    level, warm = color.mean(-1), color[:, 0] > 1.2 * color[:, 2]
    hair = np.select(
        [hairline >= 120, level < 0.03, ~warm, level < 0.12], [0, 1, 4, 2], 3
    )  # bald, black, gray, brown, blond
    tone = np.asarray(faces.identity.tone)
    values = {
        "expression": np.asarray(expression_label(faces)),
        "pose": np.digitize(yaw, [-_TURNED, _TURNED]),
        "glasses": np.asarray(style.glasses)[:, 0] > 0,
        "beard": np.asarray(style.beard).max(-1) > 0.15,
        "hair": hair,
        "skin": np.digitize(tone, [1 / 3, 2 / 3]),
    }
    return {name: value.astype(np.int32) for name, value in values.items()}


def describe_face(
    values: Mapping[str, int], name: str, rng: np.random.Generator, *, mentioned: float = 0.9
) -> str:
    """A caption: the name, and in any order what is mentioned of the rest.

    Args:
      values: an index for each of `ATTRIBUTES`.
      name: of the person.
      rng: of order and words.
      mentioned: probability that an attribute is mentioned.

    Example:
      >>> values = {"expression": 1, "pose": 0, "glasses": 1, "beard": 0, "hair": 2, "skin": 0}
      >>> describe_face(values, "kamona", np.random.default_rng(0))
      'this is kamona, shaved, with glasses, light skin, with brown hair, with a smile, turned to the left'
    """
    start = _STARTS[rng.integers(len(_STARTS))].format(name)
    attributes = rng.permutation(list(_WORDS))
    phrases = [start]
    for attribute in attributes:
        choices = _WORDS[attribute][values[attribute]]
        phrase = choices[rng.integers(len(choices))]
        if rng.random() < mentioned:
            phrases.append(phrase)
    return ", ".join(phrases)


class CaptionedSource:
    """Rendered faces with captions: records of `RenderedSource`, and `caption`, UTF-8 that is filled up with zeros, [C] uint8.

    A caption depends on (seed, person, number of the image) alone, as the image does.

    Args:
      identities, per_identity, image_size, seed, variation, aligned, first_identity, strengths: as `RenderedSource`; image k of a
        person shows expression k mod 7.
      mentioned: probability that a caption mentions an attribute.

    Attributes:
      labels, class_names, image_shape: of the people. captions: [N] strings. record_names: the same, so that a run resumes with
        the captions that it had.
      attributes: name -> [N] int32, index into `ATTRIBUTES`, which is `attribute_names`.
    """

    attribute_names = ATTRIBUTES

    def __init__(
        self,
        identities: int,
        per_identity: int,
        image_size: int,
        seed: int,
        variation: Variation = CAPTIONED,
        *,
        mentioned: float = 0.9,
        strengths: tuple[float, float] = (0.7, 1.3),
        first_identity: int = 0,
        aligned: bool = False,
    ):
        self._faces = RenderedSource(
            identities,
            per_identity,
            image_size,
            seed,
            variation,
            aligned=aligned,
            first_identity=first_identity,
            strengths=strengths,
        )
        self.labels, self.image_shape = self._faces.labels, self._faces.image_shape
        self.class_names = [person_name(first_identity + i) for i in range(identities)]
        self._draw = functools.partial(
            draw_faces, np.uint32(seed % 2**32), variation=variation, aligned=aligned, strengths=strengths
        )
        self._first, self._each, self._seed, self._mentioned = first_identity, per_identity, seed, mentioned

    @functools.cached_property
    def attributes(self) -> dict[str, np.ndarray]:
        """Name -> [N] int32; worked out when first asked for, nothing is rendered."""
        people = self.labels + np.int32(self._first)
        shots = (np.arange(len(self)) % self._each).astype(np.int32)
        return face_attributes(self._draw(people, shots))

    @functools.cached_property
    def captions(self) -> list[str]:
        """[N] strings."""
        captions = []
        for i, label in enumerate(self.labels):
            rng = np.random.default_rng([self._seed, self._first + int(label), i % self._each])
            values = {name: int(column[i]) for name, column in self.attributes.items()}
            captions.append(describe_face(values, self.class_names[label], rng, mentioned=self._mentioned))
        return captions

    @property
    def record_names(self) -> list[str]:
        """The captions."""
        return self.captions

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        return {**self._faces[index], "caption": caption_bytes(self.captions[int(index)])}

    def prepare(self, workers: int = 2) -> "CaptionedSource":
        """Renders everything now, in `workers` threads; returns itself."""
        self._faces.prepare(workers)
        return self
