import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import data, training
from jaxface.layers.prototypes import cosines
from jaxface.losses import hardness, soft_target_loss

IMAGES = np.random.default_rng(0).integers(0, 256, (11, 2, 2, 1), np.uint8)


def scores(weight, images):
    return 16 * cosines(images.reshape(len(images), -1) @ weight, jnp.eye(3))


class Linear:
    """A network of one matrix."""

    embedding = 3

    def apply(self, variables, images, *, train):
        return images.reshape(len(images), -1) @ variables["params"]["weight"]


def state_of(seed):
    weight = jnp.asarray(np.random.default_rng(seed).normal(size=(4, 3)), jnp.float32)
    return training.create_state(jax.random.key(0), {"backbone": {"weight": weight}})


TEACHER = training.Teacher(Linear())
STUDENT, ANCHORS = state_of(1), [training.Anchor.recorded(10 * seed, state_of(seed)) for seed in (2, 3)]


@jax.jit
def distance(variables, batch):
    (params, extra), images, valid = variables, batch["image"] / 127.5 - 1, batch["valid"]
    student = scores(params["backbone"]["weight"], images)
    anchor = 16 * cosines(TEACHER.embeddings(extra, images), jnp.eye(3))
    mean = jnp.sum(soft_target_loss(student, anchor, temperature=4.0) * valid) / jnp.sum(valid)
    means = jnp.stack([mean, hardness(student, anchor, where=valid)])
    return jnp.broadcast_to(means, (len(valid), 2))


@pytest.mark.parametrize("batch_size", [128, 4])
def test_hardness_is_the_librarys_over_all_images(monkeypatch, batch_size):
    """Against all anchors, whatever the padding of the last batch."""
    monkeypatch.setattr(training.evaluations.route_hardness, "BATCH_SIZE", batch_size)
    source = data.ArraySource(IMAGES, np.zeros(11, np.int32), ["all"])
    evaluate = training.RouteHardness(distance, TEACHER, source, ANCHORS)
    report = evaluate(STUDENT)
    images = (IMAGES.astype(np.float32) - 127.5) / 127.5
    student, *anchors = (
        scores(state.params["backbone"]["weight"], images) for state in (STUDENT, state_of(2), state_of(3))
    )
    expected = [float(hardness(student, anchor)) for anchor in anchors]
    np.testing.assert_allclose([report["hardness/20"], report["hardness/30"]], expected, rtol=1e-4)
    np.testing.assert_allclose(
        [report["ratio/20"], report["ratio/30"]], [1, expected[1] / expected[0]], rtol=1e-4
    )
    congruence = soft_target_loss(student, anchors[0], temperature=4.0).mean()
    assert report["congruence"] == pytest.approx(float(congruence), rel=1e-4)


def test_a_state_on_many_devices_reports_the_same():
    source = data.ArraySource(IMAGES, np.zeros(11, np.int32), ["all"])
    evaluate = training.RouteHardness(distance, TEACHER, source, ANCHORS)
    parallel = training.make_parallel("jit")
    spread = parallel.create(lambda rng, previous: STUDENT, jax.random.key(0), None, rules={}, compiled=False)
    assert evaluate(spread) == pytest.approx(evaluate(STUDENT), rel=1e-5)
