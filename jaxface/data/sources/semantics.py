"""What is known of a presented face besides live or attack: groups of semantic labels, some of which may be wrong.

Methods: dpm
"""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxface.checks import ProperFraction, check_number, index_array
from jaxface.data.sources.source import Record, Source
from jaxface.data.transforms.label_noise import draw_labels, uniform_noise

FIELD = "semantic_"
"""Fields of records begin with it; the name of the group follows."""
_STREAM = 0x7365


class WithSemantics:
    """Presentations with semantic labels.

    Records have `semantic_<group>` besides, int32 [], or int32 [K] of 0 and 1 for a group of attributes, and `known` bool,
    whether it is said that they are live or not.

    Args:
      source: presentations; label 0 is a live face.
      names: group -> its classes or attributes.
      given: group -> [N] integers, or [N, K] of 0 and 1 for attributes.
      true: the same, where the given ones may be wrong.
      known: [N] bool; all unless given.

    Attributes:
      semantic_names, semantics, true_semantics: these by group. known: [N] bool.

    Raises:
      ValueError: groups that disagree, another length, a label that has no name.
    """

    def __init__(
        self,
        source: Source,
        names: Mapping[str, Sequence[str]],
        given: Mapping[str, np.ndarray],
        *,
        true: Mapping[str, np.ndarray] | None = None,
        known: np.ndarray | None = None,
    ):
        true = given if true is None else true
        for values in (given, true):
            if values.keys() != names.keys():
                raise ValueError(f"given, true: need the groups {sorted(names)}, got {sorted(values)}")
        self._source = source
        self.labels, self.class_names = source.labels, source.class_names
        self.image_shape = source.image_shape
        self.semantic_names = {name: tuple(words) for name, words in names.items()}
        self.semantics = {n: _checked(n, given[n], names[n], len(source)) for n in names}
        self.true_semantics = {n: _checked(n, true[n], names[n], len(source)) for n in names}
        self.known = np.ones(len(source), bool) if known is None else np.asarray(known, bool)
        if self.known.shape != (len(source),):
            raise ValueError(f"known: needs [{len(source)}], got {self.known.shape}")

    def __getattr__(self, name: str):
        """What else the source knows, such as `people`, `videos` or `shown`."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        said = {FIELD + name: values[index] for name, values in self.semantics.items()}
        return {**self._source[index], **said, "known": self.known[index]}


def _checked(name: str, values: np.ndarray, words: Sequence[str], length: int) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim == 2:
        if values.shape != (length, len(words)) or not np.isin(values, (0, 1)).all():
            raise ValueError(f"{name}: needs [{length}, {len(words)}] of 0 and 1, got {values.shape}")
        return values.astype(np.int32)
    return index_array(name, values, length, len(words)).astype(np.int32)


def redraw_semantics(
    values: Mapping[str, np.ndarray], names: Mapping[str, Sequence[str]], rate: float, *, seed: int
) -> dict[str, np.ndarray]:
    """Semantic labels of which a share is drawn anew, uniformly among all classes, the right one included.

    Args:
      values: group -> [N] integers, or [N, K] of 0 and 1, each of which is drawn on its own.
      names: group -> its classes or attributes.
      rate: η in [0, 1), probability of a draw.
      seed: of the draws; those of a group do not depend on the others.

    Raises:
      UserError: a rate outside [0, 1).

    Example:
      >>> labels = redraw_semantics({"lamp": np.zeros(6, int)}, {"lamp": ("off", "on")}, 0.5, seed=1)["lamp"]
      >>> labels.shape, set(labels.tolist()) <= {0, 1}
      ((6,), True)
    """
    check_number("semantic_noise", rate, ProperFraction)
    result = {}
    for name, given in values.items():
        stream = int(np.random.SeedSequence([seed, _STREAM, *name.encode()]).generate_state(1)[0])
        flat = np.asarray(given).ravel()
        classes = 2 if np.ndim(given) == 2 else len(names[name])
        drawn = flat if rate == 0 else draw_labels(flat, uniform_noise(classes, rate), seed=stream)
        result[name] = drawn.reshape(np.shape(given)).astype(np.int32)
    return result
