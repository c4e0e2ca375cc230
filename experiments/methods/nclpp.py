"""NCL++: experts, and copies of an image, that learn from each other under a long tail (arXiv:2306.16709).

    python -m experiments.launch nclpp --workdir runs/nclpp              # digits, 120 to 2 of a class: 0.920 ± 0.015
    python -m experiments.launch nclpp --preset paper --data.root …      # CIFAR-100-LT, IF 100; compiled, not trained here
    python -m experiments.reproduce nclpp --study digits                 # balanced softmax 0.916 ± 0.014

Differs from the paper in: the softmax of the partial view is over the hard classes alone (`hcm_mode`), as the papers define it
and the released code does not (docs/methods/nclpp.md#choices-of-ours).
"""

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from experiments.recipes import recognition as recipe
from jaxface import axes, losses, training
from jaxface import data as inputs
from jaxface.checks import AtLeast, Fraction, NonNegative, OpenFraction, Positive
from jaxface.errors import UserError
from jaxface.layers.cosine_classifier import CosineNetwork
from jaxface.models.stacked import Stacked
from jaxface.training.evaluations.experts import ExpertAccuracy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(recipe.Recipe):
    """K networks that see T copies of each image of a long-tailed set."""

    data: inputs.DataSpec = inputs.Digits(
        test_per_class=50, tail=inputs.LongTail(imbalance=50, largest=120, order="random")
    )
    """Images of classes to be told apart."""
    augment: inputs.Augment = inputs.Augment(flip=0.0, shift=1, noise=0.15)
    """Random changes of each copy."""
    image_size: Annotated[int, AtLeast(8)] = 8
    """Side of the images, pixels."""
    backbone: str = "mlp_128x64"
    """Network of an expert."""
    embedding: None = None
    """The heads of the networks are as wide as there are classes."""
    experts: Annotated[int, AtLeast(1)] = 2
    """K, networks that share nothing but their images; with --model-shards spread over devices."""
    copies: Annotated[int, AtLeast(1)] = 4
    """T, copies of an image in a step."""
    loss: Literal["nclpp", "ncl", "balanced", "ldam", "cross_entropy"] = "nclpp"
    """Nested learning (2306.16709), as first published (2203.15359), or each expert on its own: balanced softmax, LDAM with
    deferred weights, cross-entropy."""
    lam: Annotated[float, NonNegative] = 0.1
    """λ, weight of the agreement between experts and between copies."""
    lam_warmup: Annotated[float, Fraction] = 0.0
    """Fraction of the run over which λ rises linearly from 0."""
    num_hard: Annotated[int, AtLeast(2)] = 4
    """H, classes of the partial view, the right one among them."""
    hcm_mode: Literal["restrict", "zero"] = "restrict"
    """Softmax over the hard classes alone, or with zeros for the others, as released."""
    hcm_ratio: Annotated[float, NonNegative] = 1.0
    """Weight of the classification among hard classes; 0 leaves it out."""
    inter: bool = True
    """Experts learn from each other."""
    intra: bool = True
    """Copies learn from each other."""
    partial_view: bool = True
    """They agree on the hard classes besides."""
    balanced_distillation: bool = True
    """They agree on the distributions that training fits, or on those of the raw scores."""
    loss_scale: Annotated[float, Positive] = 1.0
    """Factor on the whole loss, for controls."""
    cosine_scale: Annotated[float | None, Positive] = None
    """Scale of a cosine classifier; a linear one without. LDAM always has cosines, to which it gives its own scale."""
    ldam_scale: Annotated[float, Positive] = 30.0
    """Scale of LDAM's cosines."""
    ldam_margin: Annotated[float, Positive] = 0.5
    """Its largest margin, that of the rarest class."""
    deferred: Annotated[float, Fraction] = 0.8
    """Fraction of the run after which LDAM weighs classes by their effective number of examples."""
    effective_beta: Annotated[float, OpenFraction] = 0.9999
    """β of that number."""
    many_above: Annotated[float, NonNegative] = 40
    """Training images above which a class counts as frequent in the report."""
    few_below: Annotated[float, NonNegative] = 10
    """Training images below which it counts as rare."""
    optimizer: training.Optimizer = training.Optimizer(
        name="nesterov", learning_rate=0.05, schedule="cosine", weight_decay=0.0
    )
    """Optimizer and learning-rate schedule."""
    batch_size: Annotated[int, AtLeast(1)] = 32
    """Images per step over all devices, each of them T times."""
    steps: Annotated[int, AtLeast(0)] = 700
    """Training steps."""

    @classmethod
    def paper(cls) -> "Config":
        """CIFAR-100-LT at an imbalance of 100: two ResNet-32, four copies, 400 epochs of the released configuration."""
        epoch = 10_847 // 64
        return cls(
            data=inputs.Cifar100(root="cifar-100-python", tail=inputs.LongTail(imbalance=100)),
            augment=inputs.Augment(flip=0.5, shift=4, policy="cifar10", hole=16),
            image_size=32,
            backbone="cifar_resnet32",
            lam=0.6,
            num_hard=30,
            many_above=100,
            few_below=20,
            optimizer=training.Optimizer(
                name="nesterov",
                learning_rate=0.1,
                decay_at=(320 / 400, 360 / 400),
                warmup=5 / 400,
                warmup_from=1 / 3,
                weight_decay=2e-4,
            ),
            batch_size=64,
            steps=400 * epoch,
            workers=16,
        )

    @classmethod
    def imagenet_lt(cls) -> "Config":
        """ImageNet-LT as the conference version has it: three ResNet-50 with cosine classifiers, one copy, 200 epochs."""
        epoch = 115_846 // 256
        return cls(
            data=inputs.ImageLists(
                root="imagenet", train="ImageNet_LT_train.txt", test="ImageNet_LT_test.txt"
            ),
            augment=inputs.Augment(
                flip=0.5, crop=1.0, crop_scale=(0.08**0.5, 1.0), crop_shift=0.0, policy="rand"
            ),
            image_size=224,
            backbone="resnet50",
            loss="ncl",
            hcm_mode="zero",
            experts=3,
            copies=1,
            lam=0.6,
            num_hard=300,
            cosine_scale=16.0,
            many_above=100,
            few_below=20,
            optimizer=training.Optimizer(
                name="nesterov", learning_rate=0.2, schedule="cosine", weight_decay=5e-4
            ),
            batch_size=256,
            steps=200 * epoch,
            workers=16,
        )


