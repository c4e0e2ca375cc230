"""Galleries: people by name, and who of them, if anybody, is in a photograph."""

import contextlib
import json
import os
import pathlib
import struct
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxface.checks import AtLeast, Cosine, check_number, real_array
from jaxface.errors import UserError
from jaxface.inference.gallery_rows import BLOCK, CodedRows, ExactRows
from jaxface.interop.files import optional, replacing
from jaxface.paths import local_path, name_text

_FORMAT = 1
_HEADER = "jaxface_gallery"  # the key of a safetensors file's metadata that says what the file is
_UNIT = 1e-3  # how far from 1 the length of a row of a file may be
_AT_ONCE = 8192  # rows that are read together


class Matches(NamedTuple):
    """The people that are most like each query.

    Attributes:
      names: [Q, K] of people, the most similar first.
      scores: [Q, K] float32, cosines of the query and the most similar template of each.
      identities: [Q], the first name where its score is above the threshold; None for somebody unknown.
    """

    names: list[list[str]]
    scores: np.ndarray
    identities: list[str | None]


class Gallery:
    """Names and unit embeddings of people, all by one network.

    A person has one template or several; the score of a person is that of the most similar one:

        s(q, person) = max over the templates t of the person of ⟨q, t⟩ / (‖q‖ ‖t‖)

    Args:
      identity: which network made the embeddings (`RecognizerBundle.identity`); embeddings of two networks cannot be compared.
      dim: length D of an embedding.
      source: the network's name, for people.
      backend: "jax" compares each query with every template, on the device. "faiss", for more people than that is fast for or
        than fit on the device, compares binary codes, in 1/32 of the memory, and then the best `shortlist` exactly; templates
        of a loaded file stay on the disk. It misses people who are hardly alike, not those who are.
      shortlist: of "faiss", templates that are compared exactly, ≥ 1; more for a larger `k` or a lower threshold.

    Raises:
      UserError: a number out of its range, or faiss is asked for and not installed.

    Example:
      >>> import numpy as np
      >>> gallery = Gallery("5f2c", 3)
      >>> gallery.add(["Ada", "Grace"], np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
      >>> matches = gallery.search(np.array([[0.8, 0.6, 0.0], [0.0, 0.1, 1.0]]), k=2, threshold=0.5)
      >>> matches.identities
      ['Ada', None]
      >>> matches.names[0], [f"{score:.2f}" for score in matches.scores[0]]
      (['Ada', 'Grace'], ['0.80', '0.60'])
    """

    def __init__(
        self,
        identity: str,
        dim: int,
        *,
        source: str = "",
        backend: Literal["jax", "faiss"] = "jax",
        shortlist: int = 256,
    ):
        check_number("dim", dim, AtLeast(1))
        check_number("shortlist", shortlist, AtLeast(1))
        if backend not in ("jax", "faiss"):
            raise UserError(f"backend: needs jax or faiss, got {backend!r}")
        self.identity, self.dim, self.source = identity, dim, source
        self._rows = ExactRows(dim, BLOCK) if backend == "jax" else CodedRows(dim, BLOCK, shortlist=shortlist)
        self._names: list[str] = []
        self._people: Counter[str] = Counter()

    def __len__(self) -> int:
        """The number of templates."""
        return len(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._people

    @property
    def people(self) -> dict[str, int]:
        """Name of each person -> number of templates, in the order in which they came."""
        return dict(self._people)

    def check_network(self, identity: str, name: str = "gallery") -> None:
        """Raises UserError unless the embeddings are of the network with this identity; `name` is the gallery's."""
        if identity != self.identity:
            made_by = f" ({self.source})" if self.source else ""
            raise UserError(
                f"{name}: its embeddings are of the network {self.identity[:12]}{made_by}, this one is {identity[:12]}; "
                "open that network, or enroll the photographs again with this one"
            )

    def add(self, names: Sequence[str], embeddings: np.ndarray) -> None:
        """Adds templates; a name that is there gets further ones.

        Args:
          names: [N], one for each row; any text but the empty one.
          embeddings: [N, D] finite, not zero; they are brought to length 1.

        Raises:
          ValueError: another number of names than of rows, or rows of another length than D.
          UserError: an empty name, or a row that is zero or not finite. Nothing has been added then.
        """
        names = list(names)
        if np.shape(embeddings) != (len(names), self.dim):
            raise ValueError(f"embeddings: needs shape {(len(names), self.dim)}, got {np.shape(embeddings)}")
        if not all(isinstance(name, str) and name.strip() for name in names):
            raise UserError("names: each needs a text that is not empty")
        if names:
            self._rows.append(_unit("embeddings", embeddings))
            self._names += names
            self._people.update(names)

    def remove(self, names: Sequence[str]) -> None:
        """Removes people with all their templates.

        Raises:
          UserError: nobody has one of the names; nobody has been removed then.
        """
        gone = set(names)
        for name in gone:
            if name not in self._people:
                raise UserError(f"names: {name_text(name)!r} is not in the gallery")
        if gone:
            mask = np.array([name not in gone for name in self._names], bool)
            self._rows.keep(mask)
            self._names = [name for name in self._names if name not in gone]
            for name in gone:
                del self._people[name]

    def search(self, embeddings: np.ndarray, k: int = 1, threshold: float | None = None) -> Matches:
        """The k people most like each query, and who it is: somebody unknown where nobody is similar enough.

        Args:
          embeddings: [Q, D] finite, not zero.
          k: how many people, ≥ 1; all where there are fewer.
          threshold: cosine above which a query is of the most similar person, in [-1, 1]; None takes nobody for unknown.

        Raises:
          ValueError: rows of another length than D.
          UserError: an empty gallery, or a number out of its range.
        """
        check_number("k", k, AtLeast(1))
        if threshold is not None:
            check_number("threshold", threshold, Cosine)
        if np.ndim(embeddings) != 2 or np.shape(embeddings)[1] != self.dim:
            raise ValueError(f"embeddings: needs shape [Q, {self.dim}], got {np.shape(embeddings)}")
        if not self._names:
            raise UserError("gallery: nobody is in it; enroll somebody first")
        k = min(k, len(self._people))
        if not len(embeddings):
            return Matches([], np.zeros((0, k), np.float32), [])
        queries = _unit("embeddings", embeddings)
        templates = k
        while True:
            scores, ids = self._rows.nearest(queries, templates)
            # Of several templates of a person the first counts.
            firsts = [_first_places([self._names[i] for i in row], k) for row in ids.tolist()]
            if templates == len(self._names) or all(len(places) == k for places in firsts):
                break
            templates = min(
                1 << (2 * templates - 1).bit_length(), len(self._names)
            )  # few sizes, few programs
        names = [[self._names[ids[q, place]] for place in places] for q, places in enumerate(firsts)]
        best = np.stack([scores[q, places] for q, places in enumerate(firsts)])
        known = best[:, 0] > (-np.inf if threshold is None else threshold)
        return Matches(
            names, best, [row[0] if sure else None for row, sure in zip(names, known, strict=True)]
        )

    def save(self, path: str | os.PathLike) -> None:
        """Writes a safetensors file, whole or not at all: `embeddings` [N, D] float32, `names` uint8, a JSON list of N texts.

        Its metadata say which network the embeddings are of.

        Raises:
          UserError: it cannot be written.
        """
        path = local_path("gallery", path)
        names = json.dumps(self._names).encode()  # ASCII, also of names that are no UTF-8
        rows = 4 * len(self) * self.dim
        description = {"format": _FORMAT, "identity": self.identity, "dim": self.dim, "source": self.source}
        header = json.dumps(
            {
                "__metadata__": {_HEADER: json.dumps(description)},
                "embeddings": {"dtype": "F32", "shape": [len(self), self.dim], "data_offsets": [0, rows]},
                "names": {"dtype": "U8", "shape": [len(names)], "data_offsets": [rows, rows + len(names)]},
            }
        ).encode()
        header += b" " * ((56 - len(header)) % 64)  # the rows begin at a multiple of 64 bytes
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"gallery: cannot write {path}: {error.strerror or error}") from None
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            for block in self._rows.blocks():
                file.write(np.ascontiguousarray(block, "<f4").data)
            file.write(names)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        backend: Literal["jax", "faiss"] = "jax",
        shortlist: int = 256,
    ) -> "Gallery":
        """A gallery that `save` wrote; the file is not trusted.

        Args:
          path: the file.
          backend, shortlist: as in `Gallery`.

        Raises:
          UserError: no such file, another kind of file, a newer format, or contents that do not fit together.
        """
        path = local_path("gallery", path)
        failure = optional("safetensors").SafetensorError
        if not path.is_file():
            raise UserError(f"gallery: no file {path}; jaxface enroll makes one")
        try:
            with optional("safetensors").safe_open(path, framework="numpy") as file:
                description = _described(path, (file.metadata() or {}).get(_HEADER))
                if set(file.keys()) != {"embeddings", "names"}:
                    raise UserError(f"gallery: {path} needs the tensors embeddings and names")
                rows, names = file.get_slice("embeddings"), file.get_slice("names")
                shape = tuple(rows.get_shape())
                if rows.get_dtype() != "F32" or shape[1:] != (description["dim"],):
                    raise UserError(
                        f"gallery: {path} needs float32 embeddings of {description['dim']} numbers each"
                    )
                if names.get_dtype() != "U8" or len(names.get_shape()) != 1:
                    raise UserError(f"gallery: {path} needs its names as bytes")
                names = _names(path, names[:].tobytes(), shape[0])
        except (OSError, ValueError, failure) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"gallery: {path} is no gallery ({' '.join(str(error).split())[:200]})") from None
        gallery = cls(
            description["identity"],
            description["dim"],
            source=description["source"],
            backend=backend,
            shortlist=shortlist,
        )
        if names:
            gallery._take(path, np.memmap(path, "<f4", "r", _rows_offset(path), shape))
            gallery._names = names
            gallery._people.update(names)
        return gallery

    def _take(self, path: pathlib.Path, rows: np.memmap) -> None:
        """Fills the empty gallery with the rows of a file."""
        for start in range(0, len(rows), _AT_ONCE):
            some = np.asarray(rows[start : start + _AT_ONCE])
            lengths = np.sqrt(np.einsum("nd,nd->n", some, some))
            if not (np.abs(lengths - 1) <= _UNIT).all():  # nor is a NaN
                raise UserError(f"gallery: {path} holds embeddings whose length is not 1")
            if isinstance(self._rows, ExactRows):
                self._rows.append(some)
        if isinstance(self._rows, CodedRows):
            self._rows.append_mapped(rows)


