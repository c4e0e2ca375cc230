"""A random-access source of rendered faces."""

import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from jaxface.checks import AtLeast, check_number
from jaxface.data.render import sampling
from jaxface.data.render.face_model import EXPRESSIONS
from jaxface.data.render.face_parameters import FaceParameters
from jaxface.data.render.renderer import render, to_uint8
from jaxface.data.render.variation import MODERATE, Variation
from jaxface.data.sources.source import Record
from jaxface.errors import UserError

_CHUNK = 32  # images per compiled call; one size, so that one compile serves every source of an image size


@functools.partial(jax.jit, static_argnames=("variation", "aligned", "strengths"))
def draw_faces(
    seed: jax.Array,
    people: jax.Array,
    shots: jax.Array,
    *,
    variation: Variation,
    aligned: bool,
    tone=(0.0, 1.0),
    strengths: tuple[float, float] | None = None,
) -> FaceParameters:
    """Parameters of image `shots[b]` of person `people[b]` under `seed`: [], [B], [B] int32 -> FaceParameters [B].

    Skin tones are drawn from the range `tone`. With `strengths` image k shows EXPRESSIONS[k % 7] (`sampling.show_expression`).
    """

    def one(person, shot):
        key = jax.random.fold_in(jax.random.key(seed), person)
        identity = sampling.sample_identity(jax.random.fold_in(key, 0), tone, variation)
        key = jax.random.fold_in(key, shot + 1)
        face = sampling.sample_faces(key, identity, variation)
        if strengths is not None:
            face = sampling.show_expression(key, face, shot % len(EXPRESSIONS), strengths)
        return sampling.nearly_aligned(key, face, variation) if aligned else face

    return jax.vmap(one)(people, shots)


@functools.partial(
    jax.jit, static_argnames=("size", "variation", "aligned", "with_depth", "with_infrared", "strengths")
)
def _shoot(seed, people, shots, tone, *, size, variation, aligned, with_depth, with_infrared, strengths):
    faces = draw_faces(
        seed, people, shots, variation=variation, aligned=aligned, tone=tone, strengths=strengths
    )
    outputs = ("image", *["depth"] * with_depth, *["infrared"] * with_infrared)
    shown = render(faces, image_size=size, outputs=outputs, attacks=variation.spoof > 0)
    result = {
        "image": to_uint8(shown.image),
        "landmarks": shown.landmarks,
        "boxes": shown.box[:, None, :],
        "spoof": faces.spoof,
        "expression": sampling.expression_label(faces),
        "group": sampling.group_label(faces.identity),
    }
    if with_depth:
        result["depth"] = shown.depth
    if with_infrared:
        result["infrared"] = to_uint8(shown.infrared)
    return result


@functools.partial(jax.jit, static_argnames=("variation", "aligned"))
def _spoofs(seed, people, shots, tone, *, variation, aligned):
    return draw_faces(seed, people, shots, variation=variation, aligned=aligned, tone=tone).spoof


@functools.partial(jax.jit, static_argnames=("variation", "aligned"))
def _facts(seed, people, shots, tone, *, variation, aligned):
    faces = draw_faces(seed, people, shots, variation=variation, aligned=aligned, tone=tone)
    return {
        "spoof": faces.spoof,
        "illumination": sampling.illumination_label(faces),
        "expression": sampling.expression_label(faces),
        "group": sampling.group_label(faces.identity),
        "pose": faces.pose,
        "hair": faces.identity.hair,
    }


@jax.jit
def _groups(seed, people, tone):
    def one(person):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), person), 0)
        return sampling.group_label(sampling.sample_identity(key, tone))

    return jax.vmap(one)(people)


