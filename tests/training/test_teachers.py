import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from jaxface import data, models, training

MODEL = models.create("iresnet_pico", embedding=8)
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (8, 16, 16, 3)), jnp.float32)


@pytest.fixture
def state():
    params, extra = training.Recognizer(MODEL, 5, (16, 16, 3)).init(jax.random.key(0))
    return training.create_state(jax.random.key(0), params, extra=extra)


def test_the_teacher_answers_as_it_was_left(state):
    teacher = training.Teacher(MODEL)
    extra = teacher.installed({"batch_stats": {"mine": jnp.ones(3)}}, state)
    expected = MODEL.apply({"params": state.params["backbone"], **state.extra}, IMAGES, train=False)
    np.testing.assert_array_equal(teacher.embeddings(extra, IMAGES), expected)
    np.testing.assert_array_equal(extra["teacher"]["prototypes"], state.params["prototypes"])
    scores = training.class_scores(state.params, expected, 4, scale=3.0)
    np.testing.assert_array_equal(teacher.class_scores(extra, expected, 4, scale=3.0), scores)
    assert scores.shape == (8, 4) and jnp.abs(scores).max() < 3.001
    assert extra["batch_stats"]["mine"].shape == (3,)


def test_the_teacher_embeds_a_source_in_order(state):
    pixels = np.random.default_rng(1).integers(0, 256, (11, 16, 16, 3), np.uint8)
    source = data.ArraySource(pixels, np.zeros(11, np.int32), ["one"])
    teacher = training.Teacher(MODEL)
    extra = teacher.installed({"batch_stats": {"mine": jnp.ones(3)}}, state)
    images = jnp.asarray((pixels - 127.5) / 127.5, jnp.float32)
    np.testing.assert_allclose(
        teacher.embed(extra, source), teacher.embeddings(extra, images), rtol=1e-4, atol=1e-5
    )
    both = teacher.embeddings(extra, images) + teacher.embeddings(extra, images[:, :, ::-1])
    np.testing.assert_allclose(teacher.embed(extra, source, flip=True), both, rtol=1e-4, atol=1e-5)


def test_no_gradient_reaches_the_teacher_and_a_step_leaves_it_alone(state):
    teacher = training.Teacher(MODEL)
    student = training.Recognizer(MODEL, 5, (16, 16, 3))

    def loss(params, extra, batch, rng):
        target = teacher.embeddings(extra, batch["image"])
        embeddings, extra = student.train_embeddings(params, extra, batch["image"], rng)
        return jnp.square(embeddings - target).mean(), (extra, {})

    def of_teacher(params):
        extra = teacher.installed({}, state.replace(params=params))
        return teacher.embeddings(extra, IMAGES).sum()

    assert all((g == 0).all() for g in jax.tree.leaves(jax.grad(of_teacher)(state.params)))
    objective = training.Objective(loss, optax.sgd(0.1))
    params, extra = student.init(jax.random.key(1))
    before = training.create_state(
        jax.random.key(1), params, objective, extra=teacher.installed(extra, state)
    )
    after, _ = jax.jit(training.gradient_step(objective))(before, {"image": IMAGES})
    assert after.extra["teacher"].keys() == {"params", "batch_stats", "prototypes"}
    jax.tree.map(np.testing.assert_array_equal, after.extra["teacher"], before.extra["teacher"])
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), before.extra["batch_stats"], after.extra["batch_stats"]
    )
    assert any(jax.tree.leaves(moved))


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_a_stage_may_keep_what_the_one_before_left(mode):
    """The next stage's steps consume its state; the state that it came from stays readable, even where both share leaves."""
    kept = []

    def stages():
        kept.append((yield toy.stage("first")).state)
        second = toy.stage("second")
        kept.append((yield training.Stage("same", init=lambda rng, previous: previous)).state)
        yield training.Stage(
            "second", init=lambda rng, previous: previous, step=second.step, batches=second.batches, steps=2
        )

    training.run(stages(), parallel=training.make_parallel(mode, devices=jax.devices()[:2]))
    first, same = (jax.tree.map(np.asarray, state.params) for state in kept)
    jax.tree.map(np.testing.assert_array_equal, first, same)
