"""The text tower: CLIP's size, and what a sentence is read from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import models
from jaxface.errors import UserError
from jaxface.models.transformers.text_tower import TextTower

TINY = TextTower(vocabulary=20, length=6, features=4, dim=8, depth=1, heads=2)
TOKENS = np.array([[1, 7, 8, 2, 0, 0], [1, 9, 5, 4, 6, 7]], np.int32)


def test_as_many_parameters_as_beside_the_published_vit_b():
    tower = TextTower(vocabulary=49408, length=77, features=512)
    tokens = jax.ShapeDtypeStruct((1, 77), jnp.int32)
    shapes = jax.eval_shape(lambda t: tower.init(jax.random.key(0), t), tokens)
    # 151,277,313 of CLIP ViT-B/32, less 87,849,216 of the image tower and one of the scale.
    assert models.parameter_count(shapes) == 151_277_313 - 87_849_216 - 1


@pytest.fixture(scope="module")
def read():
    variables = jax.jit(lambda t: TINY.init(jax.random.key(0), t))(TOKENS)
    return jax.jit(
        lambda tokens: (TINY.apply(variables, tokens), TINY.clone(causal=True).apply(variables, tokens))
    )


def test_a_sentence_is_read_at_its_end_and_padding_says_nothing(read):
    plain, causal = read(TOKENS)
    padded = TOKENS.copy()
    padded[0, 4:] = 9  # behind the end, no padding
    others, causal_others = read(padded)
    np.testing.assert_allclose(causal.sentences[0], causal_others.sentences[0], atol=1e-6)
    assert np.abs(plain.sentences[0] - others.sentences[0]).max() > 1e-4
    assert np.isfinite(plain.words).all()
    changed = TOKENS.copy()
    changed[1, -1] = 8  # without an end the last token is read
    assert np.abs(read(changed)[0].sentences[1] - plain.sentences[1]).max() > 1e-4


def test_tokens_see_what_stands_before_them_alone_where_asked(read):
    changed = TOKENS.copy()
    changed[0, 2] = 11
    (plain, causal), (other, causal_other) = read(TOKENS), read(changed)
    np.testing.assert_array_equal(causal.words[0, :2], causal_other.words[0, :2])
    assert np.abs(plain.words[0, 1] - other.words[0, 1]).max() > 1e-4


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="dim: needs a multiple of heads, 3, got 8"):
        TINY.clone(heads=3)
