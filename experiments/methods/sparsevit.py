"""AS-ViT: tokens that the class token hardly attends to are dropped below learned thresholds (arXiv:2209.13802).

    python -m experiments.launch sparsevit --workdir runs/sparsevit      # digits on clutter
    python -m experiments.launch sparsevit --preset paper --init-from …  # DeiT-S on ImageNet; built and typed, not trained here
    python -m experiments.reproduce sparsevit --study clutter

Differs from the paper in: thresholds, their temperature and the budget are in units that fit any number of tokens and any size of
network, and thresholds are kept inside the scores that they see (docs/methods/sparsevit.md#choices-of-ours).
"""

import dataclasses
import functools
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from experiments.recipes import recognition as recipe
from experiments.recipes.heads import HeadSpec
from experiments.recipes.teachers import TeacherSpec, teacher_stage
from jaxface import axes, losses, optimizers, training
from jaxface import data as inputs
from jaxface.checks import AtLeast, NonNegative, Positive, ProperFraction, Range
from jaxface.errors import UserError
from jaxface.layers import sparsevit as layers
from jaxface.models.transformers.sparsevit import AdaptiveSparseViT, dense_macs, dense_network, pruned_macs

LEAST = 1e-3  # of a threshold: what is dropped is seen as 1e-6 of a mean score, and must not come back


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(recipe.Recipe):
    """A vision transformer is trained, then fine-tuned as it learns which tokens of an image it can do without."""

    data: inputs.DataSpec = inputs.ClutteredDigits(scales=(1, 3))
    """Images of classes to be told apart."""
    image_size: Annotated[int, AtLeast(8)] = 24
    """Side of the images, pixels."""
    augment: inputs.Augment = inputs.Augment(flip=0.0)
    """Random changes of the training images."""
    backbone: str = "sparsevit_tiny"
    """Network that drops tokens: sparsevit_tiny, _small or _base, of which the next four fields may change the sizes."""
    dim: Annotated[int | None, AtLeast(1)] = 32
    """Size of a token; the network's own where None."""
    depth: Annotated[int | None, AtLeast(2)] = 4
    """Blocks; the network's own where None."""
    heads: Annotated[int | None, AtLeast(1)] = 4
    """Attention heads; the network's own where None."""
    patch: Annotated[int | None, AtLeast(1)] = 4
    """Side of a patch, pixels; the network's own where None."""
    embedding: None = None
    """The classifier is the linear layer of the recipe."""
    optimizer: training.Optimizer = training.adam(2e-3)
    """Optimizer of the dense network."""
    steps: Annotated[int, AtLeast(0)] = 1000
    """Steps that the dense network is trained for."""
    dense_run: str | None = None
    """A finished run with the dense network and its classifier, which is then not trained."""
    stages: Annotated[tuple[int, ...], AtLeast(1)] = (1, 2)
    """Blocks, counted from 0, at whose entry tokens are dropped."""
    thresholds: tuple[float, ...] = (0.2, 0.4)
    """Thresholds at the start, in units of the mean score 1 / (N + 1)."""
    temperature: Annotated[float, Positive] = 0.02
    """Of the mask's gradient, in the same unit."""
    score: layers.Score = "head_weighted"
    """How the heads' class attentions become one score: weighted by each head's response, or their mean."""
    history: layers.History = "last"
    """Whether the scores of the last block count, their sum over the blocks (accumulate), or a moving average of them."""
    select: layers.Selection = "threshold"
    """What is kept: tokens above a learned threshold; for comparison the best of each image, of the batch, or any."""
    keep: Annotated[tuple[int, ...] | None, AtLeast(0)] = None
    """Patch tokens that the latter three keep at each stage."""
    budget: Annotated[float, Range(0, 1, above=True)] = 0.6
    """Mean work that is aimed at, as a fraction of the dense network's, in (0, 1]."""
    budget_weight: Annotated[float, NonNegative] = 9.0
    """Weight of the budget's term, |F / F_dense - budget|."""
    distillation_weight: Annotated[float, NonNegative] = 0.5
    """Weight of the divergence of the dense network's classes from the student's."""
    prune_optimizer: training.Optimizer = training.adam(5e-4)
    """Optimizer of the fine-tuning."""
    threshold_rate: Annotated[float, Positive] = 22.0
    """Learning rate of the thresholds as a multiple of it; they have no weight decay."""
    range_decay: Annotated[float, ProperFraction] = 0.9
    """Decay of the mean over steps of the scores' quantiles 0.01 and 0.99, between which thresholds are held."""
    prune_steps: Annotated[int, AtLeast(0)] = 400
    """Steps of the fine-tuning."""
    prototype_std: Annotated[float, Positive] = 1e-3
    """Standard deviation of the linear classifier's weights at the start, > 0."""

    @classmethod
    def paper(cls) -> "Config":
        """DeiT-S on ImageNet, 30 epochs from published weights at 65 % of the work; 79.6 at 2.97 GMAC is to be reached.

        `init_from` names the published backbone, whose classifier is then fitted for an epoch; `dense_run` a finished run.
        """
        epoch, batch = 1_281_167 // 512, 512
        return cls(
            data=inputs.Tfds(name="imagenet2012", test="validation", fit="crop"),
            image_size=224,
            augment=inputs.Augment(flip=0.5, crop=1.0, crop_scale=(0.08**0.5, 1.0), crop_shift=0.0),
            backbone="sparsevit_small",
            dim=None,
            depth=None,
            heads=None,
            patch=None,
            stages=(4, 7, 10),
            thresholds=(0.197, 0.394, 0.591),
            temperature=0.0197,
            budget=0.65,
            budget_weight=2 * 4.573642752,
            distillation_weight=0.5,
            prune_optimizer=training.Optimizer(
                name="adamw", learning_rate=2e-5, schedule="cosine", weight_decay=1e-6
            ),
            threshold_rate=197.0,
            prune_steps=30 * epoch,
            optimizer=training.Optimizer(
                name="adamw", learning_rate=1e-3, schedule="cosine", weight_decay=0.05
            ),
            steps=epoch,
            bfloat16=True,
            batch_size=batch,
            workers=16,
        )


