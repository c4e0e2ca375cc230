"""What a method says about itself for `experiments.reproduce`."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Study:
    """A claim of a paper, in the small.

    Attributes:
      claim: what the paper says, in a sentence.
      metric: key of the stages' metrics.
      method: name of the arm that makes the claim.
      arms: name -> field overrides of `base` for that arm; all but `method` are baselines.
      base: configuration that the arms share.
      conditions: name -> field overrides for a condition under which all arms are compared.
      arm_metrics: name of an arm -> its metric, where it is another; arms of one configuration are one run.
      larger_is_better: direction of the metric.
      baseline: name of the arm that all others are compared with besides; none unless given.
      shared: number of first stages that the arms of a condition and seed have in common, such as a teacher; they run once.
      shared_as: name under which these stages stay in the work directory. An interrupted study finds them again, and so do
        others of this name, whose first stages are the same where `base`, condition and seed are; None keeps none.
    """

    claim: str
    metric: str
    method: str
    arms: Mapping[str, Mapping[str, Any]]
    base: Any
    conditions: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=lambda: {"": {}})
    arm_metrics: Mapping[str, str] = dataclasses.field(default_factory=dict)
    larger_is_better: bool = True
    baseline: str | None = None
    shared: int = 0
    shared_as: str | None = None