def _unit(name: str, embeddings: Any) -> np.ndarray:
    """Rows of length 1, float32."""
    rows = real_array(name, embeddings, ndim=2)
    largest = np.abs(rows).max(axis=1, keepdims=True)
    if not largest.all():
        raise UserError(f"{name}: row {int(np.argmin(largest))} is zero, which is like nobody")
    rows = rows / largest  # squares neither overflow nor vanish
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _first_places(names: list[str], k: int) -> list[int]:
    """Where the first k different names stand."""
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        if name not in places:
            places[name] = place
            if len(places) == k:
                break
    return list(places.values())


def _described(path: pathlib.Path, text: str | None) -> dict[str, Any]:
    description = None
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        description = json.loads(text or "")
    if not isinstance(description, dict) or type(description.get("format")) is not int:
        raise UserError(f"gallery: {path} is no gallery; jaxface enroll makes one")
    if description["format"] > _FORMAT:
        raise UserError(
            f"gallery: {path} is of format {description['format']}, this library reads up to {_FORMAT}; install a newer one"
        )
    dim, identity = description.get("dim"), description.get("identity")
    if type(dim) is not int or dim < 1 or not isinstance(identity, str):
        raise UserError(
            f"gallery: {path} does not say which network it is of, and how long its embeddings are"
        )
    source = description.get("source", "")
    return {"dim": dim, "identity": identity, "source": source if isinstance(source, str) else ""}


def _names(path: pathlib.Path, encoded: bytes, count: int) -> list[str]:
    names = None
    with contextlib.suppress(ValueError, RecursionError):
        names = json.loads(encoded)
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(f"gallery: {path} needs its names as a JSON list of texts")
    if len(names) != count:
        raise UserError(f"gallery: {path} has {len(names)} names for {count} embeddings")
    return names


def _rows_offset(path: pathlib.Path) -> int:
    """Where the embeddings begin in a file that safetensors has checked."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return 8 + length + json.loads(file.read(length))["embeddings"]["data_offsets"][0]
