"""INTERN: experts of several task types, joined as generalists and adapted with little data (arXiv:2111.08687).

    python -m experiments.launch intern --workdir runs/intern
    python -m experiments.launch intern --preset paper --workdir runs/intern   # the pod's sizes; built, not trained here
    python -m experiments.reproduce intern

The stages' training was never released; what the report leaves open is ours (docs/methods/intern.md#choices-of-ours).
"""

import dataclasses
import pathlib
from collections.abc import Generator, Mapping
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import tyro

from experiments.recipes import general_vision as recipe
from experiments.recipes.face_attributes import AttributeSpec, attribute_stages
from experiments.recipes.general_vision import HeadSpec, SourceSpec
from experiments.recipes.image_text import UpA, up_a_stage
from jaxface import data as inputs
from jaxface import models, training
from jaxface.checks import AtLeast, NonNegative, OpenFraction, Positive
from jaxface.data.pipeline.joined_batches import JoinedBatches
from jaxface.data.sources.label_graph import DataSource
from jaxface.data.synthetic.task_canvas import OBJECT_NAMES
from jaxface.errors import UserError
from jaxface.models.intern import Generalist, expert_parameters, joined_variables, transfer_parameters
from jaxface.training import experts as upstream
from jaxface.training.evaluations.task_answers import frozen_features
from jaxface.training.general_vision import FrozenBackbone, GvbSpec, gvb_evaluate, gvb_table, init_head
from jaxface.training.workdir import write_atomically

TYPES = {
    "c": ("classification",),
    "d": ("detection", "cells"),
    "s": ("segmentation", "depth"),
}
"""Task types of the experts."""

_CANVAS = inputs.TaskCanvas()
_CROWDED = inputs.TaskCanvas(scenes=1000, test_scenes=300, digits=(2, 5), squares=(2, 4), background=0.35)
_PARITY = tuple((str(digit), "odd" if digit % 2 else "even") for digit in range(5))
_PIXELS = ("nothing", *OBJECT_NAMES)
SOURCES = (
    SourceSpec(name="canvas_c", data=_CANVAS, parents=_PARITY),
    SourceSpec(name="crowded_c", data=_CROWDED, parents=_PARITY),
    SourceSpec(name="canvas_d", data=_CANVAS, task="detection", classes=OBJECT_NAMES),
    SourceSpec(
        name="shapes_d",
        data=inputs.ObjectScenes(
            scenes=1000, held_out_scenes=200, things="shapes", sizes=(6, 12), noise=0.25
        ),
        task="detection",
        label_map=(("rectangle", "square"),),
    ),
    SourceSpec(name="canvas_s", data=_CANVAS, task="segmentation", classes=_PIXELS),
    SourceSpec(name="crowded_s", data=_CROWDED, task="segmentation", classes=_PIXELS),
)
"""Two drawn sources for each type."""


