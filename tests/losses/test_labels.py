"""Labels of every loss, whatever the type they come in and whatever number they are."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxface import losses, metrics, search, training
from jaxface.training import class_banks
from pallas_kernels import margin_softmax as ms
from pallas_kernels.margin_softmax import reference

CLASSES, BATCH = 300, 4  # more classes than 8 bits count
FUSED = {"sface": ms.SFace(inter_angle=1.5), "arcface": ms.arcface()}


def _unit(seed, *shape):
    x = jax.random.normal(jax.random.key(seed), shape)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


EMBEDDINGS, BANK, LOGITS = _unit(0, BATCH, 8), _unit(1, CLASSES, 8), _unit(2, BATCH, CLASSES)
PLANES, KEY = jnp.abs(_unit(3, BATCH, 2, 2, 8)), jax.random.key(4)


def _margin_softmax(head, implementation, labels):
    _, terms = ms.margin_softmax(EMBEDDINGS, BANK, labels, head, implementation=implementation)
    return terms.losses


def _partial_fc(head, labels, **options):
    return losses.partial_fc_loss(EMBEDDINGS, BANK, labels, head, **options)[1].losses


def _on_two_shards(local, *specs):
    mesh = Mesh(np.array(jax.devices()[:2]), ("model",))
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())


def _sharded(head, labels):
    def local(bank, labels):
        return losses.partial_fc_loss(EMBEDDINGS, bank, labels, head, axis_name="model")[1].losses

    return _on_two_shards(local, PartitionSpec("model"), PartitionSpec())(BANK, labels)


def _sharded_plain(loss, labels):
    """By the rule of the plain losses: local labels, -1 where the target is on another shard."""

    def local(logits, labels):
        first = jax.lax.axis_index("model") * logits.shape[1]
        elsewhere = (
            (labels >= 0) & (labels < CLASSES) & ((labels < first) | (labels >= first + logits.shape[1]))
        )
        return loss(logits, jnp.where(elsewhere, -1, jnp.where(labels < 0, labels, labels - first)))

    return _on_two_shards(local, PartitionSpec(None, "model"), PartitionSpec())(LOGITS, labels)


def _prototype_loss(labels):
    head = FUSED["arcface"]
    return training.prototype_loss(EMBEDDINGS, BANK, labels, head, classes=CLASSES)[1].losses


def _mined(labels):
    neighbors = (jnp.arange(CLASSES)[:, None] + jnp.arange(1, 4)) % CLASSES
    student, _ = losses.mined_relations(EMBEDDINGS, EMBEDDINGS[::-1], labels, BANK, neighbors)
    return student.sum(axis=1)


LOSSES = {
    "cross_entropy": lambda labels: losses.cross_entropy(LOGITS, labels),
    "softmax": lambda labels: losses.Softmax().loss(LOGITS, labels),
    "cosface": lambda labels: losses.CosFace().loss(LOGITS, labels),
    "arcface": lambda labels: losses.ArcFace().loss(LOGITS, labels),
    "sface": lambda labels: losses.SFace().loss(LOGITS, labels),
    "acw": lambda labels: losses.acw_loss(jnp.ones((BATCH, 2)), LOGITS, 0.5 * LOGITS, labels),
    "lid_targets": lambda labels: losses.lid_targets(EMBEDDINGS, labels, BANK, k=3),
    "mined_relations": _mined,
    "discriminator": lambda labels: losses.discriminator_loss(LOGITS, labels),
    "to_reference": lambda labels: losses.adversarial_to_reference(LOGITS, labels),
    "group_weights": lambda labels: losses.group_weights(labels, CLASSES),
    "prototype_loss": _prototype_loss,
    "sampled": functools.partial(_partial_fc, FUSED["sface"], rate=0.2, key=jax.random.key(3)),
    **{f"partial_fc-{name}": functools.partial(_partial_fc, head) for name, head in FUSED.items()},
    "sharded-cross_entropy": lambda labels: _sharded_plain(
        functools.partial(losses.cross_entropy, axis_name="model"), labels.astype(jnp.int32)
    ),
    **{f"sharded-{name}": functools.partial(_sharded, head) for name, head in FUSED.items()},
    **{
        f"reference-{name}": lambda labels, head=head: reference.row_losses(EMBEDDINGS, BANK, labels, head)
        for name, head in FUSED.items()
    },
}
KERNELS = {
    f"{implementation}-{name}": functools.partial(_margin_softmax, head, implementation)
    for implementation in ("pallas_gpu_interpret", "pallas_tpu_interpret")
    for name, head in (("sface", FUSED["sface"]), ("arcface", FUSED["arcface"]))
}
OTHERS = {
    "correct_top_k": lambda labels: metrics.correct_top_k(LOGITS, labels, k=100),
    "update_memory": lambda labels: class_banks.update_memory(BANK, EMBEDDINGS, labels, mode="ema"),
    "add_class_features": lambda labels: class_banks.add_class_features(BANK, EMBEDDINGS, labels),
    "mine_neighbors": lambda labels: class_banks.mine_neighbors(BANK, 3, labels),
    "leave_one_out": lambda labels: losses.leave_one_out_cosines(EMBEDDINGS, labels, BANK, EMBEDDINGS),
    "sample_classes": lambda labels: losses.sample_classes(labels, KEY, classes=CLASSES, rate=0.1)[0],
    "attention": lambda labels: (
        losses.gradient_attention(lambda features: features.mean(axis=(1, 2)), PLANES, BANK, labels).maps
    ),
}
LABELS = np.array([3, 100, 17, 120])
STRANGE = np.array([3, CLASSES, -2, 120])


@functools.cache
def _program():
    return jax.jit(lambda labels: {name: call(labels) for name, call in (LOSSES | OTHERS).items()})


@functools.cache
def _values(dtype):
    return _program()(jnp.asarray(LABELS, dtype))


@functools.cache
def _strange_values():
    return _program()(jnp.asarray(STRANGE, jnp.int32))


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_labels_narrower_than_the_classes_have_the_same_values(dtype):
    chex.assert_trees_all_close(_values(dtype), _values("int32"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_traced_label_that_is_no_class_is_nan_in_its_row_alone(name):
    assert np.isfinite(_values("int32")[name]).all()
    assert np.isnan(_strange_values()[name]).tolist() == [False, True, True, False]


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_have_nan_there_too(name):
    call = jax.jit(KERNELS[name])
    of_strange, good = np.asarray(call(STRANGE)), np.asarray(call(LABELS))
    assert np.isnan(of_strange).tolist() == [False, True, True, False]
    np.testing.assert_allclose(of_strange[[0, 3]], good[[0, 3]], rtol=1e-5)


@pytest.mark.parametrize(
    "name", [name for name in LOSSES | OTHERS if name != "sharded-cross_entropy" and "reference-" not in name]
)
def test_labels_that_are_no_integers_are_refused(name):
    with pytest.raises(ValueError, match=r"^\w+: needs (an integer dtype,|dtype integer;) got float32"):
        jax.eval_shape((LOSSES | OTHERS)[name], jax.ShapeDtypeStruct((BATCH,), np.float32))


def test_numbers_beyond_32_bits_are_refused():
    with pytest.raises(ValueError, match=r"^candidate_labels: needs values in \[-2147483648, 2147483648\)"):
        search.nearest(
            EMBEDDINGS, BANK, 1, labels=LABELS, candidate_labels=np.arange(CLASSES, dtype=np.int64) << 30
        )
