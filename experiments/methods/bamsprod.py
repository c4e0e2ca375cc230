"""BAMSProd: an adaptive optimizer for binary networks whose range is set by the quantization error (arXiv:2009.13799).

    python -m experiments.launch bamsprod --workdir runs/bamsprod                # seconds: accuracy 0.907 ± 0.005
    python -m experiments.launch bamsprod --preset online --workdir runs/online  # the convex counter-example, with figures
    python -m experiments.launch bamsprod --preset paper --workdir runs/cifar    # CIFAR-10; built and typed, not trained here

Differs from the paper in: the form of the bounds, the measure of the gradients and the counter-example are ours, the paper's were
not available (docs/methods/bamsprod.md#choices-of-ours).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.recipes import recognition
from experiments.recipes.binary import BinaryRecipe, binary_stage
from jaxface import data as inputs
from jaxface import losses, optimizers, training
from jaxface.checks import AtLeast, NonNegative, OpenFraction, Positive, ProperFraction
from jaxface.errors import UserError
from jaxface.training import figures


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BinaryRecipe):
    """Two online problems of one binary weight, and a network whose binary layers are trained."""

    optimizer: training.Optimizer = training.Optimizer(
        name="bamsprod", learning_rate=0.1, schedule="linear", weight_decay=0.0
    )
    """Rule of the binary weights, which stay in [-1, 1] under every rule, and of all others that train."""
    gamma: Annotated[float | None, NonNegative] = None
    """BAMSProd: how fast its range closes, ≥ 0; 1 - b2 = 0.001 unless given; 0 is AMSGrad."""
    gradient_bound: Literal["rms", "max"] = "rms"
    """BAMSProd: size of a layer's gradients, their root mean square or the largest (the paper's)."""
    target: Literal["mean", "sum"] = "mean"
    """BAMSProd: what the range closes on, (L mean q)², or L · 2 · Σ q (the paper's)."""
    q_min: Annotated[float, Positive] = 0.05
    """BAMSProd: least mean quantization error, > 0."""
    beta_l: Annotated[float, ProperFraction] = 0.999
    """BAMSProd: decay per step of the largest gradient, in [0, 1)."""
    per_channel: bool = False
    """BAMSProd: a range for every output channel instead of one for a layer."""
    bop_threshold: Annotated[float | None, NonNegative] = None
    """With a threshold of the gradient's running mean, ≥ 0, binary weights are trained by Bop, whose rate is then that of
    `optimizer`, and the others by `others`."""
    others: training.Optimizer = training.adam(1e-2)
    """Beside Bop: optimizer of the parameters that are not binary."""
    weight_init: Literal["uniform", "normal"] | None = "uniform"
    """Latent weights at the start: uniform on [-1, 1], or normal with variance 1 / fan_in; None for networks that do not ask."""
    heavy_class: Annotated[int | None, AtLeast(0)] = None
    """A class that is made rare, one example in `heavy_weight` + 1, and counts `heavy_weight` times in the loss."""
    heavy_weight: Annotated[float, Positive] = 100.0
    """Weight of an example of the heavy class, > 0."""
    threshold: Annotated[float, OpenFraction] = 0.9
    """Training accuracy whose first step is reported, in (0, 1)."""
    online_steps: Annotated[int, AtLeast(0)] = 9999
    """Steps of the online problems; 0 leaves them out."""

    @classmethod
    def paper(cls) -> "Config":
        """CIFAR-10 by a binary ResNet-18 of 11.2 million parameters, 200 epochs; about 3.7 above Bop is claimed.

        The source gives the rule, its Adam-like decays and the data sets; network width, batch, schedule and augmentation are the
        customary ones. With `--bop-threshold 1e-8 --optimizer.learning-rate 1e-4` it is the optimizer that it is compared with.
        """
        return cls(
            data=inputs.Tfds(name="cifar10", test="test"),
            image_size=32,
            augment=inputs.Augment(flip=0.5, shift=4),
            backbone="cifar_binary_resnet18",
            weight_init=None,
            train_only=None,
            optimizer=training.Optimizer(
                name="bamsprod", learning_rate=1e-3, schedule="cosine", weight_decay=0.0
            ),
            others=training.adam(1e-3),
            online_steps=0,
            batch_size=128,
            steps=200 * (50_000 // 128),
            workers=8,
        )

    @classmethod
    def online(cls) -> "Config":
        """The online problems alone: average regret of every optimizer, and its figures; takes seconds."""
        return cls(steps=0)

    @classmethod
    def heavy(cls) -> "Config":
        """A rare class of heavy examples, as rare large gradients are in the first online problem; takes seconds."""
        return cls(heavy_class=3, online_steps=0)


# The counter-example: f_t(b) = c_t b of one binary weight b.


def rare_large(steps: int) -> np.ndarray:
    """c = 4, -1, -1, 4, … [T]: a rare large gradient is right, more frequent small ones are wrong; the best weight is -1."""
    return np.where(np.arange(steps) % 3 == 0, 4.0, -1.0).astype(np.float32)


def outlier(steps: int) -> np.ndarray:
    """c = -10,000, 1, 1, … [2 T]: a single large gradient is wrong, which who never forgets pays for; -1 is best in the end."""
    return np.where(np.arange(2 * steps) == 0, -1e4, 1.0).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class OnlineProblem:
    """One weight, the losses that it meets, and the settings of the optimizers.

    Attributes:
      coefficients: steps -> c [T].
      start: the weight before the first step.
      rate: learning rate, a number or a schedule.
      decays: b1 and b2.
    """

    coefficients: Callable[[int], np.ndarray]
    start: float
    rate: float | Callable
    decays: Mapping[str, float]

    def rules(self) -> dict[str, optax.GradientTransformation]:
        """Every optimizer by name."""
        box = optimizers.project_box()
        return {
            "adam": optax.chain(optimizers.uncorrected_adam(self.rate, **self.decays), box),
            "amsgrad": optax.chain(optimizers.amsgrad(self.rate, **self.decays), box),
            "sgd": optax.chain(optax.sgd(self.rate), box),
            "bop": optimizers.bop(1e-2, threshold=1e-3),
            "bamsprod": optimizers.bamsprod(self.rate, gamma=1e-3, scale=1.0, **self.decays),
            "bamsprod_faster": optimizers.bamsprod(self.rate, gamma=1e-2, scale=1.0, **self.decays),
        }


ONLINE = {
    "rare_large": OnlineProblem(rare_large, 1.0, lambda count: 0.5 / jnp.sqrt(count + 1.0), {"b1": 0.0, "b2": 1 / 17}),
    "rare_large_constant": OnlineProblem(rare_large, 1.0, 0.01, {"b1": 0.0, "b2": 1 / 17}),
    "outlier": OnlineProblem(outlier, 0.5, 0.01, {"b1": 0.9, "b2": 0.999}),
}  # fmt: skip


def online_stage(steps: int) -> training.Stage:
    """Average regret of every optimizer on every problem, as metrics and as a figure for each problem."""

    def init(rng, previous):
        del rng, previous
        state = {}
        for name, problem in ONLINE.items():
            coefficients = jnp.asarray(problem.coefficients(steps))
            for rule_name, rule in problem.rules().items():
                weights, regret = optimizers.simulate_online(coefficients, problem.start, rule)
                state[f"{name}/{rule_name}"] = {"weights": weights, "regret": regret}
        return state

    def evaluate(state):
        return {f"{name}/regret": float(traces["regret"][-1]) for name, traces in state.items()}

    def draw(state):
        def curves(problem, trace, path):
            series = {}
            for name, traces in state.items():
                if name.partition("/")[0] == problem:
                    values = np.asarray(traces[trace])
                    shown = np.unique(np.geomspace(1, len(values), 12).astype(int))
                    series[name.partition("/")[2]] = (shown, values[shown - 1])
            return figures.save_training_curves(
                series,
                path,
                ylabel=f"average {trace}" if trace == "regret" else "weight",
                log_x=True,
                log_y=trace == "regret" and problem != "outlier",  # where it is below 0
                title=f"{problem}: after every step",
            )

        return {
            f"{problem}_{trace}": functools.partial(curves, problem, trace)
            for problem in ONLINE
            for trace in ("regret", "weights")
        }

    return training.Stage(name="online", init=init, evaluate=evaluate, figures=draw)


# The network.


@dataclasses.dataclass(frozen=True)
class LatentRule:
    """The optimizer of a configuration."""

    config: Config

    def build(
        self, steps: int, *, network: tuple[str, nn.Module] | None = None
    ) -> optax.GradientTransformation:
        """The optax transformation for a run of `steps` steps."""
        config, plain = self.config, self.config.optimizer
        box = optimizers.project_box(optimizers.latent_weights)
        if config.bop_threshold is not None:
            flips = optimizers.bop(plain.learning_rates(steps), config.bop_threshold)
            rules = {"binary": flips, "other": config.others.build(steps, network=network)}
            return optax.chain(optax.partition(rules, _kinds), box)
        if plain.name != "bamsprod":
            return optax.chain(plain.build(steps, network=network), box)
        rule = functools.partial(
            optimizers.bamsprod_rule,
            gamma=config.gamma,
            beta_l=config.beta_l,
            gradient_bound=config.gradient_bound,
            q_min=config.q_min,
            target=config.target,
            per_channel=config.per_channel,
        )
        return plain.build(steps, rule, network=network)


def _kinds(params):
    return jax.tree.map(lambda latent: "binary" if latent else "other", optimizers.latent_weights(params))


@dataclasses.dataclass(frozen=True)
class HeavyClass(losses.Linear):
    """`losses.Linear`, in which the examples of one class count several times.

    Attributes:
      label: the class.
      weight: of its examples, > 0; that of the others is 1.
    """

    label: int
    weight: float

    def loss(self, scores: jax.Array, labels: jax.Array) -> jax.Array:
        """Losses [B]."""
        return super().loss(scores, labels) * jnp.where(labels == self.label, self.weight, 1.0)


def with_rare_class(config: Config, split: inputs.Split) -> inputs.Split:
    """The split, of whose training records every other is left, but of the heavy class one in `heavy_weight` + 1.

    Raises:
      UserError: there is no such class, or none of its records would be left.
    """
    labels, names = np.asarray(split.train.labels), split.train.class_names
    if config.heavy_class >= len(names):
        raise UserError(f"heavy_class: needs one of the {len(names)} classes, got {config.heavy_class}")
    of_class, others = (
        np.flatnonzero(rare) for rare in (labels == config.heavy_class, labels != config.heavy_class)
    )
    count = round(len(others) / config.heavy_weight)
    if not 1 <= count <= len(of_class):
        raise UserError(
            f"heavy_weight: needs to leave 1 to {len(of_class)} records of the class, got {config.heavy_weight:g}: {count}"
        )
    return split._replace(
        train=inputs.Subset(split.train, np.sort(np.concatenate([of_class[:count], others])))
    )


class ClassRecall:
    """Evaluation of one class: the share of its held-out records that are recognized, and of the others that are taken for it."""

    def __init__(self, model, source: inputs.Source, label: int):
        self.model, self.source, self.label = model, source, label

    def __call__(self, state: training.TrainState) -> dict[str, float]:
        params = state.averaged_params
        embeddings = training.embed_source(
            self.model, params["backbone"], state.extra, self.source, flip=False
        )
        scores = training.class_scores(params, embeddings, len(self.source.class_names))
        answered, wanted = np.asarray(scores).argmax(axis=1) == self.label, self.source.labels == self.label
        return {
            "heavy/recall": float(answered[wanted].mean()),
            "heavy/false_share": float(answered[~wanted].mean()),
        }


def first_step_at(accuracies: np.ndarray, threshold: float, *, window: int = 5) -> float:
    """The first step after which the mean accuracy of the last `window` batches is the threshold; one more than all if never."""
    means = np.convolve(accuracies, np.ones(window) / window, mode="valid")
    reached = np.flatnonzero(means >= threshold - 1e-6)
    return float(reached[0] + window if len(reached) else len(accuracies) + 1)


class TrainingCurve:
    """The accuracies of a stage's batches, which its state keeps: when they reached a threshold, and a figure."""

    def __init__(self, threshold: float):
        self.threshold = threshold

    def added_to(self, stage: training.Stage) -> training.Stage:
        """The stage, whose state has `extra["accuracy"]` [steps]."""

        def init(rng, previous):
            state = stage.init(rng, previous)
            return state.replace(extra={**state.extra, "accuracy": jnp.zeros(stage.steps)})

        def step(state, batch):
            at = state.step
            state, reported = stage.step(state, batch)
            accuracies = state.extra["accuracy"].at[at].set(reported["accuracy"])
            return state.replace(extra={**state.extra, "accuracy": accuracies}), reported

        evaluate = training.Evaluations(stage.evaluate, self)
        return dataclasses.replace(stage, init=init, step=step, evaluate=evaluate)

    def __call__(self, state: training.TrainState) -> dict[str, float]:
        accuracies = np.asarray(state.extra["accuracy"])
        return {"steps_to_threshold": first_step_at(accuracies, self.threshold)}

    def figures(self, state: training.TrainState) -> training.Figures:
        accuracies = np.asarray(state.extra["accuracy"])
        series = {"training": (np.arange(1, len(accuracies) + 1), accuracies)}
        return {
            "accuracy": lambda path: figures.save_training_curves(series, path, ylabel="accuracy of a batch")
        }


def network(config: Config):
    """The network of a configuration."""
    return recognition.network(
        config, **({} if config.weight_init is None else {"weight_init": config.weight_init})
    )


def build(config: Config) -> list[training.Stage]:
    """The online problems, and the network under the configured optimizer."""
    if config.steps == config.online_steps == 0:
        raise UserError("steps: needs a positive number where online_steps is 0, got 0")
    stages = [online_stage(config.online_steps)] if config.online_steps else []
    if config.steps:
        split, head = recognition.load(config), losses.Linear()
        if config.heavy_class is not None:
            split = with_rare_class(config, split)
            head = HeavyClass(config.heavy_class, config.heavy_weight)
        model = network(config)
        stage = binary_stage("network", config, split, model, LatentRule(config), head)
        if config.heavy_class is not None:
            recall = ClassRecall(model, split.held_out, config.heavy_class)
            stage = dataclasses.replace(stage, evaluate=training.Evaluations(stage.evaluate, recall))
        stages.append(TrainingCurve(config.threshold).added_to(stage))
    return stages
