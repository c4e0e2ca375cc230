"""What a network tells of the attributes of faces: by its heads, or by linear classifiers on its features.

Methods: intern
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import numpy as np

from jaxface.data.sources.source import Source, Subset
from jaxface.training.evaluations.needs import check_not_empty
from jaxface.training.probe import ProbeSpec, linear_probe, pooled_features
from jaxface.training.recognition import network_variables
from jaxface.training.step import TrainState

Attributes = Mapping[str, tuple[str, ...]]
"""Name -> the values that it has."""


def _report(right: Mapping[str, np.ndarray]) -> dict[str, float]:
    accuracies = {f"attributes/{name}": float(np.mean(hits)) for name, hits in right.items()}
    return accuracies | {"attributes/accuracy": float(np.mean(list(accuracies.values())))}


class AttributeProbe:
    """Evaluation of a state by linear classifiers on its backbone's features, one for each attribute.

    Args:
      backbone: network in stages, of `jaxface.models.staged`; its parameters are `params["backbone"]`.
      attributes: names and values.
      labeled: records to fit on. held_out: records to judge by, of other people.
      labeled_values, held_out_values: attribute -> [N] integers of these records.
      spec: of the classifiers. seed: of the order in which they see the records.

    Reports `attributes/<name>`, the accuracy of each, and `attributes/accuracy`, their mean.
    """

    def __init__(
        self,
        backbone: nn.Module,
        attributes: Attributes,
        labeled: Source,
        labeled_values: Mapping[str, np.ndarray],
        held_out: Source,
        held_out_values: Mapping[str, np.ndarray],
        *,
        spec: ProbeSpec,
        seed: int = 0,
    ):
        for source in (labeled, held_out):
            check_not_empty(source)
        self._backbone, self._attributes, self._spec, self._seed = backbone, attributes, spec, seed
        self._labeled, self._held_out = (labeled, labeled_values), (held_out, held_out_values)

    def __call__(self, state: TrainState) -> dict[str, float]:
        variables = network_variables(state.averaged_params["backbone"], state.extra)
        (train, train_values), (test, test_values) = self._labeled, self._held_out
        known, asked = (pooled_features(self._backbone, variables, source) for source in (train, test))
        right = {}
        for name, values in self._attributes.items():
            probe = linear_probe(
                known, train_values[name], self._spec, num_classes=len(values), seed=self._seed
            )
            right[name] = probe.predict(asked) == test_values[name]
        return _report(right)


class AttributeHeads:
    """Evaluation of a state by its own heads.

    Args:
      answers: (state, source) -> attribute -> scores [N, values].
      held_out, held_out_values: as `AttributeProbe`, which this reports as.
    """

    def __init__(
        self,
        answers: Callable[[TrainState, Source], Mapping[str, np.ndarray]],
        held_out: Source,
        held_out_values: Mapping[str, np.ndarray],
    ):
        check_not_empty(held_out)
        self._answers, self._held_out, self._values = answers, held_out, held_out_values

    def __call__(self, state: TrainState) -> dict[str, float]:
        answers = self._answers(state, self._held_out)
        return _report({name: scores.argmax(1) == self._values[name] for name, scores in answers.items()})


def labeled_share(source: Source, rows: np.ndarray) -> tuple[Source, dict[str, np.ndarray]]:
    """(records, attribute -> [n]) of some rows of a source with `attributes`."""
    return Subset(source, rows), {name: values[rows] for name, values in source.attributes.items()}
