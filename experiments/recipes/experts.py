"""The stages of INTERN behind its amateur: experts, generalists, what they are compared with, a squeezed trunk, fine-tuning.

Methods: intern
"""

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import tyro

from experiments.recipes import general_vision, irf
from experiments.recipes.general_vision import HeadSpec, SourceSpec
from experiments.recipes.recognition import Recipe, filled_batch_size
from experiments.recipes.vqgan import VqganSpec, generator_stage
from jaxface import data as inputs
from jaxface import models, training
from jaxface.checks import AtLeast, Fraction, OpenFraction, Positive, Range
from jaxface.data.pipeline.joined_batches import JoinedBatches
from jaxface.data.sources.label_graph import DataSource
from jaxface.errors import UserError
from jaxface.models.intern import Generalist, expert_parameters, joined_variables, transfer_parameters
from jaxface.models.task_heads import ClassHead
from jaxface.training import experts as upstream
from jaxface.training.evaluations.task_answers import frozen_features
from jaxface.training.general_vision import FrozenBackbone, init_head, quick_key, share
from jaxface.training.re_representation import re_represented
from jaxface.training.workdir import read_descriptions

TYPES = {
    "c": ("classification",),
    "d": ("detection", "cells"),
    "s": ("segmentation", "depth"),
}
"""Task types of the experts."""

Stages = Generator[training.Stage, training.Outcome, Any]


@dataclasses.dataclass(frozen=True)
class GeneralistSpec:
    """How an expert becomes a generalist, with all other experts beside it."""

    mains: tuple[str, ...] = ("c", "d")
    """Experts of which one is made."""
    steps: Annotated[int, AtLeast(2)] = 150
    """Steps in all."""
    bridges_first: Annotated[float, OpenFraction] = 0.1
    """Fraction of them in which bridges and heads train and the trunk is frozen."""
    rate: Annotated[float, Positive] = 0.1
    """Factor on the experts' learning rate."""
    bridge_rate: Annotated[float, Positive] = 1.0
    """The same for the bridges."""
    stages: Annotated[int, AtLeast(1)] = 3
    """Maps of the trunk that receive."""


