"""Quality models fitted to images with opinions: data, features or network, and the logistic map behind them.

Methods: niqa_attack
"""

import dataclasses
import functools
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxface import data as inputs
from jaxface import metrics, models, training
from jaxface.checks import AtLeast, Positive
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.training.evaluations.quality_attack import Rater, rated

Model = Literal["nss", "cornia", "cnn", "ma19", "unique"]
NETWORKS = {"cnn": ("quality_cnn", 1), "ma19": ("gdn_pyramid", 2), "unique": ("bilinear_resnet34", 2)}
"""Quality model -> its registered network, and how many outputs that has, of which the first is the score."""
SMALLEST = 16
"""Side that most models and measures can take; the others refuse what they cannot."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityRecipe:
    """Images with opinions, and the models that are fitted to them."""

    data: inputs.DataSpec = inputs.DistortedLeaves()
    """Images with opinions to train on; starts of attacks are among others."""
    image_size: Annotated[int, AtLeast(SMALLEST)] = 48
    """Side of all images, pixels."""
    models: tuple[Model, ...] = ("cnn", "nss")
    """Quality models: BRISQUE's features with a kernel ridge (nss), words of patches with a linear one (cornia), and networks:
    three convolutions (cnn), divisive normalization with a pyramid (ma19), a ResNet-34 with bilinear pooling (unique)."""
    ridge: Annotated[float, Positive] = 1e-3
    """Ridge of the kernel regression on BRISQUE's features."""
    gamma: Annotated[float, Positive] = 0.02
    """Width γ of its kernel."""
    words: Annotated[int, AtLeast(1)] = 100
    """Words of CORNIA's codebook."""
    linear_ridge: Annotated[float, Positive] = 1.0
    """Ridge of the linear regression on them."""
    crop: Annotated[int | None, AtLeast(SMALLEST)] = 24
    """Side of the squares of the images that a network learns from, others in every step; None for whole images."""
    optimizer: training.Optimizer = training.adam(1e-2)
    """Optimizer of a network."""
    augment: inputs.Augment = inputs.Augment()
    """Random changes of its training images."""
    batch_size: Annotated[int, AtLeast(1)] = 32
    """Images per step over all devices."""
    steps: Annotated[int, AtLeast(0)] = 450
    """Training steps of a network."""
    workers: Annotated[int, AtLeast(0)] = 0
    """Processes that read and augment; 0 uses threads."""
    seed: Annotated[int, AtLeast(0)] = 0
    """Seed of the initialization, the order of the data and the attacks' noise."""
    data_seed: Annotated[int, AtLeast(0)] = 0
    """Seed of drawn images and of the split."""


def load(config: QualityRecipe) -> inputs.Split:
    """Images with opinions.

    Raises:
      UserError: data without opinions, or images that are not in color or smaller than `SMALLEST`.
    """
    split = inputs.load(config.data, image_size=config.image_size, seed=config.data_seed)
    if split.protocol != "quality":
        raise UserError(f"data: needs images with opinions, {split.name} has none")
    shape = tuple(split.train.image_shape)
    if shape[2] != 3 or min(shape[:2]) < SMALLEST:
        raise UserError(f"data: needs color images of at least {SMALLEST} pixels, {split.name} has {shape}")
    return split


def model_stage(config: QualityRecipe, name: Model, split: inputs.Split):
    """(stage that fits a quality model, state -> image [H, W, C] in [0, 1] -> score from 0 to 10)."""
    if name in NETWORKS:
        return network_stage(config, name, split)
    return features_stage(config, name, split)


