"""One step of learning several tasks at once: each on its own, in inner steps, then all of them fused (ARI, arXiv:2208.12967)."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxface import attacks, axes, losses, optimizers
from jaxface.checks import AtLeast, NonNegative
from jaxface.errors import UserError
from jaxface.optimizers.lifelong import Distance, Fusion
from jaxface.training.frozen import Frozen
from jaxface.training.recognition import network_variables
from jaxface.training.step import TrainState, example_keys

Second = Literal["background", "whole", "clean", "none"]
"""The second inner step: on images whose background, or all of which, is attacked; on the same images again; or none."""
PIXEL_RANGE = (-1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class MetaFusion:
    """How the tasks of a batch are learned and become one network again."""

    kind: Fusion = "ari"
    """Weights of the tasks: ari, by how far each moved a tensor; uniform (iTAML); last, which is what the released code
    computes."""
    distance: Distance = "relative"
    """How far: the L1 distance summed over a tensor, as released, or that relative to the mean over the tasks, which does not
    depend on the tensor's size and the learning rate."""
    floor: Annotated[float, NonNegative] = 0.0
    """What is added to the squared distances, ≥ 0; 0.85 in the released code, of sums."""
    beta: Annotated[float, NonNegative] = 0.5
    """How fast later sessions move less: the fused weights count exp(-beta session / tasks), ≥ 0."""
    inner_reset: bool = True
    """Each task starts from the weights before the step; otherwise where the task before it ended, as in the released code."""
    inner_state: Literal["shared", "per_task"] = "shared"
    """One optimizer state for all tasks, as released, or one for each; plain SGD has none."""
    repeats: Annotated[int, AtLeast(1)] = 1
    """Times that the inner steps are taken."""
    second: Second = "background"
    """The second inner step: background, on images attacked where attention is low; whole, attacked everywhere; clean, on the
    same images again; none."""
    epsilon: Annotated[float, NonNegative] = 8.0
    """Largest change of a pixel by the attack, of 255."""


@dataclasses.dataclass(frozen=True)
class TaskNetwork:
    """A network over the classes of equal tasks, and its losses on the rows of one of them.

    Attributes:
      model: image [B, H, W, C] -> scores [B, tasks · size]; with attention if `attends`.
      tasks: T.
      size: c, classes of each task.
      frozen: what does not train.
    """

    model: nn.Module
    tasks: int
    size: int
    frozen: Frozen = Frozen()

    @property
    def attends(self) -> bool:
        """Whether the network says where it looks, and takes the rows that count for its statistics."""
        return getattr(self.model, "attends", False)

    def check(self, image_shape: tuple[int, int, int], fusion: MetaFusion | None) -> None:
        """Raises UserError for a network that mixes the tasks of a batch, or has no attention where that is asked for."""
        if fusion is not None and fusion.second == "background" and not self.attends:
            raise UserError(
                f"fusion.second: 'background' needs a network with attention, such as attended_resnet; "
                f"{type(self.model).__name__} has none"
            )
        shapes = jax.eval_shape(
            lambda: self.model.init(jax.random.key(0), jnp.zeros((1, *image_shape)), train=False)
        )
        if fusion is not None and "batch_stats" in shapes and not self.attends:
            raise UserError(
                f"backbone: {type(self.model).__name__} has batch statistics, which would mix the tasks of a batch; needs one "
                "without, or an attended network"
            )

    def apply(self, params: Any, extra: dict, images: jax.Array, where: jax.Array, rng: jax.Array):
        """(scores [B, C], attention [B, H, W, 1] of ones where there is none, new extra) in training mode."""
        variables = network_variables(self.frozen.stopped(params)["backbone"], extra)
        options = {"where": where, "attention": True} if self.attends else {}
        with self.frozen.held(params):
            output, updated = self.model.apply(
                variables,
                images,
                train=True,
                mutable=[*variables.keys() - {"params"}],
                rngs={"dropout": rng},
                **options,
            )
        scores, attention = output if self.attends else (output, jnp.ones((*images.shape[:3], 1)))
        return scores, attention, {**extra, **updated}

    def task_loss(self, params, extra, images, labels, task, rng):
        """(mean loss over the rows of a task on its own columns, (new extra, attention))."""
        rows = labels // self.size == task
        scores, attention, extra = self.apply(params, extra, images, rows, rng)
        values = losses.slice_bce_loss(scores, labels, task, size=self.size)
        return row_mean(values, rows), (extra, attention)

    def attack_loss(self, params, extra, images, labels, task, rng):
        """(softmax cross-entropy of the rows of a task over all columns, new extra): what the attack climbs."""
        rows = labels // self.size == task
        scores, _, extra = self.apply(params, extra, images, rows, rng)
        return row_mean(losses.cross_entropy(scores, labels), rows), extra

    def seen_loss(self, params, extra, images, labels, seen, rng):
        """(mean loss over all rows on the columns of all classes seen, (new extra, accuracy among them))."""
        everyone = jnp.ones(len(labels), bool)
        scores, _, extra = self.apply(params, extra, images, everyone, rng)
        told = jnp.where(jnp.arange(scores.shape[1]) < seen, scores, -jnp.inf).argmax(axis=1)
        values = losses.seen_bce_loss(scores, labels, seen)
        return values.mean(), (extra, (told == labels).mean())


