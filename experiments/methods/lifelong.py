"""ARI: lifelong learning with attacked backgrounds and an adaptive fusion of what tasks want (arXiv:2208.12967).

    python -m experiments.launch lifelong --workdir runs/lifelong
    python -m experiments.launch lifelong --preset paper --data.root …   # CIFAR-100; built and typed, not trained here
    python -m experiments.reproduce lifelong --study fusion

Differs from the paper in: inner steps that start from the same weights, without momentum, and distances that do not depend on the
size of a tensor; the released code computes neither (docs/methods/lifelong.md#choices-of-ours).
"""

import dataclasses
from collections.abc import Generator
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recipes import recognition as recipe
from jaxface import data as inputs
from jaxface import training
from jaxface.checks import AtLeast, Positive
from jaxface.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(recipe.Recipe):
    """A classifier that learns some classes at a time, with a few exemplars of those before."""

    data: inputs.DataSpec = inputs.TexturedDigits(anywhere=False)
    """Images of classes to be told apart."""
    tasks: inputs.TaskSpec = inputs.TaskSpec()
    """Which classes arrive together, and when."""
    memory: Annotated[int, AtLeast(0)] = 100
    """Most exemplars of earlier classes in all; 0 for none."""
    augment: inputs.Augment = inputs.Augment(flip=0.0)
    """Random changes of the training images."""
    image_size: Annotated[int, AtLeast(8)] = 12
    """Side of the images, pixels."""
    backbone: str = "attended_mlp"
    """Network; those that attend are attended_resnet and attended_mlp."""
    hidden: Annotated[tuple[int, ...] | None, AtLeast(1)] = (128, 64)
    """Hidden units of an attended_mlp; the published ones with None."""
    channels: Annotated[tuple[int, ...] | None, AtLeast(1)] = None
    """Channels of each stage of an attended_resnet; the published ones with None."""
    blocks: Annotated[int | None, AtLeast(1)] = None
    """Residual blocks of each of its stages; the published number with None."""
    pool_after: Annotated[tuple[int, ...] | None, AtLeast(0)] = None
    """Stages of it behind which the plane is halved, 0 being the stem; the published ones with None."""
    embedding: None = None
    """The network is as wide as there are classes."""
    learns: Literal["tasks", "joint"] = "tasks"
    """Each task of a batch on its own, then fused; or all classes seen in one loss, as replay is usually trained."""
    fusion: training.MetaFusion = training.MetaFusion()
    """How the tasks of a batch are learned and fused."""
    chunk: Annotated[int, AtLeast(1)] = 20
    """Test images that are known to be of one, unknown task."""
    adapt: bool = True
    """Judge the network after an epoch on the exemplars of the inferred task too, where there is a memory."""
    adapt_rate: Annotated[float, Positive] = 1e-3
    """Learning rate of that epoch."""
    optimizer: training.Optimizer = training.sgd(0.3, momentum=0.0, schedule="constant", weight_decay=0.0)
    """Optimizer of the inner steps; its schedule runs over a session."""
    batch_size: Annotated[int, AtLeast(1)] = 48
    """Images per step over all devices."""
    steps: Annotated[int, AtLeast(0)] = 40
    """Training steps of each session."""
    epochs: Annotated[int | None, AtLeast(1)] = None
    """Passes over the images of a session instead of its steps."""

    @classmethod
    def paper(cls) -> "Config":
        """CIFAR-100 in ten tasks as released, 70 epochs each; 80.9 of chunks of 20 is to be reached, and 78.2 without attack and
        fusion. The task copies of the release are one storage and its reset does nothing, so that its fusion is the last task's
        weights."""
        return cls(
            data=inputs.Cifar100(root="cifar-100-python"),
            tasks=inputs.TaskSpec(count=10),
            memory=2000,
            image_size=32,
            augment=inputs.Augment(flip=0.5, shift=4, rotate=1.0, rotate_degrees=10.0),
            backbone="attended_resnet",
            hidden=None,
            fusion=training.MetaFusion(
                kind="last", distance="sum", floor=0.85, beta=1.0, inner_reset=False, epsilon=1.0
            ),
            optimizer=training.Optimizer(
                name="radam",
                learning_rate=0.01,
                schedule="step",
                decay_at=(20 / 70, 40 / 70, 60 / 70),
                decay_by=0.2,
                weight_decay=0.0,
            ),
            batch_size=512,
            epochs=70,
            workers=8,
        )

    @classmethod
    def mnist(cls) -> "Config":
        """MNIST in five tasks with the published perceptron, 20 epochs each; the source's accuracy is not known to us."""
        return dataclasses.replace(
            cls.paper(),
            data=inputs.Mnist(root="mnist"),
            tasks=inputs.TaskSpec(count=5),
            image_size=28,
            augment=inputs.Augment(flip=0.0),
            backbone="attended_mlp",
            fusion=dataclasses.replace(cls.paper().fusion, beta=0.5),
            optimizer=training.Optimizer(
                learning_rate=0.1,
                decay_at=(5 / 20, 10 / 20, 15 / 20),
                decay_by=0.5,
                weight_decay=1e-3,
            ),
            batch_size=256,
            epochs=20,
        )