def features_stage(config: QualityRecipe, name: Literal["nss", "cornia"], split: inputs.Split):
    """Features that nobody trained and a regression in closed form: what is fitted is fitted in `init`."""
    rating = FeatureRating(name)

    def init(rng, previous):
        opinions, codebook = split.train.opinions, {}
        if name == "cornia":
            count = len(split.train)
            images = (split.train[i]["image"].astype(np.float32) / 255 for i in range(count))
            patches = max(100, -(-10 * config.words // count))
            fitted = metrics.fit_codebook(images, words=config.words, patches=patches, seed=config.seed)
            codebook = fitted._asdict()

        def described(params, batch):
            return jax.lax.map(
                functools.partial(rating.features, params), batch["image"].astype(jnp.float32) / 255
            )

        features = training.map_source(
            jax.jit(described), split.train, codebook, batch_size=min(100, len(split.train))
        )
        if name == "nss":
            regression = metrics.fit_kernel_ridge(features, opinions, gamma=config.gamma, ridge=config.ridge)
        else:
            regression = metrics.fit_linear_ridge(features, opinions, ridge=config.linear_ridge)
        params = {"regression": regression._asdict()} | ({"codebook": codebook} if codebook else {})
        told = np.asarray(rating.scores(params, jnp.asarray(features)))
        return training.create_state(rng, params | {"map": _fitted_map(told, opinions)})

    def rater_of(state):
        return jax.tree_util.Partial(rating, jax.tree.map(np.asarray, state.params))

    return training.Stage(
        name=name, init=init, compile_init=False, evaluate=_agreement(name, rater_of, split.held_out)
    ), rater_of


@dataclasses.dataclass(frozen=True)
class FeatureRating:
    """(parameters, image [H, W, C] in [0, 1]) -> score of a regression; equal ones are one function to the compiler."""

    name: Literal["nss", "cornia"]

    def __call__(self, params, image):
        return metrics.logistic_map(
            self.scores(params, self.features(params.get("codebook"), image)), *params["map"]
        )

    def features(self, codebook, image):
        """BRISQUE's 36, or the answers of the words."""
        if self.name == "nss":
            return metrics.brisque_features(image)
        return metrics.cornia_features(image, metrics.Codebook(**codebook))

    def scores(self, params, features):
        """Of the regression, before the logistic map."""
        if self.name == "nss":
            return metrics.kernel_scores(metrics.KernelRegression(**params["regression"]), features)
        return metrics.linear_scores(metrics.LinearRegression(**params["regression"]), features)


def _fitted_map(scores: np.ndarray, opinions: np.ndarray) -> jax.Array:
    """[2]: the parameters of the logistic map."""
    return jnp.float32(metrics.fit_logistic(scores, opinions))


def network_stage(config: QualityRecipe, name: Model, split: inputs.Split):
    """A network that learns opinions by least squares, standardized."""
    registered, outputs = NETWORKS[name]
    rating = NetworkRating(models.create(registered, embedding=outputs), detail=name == "cnn")
    shape = tuple(split.train.image_shape)
    side = min(config.crop or max(shape), *shape[:2])
    mean, spread = float(split.train.opinions.mean()), float(split.train.opinions.std())

    def loss_fn(params, extra, batch, rng):
        of_place, of_dropout = jax.random.split(rng)
        corner = jax.random.randint(of_place, (2,), 0, jnp.array(shape[:2]) - side + 1)
        image = jax.lax.dynamic_slice_in_dim(batch["image"], corner[0], side, axis=1)
        image = jax.lax.dynamic_slice_in_dim(image, corner[1], side, axis=2)
        told, changed = rating.model.apply(
            {"params": params["network"], **extra},
            rating.seen(image),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": of_dropout},
        )
        error = told[:, 0] - (batch["opinion"] - mean) / spread
        return jnp.square(error).mean(), (dict(changed), {})

    objective = training.Objective(loss_fn, config.optimizer.build(max(config.steps, 1)))

    def fresh(rng):
        return dict(rating.model.init(rng, jnp.zeros((1, side, side, 3)), train=False))

    jax.eval_shape(fresh, jax.random.key(0))  # images that the network cannot take are refused here

    def init(rng, previous):
        variables = fresh(rng)
        return training.create_state(rng, {"network": variables.pop("params")}, objective, extra=variables)

    def open_batches():
        return inputs.batches(
            split.train,
            batch_size=config.batch_size,
            seed=config.seed,
            augment=config.augment,
            shard=(jax.process_index(), jax.process_count()),
            workers=config.workers,
        )

    def rater_of(state):
        variables = {"params": state.averaged_params["network"], **state.extra}
        variables = jax.tree.map(np.asarray, variables)
        told = training.map_source(
            functools.partial(_network_scores, rating=rating), split.train, variables, batch_size=100
        )
        fitted = _fitted_map(told, split.train.opinions)
        return jax.tree_util.Partial(rating, {"variables": variables, "map": fitted})

    open_batches()  # reads nothing yet, but refuses what cannot be used
    return training.Stage(
        name=name,
        init=init,
        step=training.gradient_step(objective),
        batches=lambda state: open_batches(),
        steps=config.steps,
        evaluate=_agreement(name, rater_of, split.held_out),
    ), rater_of


@functools.partial(jax.jit, static_argnames="rating")
def _network_scores(variables, batch, *, rating: "NetworkRating"):
    return rating.scores(variables, normalize_pixels(batch["image"]))


@dataclasses.dataclass(frozen=True)
class NetworkRating:
    """(parameters, image [H, W, C] in [0, 1]) -> score; equal ones are one function to the compiler.

    With `detail` the network sees what a Gaussian of σ = 1.5 leaves of the image, four times: a small one learns from it fast.
    """

    model: nn.Module
    detail: bool = False

    def __call__(self, params, image):
        score = self.scores(params["variables"], 2 * image[None] - 1)[0]
        return metrics.logistic_map(score, *params["map"])

    def scores(self, variables, images):
        """[B] of images in [-1, 1], before the logistic map."""
        return self.model.apply(variables, self.seen(images), train=False)[:, 0]

    def seen(self, images):
        """What the network gets of images [B, H, W, C] in [-1, 1]."""
        if not self.detail:
            return images
        planes = jnp.moveaxis(images, -1, 1)
        return 4 * jnp.moveaxis(
            planes - metrics.gaussian_filter(planes, taps=7, sigma=1.5, padding="edge"), 1, -1
        )


def _agreement(name, rater_of, source):
    """Evaluation of a quality model: SRCC and PLCC of its scores with held-out opinions."""

    def evaluate(state):
        images = np.stack([source[i]["image"] for i in range(len(source))])
        scores = rated(Rater(name, rater_of(state)), images)
        return {
            "srcc": metrics.srcc(scores, source.opinions),
            "plcc": metrics.plcc(scores, source.opinions, mapped=False),
        }

    return evaluate
