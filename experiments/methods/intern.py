"""INTERN: experts of several task types, joined as generalists and adapted with little data (arXiv:2111.08687).

    python -m experiments.launch intern --workdir runs/intern   # 290 CPU-seconds from Up-A to the table: boxes' AP50 0.65 → 0.80
    python -m experiments.launch intern --preset paper --workdir runs/intern   # the pod's sizes; built, not trained here
    python -m experiments.reproduce intern --study class-of-c   # digits: expert 0.357, generalist 0.378; tuned 0.379, 0.387
    python -m experiments.reproduce intern --study captions     # captions 0.537, a tenth of the labels 0.569

The training of the stages was never released; what the report leaves open is ours (docs/methods/intern.md#choices-of-ours).
"""

import dataclasses
import pathlib
from collections.abc import Generator, Mapping, Sequence
from typing import Annotated

import jax.numpy as jnp
import tyro

from experiments.recipes import experts as recipe
from experiments.recipes import general_vision
from experiments.recipes.experts import AdaptationSpec, ExpertRecipe, GeneralistSpec
from experiments.recipes.face_attributes import AttributeSpec, attribute_stages
from experiments.recipes.general_vision import HeadSpec, SourceSpec
from experiments.recipes.image_text import UpA, up_a_stage
from experiments.recipes.vqgan import VqganSpec
from jaxface import data as inputs
from jaxface import training
from jaxface.data.synthetic.task_canvas import OBJECT_NAMES
from jaxface.training.general_vision import FrozenBackbone, GvbSpec, GvbTask, gvb_evaluate, gvb_table
from jaxface.training.workdir import write_atomically

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ExpertRecipe):
    """Experts, generalists, and what they are worth on tasks with little data."""

    sources: Annotated[tuple[SourceSpec, ...], tyro.conf.Suppress] = SOURCES
    """What the experts learn from; set in code or by a configuration file."""
    captions: inputs.DataSpec = inputs.CaptionedCanvas()
    """Images with captions that Up-A learns from."""
    up_a: UpA = UpA(steps=60, batch_size=32)
    """Up-A; with 0 steps the experts start from fresh weights."""
    attributes: AttributeSpec = AttributeSpec()
    """Another experiment in the place of all that follows: what Up-A is worth for attributes that few images have labels for."""
    tasks: tuple[str, ...] = general_vision.STAND_INS
    """What every backbone is measured on, frozen."""
    gvb: GvbSpec = dataclasses.replace(GvbSpec.small(), steps=80)
    """How."""

    @classmethod
    def accelerator(cls) -> "Config":
        """One GPU or TPU chip: MetaNet-B4 on the same drawn sources at 96 pixels, ten times as many images and steps."""
        grown = tuple(dataclasses.replace(s, data=_grown(s.data)) for s in SOURCES)
        return cls(
            sources=grown,
            data=inputs.TaskCanvas(digits=(5, 10), scenes=20_000),
            captions=inputs.CaptionedFaces(identities=2000, held_out_identities=200),
            image_size=96,
            backbone="metanet_b4",
            up_a=dataclasses.replace(UpA(), steps=20_000, batch_size=256),
            student="metanet_tiny",
            optimizer=training.Optimizer(name="adamw", learning_rate=1e-3, schedule="cosine", warmup=0.05),
            steps=10_000,
            generalist=GeneralistSpec(steps=5000),
            squeeze_steps=5000,
            adaptation=AdaptationSpec(steps=1000, batch_size=64, generator=VqganSpec(steps=20_000)),
            bfloat16=True,
        )

    @classmethod
    def paper(cls) -> "Config":
        """The pod's sizes: MetaNet-B15, DeCLIP's Up-A, public sets of each type at 224 pixels. The report trained on 10 billion
        pairs and 70 million labeled images with 512 GPUs; its sets and schedules of Up-E and Up-G were not published. Captions
        here are rendered; the sets are read where TFDS and folders have them."""
        return cls(
            sources=(
                SourceSpec(
                    name="imagenet", data=inputs.Tfds(name="imagenet2012", test="validation", fit="crop")
                ),
                SourceSpec(
                    name="places", data=inputs.Tfds(name="places365_small", test="validation", fit="crop")
                ),
                SourceSpec(
                    name="coco",
                    data=inputs.Coco(annotations="coco/annotations/instances_train2017.json"),
                    task="detection",
                ),
                SourceSpec(name="voc", data=inputs.Voc(root="VOC2012"), task="detection"),
                SourceSpec(
                    name="ade20k",
                    data=inputs.DensePairs(root="ade20k"),
                    task="segmentation",
                    classes=_numbered(151),
                ),
            ),
            data=inputs.Tfds(name="oxford_flowers102", test="test", fit="crop"),
            captions=inputs.CaptionedFaces(identities=100_000),
            image_size=224,
            backbone="metanet_b15",
            up_a=UpA.paper(),
            student="metanet_b4",
            optimizer=training.Optimizer(
                name="adamw", learning_rate=1e-3, schedule="cosine", warmup=0.02, weight_decay=0.05
            ),
            batch_size=1024,
            steps=100_000,
            generalist=GeneralistSpec(steps=50_000),
            squeeze_steps=100_000,
            adaptation=AdaptationSpec(steps=5000, batch_size=64, generator=VqganSpec.imagenet()),
            head=HeadSpec(features=256),
            gvb=GvbSpec(),
            bfloat16=True,
            workers=16,
        )


