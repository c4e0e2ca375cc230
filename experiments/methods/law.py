"""LAW: weights of training examples by a policy that is searched for, stage by stage, against a twin (arXiv:1905.11058).

    python -m experiments.launch law --workdir runs/law               # digits, 40 % label noise: 0.923 ± 0.019, its twin 0.719
    python -m experiments.launch law --policy runs/law --data cifar10 …   # replays what was found on other data
    python -m experiments.launch law --preset paper --data.root …       # CIFAR-10, WRN-28-10; built, not trained here

Differs from the paper in: bounded actions with additive noise (the released exploration is almost nil), and the policy of the
episode that was best on the validation split instead of the last actor (docs/methods/law.md#choices-of-ours).
"""

import dataclasses
import math
import warnings
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recipes import recognition as recipe
from jaxface import data as inputs
from jaxface import losses, training
from jaxface.checks import AtLeast, Fraction, NonNegative, Ordered, Positive, Range
from jaxface.data.sources.source import InMemory, Source, Subset
from jaxface.errors import UserError
from jaxface.layers.law import Actor, Critic
from jaxface.training.ddpg import DDPG
from jaxface.training.evaluations.quantized_classes import TopClass
from jaxface.training.evaluations.weight_search import SearchReport, TwinAccuracy
from jaxface.training.weight_policies import WeightPolicy, WeightRule
from jaxface.training.weight_search import (
    Exploration,
    Judge,
    PolicyReplay,
    StagedTraining,
    Weighting,
    WeightSearch,
)


