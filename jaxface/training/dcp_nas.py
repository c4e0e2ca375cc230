"""The search of DCP-NAS: a real and a binary supernet that take turns with one architecture (arXiv:2306.15390).

    Parent phase   w on one half of the images, α on the other, ψ; α̂ <- α
    Child phase    α̂ on the gradient of `jaxface.losses.child_arch_gradient`, the Parent frozen, ψ̂; ŵ by its classes; α <- α̂

Beside it the searches that it is compared with: DARTS on either supernet alone, and CP-NAS, which samples architectures and drops
the worst operation of every edge by the accuracies of both. All steps are pure functions of one kind of state and of batches of
which the even rows are for the architecture and the odd ones for weights.
"""

import dataclasses
import functools
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxface import axes, losses, optimizers
from jaxface.checks import AtLeast, NonNegative, OpenFraction, Positive
from jaxface.losses.dcp_nas import Curvature, Distance
from jaxface.models.cells import WEIGHTLESS, SuperNet
from jaxface.optimizers.dcp_nas import GateNorm
from jaxface.training.step import TrainState

Network = Literal["parent", "child"]
WATCHED = ("ratio", "cosine", "tangent_cosine", "steps")
"""Sums over the Child's steps, and their number, in a state's `extra["watched"]`."""
_PSI_BETAS = (0.9, 0.999)
_CLOSED = -1e9  # of an operation that a sampled architecture has not: its share is exactly 0


@dataclasses.dataclass(frozen=True)
class CellSearch:
    """How the architecture is moved."""

    ratio: Annotated[float | None, NonNegative] = 0.3
    """‖tangent term‖ / ‖g‖ that λ is set for in every step; 0 leaves the term out, None takes `strength`."""
    strength: Annotated[float, NonNegative] = 5e-3
    """λ, weight of the discrepancy, where there is no ratio."""
    curvature: Curvature = "ggn"
    """What stands for the Hessian: the Gauss-Newton product, the Hessian itself, or the product with the printed sign."""
    distance: Distance = "frobenius"
    """Distance of the two architecture gradients."""
    reconstruction: Annotated[float, NonNegative] = 5e-5
    """μ, weight of ‖w - β sgn w‖²; 0.2 as printed freezes every sign."""
    reconstruction_mean: bool = False
    """Mean over the weights instead of the sum, under which 0.2 can be used."""
    decoupled: bool = True
    """Correct the architecture where weights are dense (ψ)."""
    eps: Annotated[float, OpenFraction] = 0.84
    """ε of the gate: the operations above rank ⌊ε M⌋ are corrected."""
    gate_norm: GateNorm = "mean"
    """Norm of an operation's weights: mean square of a weight, or the printed sum."""
    eta: Annotated[float, Positive] = 1.0
    """Factor η on the correction; as printed the product of two learning rates, 7.5e-6, which corrects nothing."""
    psi_rate: Annotated[float, Positive] = 1e-3
    """Learning rate of ψ (Adam)."""
    psi_limit: Annotated[float | None, Positive] = 1e-3
    """Largest ψ: an edge's row grows by 1 + ψ in every step."""
    reflect: bool = False
    """|ψ| as printed instead of max(0, ψ)."""
    beta_p: Annotated[float, NonNegative] = 2.0
    """β_P of CP-NAS's indicator."""
    repeats: Annotated[int, AtLeast(1)] = 20
    """Times that CP-NAS samples all live operations before it drops one."""


def cp_steps(operations: int, repeats: int) -> int:
    """Steps of CP-NAS's search: `repeats` architectures for each live operation, until one of `operations` is left.

    Example:
      >>> cp_steps(6, 20)
      400
    """
    return repeats * sum(range(2, operations + 1))