class RenderedSource:
    """Rendered faces of synthetic people; image k of person i is record `i * per_identity + k`.

    An image depends on (seed, person, k, variation, image size, aligned) alone, not on how many people or images the
    source has: sources with disjoint ranges of people never share one. Images are rendered in chunks when first asked
    for and kept: N * image_size² * 3 bytes (10,000 images of 112 x 112: 376 MB), and 4 bytes per pixel for depth.
    Arrays are read-only.
    Safe to read from several threads, which render in parallel. Pickles as its arguments.

    Record: `image` uint8 [S, S, 3], `label` int32 (0 for the first person of this source), `landmarks` [5, 2] (x, y)
    pixels, `boxes` [1, 4] (y0, x0, y1, x1) pixels, `spoof` (presentation.SPOOFS), `expression` (face_model.EXPRESSIONS),
    `group` (skin-tone bin) int32, and with `with_depth` `depth` float32 [S, S] mm before the head's origin
    (appearance.normalized_depth scales it), and with `with_infrared` `infrared` uint8 [S, S].

    Attributes:
      labels: [N] int32.
      class_names: one per person.
      image_shape: (S, S, 3).
      groups: [N] int32, skin-tone bins; worked out when first asked for. group_names: one per bin.
      spoofs: [N] int32, what is presented (presentation.SPOOFS); worked out when first asked for, nothing is rendered.
    """

    group_names = tuple(f"tone-{k + 1}-of-{sampling.GROUPS}" for k in range(sampling.GROUPS))

    def __init__(
        self,
        identities: int,
        per_identity: int,
        image_size: int = 112,
        seed: int = 0,
        variation: Variation = MODERATE,
        *,
        aligned: bool = True,
        first_identity: int = 0,
        with_depth: bool = False,
        with_infrared: bool = False,
        tone: tuple[float, float] = (0.0, 1.0),
        strengths: tuple[float, float] | None = None,
    ):
        """Describes the source; nothing is rendered yet.

        Args:
          identities: number of people, >= 1.
          per_identity: images of each, >= 1.
          image_size: height and width, pixels, >= 8.
          seed: of all people and images.
          variation: how the images of one person differ.
          aligned: frame every face to the five-point template of 112 x 112 (scaled); otherwise the head is about
            0.6 of the image wide at any place that `variation` allows.
          first_identity: number of the first person, to take people that another source does not have.
          with_depth: records carry `depth`.
          with_infrared: records carry `infrared`.
          tone: (least, greatest) skin tone of these people; 0 is the lightest, 1 the darkest.
          strengths: (least, greatest) coefficient of the expression EXPRESSIONS[k % 7] that image k of a person shows, from 0.4
            to 1.5; expressions are as `variation` draws them unless given.

        Raises:
          UserError: a number out of range.
        """
        for name, value, least in (
            ("identities", identities, 1),
            ("per_identity", per_identity, 1),
            ("image_size", image_size, 8),
            ("first_identity", first_identity, 0),
        ):
            check_number(name, value, AtLeast(least))
        if not 0 <= tone[0] <= tone[1] <= 1:
            raise UserError(f"tone: needs 0 <= least <= greatest <= 1, got {tone}")
        if strengths is not None and not sampling.SHOWN <= strengths[0] <= strengths[1] <= 1.5:
            raise UserError(f"strengths: needs {sampling.SHOWN} <= least <= greatest <= 1.5, got {strengths}")
        self._arguments = dict(
            identities=identities, per_identity=per_identity, image_size=image_size, seed=seed, variation=variation,
            aligned=aligned, first_identity=first_identity, with_depth=with_depth, with_infrared=with_infrared,
            tone=tone, strengths=strengths,
        )  # fmt: skip
        self.labels = np.repeat(np.arange(identities, dtype=np.int32), per_identity)
        self.class_names = [f"person-{first_identity + i}" for i in range(identities)]
        self.image_shape = (image_size, image_size, 3)
        self._per_identity, self._first = per_identity, first_identity
        self._seed, self._tone = np.uint32(seed % 2**32), tuple(np.float32(t) for t in tone)
        self._shoot = functools.partial(
            _shoot,
            self._seed,
            tone=self._tone,
            size=image_size,
            variation=variation,
            aligned=aligned,
            with_depth=with_depth,
            with_infrared=with_infrared,
            strengths=strengths,
        )
        self._spoof = functools.partial(
            _spoofs, self._seed, tone=self._tone, variation=variation, aligned=aligned
        )
        self._chunks: list[dict[str, np.ndarray] | None] = [None] * -(-len(self.labels) // _CHUNK)
        self._locks = [threading.Lock() for _ in self._chunks]

    @functools.cached_property
    def groups(self) -> np.ndarray:
        """[N] int32, the skin-tone group of each record."""
        people = np.arange(len(self.class_names), dtype=np.int32) + self._first
        return np.asarray(_groups(self._seed, people, self._tone))[self.labels]

    @functools.cached_property
    def spoofs(self) -> np.ndarray:
        """[N] int32, what each record presents."""
        drawn = [self._spoof(*self._numbers(chunk)) for chunk in range(len(self._chunks))]
        return np.concatenate(drawn)[: len(self)].astype(np.int32)

    @functools.cached_property
    def facts(self) -> dict[str, np.ndarray]:
        """What is known of each record without rendering it, worked out when first asked for: `spoof`, `illumination`
        (sampling.ILLUMINATIONS), `expression`, `group` [N] int32, `pose` [N, 3] (pitch, yaw, roll) radians and `hair` [N] gray.
        Not of records whose expressions are asked for.
        """
        draw = functools.partial(
            _facts,
            self._seed,
            tone=self._tone,
            variation=self._arguments["variation"],
            aligned=self._arguments["aligned"],
        )
        drawn = [draw(*self._numbers(chunk)) for chunk in range(len(self._chunks))]
        return {name: np.concatenate([d[name] for d in drawn])[: len(self)] for name in drawn[0]}

    def _numbers(self, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """Person and shot of every record of a chunk; past the end the last record again, so that every call has one shape."""
        index = np.minimum(np.arange(chunk * _CHUNK, (chunk + 1) * _CHUNK), len(self) - 1)
        return (index // self._per_identity + self._first).astype(np.int32), (
            index % self._per_identity
        ).astype(np.int32)

    def __reduce__(self):
        return functools.partial(RenderedSource, **self._arguments), ()

    def __len__(self) -> int:
        return len(self.labels)

    def _chunk(self, number: int) -> dict[str, np.ndarray]:
        with self._locks[number]:  # one lock each: two threads may render two chunks
            if self._chunks[number] is None:
                made = self._shoot(*self._numbers(number))
                count = min(_CHUNK, len(self) - number * _CHUNK)
                self._chunks[number] = {name: np.asarray(value)[:count] for name, value in made.items()}
            return self._chunks[number]

    def __getitem__(self, index: int) -> Record:
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of a source of {len(self)}")
        chunk = self._chunk(index // _CHUNK)
        record = {name: value[index % _CHUNK] for name, value in chunk.items()}
        return record | {"label": self.labels[index]}

    def prepare(self, workers: int = 2) -> "RenderedSource":
        """Renders everything now, in `workers` threads; returns itself."""
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(self._chunk, range(len(self._chunks))):
                pass
        return self
