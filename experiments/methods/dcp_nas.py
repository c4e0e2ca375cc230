"""DCP-NAS: a binary network's cells, searched along the gradient of a real one's architecture (arXiv:2306.15390).

    python -m experiments.launch dcp_nas --workdir runs/dcp_nas           # 206 CPU-seconds: accuracy 0.965
    python -m experiments.launch dcp_nas --preset paper --teacher.run …   # ImageNet; built and typed, not trained here
    python -m experiments.reproduce dcp_nas --study digits                # no search is told from random cells

Differs from the paper in: the gradient of the log-likelihood as the tangent (the printed sum is 0), λ set for the size of its
term, μ = 5e-5, and a correction of the architecture that does something (docs/methods/dcp_nas.md#choices-of-ours).
"""

import dataclasses
import pathlib
from collections.abc import Generator
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from experiments.recipes import recognition as recipe
from experiments.recipes.heads import HeadSpec
from experiments.recipes.teachers import TeacherSpec, teacher_stage
from jaxface import axes, losses, training
from jaxface import data as inputs
from jaxface.checks import AtLeast, OpenFraction, Positive
from jaxface.data.pipeline.two_streams import TwoStreams
from jaxface.errors import UserError
from jaxface.layers.dcp_nas import started_from
from jaxface.models import cells as cell_networks
from jaxface.paths import user_path
from jaxface.training.dcp_nas import CellSearch, Searcher, cp_steps
from jaxface.training.evaluations.cell_search import GENOTYPE_FILE, FoundCell