_FIELDS = {"attended_mlp": ("hidden",), "attended_resnet": ("channels", "blocks", "pool_after")}
_RESOLUTION = 10_000  # of the schedule over a session, whatever its number of steps, so that one program serves all sessions


def check(config: Config) -> None:
    """Raises UserError for what can be refused before any data is opened."""
    recipe.check_no_packs(config, "a classifier tells no pairs")
    if config.init_from is not None:
        raise UserError("init_from: the first session starts from fresh weights")
    if config.accumulate > 1:
        raise UserError(f"accumulate: needs 1, a task's rows are in one step; got {config.accumulate}")


def build(config: Config) -> Generator[training.Stage, training.Outcome, None]:
    """The untrained network, then a session for each task."""
    check(config)
    split = recipe.load(config)
    if split.protocol != "classification":
        raise UserError(f"data: needs classes to be told apart, {split.name} is for {split.protocol}")
    tasks = config.tasks.classes(len(split.train.class_names))
    sizes = {len(task) for task in tasks}
    if len(sizes) > 1:
        raise UserError(f"tasks.given: needs tasks of one size, got {', '.join(map(str, sorted(sizes)))}")
    train, held_out = (inputs.TaskOrdered(source, tasks) for source in (split.train, split.held_out))
    classes = len(train.class_names)
    inputs.check_memory(config.memory, classes)

    fields = {name: getattr(config, name) for name in _FIELDS.get(config.backbone, ())}
    fields = {name: value for name, value in fields.items() if value is not None}
    model = recipe.network(config, embedding=classes, **fields)
    network = training.TaskNetwork(model, len(tasks), sizes.pop(), config.optimizer.held)
    network.check(train.image_shape, config.fusion if config.learns == "tasks" else None)

    # The learning rate is a function of the fraction of the session that has passed.
    rule = dataclasses.replace(config.optimizer, learning_rate=1.0, schedule="constant", warmup=0.0)
    optimizer = rule.build(1, network=("backbone", model))
    rates = config.optimizer.learning_rates(_RESOLUTION)

    def rate(fraction):
        return rates(_RESOLUTION * fraction)

    # The step: inner steps of each task and their fusion, or all classes seen at once.
    if config.learns == "tasks":
        step = training.meta_fusion_step(network, config.fusion, optimizer, rate, ema_decay=config.ema_decay)
    else:
        step = training.joint_step(network, optimizer, rate, ema_decay=config.ema_decay)

    def fresh(params):
        """An optimizer state, one for each task where they have their own."""
        state = optimizer.init(params)
        if config.learns == "joint" or config.fusion.inner_state == "shared":
            return state
        return jax.tree.map(lambda x: jnp.repeat(x[None], len(tasks), axis=0), state)

    @jax.jit
    def untrained(rng):
        variables = dict(model.init(rng, jnp.zeros((1, *train.image_shape)), train=False))
        params = {"backbone": variables.pop("params")}
        return training.create_state(rng, params, extra={**variables, **numbers(0, 1)})

    @jax.jit
    def opened(rng, params, extra, numbers):
        state = training.create_state(
            rng, params, extra={**extra, **numbers}, ema=config.ema_decay is not None
        )
        return state.replace(opt_state=(fresh(params),))

    def numbers(session, length):
        return {"session": np.int32(session), "length": np.float32(max(length, 1))}

    adaptation = None
    if config.adapt and config.memory:
        adaptation = training.Adaptation(network, train, config.memory, config.adapt_rate)

    def judged(session, earlier):
        return training.ContinualAccuracy(
            network, held_out, session, earlier, chunk=config.chunk, adaptation=adaptation
        )

    start = training.Stage(
        "untrained", init=lambda rng, previous: untrained(rng), compile_init=False, evaluate=judged(-1, [])
    )
    sources = [inputs.session_source(train, s, config.memory) for s in range(len(tasks))]
    opening = [
        recipe.training_batches(
            config, source, batch_size=recipe.filled_batch_size(source, config.batch_size)
        )
        for source in sources
    ]
    earlier = [(yield start).metrics]
    for session, (source, open_batches) in enumerate(zip(sources, opening, strict=True)):
        steps = config.steps
        if config.epochs is not None:
            steps = config.epochs * max(len(source) // config.batch_size, 1)

        def init(rng, previous, session=session, steps=steps):
            return opened(rng, previous.params, previous.extra, numbers(session, steps))

        outcome = yield training.Stage(
            name=f"session{session + 1}",
            init=init,
            step=step,
            batches=lambda state, open_batches=open_batches: open_batches(),
            steps=steps,
            evaluate=judged(session, earlier),
            figures=None if session + 1 == len(tasks) else training.no_figures,
            best="class/accuracy",
            compile_init=False,
        )
        earlier.append(outcome.metrics)