def check(config: Config) -> None:
    """Raises UserError for fields that do not suit each other; opens nothing."""
    if not config.backbone.startswith("sparsevit_"):
        raise UserError(f"backbone: needs a network that drops tokens, sparsevit_…, got {config.backbone!r}")
    if config.dense_run is not None:
        recipe.check_trained(config.init_from, "dense_run")
    network(config).encoder(parent=None).check()


def network(config: Config) -> AdaptiveSparseViT:
    """The network that drops tokens; evaluations use masks, whose choices and outputs are those of compacted tokens."""
    encoder = functools.partial(
        layers.SparseEncoder,
        stages=config.stages,
        start=config.thresholds,
        temperature=config.temperature,
        score=config.score,
        history=config.history,
        select=config.select,
        keep=config.keep,
    )
    sizes = {name: getattr(config, name) for name in ("dim", "depth", "heads", "patch")}
    sizes = {name: size for name, size in sizes.items() if size is not None}
    return recipe.network(config, **sizes, encoder=encoder)


@dataclasses.dataclass(frozen=True)
class Rule:
    """The optimizer of the fine-tuning, of which thresholds have a rate of their own; weight decay leaves them alone."""

    optimizer: training.Optimizer
    rate: float

    def build(
        self, steps: int, *, network: tuple[str, nn.Module] | None = None
    ) -> optax.GradientTransformation:
        """The optax transformation."""
        built = self.optimizer.build(steps, network=network)
        return optax.chain(built, optimizers.scale_groups({"backbone/encoder/thresholds": self.rate}))


def held_inside(step, decay: float):
    """A step after which thresholds lie between the quantiles of the scores that they see, a mean over the last steps.

    A threshold beyond them has no gradient and never comes back; one near 0 brings back what it dropped.
    """

    def held(state, batch):
        state, metrics = step(state, batch)
        seen = state.extra["scores"]
        low, high = (seen["range"] / (1 - decay ** seen["steps"].astype(jnp.float32))).T
        low = jnp.maximum(low, LEAST)

        def hold(params):
            thresholds = params["backbone"]["encoder"]["thresholds"]
            inside = jnp.clip(thresholds, low, jnp.maximum(high, low))
            return {**params, "backbone": {**params["backbone"], "encoder": {"thresholds": inside}}}

        return state.replace(params=hold(state.params)), metrics

    return held


