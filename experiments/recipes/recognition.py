"""What the experiments on faces share: their common fields, and the training of a network against class prototypes.

A method's `Config` inherits `Recipe`; its `build` takes from here what is not the method. `Recognition` is how class prototypes
are trained, whatever else a method's loss has: spread over devices, sampled, in micro-batches, averaged, from a finished run.

Methods: acw, apvit, bamsprod, cckd, cloak, condensation_net, coupleface, dcp_nas, ddc, gabn, ida, law, lifelong, lrfr, mda,
nclpp, ota, qvit, rbonn, rco, sface, sparsevit
"""

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from jaxface import axes, inference, losses, models, optimizers, training
from jaxface import data as inputs
from jaxface.checks import AtLeast, Positive, ProperFraction, Range
from jaxface.errors import UserError
from jaxface.layers.norm import OneExample
from jaxface.layers.prototypes import l2_normalize
from jaxface.layers.remat import Remat
from jaxface.paths import user_path

LARGE = 16_384
"""From so many classes on, or with sampled ones, the loss makes no [B, C]; below, whole cosines are faster."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Data, network, optimizer and length of a run on faces."""

    data: inputs.DataSpec = inputs.RenderedFaces()
    """Faces to learn from; some of the people are kept for verification."""
    image_size: Annotated[int, AtLeast(8)] = 48
    """Side of the images, pixels."""
    augment: inputs.Augment = inputs.Augment()
    """Random changes of the training images."""
    backbone: str = "iresnet_pico"
    """Network; `jaxface.models.names()` lists them, and mlp_512x256 is a perceptron with these hidden widths."""
    embedding: Annotated[int | None, AtLeast(1)] = 128
    """Size of an embedding; None takes the pooled features of a network that ends in a linear layer, without that layer."""
    block: str | None = None
    """Residual unit of an iResNet: insightface, or sface with its own order of layers; the network's default unless given."""
    dropout: Annotated[float | None, ProperFraction] = None
    """Dropout before the embedding, in [0, 1), of networks that have it; the network's default unless given."""
    bfloat16: bool = False
    """Compute in bfloat16 (parameters, statistics and the loss stay float32)."""
    remat: Remat = "none"
    """What of the network the backward pass computes again instead of storing it: nothing, or each block; saves memory."""
    init_from: str | None = None
    """Network to start from (fine-tuning): a finished run, a bundle, or published weights; prototypes start afresh."""
    prototype_std: Annotated[float, Positive] = 0.01
    """Standard deviation of the entries of class prototypes at the start, > 0. Under SGD the length of a prototype, about
    std √embedding, sets the angle that it turns by in a step."""
    sample_rate: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Fraction of the classes that take part in a step (PartialFC), in (0, 1]; those of the batch always do."""
    unsampled: Literal["move", "stay"] = "move"
    """Prototypes that a step did not sample: momentum and weight decay move them, or they and their momentum stay as they are."""
    optimizer: training.Optimizer = training.adam(3e-3)
    """Optimizer and learning-rate schedule."""
    accumulate: Annotated[int, AtLeast(1)] = 1
    """Micro-batches in which a step is computed; saves memory."""
    ema_decay: Annotated[float | None, ProperFraction] = None
    """Decay per step of a moving average of the parameters, which is then evaluated; none by default."""
    batch_size: Annotated[int, AtLeast(1)] = 64
    """Images per step over all devices."""
    steps: Annotated[int, AtLeast(0)] = 1000
    """Training steps."""
    validate_packs: str | None = None
    """Folder of verification packs (.bin) to evaluate the network on besides, whenever it is evaluated."""
    workers: Annotated[int, AtLeast(0)] = 0
    """Processes that decode and augment; 0 uses threads, best for rendered faces."""
    seed: Annotated[int, AtLeast(0)] = 0
    """Seed of the initialization, the order of the data and its augmentation."""
    data_seed: Annotated[int, AtLeast(0)] = 0
    """Seed of the rendered people and of the split by identity."""


def network(
    recipe: Recipe,
    *,
    backbone: str | None = None,
    embedding: int | types.EllipsisType | None = ...,
    **fields,
):
    """The embedding network of a recipe, or another one under its data type (without the recipe's block and dropout)."""
    if backbone is None:
        wanted = {"block": recipe.block, "dropout": recipe.dropout}
        fields = {name: value for name, value in wanted.items() if value is not None} | fields
    if recipe.remat != "none":
        fields = {"remat": recipe.remat} | fields
    return models.create(
        backbone or recipe.backbone,
        embedding=recipe.embedding if embedding is ... else embedding,
        dtype=jnp.bfloat16 if recipe.bfloat16 else jnp.float32,
        **fields,
    )


def load(recipe: Recipe) -> inputs.Split:
    """The data of a recipe, split.

    Raises:
      UserError: nothing to leave unsampled, or the data cannot be had or split.
    """
    if recipe.unsampled == "stay" and recipe.sample_rate == 1:
        raise UserError("unsampled: 'stay' needs sample_rate below 1; got 1, which samples every class")
    split = inputs.load(recipe.data, image_size=recipe.image_size, seed=recipe.data_seed)
    if split.protocol == "detection":
        raise UserError(f"data: needs one person or class per image, {split.name} is for detectors")
    if split.protocol == "dense":
        raise UserError(f"data: needs one person or class per image, {split.name} has one for every pixel")
    if split.protocol == "images":
        raise UserError(f"data: needs people or classes to recognize, {split.name} has images alone")
    if split.protocol == "spoofing":
        raise UserError(
            f"data: needs people or classes to recognize, {split.name} is of live faces and attacks"
        )
    return split


def training_batches(recipe: Recipe, source: inputs.Source, **changes) -> Callable[[], inputs.Batches]:
    """A function that opens the training batches of a source; `changes` go to `jaxface.data.batches`.

    Raises:
      UserError: a batch size or seed that cannot be used.
    """
    settings = dict(
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        augment=recipe.augment,
        shard=(jax.process_index(), jax.process_count()),
        workers=recipe.workers,
    )
    open_batches = functools.partial(inputs.batches, source, **{**settings, **changes})
    open_batches()  # reads nothing yet, but refuses what cannot be used
    return open_batches


def filled_batch_size(source: inputs.Source, wanted: int) -> int:
    """The largest batch up to `wanted` that a source fills and that divides over the devices of all processes."""
    replicas = jax.device_count()
    return min(wanted, len(source)) // replicas * replicas or wanted


def evaluation(recipe: Recipe, model, split: inputs.Split, *, identify: bool = False):
    """Verification of unseen people (with the mirror image where training mirrors), or the nearest class prototype.

    With `identify`, unseen people are identified in an open set besides.
    """
    if split.protocol == "verification":
        flip = recipe.augment.flip > 0
        judged = training.Verification(model, split.held_out, flip=flip, identify=identify)
    else:
        judged = training.NearestPrototype(model, split.held_out)
    return with_packs(recipe, model, split, judged)


def with_packs(recipe: Recipe, model, split: inputs.Split, judged):
    """An evaluation, and that of the packs of `validate_packs` besides, where the recipe has some.

    Raises:
      UserError: packs that cannot be read, or a network of other images.
    """
    if recipe.validate_packs is None:
        return judged
    height, width, channels = split.train.image_shape
    if channels != 3 or height != width:
        raise UserError(
            f"validate_packs: needs a network of square color images, got {height}x{width} of {channels} channels"
        )
    packs = inputs.open_packs(recipe.validate_packs, image_size=height, argument="validate_packs")
    packed = training.PackVerification(model, packs, flip=recipe.augment.flip > 0)
    return training.Evaluations(judged, packed)


def check_no_packs(recipe: Recipe, purpose: str) -> None:
    """Raises UserError where packs are to be evaluated by a run that trains no network for them."""
    if recipe.validate_packs is not None:
        raise UserError(f"validate_packs: needs a network that the run trains on photographs; {purpose}")


def check_together(recipe: Recipe, purpose: str) -> None:
    """Raises UserError where a step sees its images one by one, and so cannot do what is done among several."""
    if recipe.batch_size // recipe.accumulate < 2:
        name, got = "batch_size", f"{recipe.batch_size}"
        if recipe.accumulate > 1:
            name, got = "accumulate", f"{recipe.batch_size} images in {recipe.accumulate} micro-batches"
        raise UserError(f"{name}: needs at least 2 images at a time {purpose}, got {got}")


def _check_batch_statistics(recipe: Recipe, recognizer: training.Recognizer) -> None:
    """Refuses images one by one where the network has batch statistics of one value each, on any number of devices."""
    if recipe.batch_size // recipe.accumulate >= 2:
        return
    rng = jax.eval_shape(lambda: jax.random.key(0))
    params, extra = jax.eval_shape(recognizer.init, rng)
    image = jax.ShapeDtypeStruct((1, *recognizer.image_shape), jnp.float32)
    try:
        jax.eval_shape(recognizer.train_embeddings, params, extra, image, rng)
    except OneExample:
        check_together(recipe, f"for the batch normalization of {type(recognizer.model).__name__}")


class Rule(Protocol):
    """What becomes an optimizer, such as `jaxface.training.Optimizer`; another one has its groups from the recipe's."""

    def build(
        self, steps: int, *, network: tuple[str, nn.Module] | None = None
    ) -> optax.GradientTransformation:
        """The transformation for a run of `steps` steps; `network` as `training.Optimizer.build` takes it."""


class Classification(NamedTuple):
    """A loss against class prototypes, and what is worth watching beside it; float32 scalars."""

    loss: jax.Array
    watched: dict[str, jax.Array]
    """Of the batch: `target_cosine`, the mean cosine with the right class's prototype; `accuracy`, the share of embeddings that
    are nearest to it, where [B, C] is made; `other_cosine`, the mean of the cosines with all prototypes, that one counted as 0,
    where [B, C] is made or the loss is SFace over all classes; `intra_loss` and `inter_loss`, the two terms of SFace. A linear
    classifier has the accuracy alone."""

    def report(self, suffix: str = "") -> dict[str, jax.Array]:
        """The metrics by name."""
        return {name + suffix: value for name, value in self.watched.items()}


def check_trained(init_from: str | None, argument: str) -> None:
    """Raises UserError where there is an `init_from` for a network that the run does not train, because `argument` gives it."""
    if init_from is not None:
        raise UserError(f"init_from: needs a network that the run trains; with {argument} there is none")


def pretrained(path: str, recognizer: training.Recognizer) -> tuple[dict, dict]:
    """(backbone parameters, batch statistics) to start from, of a run, a bundle or published weights.

    Raises:
      UserError: none of them there, or a network that is another one or sees other pixels than a run trains on.
    """
    bundle = inference.open_recognizer(user_path("init_from", path))
    bundle.check_plain("init_from")
    training.check_backbone(path, bundle.variables, recognizer)
    return bundle.variables["params"], training.statistics(bundle.variables)


class Recognition:
    """An embedding network and its class prototypes, trained as a recipe says.

    Args:
      recipe: of it count the network's start, the prototypes, sampling, micro-batches and the moving average.
      model: the network.
      classes: C, labels being int32 in [0, C).
      image_shape: (H, W, channels).
      head: loss over the cosines; None where the method classifies nothing.

    Raises:
      UserError: `init_from` is no run, or one of another network; images one by one for a network with batch normalization; a
        linear classifier over more classes than whole scores are made for.
    """

    def __init__(
        self,
        recipe: Recipe,
        model,
        classes: int,
        image_shape: tuple[int, int, int],
        head: losses.Head | None = None,
    ):
        self.recipe, self.model, self.classes, self.head = recipe, model, classes, head
        self.linear = isinstance(head, losses.Linear)
        self.recognizer = training.Recognizer(
            model, classes, image_shape, recipe.prototype_std, linear=self.linear
        )
        _check_batch_statistics(recipe, self.recognizer)
        self.whole = classes < LARGE and recipe.sample_rate == 1
        if self.linear and not self.whole:
            raise UserError(
                f"loss: 'linear' needs fewer than {LARGE} classes, all of them in every step; got {classes} at a sample_rate of "
                f"{recipe.sample_rate}"
            )
        self._start = None
        if recipe.init_from is not None:
            self._start = pretrained(recipe.init_from, self.recognizer)

    @functools.cached_property
    def description(self) -> dict[str, Any] | None:
        """What a stage that trains it says of its state (`training.Stage.description`), so that the run is opened without the
        method; None of a network that is not among `jaxface.models`, or of other images than gray or RGB."""
        channels = self.recognizer.image_shape[-1]
        if channels not in (1, 3):
            return None
        title = self.recipe.data.title
        try:
            described = inference.recognizer_description(
                self.model,
                self.recognizer.image_shape,
                color="gray" if channels == 1 else "rgb",
                alignment="arcface" if channels == 3 else None,
                flip=self.recipe.augment.flip > 0,
                origin=f"trained on {title}",
            )
        except UserError:
            return None
        return described | {"held_out": f"held-out people of {title}"}

    def init(self, rng: jax.Array) -> tuple[dict, dict]:
        """Fresh (params, extra) of network and prototypes; the network is that of `init_from` where there is one."""
        params, extra = self.recognizer.init(rng)
        if self._start is not None:
            params["backbone"], extra = self._start
        return params, extra

    def classify(
        self,
        params: dict,
        embeddings: jax.Array,
        labels: jax.Array,
        rng: jax.Array,
        *,
        where: jax.Array | None = None,
    ) -> Classification:
        """Mean loss of embeddings [B, D] against the prototypes; a row of the batch that is not in `where` [B] counts as 0."""
        if self.whole:
            scores = training.class_scores(params, embeddings, self.classes)
            values = self.head.loss(scores, labels)
            values = values if where is None else jnp.where(where, values, 0.0)
            watched = {"accuracy": (scores.argmax(axis=1) == labels).mean()}
            if not self.linear:
                target = jnp.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
                watched |= self._watched(target, self.head.terms(scores, labels), scores.mean(axis=1))
            return Classification(values.mean(), watched)
        loss, terms = training.prototype_loss(
            embeddings.astype(self.model.dtype),
            params["prototypes"],
            labels,
            self.head.fused(),
            classes=self.classes,
            rate=self.recipe.sample_rate,
            rng=jax.random.fold_in(rng, 1),
            where=where,
        )
        if not isinstance(self.head, losses.SFace):
            return Classification(loss, self._watched(terms.target_cosines, {}))
        # It takes one more pass over the prototypes, so it is for the loss that is judged by it, and not for samples of classes.
        every = self.recipe.sample_rate == 1
        mean_cosines = self._mean_cosines(params["prototypes"], embeddings) if every else None
        parts = {"intra": terms.intra, "inter": terms.inter}
        return Classification(loss, self._watched(terms.target_cosines, parts, mean_cosines))

    def _mean_cosines(self, prototypes: jax.Array, embeddings: jax.Array) -> jax.Array:
        """[B], the mean over the classes of the cosines of each embedding: that with the mean direction, so no [B, C] is made.

        The directions are not made either, which would be another array as large as the prototypes: a row of their inverse
        lengths is multiplied by the prototypes.
        """
        weights = jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(prototypes), axis=1), 1e-12)) / self.classes
        weights = jnp.where(jnp.arange(len(prototypes)) < self.classes, weights, 0.0)
        return l2_normalize(embeddings.astype(jnp.float32)) @ (weights @ prototypes)

    def _watched(
        self, target_cosines: jax.Array, terms: dict, mean_cosines: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """The means over the batch of the cosines with the own and the other prototypes, and of the loss's terms; [B] each."""
        watched = {"target_cosine": target_cosines.mean()}
        if mean_cosines is not None:
            watched["other_cosine"] = (mean_cosines - target_cosines / self.classes).mean()
        watched |= {f"{name}_loss": values.mean() for name, values in terms.items()}
        return jax.lax.stop_gradient(watched)

    def optimizer(
        self,
        optimizer: Rule | None = None,
        steps: int | None = None,
        *,
        parts: tuple[str, ...] = (),
    ) -> optax.GradientTransformation:
        """The recipe's optimizer for its steps, or another one; it moves unsampled prototypes or not.

        Args:
          optimizer: another one.
          steps: other ones.
          parts: what it trains besides network and prototypes, which its groups may name.

        Raises:
          UserError: a group of parameters that does not exist.
        """
        optimizer = optimizer or self.recipe.optimizer
        groups = optimizer if isinstance(optimizer, training.Optimizer) else self.recipe.optimizer
        if groups.rates or groups.frozen:
            params, _ = jax.eval_shape(self.recognizer.init, jax.eval_shape(lambda: jax.random.key(0)))
            groups.check_groups({**params, **dict.fromkeys(parts, params["prototypes"])})
        steps = self.recipe.steps if steps is None else steps
        built = optimizer.build(steps, network=("backbone", self.model))
        if self.recipe.unsampled == "move":
            return built
        return optimizers.sampled_rows(built, lambda params: {name: name == "prototypes" for name in params})

    def create_state(
        self, rng: jax.Array, params: dict, *objectives: training.Objective, extra: dict
    ) -> training.TrainState:
        """`training.create_state`, with a moving average where the recipe wants one."""
        return training.create_state(
            rng, params, *objectives, extra=extra, ema=self.recipe.ema_decay is not None
        )

    def step(self, *objectives: training.Objective, optimizer: Rule | None = None):
        """`training.gradient_step`, in micro-batches, with a moving average and with frozen layers where the recipe wants them.

        Args:
          objectives: of the step.
          optimizer: that of the objectives where it is not the recipe's.
        """
        groups = optimizer if isinstance(optimizer, training.Optimizer) else self.recipe.optimizer
        return training.gradient_step(
            *objectives,
            accumulate=self.recipe.accumulate,
            ema_decay=self.recipe.ema_decay,
            frozen=groups.held,
        )


def plain_stage(
    name: str,
    recipe: Recipe,
    model,
    classes: int,
    image_shape: tuple[int, int, int],
    head: losses.Head,
    *,
    optimizer: Rule | None = None,
    steps: int | None = None,
) -> training.Stage:
    """`recognition_stage` without its data and evaluation; arguments as there and of `Recognition`."""
    steps = recipe.steps if steps is None else steps
    recognition = Recognition(recipe, model, classes, image_shape, head)

    def loss_fn(params, extra, batch, rng):
        embeddings, extra = recognition.recognizer.train_embeddings(params, extra, batch["image"], rng)
        classification = recognition.classify(params, embeddings, batch["label"], rng)
        return classification.loss, (extra, classification.report())

    objective = training.Objective(loss_fn, recognition.optimizer(optimizer, steps))

    def init(rng, previous):
        params, extra = recognition.init(rng)
        return recognition.create_state(rng, params, objective, extra=extra)

    return training.Stage(
        name=name,
        description=recognition.description,
        init=init,
        step=recognition.step(objective, optimizer=optimizer),
        steps=steps,
        sharding={"prototypes": PartitionSpec(axes.MODEL)},
    )


def recognition_stage(
    name: str,
    recipe: Recipe,
    split: inputs.Split,
    model,
    head: losses.Head,
    *,
    optimizer: Rule | None = None,
    steps: int | None = None,
    batches: Callable[[], inputs.Batches] | None = None,
    evaluate: bool = True,
) -> training.Stage:
    """A stage that trains an embedding network and its class prototypes with a margin softmax, and nothing else.

    The optimizer, the steps and the batches are the recipe's unless given.
    """
    classes, image_shape = len(split.train.class_names), split.train.image_shape
    stage = plain_stage(name, recipe, model, classes, image_shape, head, optimizer=optimizer, steps=steps)
    open_batches = batches or training_batches(recipe, split.train)
    judged = evaluation(recipe, model, split) if evaluate else None
    return dataclasses.replace(
        stage,
        batches=lambda state: open_batches(),
        evaluate=judged,
        best=f"{split.protocol}/accuracy" if evaluate else None,
    )
