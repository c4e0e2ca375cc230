"""Margin softmax with its classes over the devices of a mesh: the dense loss and gradients, however they are taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P
from margin_softmax_cases import HEADS, close, dense, materialized, on_shards, sharded_problem, user_sized

from pallas_kernels import margin_softmax as ms


@pytest.mark.parametrize("name", ["sface", "insightface"])
@pytest.mark.parametrize(
    ("shards", "check_vma", "inside", "gathered"),
    [
        (8, True, False, False),
        (8, True, True, False),
        (8, True, False, True),
        (8, False, False, True),
        (3, True, False, False),
        (3, False, False, False),
        (1, True, True, False),
    ],
)
def test_shards_give_the_dense_gradients(name, shards, check_vma, inside, gathered):
    mesh = Mesh(np.array(jax.devices()[:shards]), ("model",))
    (x, w, labels, where), whole = sharded_problem(shards)
    options = {"check_vma": check_vma, "inside": inside, "gathered": gathered}
    mapped = on_shards(mesh, HEADS[name], **options)
    if inside:
        loss, dx, dw = jax.jit(mapped)(x, w, labels, where)
    else:
        loss, (dx, dw) = jax.jit(jax.value_and_grad(mapped, (0, 1)))(x, w, labels, where)
    classes = whole[1].shape[0]
    close((loss, dx, dw[:classes]), dense(HEADS[name], *whole), 2e-5)
    assert not dw[classes:].any()


def test_without_check_vma_the_inner_gradient_is_a_shards_part_times_the_axis():
    mesh = Mesh(np.array(jax.devices()[:4]), ("model",))
    (x, w, labels, where), whole = sharded_problem(4)
    mapped = on_shards(mesh, HEADS["arcface"], check_vma=False, inside=True)
    _, _, dw = jax.jit(mapped)(x, w, labels, where)
    close(dw[: whole[1].shape[0]] / 4, dense(HEADS["arcface"], *whole)[2], 2e-5)


@pytest.mark.parametrize("name", ["sface", "arcface"])
def test_data_and_classes_over_two_axes(name):
    """Rows over "data" with weights of the whole batch, classes over "model"."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    (x, w, labels, where), whole = sharded_problem(4)

    def local(x, w, labels, where):
        first = jax.lax.axis_index("model") * w.shape[0]
        mine = jnp.where((labels >= first) & (labels < first + w.shape[0]), labels - first, -1)
        loss, _ = ms.margin_softmax(
            x, w, mine, HEADS[name], weights=jnp.full(x.shape[0], 1 / 16), where=where, axis_name="model"
        )
        return jax.lax.psum(loss, "data")

    specs = (P("data"), P("model"), P("data"), P("model"))
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())
    loss, (dx, dw) = jax.jit(jax.value_and_grad(mapped, (0, 1)))(x, w, labels, where)
    close((loss, dx, dw[: whole[1].shape[0]]), dense(HEADS[name], *whole), 2e-5)


def test_weights_on_shards():
    mesh = Mesh(np.array(jax.devices()[:4]), ("model",))
    (x, w, labels, _), whole = sharded_problem(4, classes=100)
    weights = jnp.linspace(0.1, 1.0, 16)

    for head in (HEADS["sface"], HEADS["arcface"]):
        for spec in (P(), P("model")):

            def local(x, w, labels, weights, head=head, spec=spec):
                if spec == P("model"):
                    weights = jax.lax.all_gather(weights, "model", tiled=True)
                mine = labels - jax.lax.axis_index("model") * 25
                mine = jnp.where((mine >= 0) & (mine < 25), mine, -1)
                return ms.margin_softmax(x, w, mine, head, weights=weights, axis_name="model")[0]

            specs = (P(), P("model"), P(), spec)
            mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())
            actual = jax.jit(jax.value_and_grad(mapped, (0, 1, 3)))(x, w, labels, weights)
            close(actual, materialized(labels, head)(*whole[:2], weights), 2e-5)


@pytest.mark.slow
def test_tpu_kernel_on_shards():
    mesh = Mesh(np.array(jax.devices()[:2]), ("model",))
    (x, w, labels, where), whole = sharded_problem(2)
    mapped = on_shards(mesh, HEADS["wide"], implementation="pallas_tpu_interpret")
    loss, (dx, dw) = jax.jit(jax.value_and_grad(mapped, (0, 1)))(x, w, labels, where)
    close((loss, dx, dw[: whole[1].shape[0]]), dense(HEADS["wide"], *whole), 2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize(("kind", "platform"), [("NVIDIA H200", "cuda"), ("TPU v5 lite", "tpu")])
def test_kernels_lower_on_shards(check_vma, kind, platform):
    family = "gpu" if platform == "cuda" else "tpu"
    device = AbstractDevice(kind, 132 if family == "gpu" else None, family)
    mesh = AbstractMesh((2,), ("model",), axis_types=(AxisType.Auto,), abstract_device=device)
    for name in ("sface", "arcface"):
        mapped = on_shards(mesh, HEADS[name], implementation=f"pallas_{family}", check_vma=check_vma)
        with jax.sharding.use_abstract_mesh(mesh):
            traced = jax.jit(jax.value_and_grad(mapped, (0, 1))).trace(*user_sized())
            assert "custom_call" in traced.lower(lowering_platforms=(platform,)).as_text()
