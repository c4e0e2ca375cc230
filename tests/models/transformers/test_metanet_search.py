"""The search of a MetaNet: every point of its space is a network, and an evolution finds what is rewarded."""

import functools

import jax
import jax.numpy as jnp
import pytest

from jaxface import models
from jaxface.errors import UserError
from jaxface.models.transformers import metanet_search as search

KEY = jax.random.key(0)
SPACE = search.search_space()


def test_the_space_has_the_sourced_operators_and_a_key_has_one_architecture():
    assert set(SPACE["operator5"]) == {"mbconv", "fused", "sa", "xca", "local", "mixer"}
    assert set(SPACE["operator1"]) == {"mbconv", "fused"} and SPACE["downsampling5"] == ("block",)
    assert SPACE["downsampling4"] == ("block", "conv", "conv_query", "global")
    one, again, other = (search.sample_arch(k, SPACE) for k in (KEY, KEY, jax.random.key(1)))
    assert one == again != other
    child = search.mutate(KEY, one, SPACE, rate=0.0)
    assert sum(a != b for a, b in zip(one.choices, child.choices, strict=True)) <= 1
    with pytest.raises(UserError, match="operators: needs some of mbconv"):
        search.search_space(operators=("pool",))


@functools.cache
def shapes(seed):
    network = search.sample_arch(jax.random.key(seed), SPACE).network(embedding=4, window=2, head_features=8)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return jax.eval_shape(lambda x: network.init_with_output(KEY, x, method="taps"), image)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_drawn_architectures_are_networks(seed):
    taps, variables = shapes(seed)
    assert [taps[f"stride{s}"].shape[1] for s in (4, 8, 16, 32)] == [16, 8, 4, 2]
    assert models.parameter_count(variables) > 1000


def test_reward_is_a_product_of_powers():
    assert search.reward(0.5, 3e9, 3e9) == 0.5
    assert search.reward(0.5, 6e9, 3e9) == pytest.approx(0.5 * 2**-0.07)
    assert search.reward(0.5, 1e9, 3e9) > 0.5
    with pytest.raises(UserError, match="flops: needs a finite number above 0"):
        search.reward(0.5, 0, 3e9)


def test_an_evolution_finds_more_than_as_many_random_ones_and_goes_on_where_it_stopped():
    space = {f"choice{i}": tuple(range(4)) for i in range(10)}
    asked = []

    def judge(architecture):
        asked.append(architecture)
        return sum(option for _, option in architecture.choices) / 30

    spec = search.Evolution(population=8, rounds=60, tournament=4, rate=0.1)
    history = search.evolve(KEY, judge, space, spec)
    best = max(one.reward for one in history)
    drawn = [judge(search.sample_arch(jax.random.fold_in(KEY, i), space)) for i in range(68)]
    assert best > max(drawn) + 0.1
    # What was judged before is not judged again, and leads to the same end.
    count = len(asked)
    known = {one.architecture: one.reward for one in history[:40]}
    assert search.evolve(KEY, judge, space, spec, known=known) == history
    assert 0 < len(asked) - count <= 28