def row_mean(values: jax.Array, rows: jax.Array) -> jax.Array:
    """The mean of values [B] over rows [B] bool; under `pmap` a share whose mean over the replicas is that of all rows."""
    count = axes.mean(rows.sum().astype(jnp.float32))
    return jnp.sum(jnp.where(rows, values, 0.0)) / jnp.maximum(count, 1e-6)


def averaged(state: TrainState, params: Any, decay: float | None) -> Any:
    """The moving average of a state once its parameters are `params`."""
    if decay is None:
        return state.ema
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, params)


def meta_fusion_step(
    network: TaskNetwork,
    fusion: MetaFusion,
    optimizer: optax.GradientTransformation,
    rate: Callable[[jax.Array], jax.Array],
    *,
    ema_decay: float | None = None,
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """A pure step: for every task in the batch its inner steps from the slice loss, then the fusion of what they lead to.

    `extra` of a state holds the batch statistics and `session`, `length`: the number of the session, and of its steps. Statistics
    are not fused: they follow the tasks one after the other, through the attack's forward pass too, as released.

    Args:
      network: the network and its losses.
      fusion: what is learned how.
      optimizer: of the inner steps, with a learning rate of 1.
      rate: fraction of the session in [0, 1) -> learning rate.
      ema_decay: of a moving average of the parameters per step.

    Returns:
      step(state, batch) -> (state, metrics): `loss`, the mean over the tasks of that of their first inner step; `tasks`, how many
      there were; `largest_weight`, the largest weight of a task relative to uniform, the mean over the tensors; and `moved`, the
      mean distance that tasks moved the parameters.
    """
    tasks, epsilon = network.tasks, fusion.epsilon * (PIXEL_RANGE[1] - PIXEL_RANGE[0]) / 255

    def inner_steps(task, params, extra, opt_state, batch, keys, rng, scale):
        """The inner steps of one task."""
        images, labels = batch["image"], batch["label"]

        def descend(params, extra, opt_state, images, rng):
            (loss, (extra, attention)), gradients = jax.value_and_grad(network.task_loss, has_aux=True)(
                params, extra, images, labels, task, rng
            )
            updates, opt_state = optimizer.update(axes.mean(gradients), opt_state, params)
            params = optax.apply_updates(params, jax.tree.map(lambda u: scale * u, updates))
            return params, extra, opt_state, loss, attention

        first = None
        for repeat in range(fusion.repeats):
            rngs = jax.random.split(jax.random.fold_in(rng, repeat), 3)
            params, extra, opt_state, loss, attention = descend(params, extra, opt_state, images, rngs[0])
            first = loss if first is None else first
            if fusion.second == "none":
                continue
            shown = images
            if fusion.second != "clean":
                mask = attacks.background_mask(attention)
                mask = mask if fusion.second == "background" else jnp.ones_like(mask)
                start = jax.vmap(
                    lambda key, image, r=repeat: jax.random.uniform(
                        jax.random.fold_in(jax.random.fold_in(key, task), r), image.shape, minval=-1, maxval=1
                    )
                )(keys, images)
                shown, extra = attacks.background_attack(
                    lambda x, p=params, e=extra, r=rngs[1]: network.attack_loss(p, e, x, labels, task, r),
                    images,
                    mask,
                    epsilon * start,
                    epsilon=epsilon,
                    low=PIXEL_RANGE[0],
                    high=PIXEL_RANGE[1],
                )
            params, extra, opt_state, *_ = descend(params, extra, opt_state, shown, rngs[2])
        return params, extra, opt_state, first

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        base, session = state.params, state.extra["session"]
        labels = batch["label"]
        rng = jax.random.fold_in(state.rng, state.step)
        if axes.bound(axes.DATA):
            rng = jax.random.fold_in(rng, jax.lax.axis_index(axes.DATA))
        keys = example_keys(state, len(labels))
        scale = rate(state.step / state.extra["length"])
        counts = axes.mean((labels[:, None] // network.size == jnp.arange(tasks)).sum(axis=0) * 1.0)
        shared = fusion.inner_state == "shared"

        def visit(carry, inputs):
            params, extra, opt_state = carry
            task, count, own_state, key = inputs
            begin = base if fusion.inner_reset else params
            used = opt_state if shared else own_state

            def learn(begin, extra, used):
                return inner_steps(task, begin, extra, used, batch, keys, key, scale)

            def skip(begin, extra, used):
                return params, extra, used, jnp.float32(0)

            params, extra, used, loss = jax.lax.cond(count > 0, learn, skip, begin, extra, used)
            carry = params, extra, used if shared else opt_state
            return carry, (params, loss, None if shared else used)

        (states,) = state.opt_state
        carry = base, state.extra, states if shared else None
        inputs = jnp.arange(tasks), counts, None if shared else states, jax.random.split(rng, tasks)
        (_, extra, opt_state), (thetas, task_losses, own_states) = jax.lax.scan(visit, carry, inputs)

        present = counts > 0
        weights = optimizers.fusion_weights(
            thetas, base, present, kind=fusion.kind, distance=fusion.distance, floor=fusion.floor
        )
        alpha = optimizers.fusion_rate(session, tasks, beta=fusion.beta)
        params = optimizers.fuse_tasks(thetas, base, weights, alpha)
        largest = jnp.stack([w.max() for w in jax.tree.leaves(weights)]).mean() * present.sum()
        moved = jax.tree.map(lambda theta, q: jnp.sum(jnp.abs(theta - q)), thetas, base)
        moved = sum(jax.tree.leaves(moved)) / present.sum() / sum(q.size for q in jax.tree.leaves(base))
        report = {
            "loss": axes.mean(task_losses.sum()) / present.sum(),
            "tasks": present.sum().astype(jnp.float32),
            "largest_weight": largest,
            "moved": moved,
        }
        ema = averaged(state, params, ema_decay)
        opt_states = (opt_state if shared else own_states,)
        return state.replace(
            step=state.step + 1, params=params, extra=extra, opt_state=opt_states, ema=ema
        ), report

    return step


def joint_step(
    network: TaskNetwork,
    optimizer: optax.GradientTransformation,
    rate: Callable[[jax.Array], jax.Array],
    *,
    ema_decay: float | None = None,
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """A pure step on all examples of a batch and all classes seen: replay as it is usually trained, fine-tuning without memory.

    Arguments and state are those of `meta_fusion_step`; the metrics are `loss` and `accuracy` among the classes seen.
    """

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        rng = jax.random.fold_in(state.rng, state.step)
        if axes.bound(axes.DATA):
            rng = jax.random.fold_in(rng, jax.lax.axis_index(axes.DATA))
        seen = (state.extra["session"] + 1) * network.size
        (loss, (extra, accuracy)), gradients = jax.value_and_grad(network.seen_loss, has_aux=True)(
            state.params, state.extra, batch["image"], batch["label"], seen, rng
        )
        gradients, loss, accuracy = axes.mean((gradients, loss, accuracy))
        updates, opt_state = optimizer.update(gradients, state.opt_state[0], state.params)
        scale = rate(state.step / state.extra["length"])
        params = optax.apply_updates(state.params, jax.tree.map(lambda u: scale * u, updates))
        ema = averaged(state, params, ema_decay)
        report = {"loss": loss, "accuracy": accuracy}
        return state.replace(
            step=state.step + 1, params=params, extra=extra, opt_state=(opt_state,), ema=ema
        ), report

    return step
