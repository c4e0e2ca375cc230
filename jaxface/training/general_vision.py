"""GV-B of INTERN: what a frozen backbone is worth on tasks of four kinds with a tenth of their data (arXiv:2111.08687).

Methods: intern
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxface.checks import AtLeast, Positive, Range, check_fields
from jaxface.data.pipeline.batches import batches
from jaxface.data.sources.few_data import stratified_subset
from jaxface.data.sources.source import Source, Subset
from jaxface.errors import UserError
from jaxface.models.task_heads import TaskHead
from jaxface.training.evaluations.task_answers import (
    LOWER_IS_BETTER,
    check_metric,
    frozen_features,
    score,
    task_answers,
)
from jaxface.training.probe import ProbeSpec, check_different_records, linear_probe, pooled_features


class FrozenBackbone(NamedTuple):
    """A backbone to be measured.

    Attributes:
      module: a `StagedBackbone`, or a module with `features`.
      variables: {"params", and "batch_stats" where it has some}.
    """

    module: nn.Module
    variables: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class GvbTask:
    """A task of the benchmark.

    Attributes:
      name: of the data.
      task: classification, detection, segmentation or depth.
      metric: what is reported of it.
      train, test: records; a share of the first is learned from.
      num_classes: classes; of pixels the background counted.
      head: strides of the backbone's maps -> head, of all tasks but classification.
    """

    name: str
    task: str
    metric: str
    train: Source
    test: Source
    num_classes: int
    head: Callable[[tuple[int, ...]], TaskHead] | None = None

    def __post_init__(self):
        check_metric(self.task, self.metric)
        if (self.head is None) != (self.task == "classification"):
            raise UserError(f"head: {self.task} needs {'none' if self.task == 'classification' else 'one'}")
        check_different_records(self.train, self.test)


@dataclasses.dataclass(frozen=True)
class GvbSpec:
    """How backbones are measured."""

    fraction: Annotated[float, Range(0, 1, above=True)] = 0.1
    """Share of the training records of each class, rounded up."""
    probe: ProbeSpec = ProbeSpec()
    """Linear classifier of classification tasks."""
    steps: Annotated[int, AtLeast(1)] = 20_000
    """Steps of the heads of the other tasks."""
    learning_rate: Annotated[float, Positive] = 1e-3
    """Of Adam for these heads, by a cosine to 0."""
    batch_size: Annotated[int, AtLeast(1)] = 16
    """Images of their steps."""
    seed: Annotated[int, AtLeast(0)] = 0
    """Of the shares, the heads and the order of the data."""

    @classmethod
    def small(cls) -> "GvbSpec":
        """For the stand-ins: `ProbeSpec.small` and 150 steps."""
        return cls(probe=ProbeSpec.small(), steps=150, learning_rate=5e-3, batch_size=16)


def share(source: Source, fraction: float, seed: int) -> Subset:
    """A share of a source, of each of its labels."""
    return Subset(
        source,
        stratified_subset(np.asarray(source.labels), fraction, seed, num_classes=len(set(source.labels))),
    )


@functools.partial(jax.jit, static_argnames=("head", "optimizer"))
def _head_step(params, state, maps, batch, *, head: TaskHead, optimizer):
    def loss(params):
        outputs = head.module.apply({"params": params}, maps, batch["image"].shape[1:3])
        return head.loss(outputs, batch)

    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value


def quick_key(rng: jax.Array) -> jax.Array:
    """A key of XLA's own generator: programs that draw many parameters from it compile several times faster on a CPU."""
    return jax.random.wrap_key_data(jnp.resize(jax.random.key_data(rng), 4), impl="rbg")


@functools.partial(jax.jit, static_argnames=("head", "size"))
def init_head(rng: jax.Array, maps: Any, *, head: TaskHead, size: tuple[int, int]) -> Any:
    """Fresh parameters of a head on features of images (H, W)."""
    return head.module.init(quick_key(rng), maps, size)["params"]