RELEASED = "released"
_LONGEST = 1 << 16  # bytes of a genotype


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(recipe.Recipe):
    """Cells are searched by a real and a binary supernet in turns, and a binary network of them is trained afresh."""

    data: inputs.DataSpec = inputs.Digits()
    """Images of classes to be told apart."""
    augment: inputs.Augment = inputs.Augment(flip=0.0)
    """Random changes of the training images."""
    image_size: Annotated[int, AtLeast(8)] = 8
    """Side of the images, pixels."""
    backbone: str = "dcp_nas_pico"
    """Network of the found cells: dcp_nas_pico for small images, dcp_nas_large for those of ImageNet."""
    embedding: None = None
    """The classifier is the linear layer of the recipe."""
    prototype_std: Annotated[float, Positive] = 0.125
    """Standard deviation of the linear classifier's weights at the start, > 0."""
    genotype: str | None = None
    """Cells that are not searched: JSON, a file of it, the work directory of a search, or released, the authors' cell."""
    search: Literal["dcp", "parent", "child", "cp", "random"] = "dcp"
    """Who searches: Parent and Child in turns; one of them alone by labels (DARTS); CP-NAS by the accuracies of both; chance."""
    rule: CellSearch = CellSearch()
    """How the architecture is moved."""
    primitives: tuple[str, ...] = cell_networks.SMALL
    """Operations of an edge, `none` among them."""
    nodes: Annotated[int, AtLeast(1)] = 2
    """Intermediate nodes of a cell."""
    search_channels: Annotated[int, AtLeast(2)] = 4
    """Channels of a node in the supernets' first cell."""
    search_cells: Annotated[int, AtLeast(1)] = 2
    """Cells of the supernets."""
    search_reductions: tuple[int, ...] = (0,)
    """Those of them that halve the plane."""
    rounds: Annotated[int, AtLeast(1)] = 4
    """Times that both phases are run."""
    phase_steps: Annotated[int, AtLeast(1)] = 40
    """Steps of a phase; a search by one supernet has as many phases."""
    search_batch_size: Annotated[int, AtLeast(1)] = 32
    """Images of a step for weights, and as many for the architecture."""
    aside: Annotated[float, OpenFraction] = 0.5
    """Fraction of the training images that the architecture is learned on, in (0, 1)."""
    weight_optimizer: training.Optimizer = training.adam(1e-2, schedule="cosine", weight_decay=0.0)
    """Optimizer of the supernets' weights."""
    arch_optimizer: training.Optimizer = training.sgd(
        10.0, momentum=0.0, schedule="constant", weight_decay=0.0
    )
    """Optimizer of the architecture. Plain steps: Adam would hide the size of the tangent term."""
    channels: Annotated[int | None, AtLeast(2)] = None
    """Channels of a node in the first cell of the found network; the network's own where None."""
    cells: Annotated[int | None, AtLeast(1)] = None
    """Its cells; the network's own where None."""
    reductions: tuple[int, ...] | None = None
    """Those of them that halve the plane; the network's own where None."""
    form: Literal["binary", "real"] = "binary"
    """Weights and activations of the found network."""
    real_weight_steps: Annotated[int, AtLeast(0)] = 200
    """Steps of a first training with binary activations and real weights, which the second starts from; 0 leaves it out."""
    real_weight_optimizer: training.Optimizer = training.adam(5e-3, schedule="cosine", weight_decay=1e-5)
    """Optimizer of that training."""
    optimizer: training.Optimizer = training.adam(5e-3, schedule="cosine", weight_decay=0.0)
    """Optimizer of the second."""
    loss: Literal["labels", "distribution"] = "distribution"
    """Cross-entropy of the labels, or the distance of the class distributions of student and teacher, and no label."""
    teacher: TeacherSpec = TeacherSpec(
        backbone="mlp_256x256",
        embedding=None,
        head=HeadSpec(loss="linear"),
        optimizer=training.adam(2e-3),
        steps=600,
    )
    """The network to learn from, where the loss is that of distributions."""
    batch_size: Annotated[int, AtLeast(1)] = 64
    """Images per step of the trainings, over all devices."""
    steps: Annotated[int, AtLeast(0)] = 400
    """Steps of the second training; 0 leaves both out, and the run ends with the cell."""

    @classmethod
    def paper(cls) -> "Config":
        """ImageNet: the large network in two trainings of 256 epochs with a ResNet-34 as the teacher; 72.4 / 89.2 is the aim.

        The search is that of CIFAR-10 (`Config.searched`), whose cell `genotype` names; the authors' is `released`.
        """
        epoch = 1_281_167 // 512
        adam = training.Optimizer(name="adamw", learning_rate=1e-3, schedule="cosine", weight_decay=0.0)
        return cls(
            data=inputs.Tfds(name="imagenet2012", test="validation"),
            image_size=224,
            augment=inputs.Augment(flip=0.5, crop=1.0, crop_scale=(0.08**0.5, 1.0), crop_shift=0.0),
            backbone="dcp_nas_large",
            genotype=RELEASED,
            primitives=cell_networks.DARTS,
            nodes=4,
            real_weight_steps=256 * epoch,
            real_weight_optimizer=dataclasses.replace(adam, weight_decay=1e-5),
            optimizer=adam,
            teacher=TeacherSpec.imagenet(),
            bfloat16=True,
            batch_size=512,
            steps=256 * epoch,
            workers=16,
        )

    @classmethod
    def searched(cls) -> "Config":
        """The search of the paper: CIFAR-10, 8 cells of 16 channels, 50 epochs of each supernet; it ends with the cell."""
        epoch = 25_000 // 64
        return dataclasses.replace(
            cls.paper(),
            data=inputs.Cifar10("cifar10"),
            image_size=32,
            augment=inputs.Augment(flip=0.5, shift=4),
            genotype=None,
            rule=CellSearch(ratio=None, strength=5e-3, eps=0.75),
            search_channels=16,
            search_cells=8,
            search_reductions=(2, 5),
            rounds=50,
            phase_steps=epoch,
            search_batch_size=64,
            weight_optimizer=training.sgd(0.025, schedule="cosine", weight_decay=3e-4),
            arch_optimizer=training.Optimizer(
                name="adam", learning_rate=3e-4, schedule="constant", momentum=0.5, weight_decay=1e-3
            ),
            remat="block",
            bfloat16=False,
            loss="labels",
            real_weight_steps=0,
            steps=0,
        )


def check(config: Config) -> None:
    """Raises UserError for what can be refused before any data is opened."""
    recipe.check_no_packs(config, "a classifier tells no pairs")
    if not config.backbone.startswith("dcp_nas_"):
        raise UserError(f"backbone: needs a network of cells, dcp_nas_…, got {config.backbone!r}")
    if config.init_from is not None:
        raise UserError("init_from: supernets and found networks start from weights of their own")
    cell_networks.check_primitives(config.primitives, (*cell_networks.OPERATIONS, "none"))
    given_genotype(config)