class Searcher:
    """Supernets, their optimizers and the steps of every search.

    Args:
      parent, child: `SuperNet` of form "real" and "binary", alike in all else.
      image_shape: (H, W, C).
      search: how the architecture is moved.
      weights: optimizer of the Parent's weights, and of the Child's.
      architecture: optimizer of α and α̂, which share its state.
      flip_window: steps over which changed signs are averaged.
      points: of the recorded trajectory; total: architecture steps of the whole search.
    """

    def __init__(
        self,
        parent: SuperNet,
        child: SuperNet,
        image_shape: tuple[int, int, int],
        search: CellSearch,
        weights: tuple[optax.GradientTransformation, optax.GradientTransformation],
        architecture: optax.GradientTransformation,
        *,
        flip_window: int = 50,
        points: int = 50,
        total: int = 1,
    ):
        self.networks = {"parent": parent, "child": child}
        self.image_shape, self.search = image_shape, search
        flips = optimizers.track_sign_flips(_binary_kernels, flip_window)
        self.weights = {"parent": weights[0], "child": optax.chain(weights[1], flips)}
        self.architecture = architecture
        self.psi = optax.adam(search.psi_rate, *_PSI_BETAS)
        self.points, self.total = points, max(total, 1)
        # One object each, so that phases share one compiled step and one compiled exchange.
        self.steps = {name: functools.partial(self._alone, name) for name in ("parent", "child")}
        self.steps |= {"guided": self._guided, "cp": self._sampled}
        self.enter = {name: jax.jit(functools.partial(_inherit, name)) for name in ("parent", "child")}

    @property
    def primitives(self) -> tuple[str, ...]:
        """Names of the operations, in the order of α's columns."""
        return self.networks["parent"].primitives

    # The state.

    def start(self, rng: jax.Array) -> TrainState:
        """Fresh supernets and α ~ 1e-3 N(0, 1)."""
        search = self.search
        alpha_rng, *rngs = jax.random.split(rng, 3)
        shape = self.networks["parent"].alpha_shape
        alpha = 1e-3 * jax.random.normal(alpha_rng, shape)
        params: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        for name, key in zip(("parent", "child"), rngs, strict=True):
            variables = self.networks[name].fresh(key, self.image_shape)
            params[name] = variables.pop("params")
            extra[f"{name}_statistics"] = variables["batch_stats"]
        edges, operations = shape
        params["architecture"] = {"parent": alpha, "child": alpha}
        params["psi"] = {name: jnp.zeros(edges) for name in self.networks}
        extra["corrected"] = {name: jnp.zeros(shape) for name in self.networks}
        # Arrays of the state: other strengths are no other program.
        strengths = {
            "tangent": search.strength if search.ratio is None else search.ratio,
            "reconstruction": search.reconstruction,
            "eta": search.eta,
        }
        extra["strengths"] = {name: jnp.asarray(value, jnp.float32) for name, value in strengths.items()}
        extra["watched"] = {name: jnp.zeros(()) for name in WATCHED}
        extra["moved"] = jnp.zeros((), jnp.int32)
        extra["trajectory"] = jnp.tile(jax.nn.softmax(alpha), (self.points, 1, 1))
        extra["sampled"] = {
            "alive": jnp.ones(shape, bool),
            "sums": jnp.zeros((2, *shape)),
            "counts": jnp.zeros(shape),
            "scores": jnp.zeros(shape),
        }
        opt_state = (
            self.weights["parent"].init(params["parent"]),
            self.weights["child"].init(params["child"]),
            self.architecture.init({"alpha": alpha}),
            {name: self.psi.init(jnp.zeros(edges)) for name in self.networks},
        )
        return TrainState(jnp.zeros((), jnp.int32), rng, params, extra, opt_state)

    def _apply(self, name: Network, params, state: TrainState, alpha, images):
        """Logits of a supernet on a batch, and its new batch statistics."""
        variables = {"params": params, "batch_stats": state.extra[f"{name}_statistics"]}
        logits, updated = self.networks[name].apply(
            variables, images, alpha, train=True, mutable=["batch_stats"]
        )
        return logits, updated["batch_stats"]

    def _logits(self, name: Network, state: TrainState, images):
        """α -> logits of a supernet with its weights as they are."""
        return lambda alpha: self._apply(name, state.params[name], state, alpha, images)[0]

    # Weights.

    def _train_weights(self, name: Network, state: TrainState, alpha, images, objective):
        """One step of a supernet's weights; `objective(logits)` is to be minimized."""
        index = ("parent", "child").index(name)

        def loss_fn(params):
            logits, statistics = self._apply(name, params, state, alpha, images)
            loss = objective(logits)
            report = {"loss": loss}
            if name == "child":
                error = losses.reconstruction_loss(
                    *kernels_and_scales(params), mean=self.search.reconstruction_mean
                )
                report["reconstruction_loss"] = error
                loss = loss + state.extra["strengths"]["reconstruction"] * error
            return loss, (statistics, report)

        gradients, (statistics, report) = jax.grad(loss_fn, has_aux=True)(state.params[name])
        gradients, report = axes.mean((gradients, report))
        optimizer = self.weights[name]
        updates, opt_state = optimizer.update(gradients, state.opt_state[index], state.params[name])
        params = {**state.params, name: optax.apply_updates(state.params[name], updates)}
        opt_states = (*state.opt_state[:index], opt_state, *state.opt_state[index + 1 :])
        extra = {**state.extra, f"{name}_statistics": statistics}
        return state.replace(params=params, extra=extra, opt_state=opt_states), report

    # The architecture.

    def _move(self, name: Network, state: TrainState, gradient):
        """One step of an architecture, decoupled or not; ψ learns from the gradient at what the step before corrected."""
        search, params = self.search, state.params
        eta = state.extra["strengths"]["eta"]
        alpha, psi = params["architecture"][name], params["psi"][name]
        psi_state, report = state.opt_state[3], {}
        updates, arch_state = self.architecture.update(
            {"alpha": gradient}, state.opt_state[2], {"alpha": alpha}
        )
        moved, corrected = alpha + updates["alpha"], state.extra["corrected"]
        if search.decoupled:
            slope = eta * jnp.sum(corrected[name] * gradient, axis=1)
            change, new = self.psi.update(slope, psi_state[name])
            psi = optimizers.bounded_psi(psi + change, reflect=search.reflect, limit=search.psi_limit)
            norms = self._norms(name, params[name])
            moved, gate = optimizers.decoupled_step(moved, alpha, psi, norms, eta=eta, eps=search.eps)
            psi_state, params = {**psi_state, name: new}, {**params, "psi": {**params["psi"], name: psi}}
            corrected = {**corrected, name: jnp.where(gate, alpha, 0.0)}
            report = {"psi": psi.max()}
        params = {**params, "architecture": {**params["architecture"], name: moved}}
        report["alpha"] = jnp.abs(moved).max()
        extra = self._recorded({**state.extra, "corrected": corrected}, jax.nn.softmax(moved))
        return (
            state.replace(
                params=params, extra=extra, opt_state=(*state.opt_state[:2], arch_state, psi_state)
            ),
            report,
        )

    def _recorded(self, extra, shares):
        """The trajectory with the shares of this step; what is not reached yet shows them too."""
        index = jnp.minimum(extra["moved"] * self.points // self.total, self.points - 1)
        later = jnp.arange(self.points)[:, None, None] >= index
        trajectory = jnp.where(later, shares, extra["trajectory"])
        return {**extra, "trajectory": trajectory, "moved": extra["moved"] + 1}

    def _norms(self, name: Network, params) -> jax.Array:
        """R [M] of the operations of a supernet; of the Child those of β sgn(w)."""
        squares, counts = {}, {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            names = [entry.key for entry in path]
            operation = next((n for n in names if n in self.primitives), None)
            if operation is None or operation in WEIGHTLESS or names[-1] != "kernel":
                continue
            if name == "child":
                scale = functools.reduce(lambda tree, n: tree[n], [*names[:-1], "scale"], params)
                square = jnp.sum(jnp.square(scale)) * (leaf.size / scale.size)
            else:
                square = jnp.sum(jnp.square(leaf))
            squares[operation] = squares.get(operation, 0.0) + square
            counts[operation] = counts.get(operation, 0) + leaf.size
        each = [jnp.asarray(squares.get(n, 0.0), jnp.float32) for n in self.primitives]
        numbers = jnp.asarray([float(counts.get(n, 0)) for n in self.primitives])
        return optimizers.operation_norms(jnp.stack(each), numbers, self.search.gate_norm)

    # The steps.

    def _alone(self, name: Network, state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        """A supernet by labels: weights, then architecture; the Parent's phase, and DARTS on either."""
        for_alpha, for_weights = halves(batch)

        def objective(logits):
            return -losses.parent_performance(logits, for_weights["label"])

        alpha = state.params["architecture"][name]
        state, report = self._train_weights(name, state, alpha, for_weights["image"], objective)

        def performance(alpha):
            logits = self._logits(name, state, for_alpha["image"])(alpha)
            right = (logits.argmax(-1) == for_alpha["label"]).mean()
            return -losses.parent_performance(logits, for_alpha["label"]), right

        (loss, right), gradient = jax.value_and_grad(performance, has_aux=True)(alpha)
        gradient, loss, right = axes.mean((gradient, loss, right))
        state, moved = self._move(name, state, gradient)
        report |= {"arch_loss": loss, "accuracy": right, "arch_norm": optax.tree.norm(gradient), **moved}
        return state.replace(step=state.step + 1), report

    def _guided(self, state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        """The Child's phase: its architecture on the tangent of the frozen Parent, its weights by the Parent's classes."""
        for_alpha, for_weights = halves(batch)
        search, images = self.search, for_alpha["image"]
        theirs, ours = (state.params["architecture"][name] for name in ("parent", "child"))
        parent = self._logits("parent", state, images)

        # t and g on the same images, or their difference is noise.
        tangent = losses.parent_tangent(parent, theirs, for_alpha["label"])
        parts = losses.child_arch_gradient(
            self._logits("child", state, images),
            ours,
            jax.nn.softmax(parent(theirs)),
            tangent,
            **{"strength" if search.ratio is None else "ratio": state.extra["strengths"]["tangent"]},
            curvature=search.curvature,
            distance=search.distance,
        )
        state, moved = self._move("child", state, parts.total)

        answers = jax.nn.softmax(self._logits("parent", state, for_weights["image"])(theirs))
        state, report = self._train_weights(
            "child",
            state,
            state.params["architecture"]["child"],
            for_weights["image"],
            lambda logits: -losses.child_performance(logits, answers),
        )
        watched = {
            "ratio": parts.ratio,
            "cosine": _cosine(-parts.total, tangent),
            "tangent_cosine": _cosine(-parts.tangent_term, tangent),
        }
        report |= moved | watched | {"discrepancy": parts.discrepancy, "strength": parts.strength}
        report["arch_norm"] = optax.tree.norm(parts.total)
        sums = {name: state.extra["watched"][name] + value for name, value in watched.items()}
        sums["steps"] = state.extra["watched"]["steps"] + 1
        return state.replace(step=state.step + 1, extra={**state.extra, "watched": sums}), report

    def _sampled(self, state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        """CP-NAS: an architecture of one operation per edge trains and is judged; at the end of a round the worst goes."""
        for_alpha, for_weights = halves(batch)
        schedule = self._schedule()
        live, sample, column, last = (jnp.asarray(x)[jnp.minimum(state.step, len(x) - 1)] for x in schedule)
        sampled = state.extra["sampled"]
        key = jax.random.fold_in(jax.random.fold_in(state.rng, live), sample)
        order = optimizers.sample_without_replacement(key, sampled["alive"])
        chosen = jax.nn.one_hot(order[:, column], len(self.primitives), dtype=bool)
        alpha = jnp.where(chosen, 0.0, _CLOSED)

        def objective(logits):
            return -losses.parent_performance(logits, for_weights["label"])

        state, report = self._train_weights("parent", state, alpha, for_weights["image"], objective)
        answers = jax.nn.softmax(self._logits("parent", state, for_weights["image"])(alpha))
        state, childs = self._train_weights(
            "child",
            state,
            alpha,
            for_weights["image"],
            lambda logits: -losses.child_performance(logits, answers),
        )
        right = [
            (self._logits(name, state, for_alpha["image"])(alpha).argmax(-1) == for_alpha["label"]).mean()
            for name in ("parent", "child")
        ]
        right = axes.mean(jnp.stack(right))
        sums = sampled["sums"] + jnp.where(chosen, right[:, None, None], 0.0)
        counts = sampled["counts"] + chosen
        alive, means = sampled["alive"], sums / jnp.maximum(counts, 1)
        scores = optimizers.cp_indicator(*means, self.search.beta_p, where=alive)
        worst = jnp.where(alive, scores, jnp.inf).argmin(axis=1)
        dropped = jax.nn.one_hot(worst, alive.shape[1], dtype=bool)
        # In the order in which they go, the survivors after the rest.
        ranks = jnp.where(alive, alive.shape[1] - live + scores + ~dropped, sampled["scores"])
        end = {
            "alive": alive & ~dropped,
            "sums": jnp.zeros_like(sums),
            "counts": jnp.zeros_like(counts),
            "scores": ranks,
        }
        on = {**sampled, "sums": sums, "counts": counts}
        sampled = jax.tree.map(functools.partial(jnp.where, last), end, on)
        architecture = {name: sampled["scores"] for name in self.networks}
        shares = sampled["alive"] / sampled["alive"].sum(axis=1, keepdims=True)
        extra = self._recorded({**state.extra, "sampled": sampled}, shares)
        report |= {"child_loss": childs["loss"], "parent_accuracy": right[0], "accuracy": right[1]}
        state = state.replace(params={**state.params, "architecture": architecture}, extra=extra)
        return state.replace(step=state.step + 1), report

    def _schedule(self) -> tuple[np.ndarray, ...]:
        """(live operations K, sample, its column, whether a round ends) of every step."""
        rows = [
            (live, sample, column, (sample, column) == (self.search.repeats - 1, live - 1))
            for live in range(len(self.primitives), 1, -1)
            for sample in range(self.search.repeats)
            for column in range(live)
        ]
        return tuple(np.array(column) for column in zip(*rows, strict=True))


def _inherit(name: Network, state: TrainState) -> TrainState:
    """A phase of `name` begins with the other's architecture, and corrects nothing of another one."""
    other = {"parent": "child", "child": "parent"}[name]
    architecture = {**state.params["architecture"], name: state.params["architecture"][other]}
    corrected = {**state.extra["corrected"], name: jnp.zeros_like(architecture[name])}
    return state.replace(
        params={**state.params, "architecture": architecture}, extra={**state.extra, "corrected": corrected}
    )


def halves(batch: dict) -> tuple[dict, dict]:
    """Rows of a batch for the architecture, and those for weights: the even and the odd ones."""
    return tuple({name: value[first::2] for name, value in batch.items()} for first in (0, 1))


def kernels_and_scales(params: dict, prefix: str = "") -> tuple[dict, dict]:
    """(latent kernels, |β|) of every binary layer of a supernet, by path; stacked ones [E, ..., O] and [E, 1, …, O]."""
    if "kernel" in params and "scale" in params:
        kernel, scale = params["kernel"], jnp.abs(params["scale"])
        shape = (*scale.shape[:-1], *(1,) * (kernel.ndim - scale.ndim), scale.shape[-1])
        return {prefix: kernel}, {prefix: scale.reshape(shape)}
    kernels, scales = {}, {}
    for name, value in params.items():
        if isinstance(value, dict):
            inner = kernels_and_scales(value, f"{prefix}/{name}")
            kernels |= inner[0]
            scales |= inner[1]
    return kernels, scales


def _binary_kernels(params):
    """True for the latent kernels inside of cells."""

    def latent(path, _):
        names = [entry.key for entry in path]
        return names[0].startswith("cell") and names[-1] == "kernel"

    return jax.tree_util.tree_map_with_path(latent, params)


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    lengths = jnp.sqrt(jnp.sum(a**2) * jnp.sum(b**2))
    return jnp.sum(a * b) / jnp.maximum(lengths, 1e-20)
