import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import data, training
from jaxface.errors import UserError


class Pixels(nn.Module):
    """The image itself as its embedding."""

    embedding: int = 4

    @nn.compact
    def __call__(self, image, *, train: bool = False):
        scale = self.param("scale", nn.initializers.ones, ())
        return scale * image.reshape(len(image), -1)


PIXELS = np.eye(4, dtype=np.uint8)[[0, 1, 2, 3, 0, 1]].reshape(6, 2, 2, 1) * 255
LABELS = [0, 1, 2, 3, 1, 0]  # the last two look like somebody else
NAMES = ["a", "b", "c", "d"]


def state():
    params = {"backbone": {"scale": jnp.ones(())}, "prototypes": 2 * jnp.eye(4) - 1}
    return training.create_state(None, params)


def source(groups, names=("one", "two")):
    return data.ArraySource(PIXELS, LABELS, NAMES, groups=np.array(groups), group_names=names)


def test_accuracy_by_the_nearest_prototype_of_each_group():
    judge = training.GroupFairness(Pixels(), source([0, 0, 1, 1, 1, 1]), verification=False)
    found = judge(state())
    assert found["fairness/accuracy@one"] == 1 and found["fairness/accuracy@two"] == 0.5
    assert found["fairness/average"] == 0.75 and found["fairness/worst"] == found["fairness/gap"] == 0.5
    np.testing.assert_allclose(found["fairness/std"], np.sqrt(0.125))
    assert found["fairness/skewed_error_ratio"] == float("inf")


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (data.ArraySource(PIXELS, LABELS, NAMES), "data: needs people of two groups or more to train on"),
        (source([0] * 6, ["one"]), "data: needs people of two groups or more to train on, .* got one"),
        (source([0] * 6), "data: needs people of every group to train on, got none of two"),
        (
            data.Subset(data.ArraySource(PIXELS, LABELS, NAMES), np.arange(3)),
            "data: needs people of two groups or more",
        ),
    ],
)
def test_groups_that_are_not_there(records, words):
    with pytest.raises(UserError, match=words) as error:
        training.source_groups(records, "train on")
    assert "\n" not in str(error.value)


def test_groups_of_a_subset():
    groups, names = training.source_groups(data.Subset(source([0, 1, 0, 1, 0, 1]), np.array([1, 2])), "test")
    assert groups.tolist() == [1, 0] and names == ["one", "two"]