def build(config: Config) -> Generator[training.Stage, training.Outcome, None]:
    """Up-A, the experts, the generalists, what they are compared with, and the benchmark of all."""
    recipe.check(config)
    options = dict(seed=config.seed, workers=config.workers, bfloat16=config.bfloat16)
    if config.attributes.learn is not None:
        yield from attribute_stages(
            config.attributes,
            config.up_a,
            recipe.network(config),
            config.captions,
            image_size=config.image_size,
            data_seed=config.data_seed,
            **options,
        )
        return
    lines = recipe.Lines(config)
    tasks = general_vision.stand_in_tasks(
        config.tasks, image_size=config.image_size, seed=config.data_seed, head=config.head
    )
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
    trained = {}
    for kind in config.experts:
        trained[kind] = yield from lines.expert(f"up_e_{kind}", (kind,), config.steps)
        rows[f"up_e_{kind}"] = trained[kind].backbone

    # Up-G: each main expert sees the features of all others.
    generalists = {}
    for main in config.generalist.mains:
        generalists[main] = yield from lines.generalist(f"up_g_{main}", main, trained)
        rows[f"up_g_{main}"] = generalists[main].backbone
    if config.controls:
        rows |= yield from lines.controls(trained)

    # What all of them know, in one small trunk.
    best = {**trained, **generalists}
    if config.squeeze_steps:
        rows["squeezed"] = yield from lines.squeezed({kind: best[kind].backbone for kind in best})

    # Downstream: fine-tuning with few images, and the benchmark of all backbones.
    if config.adaptation.steps:
        yield from lines.adaptations(best[next(iter(generalists), config.experts[0])])
    yield gvb_stage(config, tasks, rows)


def _grown(spec: inputs.DataSpec) -> inputs.DataSpec:
    """The same drawn images, ten times as many."""
    return dataclasses.replace(spec, scenes=10 * spec.scenes)


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


class Benchmark:
    """Evaluation of several backbones, whatever the state: `<backbone>/<task>`, and the table as a file."""

    def __init__(self, config: Config, tasks: Sequence[GvbTask], rows: Mapping[str, FrozenBackbone]):
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


def gvb_stage(config: Config, tasks: Sequence[GvbTask], rows: Mapping[str, FrozenBackbone]) -> training.Stage:
    """The last stage: no steps, the benchmark of all backbones."""
    return training.Stage(
        name="gvb",
        init=lambda rng, previous: {"done": jnp.zeros((), jnp.int32)},
        evaluate=Benchmark(config, tasks, rows),
    )