@dataclasses.dataclass(frozen=True)
class GeneralistSpec:
    """How an expert becomes a generalist, with all other experts beside it."""

    mains: tuple[str, ...] = ("c", "d")
    """Experts of which one is made."""
    steps: Annotated[int, AtLeast(2)] = 250
    """Steps in all."""
    bridges_first: Annotated[float, OpenFraction] = 0.1
    """Fraction of them in which bridges and heads train and the trunk is frozen."""
    rate: Annotated[float, Positive] = 0.1
    """Factor on the expert's learning rate."""
    bridge_rate: Annotated[float, Positive] = 1.0
    """Factor on the expert's learning rate for the bridges."""
    stages: Annotated[int, AtLeast(1)] = 3
    """Maps of the trunk that receive."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Experts, generalists, and what they are worth on tasks with little data."""

    data: inputs.DataSpec = inputs.TaskCanvas(digits=(5, 10), scenes=2000, few=inputs.FewData(0.1))
    """Images of new classes to adapt to, by fine-tuning; `few` says how many."""
    image_size: Annotated[int, AtLeast(16)] = 24
    """Side of the images, pixels."""
    backbone: str = "plain_stages"
    """Network of every expert, by levels: plain_stages, metanet_tiny, metanet_b4, metanet_b15."""
    sources: Annotated[tuple[SourceSpec, ...], tyro.conf.Suppress] = SOURCES
    """What the experts learn from; set in code or by a configuration file."""
    captions: inputs.DataSpec = inputs.CaptionedFaces(identities=150, held_out_identities=30)
    """Images with captions that Up-A learns from."""
    up_a: UpA = UpA(steps=100)
    """Up-A; with 0 steps the experts start from fresh weights."""
    attributes: AttributeSpec = AttributeSpec()
    """Another experiment in the place of all that follows: what Up-A is worth for attributes that few images have labels for."""
    experts: tuple[str, ...] = ("c", "d", "s")
    """Types of the experts: c, d, s."""
    heads: Literal["unified", "own"] = "unified"
    """One head for all sources of a task over all their classes, or one for each source."""
    weighting: upstream.SourceWeighting = upstream.SourceWeighting()
    """How much each source counts."""
    head: HeadSpec = HeadSpec()
    """Heads for boxes and pixels."""
    generalist: GeneralistSpec = GeneralistSpec()
    """Up-G."""
    controls: bool = False
    """Train besides what a generalist is to be compared with: its expert for as long, with a random trunk beside it, with another
    expert of its own type; and one trunk of all types for as many steps in all."""
    joint_weights: Annotated[tuple[float, ...], Positive] = (1.0, 1.0, 1.0)
    """Of that trunk: weight of each expert's type in the loss."""
    squeeze_steps: Annotated[int, AtLeast(0)] = 200
    """Steps in which a fresh trunk learns the features of all generalists, or experts without one; 0 for none."""
    fine_tune_steps: Annotated[int, AtLeast(0)] = 100
    """Steps of fine-tuning the first generalist on `data`; 0 for none."""
    tasks: tuple[str, ...] = recipe.STAND_INS
    """What every backbone is measured on, frozen."""
    gvb: GvbSpec = GvbSpec.small()
    """How."""
    optimizer: training.Optimizer = training.adam(3e-3)
    """Optimizer and learning-rate schedule of the experts."""
    batch_size: Annotated[int, AtLeast(1)] = 64
    """Images of each source in a step, over all devices."""
    steps: Annotated[int, AtLeast(1)] = 500
    """Steps of each expert."""
    bfloat16: bool = False
    """Compute in bfloat16; parameters, statistics and losses stay float32."""
    workers: Annotated[int, AtLeast(0)] = 0
    """Processes that decode and augment."""
    label_smoothing: Annotated[float, NonNegative] = 0.0
    """Of classification with own heads."""
    seed: Annotated[int, AtLeast(0)] = 0
    """Seed of the initialization and the order of the data."""
    data_seed: Annotated[int, AtLeast(0)] = 0
    """Seed of the drawn images, and of the shares."""


Trunk = FrozenBackbone


def network(config: Config) -> nn.Module:
    """The trunk of an expert."""
    made = models.create(
        config.backbone, embedding=None, dtype=jnp.bfloat16 if config.bfloat16 else jnp.float32
    )
    if not hasattr(made, "level_strides"):
        raise UserError(
            f"backbone: needs one that is computed by levels, such as metanet_tiny, got {config.backbone!r}"
        )
    return made


def check(config: Config) -> None:
    """Raises UserError for what can be refused before any data is opened."""
    if unknown := sorted(set(config.experts) - set(TYPES)):
        raise UserError(f"experts: needs some of {', '.join(TYPES)}, got {unknown[0]!r}")
    if missing := [name for name in config.generalist.mains if name not in config.experts]:
        raise UserError(
            f"generalist.mains: needs experts among {', '.join(config.experts)}, got {missing[0]!r}"
        )
    if config.generalist.mains and len(config.experts) < 2:
        raise UserError("experts: a generalist needs at least two")
    if config.controls and len(config.joint_weights) < len(config.experts):
        raise UserError(
            f"joint_weights: needs one for each of {len(config.experts)} experts, got {len(config.joint_weights)}"
        )


