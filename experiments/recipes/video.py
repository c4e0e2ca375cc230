"""The training of a video codec whose first frames are coded as pictures are.

Methods: edic
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from jaxface import data as inputs
from jaxface import inference, losses, training
from jaxface.checks import Fraction, NonNegative, ProperFraction
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.layers.one_draw import init_at_once
from jaxface.models.compression import EDIC
from jaxface.models.compression.video import DVC, VideoSpec
from jaxface.training.evaluations.rate_distortion import to_fractions


@dataclasses.dataclass(frozen=True)
class PredictionSpec:
    """How predicted frames are coded, and trained."""

    network: VideoSpec = VideoSpec()
    """The network of predicted frames."""
    steps: Annotated[int, NonNegative] = 0
    """Training steps; 0 for no video codec."""
    flow_first: Annotated[float, ProperFraction] = 0.15
    """Fraction of the steps in which the flow alone learns, from the warped frame."""
    auxiliary: Annotated[float, NonNegative] = 0.1
    """Weight of the errors of the warped frame and of the prediction beside that of the decoded frame."""
    auxiliary_until: Annotated[float, Fraction] = 1.0
    """Fraction of the steps in which they count."""
    clamp: Annotated[float, NonNegative] = 0.5
    """Largest entry of a gradient, element by element."""
    optimizer: training.Optimizer = training.adam(2e-3, schedule="step", decay_at=(0.8,))
    """Optimizer."""


def check_clips(split: inputs.Split, spec: PredictionSpec) -> None:
    """Raises UserError unless the data are clips that the network takes."""
    record = split.train[0]
    if "frames" not in record:
        raise UserError(f"data: needs clips, such as moving_leaves; {split.name} has single images")
    sides = record["frames"].shape[1:3]
    if any(side % spec.network.multiple for side in sides):
        raise UserError(
            f"data: needs frames with sides of multiples of {spec.network.multiple}, got {sides[1]}x{sides[0]}"
        )


def prediction_stage(
    name: str,
    spec: PredictionSpec,
    intra: EDIC,
    split: inputs.Split,
    weight: float,
    *,
    batch_size: int,
    seed: int,
    workers: int = 0,
    log_space: bool = True,
    origin: str | None = None,
) -> training.Stage:
    """A stage that trains predicted frames on clips, behind one that trained the codec of first frames, which is frozen here.

    The loss of a clip is the mean over its frames but the first of

        λ [MSE(x̂) + 0.1 (MSE(w) + MSE(x̄))] + bpp

    each told from the decoded frame before it, through which no gradient goes.

    Args:
      name: of the stage.
      spec: network and training.
      intra: network of first frames; the stage before leaves its parameters as `params["codec"]`.
      split: clips.
      weight: λ.
      batch_size, seed, workers: of the batches.
      log_space: as in `DVC`.
      origin: what it is trained on, for people.
    """
    check_clips(split, spec)
    network = DVC(spec.network, log_space=log_space)
    rule = optax.chain(optax.clip(spec.clamp), spec.optimizer.build(max(spec.steps, 1)))
    warm, until = round(spec.flow_first * spec.steps), round(spec.auxiliary_until * spec.steps)
    moves = spec.network.prediction == "motion"

    def loss_fn(params, extra, batch, rng):
        of_flip, rng = jax.random.split(rng)
        frames = to_fractions(normalize_pixels(batch["frames"]))
        # Both flips, of a clip as a whole.
        turned = jax.random.bernoulli(of_flip, shape=(2, len(frames), 1, 1, 1, 1))
        frames = jnp.where(turned[0], frames[:, :, ::-1], frames)
        frames = jnp.where(turned[1], frames[:, :, :, ::-1], frames)
        taken = extra["taken"]
        first = intra.apply({"params": extra["codec"]}, frames[:, 0])["x_rec"]
        reference = jax.lax.stop_gradient(jnp.clip(first, 0, 1))

        def predicted(reference, inputs):
            frame, number = inputs
            told = network.apply(
                {"params": params["video"]}, frame, reference, rng=jax.random.fold_in(rng, number)
            )
            bits = (told["bits_m"] + told["bits_y"] + told["bits_z"]).sum()
            loss, report = losses.rd_loss(frame, told["x_rec"], bits, weight=weight)
            if moves:
                errors = [
                    jnp.mean(jnp.square(told[part] - frame)) for part in ("warped", "prediction", "aligned")
                ]
                loss = loss + weight * spec.auxiliary * (taken < until) * (errors[0] + errors[1])
                loss = jnp.where(taken < warm, weight * errors[2], loss)
                report = {**report, "aligned": errors[2]}
            return jax.lax.stop_gradient(jnp.clip(told["x_rec"], 0, 1)), (loss, report)

        # Compiled once for all frames.
        others = jnp.moveaxis(frames[:, 1:], 1, 0)
        _, (loss, report) = jax.lax.scan(predicted, reference, (others, jnp.arange(len(others))))
        return loss.mean(), ({**extra, "taken": taken + 1}, jax.tree.map(jnp.mean, report))

    objective = training.Objective(loss_fn, rule)

    def init(rng, previous):
        frame = jnp.zeros((1, *split.train[0]["frames"].shape[1:]))
        params = {"video": init_at_once(network, rng, frame, frame)["params"]}
        extra = {"codec": previous.averaged_params["codec"], "taken": jnp.zeros((), jnp.int32)}
        return training.create_state(rng, params, objective, extra=extra)

    def open_batches():
        shard = (jax.process_index(), jax.process_count())
        return inputs.batches(split.train, batch_size=batch_size, seed=seed, shard=shard, workers=workers)

    open_batches()
    return training.Stage(
        name=name,
        key="video",
        init=init,
        step=training.gradient_step(objective),
        batches=lambda state: open_batches(),
        steps=spec.steps,
        evaluate=training.VideoRateDistortion(network, intra, split.held_out, weight),
        description=inference.video_description(spec.network, intra.spec, weight, origin=origin),
    )
