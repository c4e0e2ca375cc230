"""Evaluation of a state group by group: is every group of people recognized alike?

Methods: gabn
"""

from collections.abc import Mapping

import flax.linen as nn
import numpy as np

from jaxface import metrics
from jaxface.data.sources.packs import PackSource
from jaxface.data.sources.source import Source
from jaxface.errors import UserError
from jaxface.metrics.analysis.fairness import check_group_verification
from jaxface.training.evaluations.needs import needs_of_data
from jaxface.training.recognition import embed_source
from jaxface.training.step import TrainState


def source_groups(source: Source, purpose: str) -> tuple[np.ndarray, list[str]]:
    """(groups [N], their names) of a source that has records of every one of two groups or more.

    Args:
      source: the records.
      purpose: what they are for, such as "train on"; for the refusal.

    Raises:
      UserError: groups are not known, fewer than two, or one without records.
    """
    names = list(getattr(source, "group_names", ()))
    if len(names) < 2:
        raise UserError(
            f"data: needs people of two groups or more to {purpose}, such as --data toned or groups; got "
            f"{names[0] if names else 'none that are named'}"
        )
    groups = np.asarray(source.groups)
    absent = sorted(set(range(len(names))) - set(groups.tolist()))
    if absent:
        raise UserError(f"data: needs people of every group to {purpose}, got none of {names[absent[0]]}")
    return groups, names


class GroupFairness:
    """Accuracies of every group and what they differ by: `fairness/…` (`jaxface.metrics.group_fairness`).

    Under verification pairs stay inside a group, each group has thresholds of its own, and the error rates at one threshold
    for all are reported besides; under classification the nearest prototype is the answer.

    Args:
      model: the network.
      source: labeled records of every group.
      verification: whether to verify people or to classify by prototypes.
      flip: verification: sum the embeddings of an image and its mirror image.
      seed: of the pairs drawn.

    Raises:
      UserError: a group without records; under verification too few people or pairs of a group.
    """

    def __init__(
        self, model: nn.Module, source: Source, *, verification: bool, flip: bool = True, seed: int = 0
    ):
        self.model, self.source, self.verification, self.flip, self.seed = (
            model, source, verification, flip and verification, seed
        )  # fmt: skip
        self.groups, self.names = source_groups(source, "evaluate on")
        if verification:
            with needs_of_data("to verify by group"):
                check_group_verification(source.labels, self.groups, count=len(self.names), seed=seed)

    def __call__(self, state: TrainState) -> dict[str, float]:
        params = state.averaged_params
        found = embed_source(self.model, params["backbone"], state.extra, self.source, flip=self.flip)
        if self.verification:
            result = metrics.group_verification(
                found, self.source.labels, self.groups, count=len(self.names), seed=self.seed
            )
            return _report(self.names, *result)
        prototypes = np.asarray(params["prototypes"])[: len(self.source.class_names)]
        correct = metrics.nearest_prototype(found, prototypes) == self.source.labels
        return _report(self.names, metrics.group_accuracy(correct, self.groups, count=len(self.names)))


class PackFairness:
    """`GroupFairness` on verification packs, one for each group, such as the four of RFW.

    Args:
      model: the network.
      packs: name of the group -> its pack; two or more.
      flip: sum the embeddings of an image and its mirror image.
    """

    def __init__(self, model: nn.Module, packs: Mapping[str, PackSource], *, flip: bool = True):
        if len(packs) < 2:
            raise UserError(f"packs: needs one for each of two groups or more, got {len(packs)}")
        pairs = [pack.pairs for pack in packs.values()]
        with needs_of_data("of the packs"):
            check_group_verification(None, None, count=len(packs), pairs=pairs)
        self.model, self.packs, self.flip = model, packs, flip

    def __call__(self, state: TrainState) -> dict[str, float]:
        backbone = state.averaged_params["backbone"]
        embeddings, pairs, first = [], [], 0
        for pack in self.packs.values():
            embeddings.append(embed_source(self.model, backbone, state.extra, pack, flip=self.flip))
            pairs.append(pack.pairs._replace(indices=np.asarray(pack.pairs.indices) + first))
            first += len(embeddings[-1])
        groups = np.repeat(np.arange(len(pairs)), [len(part) for part in embeddings])
        result = metrics.group_verification(
            np.concatenate(embeddings), None, groups, count=len(pairs), pairs=pairs
        )
        return _report(list(self.packs), *result)


def _report(names: list[str], accuracies: np.ndarray, errors=None) -> dict[str, float]:
    report = {f"fairness/{key}": value for key, value in metrics.group_fairness(accuracies)._asdict().items()}
    for k, name in enumerate(names):
        report[f"fairness/accuracy@{name}"] = float(accuracies[k])
        if errors is not None:
            report[f"fairness/fmr@{name}"] = float(errors.fmr[k])
            report[f"fairness/fnmr@{name}"] = float(errors.fnmr[k])
    return report
