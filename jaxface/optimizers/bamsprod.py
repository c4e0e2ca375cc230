"""BAMSProd: AMSGrad whose second moment is projected into a range set by the quantization error (arXiv:2009.13799).

For the real-valued latent weights w of binary layers, which use sgn(w) times a scale. Early the range is open and the rule is
AMSGrad; it closes onto one value, and late the rule is momentum SGD with a step set by the quantization error.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxface.checks import NonNegative, Positive, ProperFraction, check_number
from jaxface.errors import UserError
from jaxface.optimizers.box import box_update, project_box
from jaxface.optimizers.rules import RULES, Rule
from jaxface.optimizers.uncorrected_adam import zeros

DIAMETER = 2.0
"""Of the box [-1, 1] in the maximum norm."""


class BamsprodState(NamedTuple):
    """What BAMSProd remembers; moments like the parameters, in float32 or wider.

    Attributes:
      count: int32 scalar, steps taken.
      mu: first moment.
      nu: second moment.
      nu_max: element-wise maximum of the second moment.
      l_inf: one value per leaf, or [O] with `per_channel`: the decaying maximum of the gradient's size.
      q_sum: the same shape: sum over the steps of the quantization error.
    """

    count: jax.Array
    mu: optax.Updates
    nu: optax.Updates
    nu_max: optax.Updates
    l_inf: optax.Updates
    q_sum: optax.Updates


def h_norm_scale(weights: jax.Array, h: jax.Array, *, axis: Any = None) -> jax.Array:
    """The scale a > 0 for which a sgn(w) is nearest to w in the norm that h weighs.

        a* = Σ_i h_i |w_i| / Σ_i h_i

    Args:
      weights: [...] float.
      h: of the same shape, ≥ 0; all zero counts as all one.
      axis: of the group, all unless given.

    Returns:
      a* of every group, float.

    Example:
      >>> w, h = jnp.array([0.3, -0.2, 0.1, -0.4]), jnp.array([1.0, 2.0, 3.0, 4.0])
      >>> round(h_norm_scale(w, h).item(), 6)
      0.26
    """
    return jnp.sum(_share(h, axis) * jnp.abs(weights), axis=axis)


def h_norm_quant_error(
    weights: jax.Array, h: jax.Array, *, scale: float | None = None, axis: Any = None
) -> jax.Array:
    """Distance of w to its binary weights a sgn(w), in the norm that h weighs, divided by the root of Σ h.

        q = sqrt( Σ_i h_i (w_i - a sgn(w_i))² / Σ_i h_i )

    Args:
      weights: [...] float; sgn(0) = +1.
      h: of the same shape, ≥ 0; all zero counts as all one.
      scale: a; the best one, `h_norm_scale`, unless given.
      axis: of the group, all unless given.

    Returns:
      q ≥ 0 of every group, float.

    Example:
      >>> w, h = jnp.array([0.3, -0.2, 0.1, -0.4]), jnp.array([1.0, 2.0, 3.0, 4.0])
      >>> round(h_norm_quant_error(w, h).item(), 6)
      0.128062
    """
    share, size = _share(h, axis), jnp.abs(weights)
    # |w - a sgn(w)| = ||w| - a|
    a = jnp.sum(share * size, axis=axis, keepdims=True) if scale is None else scale
    return jnp.sqrt(jnp.sum(share * jnp.square(size - a), axis=axis))


def range_bounds(
    t: jax.Array | float, target: jax.Array | float, gamma: float
) -> tuple[jax.Array, jax.Array]:
    """The range of the second moment after t steps: (0, ∞) at t = 0, closing onto the target.

        c_l = E (1 - 1 / (γ t + 1)),   c_u = E (1 + 1 / (γ t))

    Args:
      t: steps, ≥ 0.
      target: E ≥ 0, of any shape.
      gamma: γ ≥ 0, how fast the range closes; 0 never closes it.

    Returns:
      (c_l, c_u), of the shape of the target.

    Example:
      >>> lower, upper = range_bounds(1000, 2.0, 1e-3)
      >>> lower.item(), upper.item()
      (1.0, 4.0)
    """
    target = jnp.asarray(target)
    progress = gamma * jnp.asarray(t, target.dtype)
    is_open = progress == 0
    lower = target * (progress / (progress + 1))
    upper = target * (1 + 1 / jnp.where(is_open, 1, progress))
    return lower, jnp.where(is_open, jnp.inf, upper)


def scale_by_bamsprod(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    gamma: float | None = None,
    beta_l: float = 0.999,
    gradient_bound: Literal["rms", "max"] = "rms",
    q_min: float = 0.05,
    target: Literal["mean", "sum"] = "mean",
    per_channel: bool = False,
    binary_mask: Any | Callable[[Any], Any] | None = None,
    *,
    scale: float | None = None,
    bias_correction: bool = False,
) -> optax.GradientTransformation:
    """The direction m / (sqrt(V) + eps) of `bamsprod`, to be multiplied by a learning rate and followed by `project_box`.

    Arguments and refusals as there.

    Example:
      >>> optimizer, w = scale_by_bamsprod(), jnp.array([0.5, -0.5])
      >>> direction, _ = optimizer.update(jnp.array([1.0, -1.0]), optimizer.init(w), w)
      >>> direction.shape, bool(jnp.all(jnp.sign(direction) == jnp.sign(w)))
      ((2,), True)
    """
    gamma = 1 - b2 if gamma is None else gamma
    for name, value, allowed in (
        ("b1", b1, ProperFraction),
        ("b2", b2, ProperFraction),
        ("eps", eps, NonNegative),
        ("gamma", gamma, NonNegative),
        ("beta_l", beta_l, ProperFraction),
        ("q_min", q_min, Positive),
        *([] if scale is None else [("scale", scale, Positive)]),
    ):
        check_number(name, value, allowed)
    _check_choice("gradient_bound", gradient_bound, ("rms", "max"))
    _check_choice("target", target, ("mean", "sum"))

    def per_group(params):
        def make(w):
            shape = w.shape[-1:] if per_channel and w.ndim > 1 else ()
            return jnp.zeros(shape, jnp.promote_types(w.dtype, jnp.float32))

        return jax.tree.map(make, params)

    def init(params):
        _check_floating(params)
        _flags(binary_mask, params)
        moments = (zeros(params) for _ in range(3))
        return BamsprodState(
            jnp.zeros((), jnp.int32), *moments, l_inf=per_group(params), q_sum=per_group(params)
        )

    def update(updates, state, params=None):
        if params is None:
            raise ValueError(
                "params: needs the latent weights, whose quantization error is measured; got None"
            )
        _check_floating(updates)
        count = optax.safe_increment(state.count)

        def leaf(binary, g, w, mu, nu, nu_max, l_inf, q_sum):
            kind, t = mu.dtype, count.astype(mu.dtype)
            g, w = g.astype(kind), w.astype(kind)
            mu, nu = b1 * mu + (1 - b1) * g, b2 * nu + (1 - b2) * jnp.square(g)
            fixes = (1 - b1**t, 1 - b2**t) if bias_correction else (1, 1)
            nu_max = jnp.maximum(nu_max, nu / fixes[1])
            second = nu_max
            if binary:
                axis = tuple(range(g.ndim - 1)) if l_inf.ndim else None
                size = jnp.max(jnp.abs(g), axis=axis, initial=0)
                if gradient_bound == "rms":
                    size = jnp.sqrt(jnp.mean(jnp.square(g), axis=axis))
                # An infinite bound would hold the whole group still for ever, and nobody would be told.
                l_inf = jnp.maximum(beta_l * l_inf, jnp.where(jnp.isfinite(size), size, jnp.nan))
                q_sum = q_sum + h_norm_quant_error(w, jnp.sqrt(nu_max), scale=scale, axis=axis)
                error = jnp.maximum(q_sum / t, q_min)
                if target == "mean":
                    goal = jnp.square(l_inf * error)
                else:
                    goal = l_inf * DIAMETER * t * error
                second = jnp.clip(nu_max, *range_bounds(t, goal, gamma))
            return mu / fixes[0] / (jnp.sqrt(second) + eps), mu, nu, nu_max, l_inf, q_sum

        flags = _flags(binary_mask, params)
        columns = (flags, updates, params, *state[1:])
        rows = zip(*map(jax.tree.leaves, columns), strict=True)
        treedef = jax.tree.structure(updates)
        results = [leaf(*row) for row in rows]
        trees = [jax.tree.unflatten(treedef, column) for column in zip(*results, strict=True)]
        if not results:
            return updates, state._replace(count=count)
        return trees[0], BamsprodState(count, *trees[1:])

    return optax.GradientTransformation(init, update)


def bamsprod(
    learning_rate: float | Callable,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    gamma: float | None = None,
    beta_l: float = 0.999,
    gradient_bound: Literal["rms", "max"] = "rms",
    q_min: float = 0.05,
    target: Literal["mean", "sum"] = "mean",
    per_channel: bool = False,
    binary_mask: Any | Callable[[Any], Any] | None = None,
    *,
    scale: float | None = None,
    bias_correction: bool = False,
) -> optax.GradientTransformation:
    """BAMSProd (arXiv:2009.13799), an optimizer of the latent weights of binary networks.

        m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g²,   v̂ <- max(v̂, v)
        L <- max(beta_l L, size of g),   q = ‖w - a sgn(w)‖_h with h = sqrt(v̂) and the best a,   E = (L mean_s(q_s))²
        V = clip(v̂, E (1 - 1/(γt + 1)), E (1 + 1/(γt)))
        w <- clip(w - learning_rate m / (sqrt(V) + eps), -1, 1)

    Parameters that are not binary take the same step with V = v̂ and without the box: AMSGrad. The source gives the moments, the
    projection of the second moment and the limit of its range; the form of the bounds is AdaBound's, and E is ours: the source's
    E = L_inf · D_inf · Σ_s ‖w_s - a sgn(w_s)‖_H is `gradient_bound="max", target="sum"`, of which L_inf is so much larger than
    sqrt(v) of a single weight that the range closes within a few steps.

    Args:
      learning_rate: a number, or an optax schedule of the steps taken.
      b1, b2: decays of the moments, in [0, 1).
      eps: outside the root, >= 0.
      gamma: γ ≥ 0, how fast the range closes; 1 - b2 unless given; 0 never closes it, which is AMSGrad.
      beta_l: decay per step of the largest gradient, in [0, 1).
      gradient_bound: size of the gradients of a group: their root mean square, or the largest.
      q_min: least mean quantization error, > 0; it keeps the range open for weights that are binary already.
      target: E = (L mean(q))², or L · 2 · Σ q, which grows with the steps.
      per_channel: a group is what leads to one output channel, the last axis of a leaf of two or more; otherwise a leaf.
      binary_mask: tree of bool like the parameters, or a function from parameters to it; all are binary unless given.
      scale: a, where it is fixed; the best one for the weights of a group unless given.
      bias_correction: divide the moments by 1 - b^t; the published rule does not.

    Returns:
      An optax transformation; its state is a `BamsprodState`, and `update` needs `params`. A gradient that is not finite gives
      NaN for its group, in this step and all that follow.

    Raises:
      UserError: a number out of its range, a mask of another tree than the parameters, parameters that are not floats.
      ValueError: `update` without `params`.

    Example:
      >>> rule = bamsprod(0.03)
      >>> w = jnp.array([0.5, -0.01])
      >>> updates, state = rule.update(jnp.array([1.0, -1.0]), rule.init(w), w)
      >>> [round(weight, 3) for weight in optax.apply_updates(w, updates).tolist()]
      [0.405, 0.085]
    """
    direction = scale_by_bamsprod(
        b1, b2, eps, gamma, beta_l, gradient_bound, q_min, target, per_channel, binary_mask,
        scale=scale, bias_correction=bias_correction,
    )  # fmt: skip

    def update(updates, state, params=None):
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        moved, state = direction.update(updates, state, params)

        def step(binary, direction, w):
            u = -rate * direction
            return (box_update(u, w.astype(u.dtype)) if binary else u).astype(w.dtype)

        return jax.tree.map(step, _flags(binary_mask, params), moved, params), state

    return optax.GradientTransformation(direction.init, update)


def latent_weights(params: Any) -> Any:
    """Tree of bool: true for `kernel` in a layer whose name begins with `binary`, the latent weights of our binary networks.

    Example:
      >>> latent_weights({"binary_0": {"kernel": 1.0, "bias": 0.0}, "head": {"kernel": 1.0}})
      {'binary_0': {'bias': False, 'kernel': True}, 'head': {'kernel': False}}
    """

    def is_latent(path, _):
        names = [str(getattr(entry, "key", "")) for entry in path]
        return names[-1:] == ["kernel"] and any(name.startswith("binary") for name in names[:-1])

    return jax.tree_util.tree_map_with_path(is_latent, params)


@RULES.register("bamsprod")
def bamsprod_rule(momentum: float, decay: optax.GradientTransformation, **options) -> Rule:
    """The rule of a configuration, for `latent_weights`; they are not decayed, which would draw them to 0 and flip their signs.

    Args:
      momentum: b1.
      decay: of the other parameters.
      **options: others of `scale_by_bamsprod`.

    Returns:
      The rule, whose `init` raises UserError for parameters without latent weights among them.

    Example:
      >>> rule = bamsprod_rule(momentum=0.9, decay=optax.identity())
      >>> optimizer = optax.chain(*rule.direction, optax.scale_by_learning_rate(0.5), *rule.last)
      >>> params = {"binary_0": {"kernel": jnp.array([0.9, -0.9])}}
      >>> updates, _ = optimizer.update({"binary_0": {"kernel": jnp.array([-1.0, 1.0])}}, optimizer.init(params), params)
      >>> float(abs(params["binary_0"]["kernel"] + updates["binary_0"]["kernel"]).max()) <= 1
      True
    """

    def latent(params):
        mask = latent_weights(params)
        leaves = jax.tree.leaves(mask)
        if leaves and not any(leaves):
            raise UserError("optimizer.name: bamsprod needs binary layers among those that train, got none")
        return mask

    spared = optax.masked(decay, lambda params: jax.tree.map(lambda on: not on, latent_weights(params)))
    rule = scale_by_bamsprod(b1=momentum, binary_mask=latent, **options)
    return Rule([spared, rule], [project_box(latent_weights)])


def _share(h: jax.Array, axis: Any) -> jax.Array:
    """h / Σ h over a group."""
    total = jnp.sum(h, axis=axis, keepdims=True)
    h = jnp.where(total == 0, jnp.ones_like(h), h)
    return h / jnp.sum(h, axis=axis, keepdims=True)


def _flags(mask: Any | Callable[[Any], Any] | None, params: Any) -> Any:
    """The mask as a tree of bool with a value for every parameter."""
    if mask is None:
        return jax.tree.map(lambda _: True, params)
    mask = mask(params) if callable(mask) else mask
    if jax.tree.structure(mask) != jax.tree.structure(params):
        raise UserError(
            f"binary_mask: needs a bool for every parameter, {jax.tree.structure(params)}; got {jax.tree.structure(mask)}"
        )
    return jax.tree.map(bool, mask)


def _check_floating(tree: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            name = jax.tree_util.keystr(path) or "the parameter"
            raise UserError(
                f"params: needs floats, latent weights are real; {name} is {jnp.result_type(leaf)}"
            )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name}: needs one of {', '.join(choices)}, got {value!r}")