@dataclasses.dataclass(frozen=True)
class AdaptationSpec:
    """Fine-tuning of the first generalist, or expert, on new classes."""

    fractions: Annotated[tuple[float, ...], Range(0, 1, above=True)] = (0.01, 0.1)
    """Shares of the images to learn from."""
    modes: tuple[irf.Mode, ...] = ("direct", "two_stage")
    """On the images; or on these as a generator says them that was trained on the first source, and then on the images."""
    share: Annotated[float, Fraction] = 0.5
    """Of the steps, that the first of two stages has."""
    steps: Annotated[int, AtLeast(0)] = 60
    """Steps of each; 0 for no fine-tuning."""
    rate: Annotated[float, Positive] = 0.3
    """Factor on the experts' learning rate."""
    batch_size: Annotated[int, AtLeast(1)] = 16
    """Images of a step, over all devices."""
    generator: VqganSpec = VqganSpec(
        channels=8, latent=16, perceptual=0.0, adversarial=0.0, steps=80, reseed_images=128, reseed_every=40
    )
    """The generator."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertRecipe:
    """Sources, networks and lengths of experts and generalists."""

    data: inputs.DataSpec = inputs.TaskCanvas(digits=(5, 10), scenes=2000)
    """Images of new classes to adapt to, by fine-tuning with a share of them."""
    image_size: Annotated[int, AtLeast(16)] = 24
    """Side of the images, pixels."""
    backbone: str = "plain_stages"
    """Network of every expert, by levels: plain_stages, metanet_tiny, metanet_b4, metanet_b15."""
    sources: Annotated[tuple[SourceSpec, ...], tyro.conf.Suppress] = ()
    """What the experts learn from; set in code or by a configuration file."""
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
    student: str = "plain_stages_small"
    """Network that the generalists, and the experts without one, are squeezed into."""
    squeeze_steps: Annotated[int, AtLeast(0)] = 100
    """Steps of it; 0 for none."""
    adaptation: AdaptationSpec = AdaptationSpec()
    """Fine-tuning on `data`."""
    optimizer: training.Optimizer = training.adam(3e-3)
    """Optimizer and learning-rate schedule of the experts."""
    batch_size: Annotated[int, AtLeast(1)] = 32
    """Images of each source in a step, over all devices."""
    steps: Annotated[int, AtLeast(1)] = 300
    """Steps of each expert."""
    bfloat16: bool = False
    """Compute in bfloat16; parameters, statistics and losses stay float32."""
    workers: Annotated[int, AtLeast(0)] = 0
    """Processes that decode and augment."""
    seed: Annotated[int, AtLeast(0)] = 0
    """Seed of the initialization and the order of the data."""
    data_seed: Annotated[int, AtLeast(0)] = 0
    """Seed of the drawn images, and of the shares."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a stage has made of a trunk, to go on from.

    Attributes:
      forward: its pass in training. backbone: (params, extra) -> it, frozen.
      params, extra: of the state.
    """

    forward: upstream.Forward
    frozen: Callable[[Mapping, Mapping], FrozenBackbone]
    params: Mapping
    extra: Mapping

    @property
    def backbone(self) -> FrozenBackbone:
        """Itself, frozen."""
        return self.frozen(self.params, self.extra)


def check(config: ExpertRecipe) -> None:
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


def network(config: ExpertRecipe, name: str | None = None) -> nn.Module:
    """The trunk of an expert, or another by levels.

    Raises:
      UserError: a network that is not computed by levels.
    """
    name = name or config.backbone
    made = models.create(name, embedding=None, dtype=jnp.bfloat16 if config.bfloat16 else jnp.float32)
    if not hasattr(made, "level_strides"):
        raise UserError(f"backbone: needs one that is computed by levels, such as metanet_tiny, got {name!r}")
    return made


class Lines:
    """The sources of every expert and their heads, and the stages that train on them."""

    def __init__(self, config: ExpertRecipe):
        self.config, self.model = config, network(config)
        self.amateur: Mapping | None = None  # variables of Up-A, from which every expert starts
        entries, self.held_out, graph = general_vision.open_sources(
            config.sources, image_size=config.image_size, seed=config.data_seed
        )
        self.sources: dict[str, list[upstream.SourceHead]] = {}
        for kind in config.experts:
            chosen = [entry for entry in entries if entry.task_type in TYPES[kind]]
            if not chosen:
                raise UserError(f"sources: expert {kind} needs one for {' or '.join(TYPES[kind])}, got none")
            self.sources[kind] = self._heads(chosen, graph)
        self.image_shape = entries[0].source.image_shape
        self.streams(config.experts)  # reads nothing yet, but refuses what cannot be used
        self.downstream = self._downstream() if config.adaptation.steps else None

    def _downstream(self) -> inputs.Split:
        """What to adapt to, of classes that no expert learns."""
        split = inputs.load(self.config.data, image_size=self.config.image_size, seed=self.config.data_seed)
        if split.protocol != "classification":
            raise UserError(f"data: needs classes to adapt to, {split.name} is for {split.protocol}")
        seen = [s.source for heads in self.sources.values() for s in heads if s.head.task == "classification"]
        names = [name for source in seen for name in source.class_names]
        inputs.check_unseen_classes(inputs.class_record(names), split.train.class_names, argument="experts")
        return split

    @property
    def _image(self) -> jax.Array:
        return jnp.zeros((1, *self.image_shape))

    def _heads(self, entries: list[DataSource], graph) -> list[upstream.SourceHead]:
        def make(task, classes):
            return general_vision.make_head(task, classes, self.model.level_strides, self.config.head)

        if self.config.heads == "own":
            return upstream.separate_heads(entries, make)
        heads = []
        for task in dict.fromkeys(entry.task_type for entry in entries):
            heads += upstream.unified_heads([e for e in entries if e.task_type == task], graph, make)
        return heads

    def streams(self, kinds: Sequence[str]) -> JoinedBatches:
        """A batch of every source of some experts in each step."""
        return self._joined(
            {s.source.name: s.source.source for kind in kinds for s in self.sources[kind]},
            self.config.batch_size,
        )

    def _joined(self, sources: Mapping[str, inputs.Source], batch_size: int) -> JoinedBatches:
        options = dict(shard=(jax.process_index(), jax.process_count()), workers=self.config.workers)
        return JoinedBatches(
            {
                name: inputs.batches(source, batch_size=batch_size, seed=self.config.seed, **options)
                for name, source in sources.items()
            }
        )

    def _fresh_heads(self, kinds: Sequence[str], rng: jax.Array, variables: Mapping) -> dict:
        made, maps = {}, frozen_features(variables, self._image, backbone=self.model)
        for source in (source for kind in kinds for source in self.sources[kind]):
            if source.key not in made:
                key = jax.random.fold_in(rng, len(made))
                made[source.key] = init_head(key, maps, head=source.head, size=self.image_shape[:2])
        return made

    def _optimizer(self, rate: float, bridges: float | None = None) -> training.Optimizer:
        """The experts' with another rate, and one for the bridges."""
        chosen = self.config.optimizer
        rates = chosen.rates if bridges is None else (*chosen.rates, f"transfers={bridges / rate:g}")
        return dataclasses.replace(chosen, learning_rate=chosen.learning_rate * rate, rates=rates)

    def _weighed(self, kinds: Sequence[str]) -> list[upstream.SourceHead]:
        """The sources of some experts; of several, each by the weight of its type."""
        weighed = []
        for kind in kinds:
            factor = self.config.joint_weights[self.config.experts.index(kind)] if len(kinds) > 1 else 1.0
            for source in self.sources[kind]:
                entry = dataclasses.replace(source.source, weight=source.source.weight * factor)
                weighed.append(dataclasses.replace(source, source=entry))
        return weighed

    def _plain(self, params: Mapping, extra: Mapping) -> Trained:
        def frozen(params, extra):
            return FrozenBackbone(
                self.model, {"params": params["backbone"], "batch_stats": extra["batch_stats"]}
            )

        return Trained(upstream.expert_forward(self.model), frozen, params, extra)

    @staticmethod
    def _described(model: nn.Module) -> dict[str, Any]:
        """What a stage writes down, so that its trunk is opened without the method (`open_trunks`)."""
        return {"staged": models.describe(model)}

    def untrained(self, name: str) -> Trained:
        """A trunk of random weights."""
        key = general_vision.fresh_key(self.config.seed, name)
        fresh = upstream.init_backbone(key, self._image, module=self.model)
        return self._plain({"backbone": fresh["params"]}, {"batch_stats": fresh["batch_stats"]})

    def expert(
        self,
        name: str,
        kinds: Sequence[str],
        steps: int,
        *,
        start: Trained | None = None,
        rate: float = 1.0,
    ) -> Stages:
        """Up-E: trains a trunk on the sources of an expert, or of several; from Up-A or random weights, or from `start`."""
        sources = self._weighed(kinds)
        loss_fn = upstream.multi_source_loss(
            upstream.expert_forward(self.model), sources, self.config.weighting
        )
        optimizer = self._optimizer(rate).build(steps, network=("backbone", self.model))
        objective = training.Objective(loss_fn, optimizer)

        def init(rng, previous):
            if start is None:
                first, second = jax.random.split(rng)
                variables = self.amateur or upstream.init_backbone(first, self._image, module=self.model)
                heads = self._fresh_heads(kinds, second, variables)
                params, stats = {"backbone": variables["params"], "heads": heads}, variables["batch_stats"]
            else:
                params, stats = dict(start.params), start.extra["batch_stats"]
            extra = {"batch_stats": stats, "scales": jnp.zeros(len(sources))}
            return training.create_state(rng, params, objective, extra=extra)

        concepts = [name for source in sources for name in source.source.concepts]
        done = yield training.Stage(
            name=name,
            init=init,
            compile_init=False,
            step=training.gradient_step(objective),
            batches=lambda state: self.streams(kinds),
            steps=steps,
            evaluate=upstream.SourceScores(
                sources, self.held_out, lambda state: self._plain(state.params, state.extra).backbone
            ),
            description=self._described(self.model) | inputs.class_record(concepts),
        )
        return self._plain(done.state.params, {"batch_stats": done.state.extra["batch_stats"]})

    def generalist(self, name: str, main: str, trunks: Mapping[str, Trained]) -> Stages:
        """Up-G: x_i = stage_i(x_{i-1}) + Σ φ(sg(x_j of the others)); bridges and heads first, then the trunk with them.

        `trunks` are the experts by name, the main one with its heads.
        """
        spec, sources = self.config.generalist, self.sources[main]
        module = Generalist({kind: self.model for kind in trunks}, main, spec.stages)
        bridge_steps = max(round(spec.bridges_first * spec.steps), 1)

        def frozen(params, extra):
            return FrozenBackbone(module, upstream.generalist_variables(module, params, extra))

        def begin(rng):
            fresh = upstream.init_backbone(rng, self._image, module=module)
            variables = joined_variables(fresh, {kind: t.backbone.variables for kind, t in trunks.items()})
            params, auxiliary = variables["params"], module.auxiliary
            extra = {
                "batch_stats": variables["batch_stats"],
                "auxiliary": {kind: params[expert_parameters(kind)] for kind in auxiliary},
                "scales": jnp.zeros(len(sources)),
            }
            trained = {
                "backbone": params[expert_parameters(main)],
                "transfers": {kind: params[transfer_parameters(kind)] for kind in auxiliary},
                "heads": trunks[main].params["heads"],
            }
            return trained, extra

        def stage(prefix, steps, *, trunk, start=None):
            forward = upstream.generalist_forward(module, trunk=trunk)
            loss_fn = upstream.multi_source_loss(forward, sources, self.config.weighting)
            parts = ("transfers", "heads", "backbone") if trunk else ("transfers", "heads")
            rule = self._optimizer(spec.rate, spec.bridge_rate).build(steps)
            objective = training.Objective(loss_fn, rule, trains=parts)

            def init(rng, previous):
                params, extra = begin(rng) if start is None else (start.params, start.extra)
                return training.create_state(rng, dict(params), objective, extra=dict(extra))

            scores = upstream.SourceScores(
                sources, self.held_out, lambda state: frozen(state.params, state.extra)
            )
            return training.Stage(
                name=prefix + name,
                key=None if trunk else f"{name}_bridges",
                init=init,
                compile_init=False,
                step=training.gradient_step(objective),
                batches=lambda state: self.streams((main,)),
                steps=steps,
                evaluate=scores if trunk else None,
                description=described if trunk else None,
            )

        joined = {"main": main, "experts": list(trunks), "stages": spec.stages}
        described = self._described(self.model) | {"generalist": joined}
        bridged = yield stage("bridges_", bridge_steps, trunk=False)
        done = yield stage("", spec.steps - bridge_steps, trunk=True, start=bridged.state)
        extra = {key: done.state.extra[key] for key in ("batch_stats", "auxiliary")}
        return Trained(upstream.generalist_forward(module, trunk=True), frozen, done.state.params, extra)

    def controls(self, trained: Mapping[str, Trained]) -> Stages:
        """What the generalists are compared with: row of the table -> backbone."""
        config, spec, rows = self.config, self.config.generalist, {}
        random = self.untrained("random")
        rows["random"] = random.backbone
        for main in spec.mains:
            longer = yield from self.expert(
                f"longer_{main}", (main,), spec.steps, start=trained[main], rate=spec.rate
            )
            rows[f"up_e_{main}, continued"] = longer.backbone
            beside = yield from self.generalist(
                f"random_{main}", main, {main: trained[main], "random": random}
            )
            rows[f"up_g_{main}, random trunk"] = beside.backbone
            second = yield from self.expert(f"second_{main}", (main,), config.steps)
            twice = yield from self.generalist(f"twice_{main}", main, {main: trained[main], "second": second})
            rows[f"up_g_{main}, second of its type"] = twice.backbone
        joint = yield from self.expert("joint", config.experts, config.steps + spec.steps)
        rows["joint"] = joint.backbone
        return rows

    def squeezed(self, teachers: Mapping[str, FrozenBackbone]) -> Stages:
        """A fresh small trunk that learns the features of all teachers, on the images of all their sources."""
        config, student = self.config, network(self.config, self.config.student)
        squeeze = upstream.SqueezeTeachers({kind: t.module for kind, t in teachers.items()}, student)
        objective = training.Objective(squeeze.loss, config.optimizer.build(config.squeeze_steps))

        def init(rng, previous):
            variables = {kind: teacher.variables for kind, teacher in teachers.items()}
            params, extra = squeeze.init(rng, variables, self._image)
            return training.create_state(rng, params, objective, extra=extra)

        first = {s.source.name: s.source.source for kind in teachers for s in self.sources[kind][:1]}
        done = yield training.Stage(
            name="squeeze",
            init=init,
            compile_init=False,
            step=training.gradient_step(objective),
            batches=lambda state: self._joined(first, config.batch_size),
            steps=config.squeeze_steps,
            description=self._described(student),
        )
        stats = done.state.extra["batch_stats"]
        return FrozenBackbone(student, {"params": done.state.params["backbone"], "batch_stats": stats})

    def adaptations(self, start: Trained) -> Stages:
        """Downstream: fine-tuning of a trunk with few images, as they are and as a generator says them; the stages report."""
        config, spec, split = self.config, self.config.adaptation, self.downstream
        upstream_source = self.sources[config.experts[0]][0].source.source
        generator = None
        if any(mode not in ("direct", "restart") for mode in spec.modes):
            recipe = Recipe(
                data=config.data,
                augment=inputs.Augment(flip=0.0),
                seed=config.seed,
                workers=config.workers,
                batch_size=config.batch_size,
            )
            stage, described = generator_stage(recipe, spec.generator, upstream_source)
            outcome = yield _quickly_begun(stage)
            generator = (described.model, outcome.state.params["generator"])
        classes = len(split.train.class_names)
        shares = {f: share(split.train, f, config.data_seed) for f in spec.fractions}
        size = min(filled_batch_size(source, spec.batch_size) for source in shares.values())
        entry = DataSource("downstream", split.train, "classification")
        head = upstream.SourceHead(entry, ClassHead(classes), "downstream")
        loss_fn = upstream.multi_source_loss(start.forward, [head], config.weighting)
        scores = upstream.SourceScores(
            [head], {"downstream": split.held_out}, lambda state: start.frozen(state.params, state.extra)
        )
        for fraction, source in shares.items():
            said = None if generator is None else re_represented(*generator, source)
            for mode in spec.modes:
                state = None
                for phase in irf.irf_phases(mode, spec.steps, spec.share, source, said):
                    objective = training.Objective(loss_fn, self._optimizer(spec.rate).build(phase.steps))

                    def init(rng, previous, state=state, objective=objective):
                        if state is not None:
                            return training.create_state(rng, state.params, objective, extra=state.extra)
                        maps = frozen_features(
                            start.backbone.variables, self._image, backbone=start.backbone.module
                        )
                        fresh = init_head(rng, maps, head=head.head, size=self.image_shape[:2])
                        params = {**start.params, "heads": {"downstream": fresh}}
                        extra = {**start.extra, "scales": jnp.zeros(1)}
                        return training.create_state(rng, params, objective, extra=extra)

                    outcome = yield training.Stage(
                        name=f"adapt_{_word(fraction)}_{mode}_{phase.name}",
                        key=f"adapt_{_word(fraction)}",
                        init=init,
                        compile_init=False,
                        step=training.gradient_step(objective),
                        batches=lambda state, source=phase.source: self._joined({"downstream": source}, size),
                        steps=phase.steps,
                        evaluate=scores,
                    )
                    state = outcome.state