def build(config: Config) -> list[training.Stage]:
    """The dense network, which is the teacher, then the fine-tuning of the same weights with thresholds."""
    check(config)
    recipe.check_no_packs(config, "a classifier tells no pairs")
    split = recipe.load(config)
    if split.protocol != "classification":
        raise UserError(
            f"data: needs classes that are the same in the test, {split.name} is for {split.protocol}"
        )
    classes, shape = len(split.train.class_names), split.train.image_shape
    student, linear = network(config), HeadSpec(loss="linear").build()
    dense, whole = dense_network(student), dense_macs(student, shape)
    if shape[0] % student.patch or shape[1] % student.patch:
        raise UserError(
            f"image_size: needs a multiple of the patch, which has {student.patch} pixels, got {shape[0]}x{shape[1]}"
        )
    open_batches = recipe.training_batches(config, split.train)

    # Stage 1: the network that keeps every token.
    if config.dense_run is None:
        first = recipe.recognition_stage("dense", config, split, dense, linear)
    else:
        first, _ = teacher_stage(config, TeacherSpec(run=config.dense_run), split, prototypes=True)
    teacher = training.Teacher(dense)

    # Stage 2: masks, budget and distillation, from the weights of the first.
    fresh = dataclasses.replace(config, init_from=None)
    recognition = recipe.Recognition(fresh, student, classes, shape, linear)
    rule = Rule(config.prune_optimizer, config.threshold_rate)
    learned = config.select == "threshold"

    def loss_fn(params, extra, batch, rng):
        embeddings, seen = student.apply(
            training.network_variables(params["backbone"], extra),
            batch["image"],
            train=True,
            mutable=[layers.COLLECTION],
            rngs={"dropout": rng},
        )
        seen = {name: values[0] for name, values in seen[layers.COLLECTION]["encoder"].items()}
        labels = recognition.classify(params, embeddings, batch["label"], rng)
        macs = pruned_macs(student, seen["kept"], shape)
        report = {**labels.report(), "ratio": macs.mean() / whole, "label_loss": labels.loss}
        loss = labels.loss
        if config.distillation_weight > 0:
            scores = training.class_scores(params, embeddings, classes)
            answers = teacher.class_scores(extra, teacher.embeddings(extra, batch["image"]), classes)
            soft = losses.soft_target_loss(scores, answers, temperature=1.0).mean()
            loss, report["distillation_loss"] = loss + config.distillation_weight * soft, soft
        if learned:
            axis = axes.DATA if axes.bound(axes.DATA) else None
            excess = losses.budget_loss(macs, config.budget * whole, axis_name=axis)
            loss = loss + config.budget_weight * config.budget * excess
            report["budget_loss"] = excess
        scores, decay = extra["scores"], config.range_decay
        inside = decay * scores["range"] + (1 - decay) * axes.mean(seen["range"])
        extra = {**extra, "scores": {"range": inside, "steps": scores["steps"] + 1}}
        return loss, (extra, report)

    objective = training.Objective(loss_fn, recognition.optimizer(rule, config.prune_steps))

    def init(rng, previous):
        params, extra = recognition.init(rng)
        trained = previous.averaged_params
        encoder = params["backbone"]["encoder"]
        check_same(trained["backbone"], {k: v for k, v in params["backbone"].items() if k != "encoder"})
        params = {**trained, "backbone": {**trained["backbone"], "encoder": encoder}}
        scores = {"range": jnp.zeros((len(config.stages), 2)), "steps": jnp.zeros((), jnp.int32)}
        extra = teacher.installed({**extra, "scores": scores}, previous)
        return recognition.create_state(rng, params, objective, extra=extra)

    step = recognition.step(objective, optimizer=config.prune_optimizer)
    pruning = training.Stage(
        name="pruning",
        description=recognition.description,
        init=init,
        step=held_inside(step, config.range_decay) if learned else step,
        batches=lambda state: open_batches(),
        steps=config.prune_steps,
        evaluate=training.TokenPruning(student, split.held_out),
        best="classification/accuracy",
        sharding={"prototypes": PartitionSpec(axes.MODEL)},
    )
    return [first, pruning]


def check_same(trained: dict, wanted: dict) -> None:
    """Raises UserError where a finished run has another network than the one that is to be pruned."""
    shapes = [
        {
            jax.tree_util.keystr(path): jnp.shape(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (trained, wanted)
    ]
    if different := sorted(set(shapes[0].items()) ^ set(shapes[1].items())):
        raise UserError(f"dense_run: needs the network that is to be pruned, it differs in {different[0][0]}")
