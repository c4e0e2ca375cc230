import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxface import models, training
from jaxface.data import ArraySource
from jaxface.errors import UserError
from jaxface.layers.prototypes import cosines
from jaxface.training.workdir import stage_folder, stage_folders

RNG = np.random.default_rng(0)
COUNT = 37
LABELS = (np.arange(COUNT) % 5).astype(np.int32)
SOURCE = ArraySource(RNG.integers(0, 256, (COUNT, 8, 8, 3), np.uint8), LABELS, list("abcde"))
MODEL = models.create("mlp", embedding=8, hidden=(16,))
RECOGNIZER = training.Recognizer(MODEL, 5, (8, 8, 3))


@pytest.fixture(scope="module")
def params():
    return RECOGNIZER.init(jax.random.key(0))[0]


def direct(backbone, flip=True):
    """All at once, without padding, batches or a mesh."""
    images = np.stack([SOURCE[i]["image"] for i in range(COUNT)]).astype(np.float64)
    images = jnp.asarray((images - 127.5) / 127.5, jnp.float32)
    one = MODEL.apply({"params": backbone}, images)
    return np.asarray(one + MODEL.apply({"params": backbone}, images[:, :, ::-1]) if flip else one)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("batch_size", [1, 16, 37, 64])
def test_embeddings_are_those_of_the_network_in_order(params, flip, batch_size):
    found = training.embed_source(MODEL, params["backbone"], {}, SOURCE, batch_size=batch_size, flip=flip)
    assert found.shape == (COUNT, 8) and found.dtype == np.float32
    np.testing.assert_allclose(found, direct(params["backbone"], flip), rtol=1e-4, atol=1e-5)
    assert np.abs(np.linalg.norm(found, axis=1) - 1).min() > 1e-3  # not normalized


@pytest.mark.parametrize("shape", [(8, 1), (4, 2)])
def test_embeddings_spread_over_a_mesh_are_the_same(params, shape):
    mesh = Mesh(np.array(jax.devices()).reshape(shape), ("data", "model"))
    there = jax.device_put(params["backbone"], NamedSharding(mesh, PartitionSpec()))
    found = training.embed_source(MODEL, there, {}, SOURCE, batch_size=13)
    np.testing.assert_allclose(found, direct(params["backbone"]), rtol=1e-4, atol=1e-5)


def test_batch_statistics_are_used_and_left_alone():
    recognizer = training.Recognizer(models.create("iresnet_nano", embedding=8), 5, (8, 8, 3))
    params, extra = jax.jit(recognizer.init)(jax.random.key(1))
    shifted = jax.tree.map(lambda x: x + 0.5, extra)
    a, b = (training.embed_source(recognizer.model, params["backbone"], e, SOURCE) for e in (extra, shifted))
    assert np.abs(a - b).max() > 1e-3
    images = jnp.zeros((4, 8, 8, 3))
    embeddings, new = jax.jit(recognizer.train_embeddings)(params, extra, images, jax.random.key(2))
    assert embeddings.shape == (4, 8)
    assert jax.tree.structure(new) == jax.tree.structure(extra)