def network(config: Config, classes: int) -> Stacked:
    """The experts: `experts` copies of the backbone with a classifier each."""
    scale = 1.0 if config.loss == "ldam" else config.cosine_scale
    if scale is None:
        return Stacked(recipe.network(config, embedding=classes), config.experts)
    features = recipe.network(config, embedding=None)
    return Stacked(CosineNetwork(features, classes, scale, use_bias=config.loss != "ldam"), config.experts)


def copy_major(images: jax.Array) -> jax.Array:
    """[B, T, …] as [T · B, …], one copy of every image after another."""
    return jnp.swapaxes(images, 0, 1).reshape(-1, *images.shape[2:])


def build(config: Config) -> list[training.Stage]:
    """One stage: all experts at once."""
    recipe.check_no_packs(config, "a classifier tells no pairs")
    if config.init_from is not None:
        raise UserError(
            "init_from: experts start from weights of their own, one network cannot be all of them"
        )
    split = recipe.load(config)
    if split.protocol != "classification":
        raise UserError(f"data: needs classes to be told apart, {split.name} is for {split.protocol}")
    classes, image_shape = len(split.train.class_names), split.train.image_shape
    counts = np.bincount(split.train.labels, minlength=classes)
    if not counts.all():
        raise UserError(
            f"data: needs examples of every class, {split.train.class_names[counts.argmin()]!r} has none"
        )
    if config.num_hard > classes:
        raise UserError(f"num_hard: needs at most the {classes} classes, got {config.num_hard}")
    if config.few_below > config.many_above:
        raise UserError(
            f"few_below: needs at most many_above, {config.many_above:g}, got {config.few_below:g}"
        )
    model = network(config, classes)

    # What an expert learns on its own; the mean over rows, the sum over experts.
    def alone(logits, labels, sizes, done):
        if config.loss == "cross_entropy":
            return losses.cross_entropy(logits, labels)
        if config.loss == "balanced":
            return losses.balanced_softmax_loss(logits, labels, sizes)
        margins = losses.ldam_loss(
            logits, labels, sizes, scale=config.ldam_scale, largest_margin=config.ldam_margin
        )
        weights = losses.effective_number_weights(sizes, beta=config.effective_beta)
        return margins * jnp.where(done >= config.deferred, weights, 1.0)[labels]

    # What they learn together.
    def nested(logits, labels, sizes, done):
        rising = jnp.minimum(done / config.lam_warmup, 1.0) if config.lam_warmup else 1.0
        shared = dict(
            lam=config.lam * rising,
            num_hard=config.num_hard,
            hcm_mode=config.hcm_mode,
            hcm_ratio=config.hcm_ratio,
        )
        if config.loss == "ncl":
            return losses.ncl_loss(logits, labels, sizes, **shared)
        return losses.ncl_pp_loss(
            logits,
            labels,
            sizes,
            copies=config.copies,
            inter=config.inter,
            intra=config.intra,
            partial_view=config.partial_view,
            balanced_distillation=config.balanced_distillation,
            **shared,
        )

    def loss_fn(params, extra, batch, rng):
        variables = {"params": params["experts"], **training.statistics(extra)}
        labels, sizes = jnp.tile(batch["label"], config.copies), extra["counts"]
        logits, updated = model.apply(
            variables,
            copy_major(batch["image"]),
            train=True,
            mutable=[*variables.keys() - {"params"}],
            rngs={"dropout": rng},
        )
        done = extra["taken"] / (config.steps * config.accumulate)
        if config.loss in ("nclpp", "ncl"):
            loss, report = nested(logits, labels, sizes, done)
        else:
            loss, report = jax.vmap(lambda z: alone(z, labels, sizes, done).mean())(logits).sum(), {}
        report = {f"{name}_loss": value for name, value in report.items()}
        report["accuracy"] = (logits.mean(0).argmax(-1) == labels).mean()
        return config.loss_scale * loss, ({**extra, **updated, "taken": extra["taken"] + 1}, report)

    objective = training.Objective(loss_fn, config.optimizer.build(config.steps))

    def init(rng, previous):
        image = jnp.zeros((1, *image_shape))
        variables = dict(model.init(rng, image, train=False))
        params = {"experts": variables.pop("params")}
        ema = config.ema_decay is not None
        # In the state, so that other sizes are no other program.
        extra = {**variables, "taken": jnp.zeros((), jnp.int32), "counts": jnp.asarray(counts, jnp.float32)}
        return training.create_state(rng, params, objective, extra=extra, ema=ema)

    copies = inputs.Copies(config.augment, config.copies)
    open_batches = recipe.training_batches(config, split.train, augment=copies)
    return [
        training.Stage(
            name="experts",
            init=init,
            step=training.gradient_step(
                objective,
                accumulate=config.accumulate,
                ema_decay=config.ema_decay,
                frozen=config.optimizer.held,
            ),
            steps=config.steps,
            batches=lambda state: open_batches(),
            evaluate=ExpertAccuracy(
                model, split.held_out, counts, many_above=config.many_above, few_below=config.few_below
            ),
            best="ensemble/accuracy",
            sharding={"experts": PartitionSpec(axes.MODEL)},
        )
    ]