class Lines:
    """The sources of every expert and their heads, and the stages that train on them."""

    def __init__(self, config: Config):
        self.config, self.model = config, network(config)
        self.amateur: Mapping | None = None  # variables of Up-A, from which every expert starts
        entries, self.held_out, graph = recipe.open_sources(
            config.sources, image_size=config.image_size, seed=config.data_seed
        )
        self.sources: dict[str, list[upstream.SourceHead]] = {}
        for kind in config.experts:
            chosen = [entry for entry in entries if entry.task_type in TYPES[kind]]
            if not chosen:
                raise UserError(f"sources: expert {kind} needs one for {' or '.join(TYPES[kind])}, got none")
            self.sources[kind] = self._heads(chosen, graph)
        self.image_shape = entries[0].source.image_shape

    def _heads(self, entries: list[DataSource], graph) -> list[upstream.SourceHead]:
        def make(task, classes):
            return recipe.make_head(task, classes, self.model.level_strides, self.config.head)

        if self.config.heads == "own":
            return upstream.separate_heads(entries, make)
        heads = []
        for task in dict.fromkeys(entry.task_type for entry in entries):
            heads += upstream.unified_heads([e for e in entries if e.task_type == task], graph, make)
        return heads

    def streams(self, kinds: tuple[str, ...]) -> JoinedBatches:
        """A batch of every source of some experts in each step."""
        chosen = [source.source for kind in kinds for source in self.sources[kind]]
        return JoinedBatches(
            {
                entry.name: inputs.batches(
                    entry.source,
                    batch_size=self.config.batch_size,
                    seed=self.config.seed,
                    shard=(jax.process_index(), jax.process_count()),
                    workers=self.config.workers,
                )
                for entry in chosen
            }
        )

    def heads(self, kinds: tuple[str, ...], rng: jax.Array, variables: Mapping) -> dict:
        """Fresh parameters of the heads of some experts."""
        made = {}
        image = jnp.zeros((1, *self.image_shape))
        maps = frozen_features(variables, image, backbone=self.model)
        for kind in kinds:
            for source in self.sources[kind]:
                if source.key not in made:
                    key = jax.random.fold_in(rng, len(made))
                    made[source.key] = init_head(key, maps, head=source.head, size=self.image_shape[:2])
        return made

    def stage(
        self,
        name: str,
        kinds: tuple[str, ...],
        steps: int,
        *,
        start: Mapping | None = None,
        rate: float = 1.0,
        key: str | None = None,
    ) -> training.Stage:
        """Trains one trunk on the sources of some experts, from fresh weights or those of a state {"params", "extra"}."""
        config, model = self.config, self.model
        sources = [source for kind in kinds for source in self.sources[kind]]
        if len(kinds) > 1:  # one trunk of several types
            weights = {kind: config.joint_weights[list(config.experts).index(kind)] for kind in kinds}
            sources = [
                dataclasses.replace(
                    s, source=dataclasses.replace(s.source, weight=s.source.weight * weights[kind])
                )
                for kind in kinds
                for s in self.sources[kind]
            ]
        loss_fn = upstream.multi_source_loss(upstream.expert_forward(model), sources, config.weighting)
        objective = training.Objective(
            loss_fn, self.optimizer(rate).build(steps, network=("backbone", model))
        )

        def init(rng, previous):
            if start is None:
                first, second = jax.random.split(rng)
                image = jnp.zeros((1, *self.image_shape))
                variables = self.amateur or upstream.init_backbone(first, image, module=model)
                params = {"backbone": variables["params"], "heads": self.heads(kinds, second, variables)}
                stats = variables["batch_stats"]
            else:
                params, stats = dict(start["params"]), start["extra"]["batch_stats"]
            extra = {"batch_stats": stats, "scales": jnp.zeros(len(sources))}
            return training.create_state(rng, params, objective, extra=extra)

        return training.Stage(
            name=name,
            key=key,
            init=init,
            compile_init=start is None and self.amateur is None,
            step=training.gradient_step(objective),
            batches=lambda state: self.streams(kinds),
            steps=steps,
            evaluate=upstream.SourceScores(
                sources,
                self.held_out,
                lambda state: (
                    model,
                    {"params": state.params["backbone"], "batch_stats": state.extra["batch_stats"]},
                ),
            ),
            description=inputs.class_record([name for source in sources for name in source.source.concepts]),
        )

    def optimizer(self, rate: float, bridges: float | None = None) -> training.Optimizer:
        """The experts' with another rate, and one for the bridges."""
        chosen = self.config.optimizer
        rates = chosen.rates if bridges is None else (*chosen.rates, f"transfers={bridges / rate:g}")
        return dataclasses.replace(chosen, learning_rate=chosen.learning_rate * rate, rates=rates)

    # Up-G: x_i = stage_i(x_{i-1}) + Σ φ(sg(x_j of the others)), bridges first, then the trunk with them.
    def generalist_stages(
        self, name: str, main: str, trunks: Mapping[str, Mapping]
    ) -> tuple[Generalist, Generator[training.Stage, training.Outcome, Any]]:
        """(the network, its two stages); `trunks` are {"params", "extra"} of the experts, the main one with its heads."""
        spec, sources = self.config.generalist, self.sources[main]
        module = Generalist({kind: self.model for kind in trunks}, main, spec.stages)
        bridge_steps = max(round(spec.bridges_first * spec.steps), 1)

        def begin(rng):
            image = jnp.zeros((1, *self.image_shape))
            fresh = upstream.init_backbone(rng, image, module=module)
            variables = joined_variables(
                fresh,
                {
                    kind: {
                        "params": trunk["params"]["backbone"],
                        "batch_stats": trunk["extra"]["batch_stats"],
                    }
                    for kind, trunk in trunks.items()
                },
            )
            params = {
                "backbone": variables["params"][expert_parameters(main)],
                "transfers": {
                    kind: variables["params"][transfer_parameters(kind)] for kind in module.auxiliary
                },
                "heads": trunks[main]["params"]["heads"],
            }
            auxiliary = {kind: variables["params"][expert_parameters(kind)] for kind in module.auxiliary}
            extra = {"batch_stats": variables["batch_stats"], "auxiliary": auxiliary}
            return params, {**extra, "scales": jnp.zeros(len(sources))}

        def stage(suffix, steps, trunk, start=None):
            loss_fn = upstream.multi_source_loss(
                upstream.generalist_forward(module, trunk=trunk), sources, self.config.weighting
            )
            parts = ("transfers", "heads", "backbone") if trunk else ("transfers", "heads")
            objective = training.Objective(
                loss_fn, self.optimizer(spec.rate, spec.bridge_rate).build(steps), trains=parts
            )

            def init(rng, previous):
                params, extra = begin(rng) if start is None else (start.params, start.extra)
                return training.create_state(rng, dict(params), objective, extra=dict(extra))

            return training.Stage(
                name=name + suffix,
                init=init,
                compile_init=False,
                step=training.gradient_step(objective),
                batches=lambda state: self.streams((main,)),
                steps=steps,
                evaluate=None
                if not trunk
                else upstream.SourceScores(
                    sources,
                    self.held_out,
                    lambda state: (module, upstream.generalist_variables(module, state.params, state.extra)),
                ),
            )

        def stages():
            bridged = yield stage("_bridges", bridge_steps, trunk=False)
            done = yield stage("", spec.steps - bridge_steps, trunk=True, start=bridged.state)
            return FrozenBackbone(
                module, upstream.generalist_variables(module, done.state.params, done.state.extra)
            )

        return module, stages()


