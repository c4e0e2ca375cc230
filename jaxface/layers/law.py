"""The two networks of an agent that gives each stage of a training its rule (LAW, arXiv:1905.11058): actor and critic."""

import flax.linen as nn
import jax
import jax.numpy as jnp

OBSERVED = 4
"""Numbers of a state: stage, running mean of the loss, running mean of the weights, learning rate."""
STAGE_FEATURES = 16
_SPARE_STAGES = 10


def _torch_bias(fan_in: int) -> nn.initializers.Initializer:
    bound = fan_in**-0.5
    return lambda rng, shape, dtype=jnp.float32: jax.random.uniform(rng, shape, dtype, -bound, bound)


class _Perceptron(nn.Module):
    """Dense and ReLU per hidden layer, then Dense; weights normal with `std`, biases uniform ±1/√fan_in."""

    hidden: tuple[int, ...]
    size: int
    std: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        normal = nn.initializers.normal(self.std)
        for i, features in enumerate((*self.hidden, self.size), start=1):
            bias = _torch_bias(x.shape[-1])
            x = nn.Dense(features, kernel_init=normal, bias_init=bias, name=f"dense{i}")(x)
            x = nn.relu(x) if i <= len(self.hidden) else x
        return x


def _embedded(state: jax.Array, stages: int) -> jax.Array:
    """[B, 4] -> [B, 16 + 3]: the stage as a learned vector, the other numbers as they are."""
    embed = nn.Embed(
        stages + _SPARE_STAGES, STAGE_FEATURES, embedding_init=nn.initializers.normal(1.0), name="stage"
    )
    return jnp.concatenate([embed(state[:, 0].astype(jnp.int32)), state[:, 1:]], axis=1)


class Actor(nn.Module):
    """The policy: what to do in a state.

        a = β tanh(f([e_s, m_ℓ, m_w, η])),   or f(…) itself where β is None, as in the authors' code

    Args:
      size: A, numbers of an action.
      stages: of a training.
      hidden: features of the hidden layers.
      bound: β > 0; without one the actions grow as soon as the learning rate is not tiny.

    state [B, 4] float -> [B, A] float32.
    """

    size: int
    stages: int
    hidden: tuple[int, ...] = (256, 512, 256)
    bound: float | None = 3.0

    @nn.compact
    def __call__(self, state: jax.Array) -> jax.Array:
        output = _Perceptron(self.hidden, self.size, 0.05, name="perceptron")(_embedded(state, self.stages))
        return output if self.bound is None else self.bound * jnp.tanh(output)


class Critic(nn.Module):
    """What an action in a state is worth: Q(s, a) = f([e_s, m_ℓ, m_w, η, a]).

    Args:
      stages: of a training.
      hidden: features of the hidden layers.

    state [B, 4], action [B, A] float -> [B] float32.
    """

    stages: int
    hidden: tuple[int, ...] = (256, 512, 256)

    @nn.compact
    def __call__(self, state: jax.Array, action: jax.Array) -> jax.Array:
        inputs = jnp.concatenate([_embedded(state, self.stages), action], axis=1)
        return _Perceptron(self.hidden, 1, 0.01, name="perceptron")(inputs)[:, 0]
