"""One trunk that learns from several sources at once, and generalists of such trunks (arXiv:2111.08687).

Methods: intern
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxface import axes
from jaxface.checks import OpenFraction
from jaxface.data.pipeline.joined_batches import stream_batch
from jaxface.data.sources.label_graph import DataSource, LabelGraph, unify_labels
from jaxface.data.sources.source import Source
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.losses.experts import IGNORED, source_weights, squeeze_loss
from jaxface.models.intern import Generalist, expert_parameters, transfer_parameters
from jaxface.models.staged import Features, features
from jaxface.models.task_heads import TaskHead
from jaxface.training.evaluations.task_answers import METRICS, score, task_answers
from jaxface.training.general_vision import quick_key

Forward = Callable[[Mapping, Mapping, jax.Array, jax.Array], tuple[Features, Mapping]]
"""(parameters, extra, images, key) -> (features in training, new batch statistics)."""


@dataclasses.dataclass(frozen=True)
class SourceWeighting:
    """How much each source's loss counts."""

    kind: Literal["first", "running"] = "first"
    """first: a loss is divided by its value at the first step; running: weighed by the inverse of its running mean, within
    bounds."""
    decay: Annotated[float, OpenFraction] = 0.9
    """Of the running mean."""


@dataclasses.dataclass(frozen=True)
class SourceHead:
    """A source and the head that learns from it.

    Attributes:
      source: registered; its `source` is to learn from.
      head: of the task.
      key: name of its parameters; heads of one key share them.
      columns: numbers of the head's classes that are those of the source, in its order; None where they are the same.
      concepts: of the classification head with what is known of concepts: (targets, masks), [classes, K] each; None otherwise.
    """

    source: DataSource
    head: TaskHead
    key: str
    columns: tuple[int, ...] | None = None
    concepts: tuple[np.ndarray, np.ndarray] | None = dataclasses.field(default=None, compare=False)

    def prepared(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """A batch of the source with the labels of the head."""
        batch = dict(batch)
        if self.concepts is not None:
            targets, masks = map(jnp.asarray, self.concepts)
            return {**batch, "target": targets[batch["label"]], "mask": masks[batch["label"]]}
        if self.columns is None:
            return batch
        table = jnp.array(self.columns, jnp.int32)
        batch["known"] = jnp.zeros(self.head_classes).at[table].set(1.0)
        if self.head.task == "detection":
            batch["box_label"] = table[batch["box_label"]]
        if self.head.task == "segmentation":
            labels = batch["pixel_label"].astype(jnp.int32)
            known = labels < len(self.columns)
            batch["pixel_label"] = jnp.where(known, table[jnp.where(known, labels, 0)], IGNORED)
        return batch

    @property
    def head_classes(self) -> int:
        """Classes of the head."""
        return self.head.detector.num_classes if self.head.task == "detection" else self.head.num_classes


def unified_heads(
    sources: Sequence[DataSource], graph: LabelGraph, make: Callable[[str, int], TaskHead]
) -> list[SourceHead]:
    """One head for all sources of a task type, over the concepts that they annotate.

    Classes of images are learned with their ancestors, siblings and what is unknown (`unify_labels`) over the whole graph; boxes
    and pixels over the classes of all sources, of which those that a source does not annotate take no part in its loss. What has
    no classes, such as depth, shares its head as it is.

    Args:
      sources: of one task type.
      graph: with all their concepts.
      make: (task type, classes) -> head.
    """
    task = sources[0].task_type
    if task == "classification":
        head = make(task, len(graph))
        return [
            SourceHead(
                source,
                head,
                task,
                tuple(graph.index(name) for name in source.concepts),
                unify_labels(graph, source, np.arange(len(source.concepts))),
            )
            for source in sources
        ]
    names = list(dict.fromkeys(name for source in sources for name in source.concepts))
    head = make(task, len(names))
    classes = task in ("detection", "segmentation")
    return [
        SourceHead(source, head, task, tuple(map(names.index, source.concepts)) if classes else None)
        for source in sources
    ]


def separate_heads(sources: Sequence[DataSource], make: Callable[[str, int], TaskHead]) -> list[SourceHead]:
    """A head for each source, over its own classes."""
    return [
        SourceHead(source, make(source.task_type, len(source.class_names)), source.name) for source in sources
    ]


def expert_forward(backbone: nn.Module) -> Forward:
    """The pass of one trunk, whose parameters are the part `backbone`."""

    def forward(params, extra, images, rng):
        variables = {"params": params["backbone"], "batch_stats": extra["batch_stats"]}
        maps, updated = backbone.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": rng}, method=features
        )
        return maps, updated.get("batch_stats", extra["batch_stats"])

    return forward


def generalist_variables(module: Generalist, params: Mapping, extra: Mapping) -> dict:
    """Variables of a generalist of a state: the main trunk is the part `backbone`, bridges are the part `transfers`, and the
    auxiliary trunks are `extra["auxiliary"]`."""
    own = {expert_parameters(module.main): params["backbone"]}
    own |= {transfer_parameters(name): params["transfers"][name] for name in module.auxiliary}
    others = {expert_parameters(name): extra["auxiliary"][name] for name in module.auxiliary}
    return {"params": {**own, **others}, "batch_stats": extra["batch_stats"]}


