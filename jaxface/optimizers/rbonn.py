"""What RBONN asks of an optimizer: the gradient of the step before, or the paper's correction of gated filters.

Methods: rbonn
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxface.checks import Fraction, NonNegative, check_number
from jaxface.layers.rbonn import backtrack, check_kernel, density_mask, paper_gradients


class LastGradientState(NamedTuple):
    """The gradients of the step before.

    Attributes:
      last_gradient: like the parameters, zeros before the first step; `optax.MaskedNode` for a leaf that is not wanted.
    """

    last_gradient: Any


def keep_last_gradient(leaves: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Keeps the gradients of a step for the next one, and changes nothing: the first link of a chain.

    They are those of the whole batch: averaged over replicas and micro-batches, as the optimizer sees them.

    Args:
      leaves: parameters -> tree of bool, whose gradients (`name_mask`).

    Returns:
      An optax transformation whose state is a `LastGradientState`.

    Example:
      >>> import optax
      >>> optimizer = optax.chain(keep_last_gradient(lambda params: {"w": True}), optax.sgd(0.1))
      >>> _, state = optimizer.update({"w": jnp.array(2.0)}, optimizer.init({"w": jnp.array(1.0)}))
      >>> float(last_gradient(state)["w"])
      2.0
    """

    def init(params):
        return LastGradientState(_only(leaves(params), jax.tree.map(jnp.zeros_like, params)))

    def update(gradients, state, params=None):
        del state, params
        return gradients, LastGradientState(_only(leaves(gradients), gradients))

    return optax.GradientTransformation(init, update)


def last_gradient(state: Any) -> dict:
    """What `keep_last_gradient` kept, from any state that holds one of it, as nested dicts without the leaves it did not keep.

    Args:
      state: of an optimizer.

    Returns:
      The gradients by the names of their parameters.

    Example:
      >>> state = keep_last_gradient(lambda params: {"w": True}).init({"w": jnp.array(1.0)})
      >>> float(last_gradient(state)["w"])  # before the first step
      0.0
    """
    kept = optax.tree.get(state, "last_gradient")

    def prune(node):
        if not isinstance(node, dict):
            return None if isinstance(node, optax.MaskedNode) else node
        children = {name: prune(child) for name, child in node.items()}
        return {name: child for name, child in children.items() if child is not None} or None

    return prune(kept) or {}


def _only(wanted, tree):
    return jax.tree.map(lambda on, leaf: leaf if on else optax.MaskedNode(), wanted, tree)


class RecurrentBilinearState(NamedTuple):
    """State of `recurrent_bilinear`.

    Attributes:
      inner: of the optimizer.
      previous: parameters before the last step.
    """

    inner: Any
    previous: Any


def recurrent_bilinear(
    inner: optax.GradientTransformation, *, weight: float = 1e-4, tau: float = 0.6
) -> optax.GradientTransformationExtraArgs:
    """The paper's recurrent step around an optimizer; with plain gradient descent it is `jaxface.layers.rbonn.paper_update`.

        g_w <- g_w + λ A (A w - sgn w),   g_A <- g_A + λ <w, A w - sgn w>,   g_U = <g_w, DReLU(w of the step before, A)>
        (u_w, u_A, u_U) = inner(g);   w <- w + u_w + U·DReLU(w, A),   A <- |A + u_A|,   U <- |U + u_U|

    A layer is a dict of `kernel` w, `density` A and `recurrence` U, as `RBOConv` in the paper's variant has them. All other
    parameters are the inner optimizer's alone.

    Args:
      inner: the whole optimizer, learning rate included.
      weight: λ ≥ 0.
      tau: τ in [0, 1] of the gate.

    Returns:
      An optax transformation whose `update` needs `params`.

    Raises:
      UserError: λ or τ out of range; in `init`, a kernel that is not [kh, kw, I, O].

    Example:
      >>> import optax
      >>> params = {"layer": {"kernel": jnp.ones((1, 1, 2, 2)), "density": jnp.ones(2), "recurrence": jnp.ones(2)}}
      >>> optimizer = recurrent_bilinear(optax.sgd(0.1))
      >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
      >>> sorted(updates["layer"])
      ['density', 'kernel', 'recurrence']
    """
    check_number("weight", weight, NonNegative)
    check_number("tau", tau, Fraction)
    inner = optax.with_extra_args_support(inner)

    def init(params):
        _layers(lambda layer: check_kernel(layer["kernel"]) or layer, params)
        return RecurrentBilinearState(inner.init(params), jax.tree.map(jnp.copy, params))

    def update(gradients, state, params=None, **extra):
        if params is None:
            raise ValueError("params: needs the parameters, got None")

        def coupled(layer, gradient, previous):
            by_kernel, by_density, by_recurrence = paper_gradients(
                layer["kernel"],
                layer["density"],
                (gradient["kernel"], gradient["density"]),
                previous["kernel"],
                weight=weight,
                tau=tau,
            )
            return {
                **gradient,
                "kernel": by_kernel,
                "density": by_density,
                "recurrence": by_recurrence,
            }

        def gated(layer, update):
            w, density, recurrence = layer["kernel"], layer["density"], layer["recurrence"]
            mask = density_mask(1 / density, w, tau, "paper")
            return {
                **update,
                "kernel": update["kernel"] + backtrack(w, recurrence, mask, variant="paper") - w,
                "density": jnp.abs(density + update["density"]) - density,
                "recurrence": jnp.abs(recurrence + update["recurrence"]) - recurrence,
            }

        gradients = _layers(coupled, params, gradients, state.previous, otherwise=lambda p, g, _: g)
        updates, new = inner.update(gradients, state.inner, params, **extra)
        updates = _layers(gated, params, updates, otherwise=lambda p, u: u)
        return updates, RecurrentBilinearState(new, params)

    return optax.GradientTransformationExtraArgs(init, update)


def _layers(change: Callable, first: Any, *rest: Any, otherwise: Callable = lambda leaf: leaf) -> Any:
    """`change` on every dict with a `density`, `otherwise` on the other leaves."""

    def is_layer(node):
        return isinstance(node, dict) and "density" in node

    def visit(node, *others):
        return (change if is_layer(node) else otherwise)(node, *others)

    return jax.tree.map(visit, first, *rest, is_leaf=is_layer)
