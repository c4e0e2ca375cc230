"""Optax's rules for large batches and large networks, by name: lion, lars, lamb, muon and adafactor.

`momentum` is the first decay of each; the second keeps the value of its paper. Weight decay is added to the update (Lion, LAMB,
Muon, Adafactor: "decoupled", times the learning rate) or to the gradient (LARS), as published.
"""

import math

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from jaxface.optimizers.rules import RULES, Rule


@RULES.register("lion")
def _lion(momentum, decay):
    """The sign of a mean of momentum and gradient (arXiv:2302.06675); b2 = 0.99. Rates a third to a tenth of AdamW's."""
    return Rule([optax.scale_by_lion(b1=momentum, b2=0.99), decay])


@RULES.register("lars")
def _lars(momentum, decay):
    """SGD whose step is a thousandth of each layer's length (arXiv:1708.03888), for arrays of two axes and more."""
    trust = optax.masked(optax.scale_by_trust_ratio(trust_coefficient=0.001), _matrices)
    return Rule([decay, trust], [optax.trace(momentum)])


@RULES.register("lamb")
def _lamb(momentum, decay):
    """Adam whose step has each layer's length (arXiv:1904.00962)."""
    return Rule([optax.scale_by_adam(b1=momentum, eps=1e-6), decay, optax.scale_by_trust_ratio()])


@RULES.register("muon")
def _muon(momentum, decay):
    """Orthogonalized momentum of the hidden layers' kernels (Jordan 2024), with the size of an Adam step; NAdam for the rest.

    The steps of a kernel are scaled to a root mean square of 0.2 (arXiv:2502.16982), so that Adam's rates and weight decays serve
    both. Convolutions are matrices [k k channels in, channels out]. Prototypes, tokens, positions, heads, depthwise filters and
    what has one axis are the rest.
    """
    hidden = optax.chain(
        contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=_muon_axes),
        optax.stateless(lambda updates, params: jax.tree.map(_like_adam, updates)),
    )
    rest = optax.scale_by_adam(b1=momentum, nesterov=True)
    return Rule([optax.partition({"hidden": hidden, "rest": rest}, _muon_labels), decay])


@RULES.register("adafactor")
def _adafactor(momentum, decay):
    """Adam with a second moment of rows and columns alone and a first one in bfloat16 (arXiv:1804.04235, 2106.04560)."""
    links = [optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)]
    if momentum:
        links.append(optax.ema(momentum, debias=False, accumulator_dtype=jnp.bfloat16))
    return Rule([*links, decay])


def _like_adam(update: jax.Array) -> jax.Array:
    """An orthogonal n x m matrix, whose root mean square is 1 / sqrt(max(n, m)), with one of 0.2."""
    inputs, outputs = math.prod(update.shape[:-1]), update.shape[-1]
    return 0.2 * math.sqrt(max(inputs, outputs)) * update


def _matrices(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _is_hidden(path, leaf) -> bool:
    names = [str(getattr(entry, "key", "")) for entry in path]
    return (
        bool(names)
        and names[-1] == "kernel"
        and leaf.ndim in (2, 4)
        and min(leaf.shape[-2:]) > 1
        and not any(name.startswith(("head", "distillation_dense")) for name in names)
    )


def _muon_labels(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: "hidden" if _is_hidden(path, leaf) else "rest", params
    )


def _muon_axes(params):
    """How each hidden kernel is a matrix; the rest is masked where it is asked."""
    return jax.tree.map(
        lambda leaf: contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1), params
    )