def given_genotype(config: Config) -> cell_networks.Genotype | None:
    """The genotype that a configuration names or draws; None where it is to be searched.

    Raises:
      UserError: no such file, or a genotype of other operations or of later nodes.
    """
    if config.genotype is None:
        if config.search != "random":
            return None
        return cell_networks.random_genotype(config.seed, config.primitives, config.nodes)
    text = config.genotype
    if text == RELEASED:
        text = cell_networks.RELEASED.to_json()
    elif not text.lstrip().startswith("{"):
        path = pathlib.Path(user_path("genotype", text))
        file = path / GENOTYPE_FILE if path.is_dir() else path
        if not file.is_file():
            raise UserError(
                f"genotype: needs JSON, a file of it, a search's work directory or {RELEASED}, got {text!r}"
            )
        text = file.read_bytes()[:_LONGEST].decode("utf-8", "replace")
    return cell_networks.genotype_from_json(text, config.primitives)


def supernet(config: Config, form: str, classes: int) -> cell_networks.SuperNet:
    """The Parent (form real) or the Child (form binary)."""
    return cell_networks.SuperNet(
        classes,
        config.search_channels,
        config.search_cells,
        config.search_reductions,
        config.nodes,
        config.primitives,
        form,
        remat=config.remat,
        dtype=jnp.bfloat16 if config.bfloat16 else jnp.float32,
    )


def network(config: Config, genotype: cell_networks.Genotype, form: str | None = None):
    """The network of a genotype in one of its forms."""
    fields = {name: getattr(config, name) for name in ("channels", "cells", "reductions")}
    fields = {name: value for name, value in fields.items() if value is not None}
    return recipe.network(config, genotype=genotype.to_json(), form=form or config.form, **fields)


def phases(config: Config) -> list[tuple[str, str]]:
    """(name of a stage, whose step it takes) of the search; each supernet is trained `rounds` times `phase_steps` steps."""
    if config.search == "cp":
        return [("sampled", "cp")]
    if config.search == "dcp":
        turns = [("parent", "parent"), ("child", "guided")]
    else:
        turns = [(config.search, config.search)] * 2  # alone, as many steps
    names = [turn for _ in range(config.rounds) for turn in turns]
    return [(f"{name}{i}", step) for i, (name, step) in enumerate(names, start=1)]


def build(config: Config) -> Generator[training.Stage, training.Outcome, None]:
    """The teacher, the phases of the search, the cell that they found, and the trainings of its network."""
    check(config)
    split = recipe.load(config)
    if split.protocol != "classification":
        raise UserError(f"data: needs classes to be told apart, {split.name} is for {split.protocol}")
    return stages(config, split)


def stages(config: Config, split: inputs.Split) -> Generator[training.Stage, training.Outcome, None]:
    """The stages of `build`, whose network depends on what the search finds."""
    classes, shape = len(split.train.class_names), split.train.image_shape
    teacher, teacher_state = None, None
    if config.loss == "distribution" and config.steps:
        stage, teacher = teacher_stage(config, config.teacher, split, prototypes=True)
        teacher_state = (yield stage).state

    # The search: Parent and Child in turns, on one half of the images for weights and the other for the architecture.
    genotype, found = given_genotype(config), None
    if genotype is None:
        searcher = make_searcher(config, classes, shape)
        trained = ["parent", "child"] if config.search in ("dcp", "cp") else [config.search]
        found = FoundCell(
            split.held_out, config.primitives, {name: searcher.networks[name] for name in trained}
        )
        for stage in search_stages(config, split, searcher):
            yield stage
        cell = yield training.Stage(
            "cell", init=lambda rng, previous: previous, compile_init=False, evaluate=found
        )
        genotype = found.genotype(cell.state)
    else:
        drawn = FoundCell(split.held_out, config.primitives, {}, genotype)
        yield training.Stage("cell", init=_nothing, compile_init=False, evaluate=drawn)

    # Retraining: real weights under binary activations, then binary ones, on the teacher's classes.
    forms = [config.form] if config.steps else []
    if config.steps and config.real_weight_steps and config.form == "binary":
        forms = ["signs", "binary"]
    for form in forms:
        yield retraining(config, split, network(config, genotype, form), form, teacher, teacher_state)