@dataclasses.dataclass(frozen=True)
class AgentSpec:
    """The agent that proposes actions."""

    hidden: tuple[int, ...] = (64, 64, 64)
    """Features of the hidden layers of actor and critic."""
    bound: Annotated[float | None, Positive] = 3.0
    """Greatest number of an action; none with None, as in the authors' code, whose actions then grow with any but a tiny rate."""
    actor_rate: Annotated[float, Positive] = 1e-3
    """Learning rate of the actor."""
    critic_rate: Annotated[float, Positive] = 1e-3
    """Learning rate of the critic."""
    follow: Annotated[float, Fraction] = 0.02
    """Share by which the slow copies follow after every mini-batch."""
    exploration: Exploration = Exploration()
    """How it tries other actions."""
    greedy_actor: Literal["online", "slow"] = "online"
    """Whom episodes without exploration follow."""
    update: Literal["full", "minibatch"] = "full"
    """What it learns from after each stage: all that it remembers, several times, or one random mini-batch."""
    passes: Annotated[int, AtLeast(1)] = 8
    """Times that it learns from everything."""
    batch_size: Annotated[int, AtLeast(1)] = 32
    """Transitions of a mini-batch; it learns nothing before there are so many."""
    capacity: Annotated[int, AtLeast(1)] = 500
    """Transitions that it remembers."""
    discount: Annotated[float, Fraction] = 0.99
    """Of the rewards to come."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(recipe.Recipe):
    """A search over whole trainings for how to weight examples in each stage, then a training by what it found."""

    data: inputs.DataSpec = inputs.Digits(noise=inputs.LabelNoise("uniform", 0.4))
    """Images of classes to be told apart, with labels that are partly wrong, or classes of unequal sizes."""
    augment: inputs.Augment = inputs.Augment(flip=0.0)
    """Random changes of the training images."""
    image_size: Annotated[int, AtLeast(8)] = 8
    """Side of the images, pixels."""
    backbone: str = "mlp_128x128"
    """The network, of which there are two."""
    embedding: None = None
    """The head of the network is as wide as there are classes."""
    optimizer: training.Optimizer = training.sgd(0.05, schedule="constant")
    """Optimizer of the networks, afresh in every episode."""
    batch_size: Annotated[int, AtLeast(2)] = 100
    """Images per step over all devices; features are relative to them."""
    steps: Annotated[int, AtLeast(1)] = 720
    """Steps of an episode, a multiple of the stages."""
    train_steps: Annotated[int | None, AtLeast(1)] = None
    """Steps of the training by the policy; as an episode unless given."""
    stages: Annotated[int, AtLeast(1)] = 12
    """Stages of an episode."""
    warmup_stages: Annotated[int, AtLeast(0)] = 2
    """Stages at the beginning with equal weights."""
    scan: Annotated[int | None, AtLeast(1)] = None
    """Steps that one call on the device takes, a divisor of those of a stage; a whole stage unless given. Memory holds their
    images."""
    validation: Annotated[int, AtLeast(1)] = 200
    """Clean images of the training data for the reward, the last of every class; no network learns from them in the search."""
    search_images: Annotated[int | None, AtLeast(1)] = None
    """Images to search on, the first of every class; all but the validation ones unless given."""
    train_on: Literal["search", "all"] = "search"
    """Images of the training by the policy: those of the search, or all training images."""
    rule: WeightRule = WeightRule()
    """How an action becomes weights."""
    search: Literal["ddpg", "random", "constant", "none"] = "ddpg"
    """Who proposes: an agent; chance, in every stage or once an episode; nobody, and `action` is followed."""
    episodes: Annotated[int, AtLeast(1)] = 40
    """Trainings that the search takes."""
    greedy_every: Annotated[int, AtLeast(0)] = 5
    """Every so many episodes one follows the actor without exploration and teaches it nothing; 0 for none."""
    agent: AgentSpec = AgentSpec()
    """The agent."""
    reward: Literal["twin", "accuracy"] = "twin"
    """Accuracy less that of the uniform twin, or as it is."""
    kappa: float = 5.0
    """Late stages count exp(κ e / E)."""
    reward_scale: Annotated[float, Positive] = 2.0
    """Factor ρ of the reward."""
    action: tuple[float, ...] = (-3.0, 0.0, 0.0)
    """The action of every stage where nobody proposes; the default drops what has a high loss."""
    policy: str | None = None
    """A policy that is followed instead: the work directory of a search, or its policy.json."""
    weighting: Weighting = "policy"
    """Weights by an action, or what they are compared with: the focal loss, or self-paced learning; neither searches."""
    focal_gamma: Annotated[float, NonNegative] = 2.0
    """Exponent of the focal loss."""
    easiest: Annotated[tuple[float, float], Range(0, 1), Ordered()] = (0.5, 0.6)
    """Part of a batch that self-paced learning takes at the beginning and at the end."""

    @classmethod
    def paper(cls) -> "Config":
        """CIFAR-10 with 40 % uniform noise, WRN-28-10, as the authors' code has it; it is to beat its twin by about 10 points.

        Search on 20,000 images, rewards on 5000 clean ones, a training on all 50,000 by the policy that was best on the
        validation split; the authors' own test episodes were every fifth. Shifted images are black at the edge, not mirrored.
        """
        return cls(
            data=inputs.Cifar10("cifar10", noise=inputs.LabelNoise("uniform", 0.4)),
            image_size=32,
            augment=inputs.Augment(flip=0.5, shift=4),
            backbone="wrn28_10",
            optimizer=training.sgd(0.1, decay_at=(30 / 40, 35 / 40)),
            batch_size=100,
            stages=40,
            warmup_stages=5,
            steps=40 * losses.stage_steps(20_000, 60, 40),
            train_steps=40 * losses.stage_steps(50_000, 60, 40),
            scan=50,
            validation=5000,
            search_images=20_000,
            train_on="all",
            episodes=1000,
            agent=AgentSpec(
                hidden=(256, 512, 256),
                bound=None,
                actor_rate=1e-5,
                critic_rate=1e-3,
                follow=1e-3,
                exploration=Exploration("relative"),
                greedy_actor="slow",
            ),
            workers=8,
        )

    @classmethod
    def imbalanced(cls) -> "Config":
        """CIFAR-10 whose largest class is 100 times its smallest, ResNet-32, 20 stages; the class is a feature."""
        return dataclasses.replace(
            cls.paper(),
            backbone="cifar_resnet32",
            optimizer=training.sgd(0.1, decay_at=(14 / 20, 17 / 20)),
            stages=20,
            warmup_stages=4,
            steps=20 * losses.stage_steps(40_000, 100, 20),
            train_steps=20 * losses.stage_steps(50_000, 100, 20),
            scan=50,
            data=inputs.Cifar10("cifar10", tail=inputs.LongTail(100)),
            validation=2000,
            search_images=40_000,
            rule=WeightRule(use_label=True),
        )


def check(config: Config) -> None:
    """Raises UserError for what can be refused before any data is opened."""
    recipe.check_no_packs(config, "a classifier tells no pairs")
    if config.accumulate != 1 or config.ema_decay is not None or config.init_from is not None:
        name = (
            "accumulate"
            if config.accumulate != 1
            else "ema_decay"
            if config.init_from is None
            else "init_from"
        )
        raise UserError(f"{name}: twins are trained whole and from the beginning; it needs its default")
    if config.warmup_stages >= config.stages:
        raise UserError(
            f"warmup_stages: needs fewer than the {config.stages} stages, got {config.warmup_stages}"
        )
    for name in ("steps", "train_steps"):
        steps = getattr(config, name)
        if steps is not None and steps % config.stages:
            raise UserError(f"{name}: needs a multiple of the {config.stages} stages, got {steps}")
    if config.policy is None and config.search == "none" and len(config.action) != config.rule.size:
        raise UserError(f"action: the rule needs {config.rule.size} numbers, got {len(config.action)}")


def scan_length(config: Config) -> int:
    """Steps of a call: of a stage of the search and of the training a common divisor."""
    stage_steps = [steps // config.stages for steps in (config.steps, config.train_steps or config.steps)]
    common = math.gcd(*stage_steps)
    scan = config.scan or common
    if common % scan:
        raise UserError(
            f"scan: needs a divisor of the {common} steps that a stage can be cut into, got {scan}"
        )
    return scan


def clean_split(source: Source, validation: int, search_images: int | None) -> tuple[Subset, Source]:
    """The first images of each class to search on, as they are labeled, and the last ones with their true classes.

    Args:
      source: training records.
      validation: clean images, the same number of every class.
      search_images: as many of every class to search on; all others with None.

    Raises:
      UserError: too few images of a class, or two parts that would overlap.
    """
    labels, classes = np.asarray(getattr(source, "true_labels", source.labels)), len(source.class_names)
    held = validation // classes
    if held < 1:
        raise UserError(f"validation: needs an image of each of the {classes} classes, got {validation}")
    wanted = None if search_images is None else search_images // classes
    first, last = [], []
    for k in range(classes):
        rows = np.flatnonzero(labels == k)
        if len(rows) - held < max(wanted or 1, 1):
            raise UserError(
                f"validation: class {source.class_names[k]} has {len(rows)} images, too few for {held} clean ones and "
                f"{wanted or 1} to learn from"
            )
        last.append(rows[-held:])
        first.append(rows[:-held] if wanted is None else rows[:wanted])
    first, last = (np.sort(np.concatenate(rows)) for rows in (first, last))
    return Subset(source, first), inputs.Relabeled(Subset(source, last), labels[last])


def divided(config: Config) -> tuple[inputs.Split, Source, Source]:
    """The data, what of its training part the search learns from, and the clean images that judge it.

    The clean images are taken away before classes are made unequal and labels wrong.

    Raises:
      UserError: data of no classes, or too few images of one.
    """
    spec, seed = config.data, config.data_seed
    made = isinstance(spec, inputs.LabeledImages)
    split = recipe.load(dataclasses.replace(config, data=spec.plain()) if made else config)
    if split.protocol != "classification":
        raise UserError(f"data: needs classes to be told apart, {split.name} is for {split.protocol}")
    searched, clean = clean_split(split.train, config.validation, config.search_images)
    if not made:
        return split, searched, clean
    title = split.name + spec.tail.title
    return (
        split._replace(train=spec.spoiled(split.train, seed=seed), name=title),
        spec.spoiled(searched, seed=seed),
        clean,
    )


def staged(config: Config, model, image_shape, steps: int, rule: WeightRule) -> StagedTraining:
    """The training of twins over that many steps."""
    return StagedTraining(
        model=model,
        image_shape=image_shape,
        optimizer=config.optimizer.build(steps, network=("backbone", model)),
        learning_rates=config.optimizer.learning_rates(steps),
        stages=config.stages,
        stage_steps=steps // config.stages,
        warmup_stages=config.warmup_stages,
        rule=rule,
        weighting=config.weighting,
        gamma=config.focal_gamma,
        easiest=config.easiest,
    )


def build(config: Config) -> list[training.Stage]:
    """The search, where there is one, the training of twins by its policy, and the weighted network for use."""
    check(config)
    split, searched, clean = divided(config)
    image_shape, scan = split.train.image_shape, scan_length(config)
    classes = len(split.train.class_names)
    model = recipe.network(config, embedding=classes)
    judge = Judge(model, clean)
    stages = []

    # A policy that is given, or a rule, needs no search.
    rule, actions = config.rule, None
    if config.policy is not None:
        policy = WeightPolicy.load(config.policy).resampled(config.stages)
        rule, actions = policy.rule, policy.actions
    elif config.search == "none" or config.weighting != "policy":
        action = config.action if config.weighting == "policy" else (0.0,) * rule.size
        actions = WeightPolicy.constant(action, config.stages, config.warmup_stages, rule).actions

    if rule.use_label and (np.diff(np.bincount(searched.labels, minlength=classes)) > 0).any():
        warnings.warn(
            "rule.use_label: classes are not ordered by their frequency, which the rule expects", stacklevel=2
        )

    def batches_of(source):
        source = source if config.augment.active else InMemory(source)
        open_batches = recipe.training_batches(config, source, consecutive=scan)
        return lambda state: open_batches()

    # Episodes: each a training of twins in stages, from which the agent learns.
    if actions is None:
        agent = config.agent
        search = WeightSearch(
            staged(config, model, image_shape, config.steps, rule),
            judge,
            scan,
            config.search,
            config.episodes,
            config.greedy_every,
            DDPG(
                Actor(rule.size, config.stages, agent.hidden, agent.bound),
                Critic(config.stages, agent.hidden),
                actor_rate=agent.actor_rate,
                critic_rate=agent.critic_rate,
                discount=agent.discount,
                follow=agent.follow,
                batch_size=agent.batch_size,
                passes=agent.passes,
            ),
            capacity=agent.capacity,
            exploration=agent.exploration,
            greedy_actor=agent.greedy_actor,
            update=agent.update,
            reward=config.reward,
            kappa=config.kappa,
            scale=config.reward_scale,
            bound=agent.bound,
            epoch_steps=max(len(searched) // config.batch_size, 1),
        )
        stages.append(
            training.Stage(
                name="search",
                init=lambda rng, previous: search.init(rng),
                step=search.step,
                batches=batches_of(searched),
                steps=search.calls,
                evaluate=SearchReport(search, split.name),
            )
        )

    # A training by the best policy; its uniform twin, and where that was best on the clean images, are what it is compared with.
    replay = PolicyReplay(
        staged(config, model, image_shape, config.train_steps or config.steps, rule), judge, scan
    )

    def start(rng, previous):
        return replay.init(rng, jnp.asarray(actions) if actions is not None else previous.best_actions)

    stages.append(
        training.Stage(
            name="train",
            init=start,
            step=replay.step,
            batches=batches_of(searched if config.train_on == "search" else split.train),
            steps=replay.calls,
            evaluate=TwinAccuracy(replay, split.held_out, split.name),
        )
    )

    # What is used afterwards is the weighted network alone.
    def weighted(rng, previous):
        params, extra = jax.tree.map(lambda x: x[0], (previous.twins.params, previous.twins.extra))
        return training.create_state(rng, {"backbone": params}, extra=extra)

    stages.append(training.Stage("network", init=weighted, evaluate=TopClass(model, split.held_out)))
    return stages