def generalist_forward(module: Generalist, *, trunk: bool) -> Forward:
    """The pass of a generalist; with `trunk` False its main trunk is in evaluation mode."""

    def forward(params, extra, images, rng):
        maps, updated = module.apply(
            generalist_variables(module, params, extra),
            images,
            train=True,
            trunk=trunk,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
            method=features,
        )
        return maps, {**extra["batch_stats"], **updated.get("batch_stats", {})}

    return forward


def multi_source_loss(forward: Forward, sources: Sequence[SourceHead], weighting: SourceWeighting):
    """The loss of all sources in one step.

        L = Σ_d w_d L_d( head_d( f(x_d) ), y_d )

    Args:
      forward: of the trunk.
      sources: a batch of each is `name/field` of the step's; parameters of the heads are the part `heads`.
      weighting: gives w_d beside the sources' own weights; `extra["scales"]` [sources] begins with zeros.

    Returns:
      A loss of `jaxface.training.Objective`.

    Raises:
      UserError: no source.
    """
    if not sources:
        raise UserError("sources: needs at least one, got none")

    def loss_fn(params, extra, batch, rng):
        losses, report = [], {}
        for number, source in enumerate(sources):
            name = source.source.name
            part = stream_batch(batch, name)
            image = normalize_pixels(part["image"])
            maps, stats = forward(params, extra, image, jax.random.fold_in(rng, number))
            extra = {**extra, "batch_stats": stats}
            outputs = source.head.module.apply(
                {"params": params["heads"][source.key]}, maps, image.shape[1:3]
            )
            loss = source.head.loss(outputs, source.prepared({**part, "image": image}))
            losses.append(loss)
            report[f"{name}_loss"] = loss
        values = jnp.stack(losses)
        now, before = axes.mean(jax.lax.stop_gradient(values)), extra["scales"]
        if weighting.kind == "first":
            scales = jnp.where(before > 0, before, jnp.maximum(now, 1e-6))
            weights = 1 / scales
        else:
            scales = jnp.where(before > 0, weighting.decay * before + (1 - weighting.decay) * now, now)
            weights = source_weights(scales)
        weights = weights * np.array([source.source.weight for source in sources], np.float32)
        return jnp.sum(weights * values), ({**extra, "scales": scales}, report)

    return loss_fn


class SourceScores:
    """Evaluation of a trunk and its heads on the held-out records of every source: `<source>/<metric>`.

    Args:
      sources: with their heads. held_out: source -> records.
      backbone: state -> (module, variables).
    """

    def __init__(
        self,
        sources: Sequence[SourceHead],
        held_out: Mapping[str, Source],
        backbone: Callable[[Any], tuple[nn.Module, Mapping]],
    ):
        self.sources, self.held_out, self.backbone = sources, held_out, backbone

    def __call__(self, state: Any) -> dict[str, float]:
        module, variables = self.backbone(state)
        report = {}
        for source in self.sources:
            name, head = source.source.name, source.head
            params = state.averaged_params["heads"][source.key]
            test = self.held_out[name]
            columns = source.columns
            answers = task_answers(module, variables, head, params, test, columns=columns)
            metric = METRICS[head.task][0]
            classes = len(source.source.class_names)
            report[f"{name}/{metric}"] = score(head.task, metric, answers, test, num_classes=classes)
        return report


@functools.partial(jax.jit, static_argnames=("module",))
def init_backbone(rng: jax.Array, image: jax.Array, *, module: nn.Module) -> dict:
    """Fresh variables {"params", "batch_stats"} of a staged backbone, its last linear layer left out."""
    variables = dict(module.init(quick_key(rng), image, method=features))
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


class SqueezeTeachers:
    """Backbones whose features a small trunk is to have, and how far it is from that.

    Args:
      teachers: name -> module, each a staged backbone or a `Generalist`.
      student: the small trunk.
    """

    def __init__(self, teachers: Mapping[str, nn.Module], student: nn.Module):
        self.teachers, self.student = dict(teachers), student

    def init(self, rng: jax.Array, variables: Mapping[str, Mapping], image: jax.Array) -> tuple[dict, dict]:
        """(parameters, extra) of a fresh student, with the teachers' variables among the latter."""
        fresh = init_backbone(rng, image, module=self.student)
        width = jax.eval_shape(
            lambda v: self.student.apply(v, image, method=features)["pooled"], fresh
        ).shape[-1]
        projections = {}
        for number, (name, module) in enumerate(self.teachers.items()):
            wanted = jax.eval_shape(
                lambda v, module=module: module.apply(v, image, method=features)["pooled"], variables[name]
            ).shape[-1]
            key = jax.random.fold_in(rng, number)
            projections[name] = nn.initializers.lecun_normal()(key, (width, wanted))
        extra = {"batch_stats": fresh["batch_stats"], "teachers": dict(variables)}
        return {"backbone": fresh["params"], "projections": projections}, extra

    def loss(self, params, extra, batch, rng):
        """`squeeze_loss` over the images of all streams; a loss of `jaxface.training.Objective`."""
        images = [normalize_pixels(value) for field, value in batch.items() if field.endswith("/image")]
        images = jnp.concatenate(images)
        maps, stats = expert_forward(self.student)(params, extra, images, rng)
        projected = {name: maps["pooled"] @ params["projections"][name] for name in self.teachers}
        wanted = {
            name: module.apply(extra["teachers"][name], images, method=features)["pooled"]
            for name, module in self.teachers.items()
        }
        loss = squeeze_loss(projected, wanted).mean()
        return loss, ({**extra, "batch_stats": stats}, {})