def make_searcher(config: Config, classes: int, shape: tuple[int, int, int]) -> Searcher:
    """The supernets with their optimizers."""
    sampled = cp_steps(len(config.primitives), config.rule.repeats)
    each = sampled if config.search == "cp" else config.rounds * config.phase_steps
    every = each if config.search == "cp" else 2 * each
    alone = config.search in ("parent", "child")
    networks = [supernet(config, form, classes) for form in ("real", "binary")]
    weights = config.weight_optimizer.build(every if alone else each)
    return Searcher(
        *networks,
        shape,
        config.rule,
        (weights, weights),
        config.arch_optimizer.build(every),
        total=every,
    )


def search_stages(config: Config, split: inputs.Split, searcher: Searcher) -> Generator[training.Stage]:
    """A stage for each phase; all phases of a kind are one compiled step."""
    labels = np.asarray(split.train.labels)
    order = np.random.default_rng(config.data_seed).permutation(len(labels))
    count = round(config.aside * len(labels))
    for_alpha, for_weights = np.sort(order[:count]), np.sort(order[count:])
    if not min(len(for_alpha), len(for_weights)):
        raise UserError(f"aside: needs images on both sides, got {config.aside:g} of {len(labels)}")
    rows = TwoStreams(for_alpha, for_weights, ratio=1)
    open_batches = recipe.training_batches(
        config,
        split.train,
        batch_size=2 * config.search_batch_size,
        order=rows,
        augment=config.augment,
    )
    steps = config.phase_steps
    if config.search == "cp":
        steps = cp_steps(len(config.primitives), config.rule.repeats)
    for index, (name, kind) in enumerate(phases(config)):

        def init(rng, previous, index=index, kind=kind):
            if index == 0:
                return searcher.start(rng)
            if config.search == "dcp":
                return searcher.enter["child" if kind == "guided" else "parent"](previous)
            return previous

        yield training.Stage(
            name=name,
            init=init,
            step=searcher.steps[kind],
            batches=lambda state, before=index * steps: training.batches_from(open_batches(), before),
            steps=steps,
            compile_init=False,
            key="search",
        )


def retraining(
    config: Config, split: inputs.Split, model, form: str, teacher, teacher_state
) -> training.Stage:
    """A stage that trains the found network in one of its forms."""
    classes, shape = len(split.train.class_names), split.train.image_shape
    first = form == "signs"
    rule, steps = config.optimizer, config.steps
    if first:
        rule, steps = config.real_weight_optimizer, config.real_weight_steps
    recognition = recipe.Recognition(config, model, classes, shape, losses.Linear())

    def loss_fn(params, extra, batch, rng):
        embeddings, extra = recognition.recognizer.train_embeddings(params, extra, batch["image"], rng)
        labels = recognition.classify(params, embeddings, batch["label"], rng)
        loss, report = labels.loss, labels.report()
        if teacher is not None:
            scores = training.class_scores(params, embeddings, classes)
            answers = teacher.class_scores(extra, teacher.embeddings(extra, batch["image"]), classes)
            loss = losses.soft_target_loss(scores, answers, temperature=1.0).mean()
        return loss, (extra, report)

    objective = training.Objective(loss_fn, recognition.optimizer(rule, steps))

    # Not compiled: kernels of one shape are drawn by one program for all genotypes.
    def init(rng, previous):
        params, extra = recognition.init(rng)
        if form == "binary" and config.real_weight_steps:
            params = started_from(params, previous.params, model.scale)
            extra = {**extra, **training.statistics(previous.extra)}
        if teacher is not None:
            extra = teacher.installed(extra, teacher_state)
        return recognition.create_state(rng, params, objective, extra=extra)

    open_batches = recipe.training_batches(config, split.train)
    return training.Stage(
        name=form,
        description=None if first else recognition.description,
        init=init,
        step=recognition.step(objective, optimizer=rule),
        batches=lambda state: open_batches(),
        steps=steps,
        evaluate=recipe.evaluation(config, model, split),
        best=f"{split.protocol}/accuracy",
        sharding={"prototypes": PartitionSpec(axes.MODEL)},
        compile_init=False,
    )


def _nothing(rng, previous):
    return training.create_state(rng, {"nothing": jnp.zeros(())})
