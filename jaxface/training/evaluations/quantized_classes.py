"""Evaluations of classifiers whose outputs are the classes themselves: accuracy, what codes tell, and the form on integers.

Methods: law, qvit
"""

import flax.linen as nn
import jax
import numpy as np

from jaxface import metrics
from jaxface.data.sources.source import Source, Subset
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.layers.quantization import OPERANDS
from jaxface.models.transformers.quantized import (
    Precision,
    apply_with_operands,
    query_codes,
    to_integer,
)
from jaxface.training.evaluations.needs import check_not_empty
from jaxface.training.map_source import map_source
from jaxface.training.recognition import embed_source, network_variables, statistics
from jaxface.training.step import TrainState


def _spread_evenly(source: Source, most: int) -> Subset:
    return Subset(source, np.arange(0, len(source), -(-len(source) // most)))


class TopClass:
    """Accuracy of a network whose outputs [B, C] are the scores of its classes.

    Args:
      model: the network.
      source: labeled records of the training classes.
    """

    def __init__(self, model: nn.Module, source: Source):
        check_not_empty(source)
        self.model, self.source = model, source

    def __call__(self, state: TrainState) -> dict[str, float]:
        scores = embed_source(
            self.model, state.averaged_params["backbone"], state.extra, self.source, flip=False
        )
        return {"classification/accuracy": float((scores.argmax(axis=1) == self.source.labels).mean())}


class QueryCodes:
    """What the codes of a quantized transformer's queries tell, and how unequal its teacher's tokens are.

    Reported are `codes/query_entropy`, in bits, the mean over the layers; and `teacher/query_spread` and `teacher/key_spread`,
    the standard deviation of the log lengths of a head's vectors, the mean over heads and layers. From about 0.5 on
    rectification gives the short ones codes; below 0.3 there is nothing for it to give.

    Args:
      student: the quantized network.
      bits: of its queries.
      teacher: the float network, whose variables travel as `extra["teacher"]`.
      source: records.
      most: how many to look at, evenly spread.
    """

    def __init__(self, student: nn.Module, bits: int, teacher: nn.Module, source: Source, *, most: int = 64):
        self.source = _spread_evenly(source, most)

        def codes(variables, batch):
            images = normalize_pixels(batch["image"])
            _, sown = student.apply(variables, images, train=False, mutable=[OPERANDS])
            return query_codes(sown, variables, bits)

        def operands(variables, batch):
            return apply_with_operands(teacher, variables, normalize_pixels(batch["image"]), train=False)[1]

        self._codes, self._operands = jax.jit(codes), jax.jit(operands)

    def __call__(self, state: TrainState) -> dict[str, float]:
        variables = network_variables(state.averaged_params["backbone"], state.extra)
        entropies = [metrics.code_entropy(codes) for codes in map_source(self._codes, self.source, variables)]
        frozen = state.extra["teacher"]
        layers = map_source(
            self._operands, self.source, network_variables(frozen["params"], frozen), batch_size=64
        )
        queries, keys = (
            [
                metrics.norm_spread(x[:, :, head].reshape(-1, x.shape[-1]))
                for x in part
                for head in range(x.shape[2])
            ]
            for part in zip(*layers, strict=True)
        )
        return {
            "codes/query_entropy": float(np.mean(entropies)),
            "teacher/query_spread": float(np.mean(queries)),
            "teacher/key_spread": float(np.mean(keys)),
        }


class IntegerForm:
    """The deployment form of a quantized transformer beside its training form.

    Reported are `classification/accuracy` on integers, and `integer/agreement`, the share of records for which both forms say the
    same class.

    Args:
      model: the float network.
      precision: of the quantized one.
      trained: the quantized one.
      source: labeled records of the training classes.
    """

    def __init__(self, model: nn.Module, precision: Precision, trained: nn.Module, source: Source):
        check_not_empty(source)
        self.model, self.precision, self.trained, self.source = model, precision, trained, source

    def __call__(self, state: TrainState) -> dict[str, float]:
        params = state.averaged_params["backbone"]
        variables = {"params": params, **statistics(state.extra)}
        module, integers = to_integer(self.model, self.precision, variables, self.source.image_shape)
        scores = [
            embed_source(network, variables["params"], variables, self.source, flip=False)
            for network, variables in ((self.trained, variables), (module, integers))
        ]
        classes = [each.argmax(axis=1) for each in scores]
        return {
            "classification/accuracy": float((classes[1] == self.source.labels).mean()),
            "integer/agreement": float((classes[0] == classes[1]).mean()),
        }