def train_head(backbone: FrozenBackbone, head: TaskHead, source: Source, spec: GvbSpec) -> Any:
    """Parameters of a head, trained on a frozen backbone in evaluation mode without augmentation."""
    module, variables = backbone
    optimizer = _adam(spec.learning_rate, spec.steps)
    stream = batches(source, batch_size=min(spec.batch_size, len(source)), seed=spec.seed)
    params = state = None
    for _ in range(spec.steps):
        batch = next(stream)
        maps = frozen_features(variables, batch["image"], backbone=module)
        if params is None:
            size = batch["image"].shape[1:3]
            params = init_head(jax.random.key(spec.seed), maps, head=head, size=size)
            params, state = _beside(variables, (params, optimizer.init(params)))
        params, state, _ = _head_step(params, state, maps, batch, head=head, optimizer=optimizer)
    stream.close()
    return params


def _beside(variables: Any, arrays: Any) -> Any:
    """Arrays whole on every device of some variables, where a step leaves them: its first call is not compiled by itself."""
    mesh = getattr(getattr(jax.tree.leaves(variables)[0], "sharding", None), "mesh", None)
    return arrays if mesh is None else jax.device_put(arrays, NamedSharding(mesh, PartitionSpec()))


@functools.lru_cache(maxsize=8)
def _adam(rate: float, steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


def task_score(backbone: FrozenBackbone, task: GvbTask, spec: GvbSpec) -> float:
    """The metric of one task, of a head trained on a share of its data."""
    train = share(task.train, spec.fraction, spec.seed)
    if task.task == "classification":
        fitted = linear_probe(
            pooled_features(*backbone, train),
            np.asarray(train.labels),
            spec.probe,
            num_classes=task.num_classes,
            seed=spec.seed,
        )
        answers = fitted.predict(pooled_features(*backbone, task.test))
    else:
        head = task.head(tuple(backbone.module.level_strides))
        params = train_head(backbone, head, train, spec)
        answers = task_answers(*backbone, head, params, task.test)
    return score(task.task, task.metric, answers, task.test, num_classes=task.num_classes)


def gvb_evaluate(
    backbone: FrozenBackbone, tasks: Sequence[GvbTask], spec: GvbSpec = GvbSpec()
) -> dict[str, float]:
    """The benchmark's row of a backbone.

    Args:
      backbone: frozen; it is in evaluation mode, batch normalization included.
      tasks: at least one, each of its own name.
      spec: how.

    Returns:
      name of the task -> its metric, and `classification`, the mean over the classification tasks, where there are some.

    Raises:
      UserError: no task, two of one name, or a number out of its range.
    """
    check_fields(spec, "gvb.")
    names = [task.name for task in tasks]
    if not tasks or len(set(names)) < len(names):
        raise UserError(
            f"tasks: needs at least one, each with its own name, got {', '.join(names) or 'none'}"
        )
    row = {task.name: task_score(backbone, task, spec) for task in tasks}
    classes = [row[task.name] for task in tasks if task.task == "classification"]
    return ({"classification": float(np.mean(classes))} if classes else {}) | row


def gvb_table(rows: Mapping[str, Mapping[str, float]], tasks: Sequence[GvbTask]) -> str:
    """The benchmark's table in Markdown: a row for each backbone, the best of each column in bold.

    Args:
      rows: backbone -> what `gvb_evaluate` gives. tasks: those that were evaluated.

    Example:
      >>> print(gvb_table({"random": {"classification": 0.25}, "expert": {"classification": 0.5}}, []))
      | backbone | classification |
      |---|---|
      | random | 0.250 |
      | expert | **0.500** |
    """
    metric = {task.name: task.metric for task in tasks}
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    best = {}
    for name in columns:
        values = [row[name] for row in rows.values() if name in row]
        best[name] = min(values) if metric.get(name) in LOWER_IS_BETTER else max(values)
    titles = [f"{name} ({metric[name]})" if name in metric else name for name in columns]
    lines = [f"| backbone | {' | '.join(titles)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = []
        for column in columns:
            text = f"{row[column]:.3f}" if column in row else ""
            cells.append(f"**{text}**" if column in row and row[column] == best[column] else text)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