def trunk_of(model: nn.Module, state) -> FrozenBackbone:
    """The backbone of an expert's state."""
    return FrozenBackbone(
        model, {"params": state.params["backbone"], "batch_stats": state.extra["batch_stats"]}
    )


def parts_of(state) -> dict:
    """What another stage starts from."""
    return {"params": state.params, "extra": {"batch_stats": state.extra["batch_stats"]}}


def build(config: Config) -> Generator[training.Stage, training.Outcome, None]:
    """Up-A, the experts, the generalists, what they are compared with, and the benchmark of all."""
    check(config)
    options = dict(seed=config.seed, workers=config.workers, bfloat16=config.bfloat16)
    if config.attributes.learn is not None:
        yield from attribute_stages(
            config.attributes,
            config.up_a,
            network(config),
            config.captions,
            image_size=config.image_size,
            data_seed=config.data_seed,
            **options,
        )
        return
    lines = Lines(config)
    tasks = recipe.stand_in_tasks(
        config.tasks, image_size=config.image_size, seed=config.data_seed, head=config.head
    )
    lines.streams(config.experts)  # reads nothing yet, but refuses what cannot be used
    rows: dict[str, FrozenBackbone] = {}

    # Up-A: images and their captions, from each other, from themselves and from their places.
    if config.up_a.steps:
        split = inputs.load(config.captions, image_size=config.image_size, seed=config.data_seed)
        stage, _ = up_a_stage(config.up_a, lines.model, split, **options)
        outcome = yield stage
        lines.amateur = {
            "params": outcome.state.params["backbone"],
            "batch_stats": outcome.state.extra["batch_stats"],
        }
        rows["up_a"] = FrozenBackbone(lines.model, lines.amateur)

    # Up-E: one trunk for each type, from all its sources in every step.
    trained: dict[str, dict] = {}
    for kind in config.experts:
        outcome = yield lines.stage(f"up_e_{kind}", (kind,), config.steps)
        trained[kind] = parts_of(outcome.state)
        rows[f"up_e_{kind}"] = trunk_of(lines.model, outcome.state)

    # Up-G.
    for main in config.generalist.mains:
        _, stages = lines.generalist_stages(f"up_g_{main}", main, trained)
        rows[f"up_g_{main}"] = yield from stages
    if config.controls:
        yield from control_stages(config, lines, trained, rows)
    yield gvb_stage(config, tasks, rows)


