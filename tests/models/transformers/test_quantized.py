"""Quantized transformers: where the quantizers are, the form on integers, and what both cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxface import models
from jaxface.errors import UserError
from jaxface.layers import calibrate
from jaxface.layers.quantization import OPERANDS, QUANTIZATION
from jaxface.losses import dgd_loss, similarity_pattern
from jaxface.models.transformers.quantized import (
    Precision,
    apply_with_operands,
    clipped_gelu,
    matrix_products,
    quantized,
    query_codes,
    sown_operands,
    to_integer,
    transformer_cost,
)
from jaxface.models.transformers.swin import Swin
from jaxface.training import network_variables

IMAGE = np.random.default_rng(0).uniform(-1, 1, (6, 8, 8, 3)).astype(np.float32)
SHAPE = (8, 8, 3)
PRECISION = Precision(bits=4, zero_point="code", compat=True)
MODEL = models.create("vit_tiny", embedding=5, dim=8, depth=2, heads=2, patch=4, distilled=True)
STUDENT = quantized(MODEL, PRECISION)


def initial(module):
    return jax.jit(lambda image: module.init(jax.random.key(0), image))(IMAGE)


@pytest.fixture(scope="module")
def variables():
    return calibrate(STUDENT, initial(STUDENT), IMAGE, train=False)


@pytest.fixture(scope="module")
def passed(variables):
    """Outputs of the quantized network, and the operands of its attentions."""
    run = jax.jit(functools.partial(STUDENT.apply, mutable=[OPERANDS]))
    return run(variables, IMAGE)


def test_parameters_of_the_float_network_keep_their_names(variables):
    float_shapes = jax.eval_shape(MODEL.init, jax.random.key(0), IMAGE)["params"]
    params = flatten_dict(variables["params"])
    assert all(params[path].shape == leaf.shape for path, leaf in flatten_dict(float_shapes).items())
    added = {path[-2] for path in params.keys() - flatten_dict(float_shapes).keys()}
    quantizers = {f"{name}_quantizer" for name in ("kernel", "input", "query", "key", "value", "probability")}
    assert added == quantizers | {"rectify_query", "rectify_key"}


def test_every_product_is_quantized_where_the_paper_says(variables):
    rows = {row.name: row for row in matrix_products(STUDENT, SHAPE)}
    edges = {"patches", "head_dense", "distillation_dense"}
    assert {name for name, row in rows.items() if row.weight_bits == row.input_bits == 8} == edges
    assert all(row.weight_bits == row.input_bits == 4 for name, row in rows.items() if name not in edges)
    starts = variables[QUANTIZATION]
    assert set(starts["block1"]["project"]["input_quantizer"]) == {
        "signed"
    }  # of GELU, whose least value is -0.17
    assert set(starts["block2"]["attention"]["mix"]["probability_quantizer"]) == {"unsigned"}
    steps = variables["params"]["block1"]
    assert steps["expand"]["kernel_quantizer"]["log_step"].shape == (32,)
    assert steps["expand"]["input_quantizer"]["log_step"].shape == ()
    assert steps["attention"]["mix"]["key_quantizer"]["log_step"].shape == (2,)
    released = quantized(MODEL, Precision(granularity="channel"))
    params = jax.eval_shape(released.init, jax.random.key(0), IMAGE)["params"]
    assert params["block1"]["expand"]["input_quantizer"]["log_step"].shape == (8,)
    assert params["patches"]["input_quantizer"]["log_step"].shape == (3,)


def test_the_form_on_integers_says_the_same(variables, passed):
    module, integers = to_integer(MODEL, PRECISION, variables, SHAPE, implementation="xla")
    assert integers["params"]["block1"]["attention"]["qkv"]["codes"].dtype == jnp.int8
    found = jax.jit(module.apply)(integers, IMAGE)
    np.testing.assert_allclose(found, passed[0], atol=1e-4)
    np.testing.assert_array_equal(found.argmax(1), passed[0].argmax(1))


def test_operands_of_both_networks(variables, passed):
    rectified = sown_operands(passed[1])
    params = initial(MODEL)
    output, plain = jax.jit(lambda v, x: apply_with_operands(MODEL, v, x, train=False))(params, IMAGE)
    np.testing.assert_allclose(output, jax.jit(MODEL.apply)(params, IMAGE), atol=1e-6)
    assert [q.shape for q, _ in plain] == [q.shape for q, _ in rectified] == [(6, 6, 2, 4)] * 2
    lengths = jnp.linalg.norm(rectified[0][0], axis=-1)
    assert float(jnp.ptp(lengths)) < 0.05 < float(jnp.ptp(jnp.linalg.norm(plain[0][0], axis=-1)))
    codes = query_codes(passed[1], variables, 4)
    assert all(c.dtype == jnp.int8 and c.min() >= -8 and c.max() <= 7 for c in codes)
    many = {f"block{i}": {"mix": {"query": (i,), "key": (-i,)}} for i in (10, 9, 1)}
    assert sown_operands({OPERANDS: many}) == [(1, -1), (9, -9), (10, -10)]


@pytest.mark.slow
def test_blocks_that_are_computed_again_give_the_same_gradients(variables):
    teacher = initial(MODEL)
    extra = {QUANTIZATION: variables[QUANTIZATION]}

    def loss(params, remat):
        module = STUDENT.clone(remat=remat)
        output, sown = module.apply(network_variables(params, extra), IMAGE, train=True, mutable=[OPERANDS])
        _, targets = apply_with_operands(MODEL, teacher, IMAGE, train=False)
        return jnp.sum(output**2) + dgd_loss(sown_operands(sown), targets, standardize_teacher=True)

    run = jax.jit(jax.grad(loss), static_argnums=1)
    plain, again = (run(variables["params"], remat) for remat in ("none", "block"))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-4), again, plain)


@pytest.mark.slow
def test_the_distillation_stores_no_n_by_n():
    """Temporary memory of the gradients beside those of the definition, which makes the patterns: 785 tokens, two layers."""

    def definition(student, teacher):
        total = 0.0
        for x, t in zip(jax.tree.leaves(student), jax.tree.leaves(teacher), strict=True):
            patterns = [similarity_pattern(jnp.swapaxes(y, 1, 2)) for y in (x, t)]
            total += jnp.sqrt(jnp.sum(jnp.square(patterns[0] - patterns[1]), (2, 3)) + 1e-12).mean()
        return total

    operands = [(jax.ShapeDtypeStruct((4, 785, 3, 64), jnp.float32),) * 2] * 2
    memory = {
        loss: jax.jit(jax.grad(loss)).lower(operands, operands).compile().memory_analysis().temp_size_in_bytes
        for loss in (dgd_loss, definition)
    }
    pattern = 4 * 4 * 3 * 785**2  # of one layer in float32
    assert memory[definition] > 4 * pattern and memory[dgd_loss] < memory[definition] / 3


@pytest.mark.slow
@pytest.mark.parametrize("rectify", ["code", None])
def test_swin_is_quantized_in_its_windows(rectify):
    model = Swin(embedding=5, dim=8, blocks=(2, 1), heads=(2, 2), patch=1, window=4)
    precision = Precision(bits=4, rectify=rectify)
    student = quantized(model, precision)
    variables = calibrate(student, initial(student), IMAGE, train=False)
    rows = {row.name: (row.weight_bits, row.input_bits) for row in matrix_products(student, SHAPE)}
    assert rows["merge1/reduce"] == rows["stage1_block2/attention/mix/values"] == (4, 4)
    assert rows["patches"] == rows["head_dense"] == (8, 8)
    output, sown = jax.jit(functools.partial(student.apply, mutable=[OPERANDS]))(variables, IMAGE)
    _, targets = jax.jit(lambda v, x: apply_with_operands(model, v, x, train=False))(initial(model), IMAGE)
    operands = sown_operands(sown)
    assert [q.shape for q, _ in operands] == [(24, 16, 2, 4), (24, 16, 2, 4), (6, 16, 2, 8)]
    assert 0 < dgd_loss(operands, targets, standardize_teacher=rectify is not None) < 2**0.5
    module, integers = to_integer(model, precision, variables, SHAPE, implementation="xla")
    np.testing.assert_allclose(jax.jit(module.apply)(integers, IMAGE), output, atol=1e-4)


def test_costs_by_hand():
    """17 tokens would be 4·4 + 1; this network has 6 with both of its own."""
    rows = {row.name: row for row in matrix_products(MODEL, SHAPE)}
    assert rows["patches"].macs == 4 * 4 * 4 * 3 * 8 and rows["patches"].weights == 4 * 4 * 3 * 8
    assert rows["block1/attention/qkv"].macs == 6 * 8 * 24
    assert (
        rows["block1/attention/mix/scores"].macs == rows["block1/attention/mix/values"].macs == 2 * 6 * 6 * 4
    )
    assert rows["block1/attention/mix/values"].inputs == 2 * 6 * 6 + 2 * 6 * 4
    assert sum(row.macs for row in rows.values()) == models.multiply_accumulates(MODEL, SHAPE)


@pytest.mark.slow
def test_the_papers_speed_up_of_deit_s():
    """6.14 is 4.3 G over 0.7 G operations, the latter with 4 bits; linear layers alone are 4.3 G."""
    model = models.create("deit_small_distilled", embedding=1000)
    full, low = (
        transformer_cost(module, (224, 224, 3)) for module in (model, quantized(model, Precision(bits=4)))
    )
    linear = sum(row.macs for row in matrix_products(model, (224, 224, 3)) if row.weights)
    assert round(linear / 1e9, 1) == 4.3 and round(low.operations / 1e9, 1) == 0.7
    assert round(round(linear / 1e9, 1) / round(low.operations / 1e9, 1), 2) == 6.14
    np.testing.assert_allclose(full.operations / low.operations, 6.25, atol=0.01)
    np.testing.assert_allclose((full.weight_bytes / 1e6, low.weight_bytes / 1e6), (89.19, 11.68), atol=0.01)


def test_gelu_has_a_ceiling():
    np.testing.assert_allclose(clipped_gelu(jnp.array([-30.0, 1.0, 30.0])), [0, 0.841345, 10], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: quantized(models.create("mlp_8"), PRECISION), "model: needs a ViT, DeiT or Swin .* got MLP"),
        (lambda: quantized(MODEL, Precision(bits=1)), "precision.bits: needs an integer from 2 to 8, got 1"),
        (
            lambda: quantized(MODEL, Precision(edge_bits=9)),
            "precision.edge_bits: needs an integer from 2 to 8",
        ),
        (
            lambda: to_integer(MODEL, Precision(granularity="channel"), {}, SHAPE),
            "granularity: integer products need one step for a layer's input",
        ),
        (
            lambda: to_integer(MODEL, Precision(zero_point="input"), {}, SHAPE),
            "zero_point: integer attention needs None or 'code', got 'input'",
        ),
        (lambda: to_integer(MODEL, PRECISION, {"params": {}}, SHAPE), "need the collection 'quantization'"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(UserError, match=words):
        call()
