"""What captions teach a backbone, against labels of some or of all images: INTERN's second experiment in the small.

Methods: intern
"""

import dataclasses
from collections.abc import Generator, Mapping
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.recipes.image_text import UpA, up_a_stage
from jaxface import data as inputs
from jaxface import training
from jaxface.checks import AtLeast, Range, check_fields
from jaxface.data.pipeline.batches import Batches
from jaxface.data.sources.few_data import stratified_subset
from jaxface.data.sources.source import Source, WithFields
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.models.staged import features as staged
from jaxface.training.evaluations.attribute_answers import AttributeHeads, AttributeProbe, labeled_share
from jaxface.training.probe import ProbeSpec

Learn = Literal["captions", "labels", "nothing"]


@dataclasses.dataclass(frozen=True)
class AttributeSpec:
    """Attributes of the captioned images, told by classifiers that a share of them has labels for."""

    learn: Learn | None = None
    """What the backbone learns from: captions of all images (Up-A) or nothing, and linear classifiers then from the labels; or,
    all of it, from the labels. None trains no such network."""
    share: Annotated[float, Range(0, 1, above=True)] = 0.1
    """Share of the images of each value of the first attribute, such as the expression, that have labels."""
    steps: Annotated[int, AtLeast(1)] = 300
    """Steps of a network that learns from labels."""
    batch_size: Annotated[int, AtLeast(2)] = 64
    """Images of such a step; all that have labels where those are fewer."""
    optimizer: training.Optimizer = training.adam(3e-3)
    """Its optimizer."""
    augment: inputs.Augment = inputs.Augment(
        flip=0.0, crop=1.0, crop_scale=(0.7, 1.0), crop_shift=0.0, color=0.8
    )
    """Random changes of the images that it sees; those of Up-A's views by default."""
    probe: ProbeSpec = ProbeSpec.small()
    """The linear classifiers."""


def attribute_stages(
    spec: AttributeSpec,
    up_a: UpA,
    backbone: nn.Module,
    data: inputs.DataSpec,
    *,
    image_size: int,
    seed: int,
    data_seed: int,
    workers: int = 0,
    bfloat16: bool = False,
) -> Generator[training.Stage, training.Outcome, None]:
    """The stages of one such network; the last one, `attributes`, reports.

    Raises:
      UserError: images without attributes, or what `up_a_stage` refuses.
    """
    check_fields(spec, "attributes.")
    split = inputs.load(data, image_size=image_size, seed=data_seed)
    if not hasattr(split.train, "attributes"):
        raise UserError(f"captions: needs images with captions, such as captioned_faces; got {split.name}")
    names = split.train.attribute_names
    rows = stratified_subset(next(iter(split.train.attributes.values())), spec.share, data_seed)
    labeled, values = labeled_share(split.train, rows)
    judged = split.held_out, split.held_out.attributes
    if spec.learn == "labels":
        yield _labels_stage(spec, backbone, names, labeled, values, judged, seed=seed, workers=workers)
        return
    probe = AttributeProbe(backbone, names, labeled, values, *judged, spec=spec.probe, seed=seed)
    if spec.learn == "captions":
        stage, _ = up_a_stage(up_a, backbone, split, seed=seed, workers=workers, bfloat16=bfloat16)
        yield stage

    def init(rng, previous):
        if previous is not None:
            return previous
        image = jnp.zeros((1, *split.train.image_shape))
        variables = backbone.init(rng, image, method=staged)
        extra = {"batch_stats": variables.get("batch_stats", {})}
        return training.create_state(rng, {"backbone": variables["params"]}, extra=extra)

    yield training.Stage("attributes", init=init, evaluate=probe)


def _labels_stage(
    spec: AttributeSpec,
    backbone: nn.Module,
    names: Mapping[str, tuple[str, ...]],
    labeled: Source,
    values: dict[str, np.ndarray],
    judged: tuple[Source, dict[str, np.ndarray]],
    *,
    seed: int,
    workers: int,
) -> training.Stage:
    """A backbone and a linear layer for each attribute, from labels alone."""
    source = WithFields(labeled, **{f"attribute_{name}": column for name, column in values.items()})
    batch_size = min(spec.batch_size, len(source) // jax.device_count() * jax.device_count())

    def scores(params, pooled):
        return {name: pooled @ head["kernel"] + head["bias"] for name, head in params["heads"].items()}

    def loss_fn(params, extra, batch, rng):
        shown, updated = backbone.apply(
            training.network_variables(params["backbone"], extra),
            batch["image"],
            train=True,
            method=staged,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        told, loss, right = scores(params, shown["pooled"]), 0.0, 0.0
        for name in names:
            true = batch[f"attribute_{name}"]
            loss += optax.softmax_cross_entropy_with_integer_labels(told[name], true).mean() / len(names)
            right += jnp.mean(told[name].argmax(1) == true) / len(names)
        return loss, ({**extra, **updated}, {"accuracy": right})

    objective = training.Objective(loss_fn, spec.optimizer.build(spec.steps, network=("backbone", backbone)))

    def init(rng, previous):
        keys = jax.random.split(rng, 1 + len(names))
        shown, variables = backbone.init_with_output(
            keys[0], jnp.zeros((1, *labeled.image_shape)), method=staged
        )
        start, size = jax.nn.initializers.lecun_normal(), shown["pooled"].shape[-1]
        heads = {
            name: {"kernel": start(key, (size, len(classes))), "bias": jnp.zeros(len(classes))}
            for key, (name, classes) in zip(keys[1:], names.items(), strict=True)
        }
        params = {"backbone": variables["params"], "heads": heads}
        extra = {"batch_stats": variables.get("batch_stats", {})}
        return training.create_state(rng, params, objective, extra=extra)

    @jax.jit
    def told(variables, batch):
        params, extra = variables
        image = normalize_pixels(batch["image"])
        network = training.network_variables(params["backbone"], extra)
        return scores(params, backbone.apply(network, image, train=False, method=staged)["pooled"])

    def answers(state, source):
        variables = state.averaged_params, {"batch_stats": state.extra["batch_stats"]}
        return training.map_source(told, source, variables)

    def open_batches() -> Batches:
        return inputs.batches(
            source,
            batch_size=batch_size,
            seed=seed,
            augment=spec.augment,
            shard=(jax.process_index(), jax.process_count()),
            workers=workers,
        )

    open_batches()  # reads nothing yet, but refuses what cannot be used
    return training.Stage(
        "attributes",
        init=init,
        step=training.gradient_step(objective),
        batches=lambda state: open_batches(),
        steps=spec.steps,
        evaluate=AttributeHeads(answers, *judged),
    )