def _quickly_begun(stage: training.Stage) -> training.Stage:
    """The same stage, its parameters drawn by a generator whose program compiles several times faster."""

    def init(rng, previous):
        return stage.init(quick_key(rng), previous).replace(rng=rng)

    return dataclasses.replace(stage, init=init)


def _word(fraction: float) -> str:
    return f"{100 * fraction:g}".replace(".", "p") + "pc"


def open_trunks(run: str) -> dict[str, FrozenBackbone]:
    """The trunks of a run of `intern`: stage -> backbone; none where it is the run of another method.

    Raises:
      UserError: a description or a checkpoint that cannot be read.
    """
    rows = {}
    for folder, description in read_descriptions(run):
        if "staged" not in description:
            continue
        saved, module = training.restore_params(folder), models.from_description(description["staged"])
        params, extra = saved["params"], {"batch_stats": {}, **saved["extra"]}
        variables = {"params": params["backbone"], "batch_stats": extra["batch_stats"]}
        if joined := description.get("generalist"):
            module = Generalist(
                {name: module for name in joined["experts"]}, joined["main"], joined["stages"]
            )
            variables = upstream.generalist_variables(module, params, extra)
        rows[folder.name.partition("-")[2]] = FrozenBackbone(module, variables)
    return rows


__all__ = [
    "TYPES",
    "AdaptationSpec",
    "ExpertRecipe",
    "GeneralistSpec",
    "Lines",
    "Trained",
    "check",
    "network",
    "open_trunks",
]