def control_stages(config: Config, lines: Lines, trained: dict, rows: dict):
    """What the generalists are compared with; each is put into `rows`."""
    spec = config.generalist
    random = jax.jit(
        lambda rng: upstream.init_backbone(rng, jnp.zeros((1, *lines.image_shape)), module=lines.model)
    )
    fresh = random(recipe.fresh_key(config.seed, "random"))
    rows["random"] = FrozenBackbone(lines.model, fresh)
    untrained = {"params": {"backbone": fresh["params"]}, "extra": {"batch_stats": fresh["batch_stats"]}}
    for main in spec.mains:
        outcome = yield lines.stage(
            f"longer_{main}", (main,), spec.steps, start=trained[main], rate=spec.rate
        )
        rows[f"up_e_{main}, continued"] = trunk_of(lines.model, outcome.state)
        _, stages = lines.generalist_stages(
            f"random_{main}", main, {main: trained[main], "random": untrained}
        )
        rows[f"up_g_{main}, random trunk"] = yield from stages
        outcome = yield lines.stage(f"second_{main}", (main,), config.steps)
        pair = {main: trained[main], "second": parts_of(outcome.state)}
        _, stages = lines.generalist_stages(f"twice_{main}", main, pair)
        rows[f"up_g_{main}, second of its type"] = yield from stages
    outcome = yield lines.stage("joint", config.experts, config.steps + spec.steps)
    rows["joint"] = trunk_of(lines.model, outcome.state)


class Benchmark:
    """Evaluation of several backbones, whatever the state: `<backbone>/<task>`, and the table as a file."""

    def __init__(self, config: Config, tasks, rows: Mapping[str, FrozenBackbone]):
        self.spec = dataclasses.replace(config.gvb, seed=config.seed)
        self.tasks, self.rows = tasks, dict(rows)

    def __call__(self, state) -> dict[str, float]:
        self.results = {name: gvb_evaluate(row, self.tasks, self.spec) for name, row in self.rows.items()}
        return {f"{name}/{task}": value for name, row in self.results.items() for task, value in row.items()}

    def figures(self, state) -> training.Figures:
        """The table of the benchmark in Markdown."""
        return {"gvb.md": self._write}

    def _write(self, path: pathlib.Path) -> pathlib.Path:
        write_atomically(path, gvb_table(self.results, self.tasks) + "\n")
        return path


def gvb_stage(config: Config, tasks, rows: Mapping[str, FrozenBackbone]) -> training.Stage:
    """The last stage: no steps, the benchmark of all backbones."""
    return training.Stage(
        name="gvb",
        init=lambda rng, previous: {"done": jnp.zeros((), jnp.int32)},
        evaluate=Benchmark(config, tasks, rows),
    )