def stage(steps=2, model=MODEL):
    """A plain softmax on the source."""
    recognizer = training.Recognizer(model, 5, (8, 8, 3))

    def loss(params, extra, batch, rng):
        embeddings, extra = recognizer.train_embeddings(params, extra, batch["image"], rng)
        logits = 16 * cosines(embeddings, params["prototypes"][: recognizer.classes])
        values = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return values.mean(), (extra, {})

    goal = training.Objective(loss, optax.sgd(0.1))

    def init(rng, previous):
        params, extra = recognizer.init(rng)
        return training.create_state(rng, params, goal, extra=extra)

    class Rows:
        def __next__(self):
            rows = [SOURCE[i] for i in range(16)]
            return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

        def get_state(self):
            return {}

        def set_state(self, state):
            del state

    return training.Stage(
        name="recognition",
        init=init,
        step=training.gradient_step(goal),
        batches=lambda _: Rows(),
        steps=steps,
        evaluate=training.NearestPrototype(model, SOURCE),
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, training.run([stage()], workdir=folder)


def test_the_network_of_a_run_is_read_back(workdir):
    folder, outcome = workdir
    expected = jax.device_get(outcome.state.params["backbone"])
    for backbone, extra in (
        training.backbone_checkpoint(folder),
        training.backbone_checkpoint(str(folder), best=True),
    ):
        jax.tree.map(np.testing.assert_array_equal, backbone, expected)
        assert extra == {}
    assert outcome.metrics["classification/accuracy"] == pytest.approx(
        training.NearestPrototype(MODEL, SOURCE)(outcome.state)["classification/accuracy"]
    )


def test_the_last_stage_counts(tmp_path):
    second = training.Stage(**{**vars(stage(steps=1)), "name": "again"})
    outcome = training.run([stage(), second], workdir=tmp_path)
    backbone, _ = training.backbone_checkpoint(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, backbone, jax.device_get(outcome.state.params["backbone"]))


def save_weight(folder, value):
    checkpoints = training.Checkpoints(folder)
    state = {"params": {"backbone": {"w": np.full(2, value, np.float32)}}, "extra": {}}
    checkpoints.save(1, state, {"score": None})
    checkpoints.close()


def weight(workdir):
    return training.run_checkpoint(workdir)[0]["backbone"]["w"][0]


@pytest.mark.parametrize("aside", ["00-recognition.old", "backup", "@eaDir", "01-", "recognition", "-1-x"])
def test_what_lies_beside_the_stages_is_no_stage(tmp_path, aside):
    stages = tmp_path / "checkpoints"
    save_weight(stages / "00-recognition", 2.0)
    if aside.startswith("00"):
        save_weight(stages / aside, 1.0)
    else:
        (stages / aside).mkdir()
    (stages / "02-file").write_text("no folder")
    (stages / "00-recognition" / "7.damaged").mkdir()
    (stages / "00-recognition" / "²").mkdir()
    assert weight(tmp_path) == 2.0
    assert [anchor.step for anchor in training.run_anchors(tmp_path)] == [1]


def test_stages_are_in_the_order_of_their_numbers(tmp_path):
    for number in (9, 99, 100):
        save_weight(stage_folder(tmp_path, number, f"student{number}"), float(number))
    assert [path.name for path in stage_folders(tmp_path)] == [
        "09-student9",
        "99-student99",
        "100-student100",
    ]
    assert weight(tmp_path) == training.run_anchors(tmp_path)[0].load().params["backbone"]["w"][0] == 100.0
    save_weight(tmp_path / "checkpoints" / "100-student100_old", 1.0)
    with pytest.raises(
        UserError, match=r"^checkpoint: .* two stages of one number, 100-student100 and 100-student100_old"
    ):
        weight(tmp_path)


@pytest.mark.parametrize("name", ["a-b", "a.old", "", "a b"])
def test_names_of_stages_are_plain(name):
    with pytest.raises(ValueError, match="name: needs letters, digits and underscores"):
        training.Stage(name, init=lambda rng, previous: previous)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            models.create("mlp", embedding=4, hidden=(16,)),
            r"backbone/head_dense/bias is \(8,\) there and \(4,\)",
        ),
        (
            models.create("mlp", embedding=8, hidden=(16, 16)),
            r"backbone/hidden2/bias is nothing there and \(16,\) here",
        ),
        (models.create("iresnet_nano", embedding=8), r"backbone/head_dense/kernel is \(16, 8\) there"),
    ],
)
def test_another_network_is_refused(workdir, model, words):
    backbone, extra = training.backbone_checkpoint(workdir[0])
    variables = {"params": backbone, **extra}
    training.check_backbone("there", variables, RECOGNIZER)
    with pytest.raises(UserError, match=words) as caught:
        training.check_backbone("there", variables, training.Recognizer(model, 5, (8, 8, 3)))
    assert str(caught.value).startswith("init_from: ") and "\n" not in str(caught.value)


def test_what_is_no_run_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="holds no checkpoints; give the work directory of a run"):
            training.backbone_checkpoint(folder)
    (tmp_path / "checkpoints/00-recognition").mkdir(parents=True)
    with pytest.raises(UserError, match="no checkpoint in"):
        training.backbone_checkpoint(tmp_path)
    training.run([toy.stage(steps=1)], workdir=tmp_path / "toy")
    with pytest.raises(UserError, match=r"has no backbone, only \['hidden', 'norm', 'prototypes'\]"):
        training.backbone_checkpoint(tmp_path / "toy")
