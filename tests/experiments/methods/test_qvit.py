"""Q-ViT as an experiment: its stages, the paper's recipe against the source's numbers, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.methods.qvit import Config, build, network, started_from
from jaxface import data, models, training
from jaxface.errors import UserError
from jaxface.layers.quantization import QUANTIZATION
from jaxface.models.transformers.quantized import Precision, matrix_products, quantized

TINY = Config(dim=8, depth=1, patch=4, calibration=16, batch_size=16, teacher_steps=60, steps=30)


def test_the_papers_recipe():
    """Source: DeiT-S with two heads; 2 bits, first and last layer 8; LAMB, 3e-4, batch 512, 300 epochs, no decay, hard 0.5."""
    config = Config.paper()
    model = network(config, 1000)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert models.parameter_count(shapes) == 22_436_432  # DeiT-S distilled, as published
    assert (model.dim, model.heads, model.depth, model.patch, model.distilled) == (384, 6, 12, 16, True)
    assert (config.image_size, config.drop_path, config.batch_size) == (224, 0.1, 512)
    assert config.steps == 300 * 1_281_167 // 512
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("lamb", 3e-4)
    assert config.optimizer.weight_decay == 0 and config.optimizer.warmup == 0
    assert config.distillation == 0.5 and config.dgd_weight == 1 and config.dgd_reduction == "sum"
    assert config.precision == Precision(2, 8, "channel", "code", rectify="code")


@pytest.mark.parametrize(
    ("name", "dim", "heads", "parameters"),
    [("deit_tiny_distilled", 192, 3, 5_910_800), ("deit_base_distilled", 768, 12, 87_338_192)],
)
def test_the_other_sizes(name, dim, heads, parameters):
    model = network(dataclasses.replace(Config.paper(), backbone=name), 1000)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert (model.dim, model.heads, model.dim // model.heads) == (dim, heads, 64)
    assert models.parameter_count(shapes) == parameters


@pytest.mark.slow
def test_swin_is_a_preset():
    config = Config.swin()
    student = quantized(network(config, 1000), config.precision)
    rows = matrix_products(student, (224, 224, 3))
    assert {row.weight_bits for row in rows if row.name in ("patches", "head_dense")} == {8}
    assert {row.weight_bits for row in rows if row.name not in ("patches", "head_dense")} == {2}
    assert round(sum(row.macs for row in rows) / 1e9, 1) == 4.5


def test_the_student_has_what_the_teacher_knows():
    fresh = {"a": {"kernel": 1, "input_quantizer": {"log_step": 2}}, "b": 3}
    expected = {"a": {"kernel": 10, "input_quantizer": {"log_step": 2}}, "b": 30}
    assert started_from(fresh, {"a": {"kernel": 10}, "b": 30}) == expected


@pytest.mark.slow
def test_three_stages_from_a_float_network_to_integers():
    config = dataclasses.replace(TINY, precision=Precision(bits=8))
    stages = build(config)
    assert [stage.name for stage in stages] == ["teacher", "student", "integer"]
    outcome = training.run(stages, seed=0)
    found = outcome.metrics
    assert found["teacher/classification/accuracy"] > 0.2
    # Eight bits are nearly no quantization, and start from the float network.
    assert found["student/classification/accuracy"] > found["teacher/classification/accuracy"] - 0.1
    assert found["integer/integer/agreement"] > 0.99
    assert 0 < found["student/codes/query_entropy"] < 8 and found["student/teacher/query_spread"] > 0
    assert set(outcome.state.extra) == {QUANTIZATION, "teacher"}


def test_steps_that_no_integer_product_can_have_end_with_the_student():
    precision = Precision(granularity="channel")
    assert [stage.name for stage in build(dataclasses.replace(TINY, precision=precision))] == [
        "teacher",
        "student",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": "mlp_8", "dim": None, "depth": None, "heads": None, "patch": None, "mlp_ratio": None},
         "drop_path"),
        ({"heads": 3}, "dim: needs a multiple of heads, 3, got 8"),
        ({"precision": Precision(bits=9)}, "precision.bits: needs an integer from 2 to 8, got 9"),
        ({"init_from": "run"}, "init_from: the student starts from its teacher"),
        ({"data": data.Procedural()}, "data: needs classes to be told apart"),
        ({"teacher_run": "nowhere"}, "nowhere"),
    ],
)  # fmt: skip
def test_refusals(changes, words):
    with pytest.raises(UserError, match=words):
        build(dataclasses.replace(TINY, **changes))


def test_patches_divide_the_image():
    (stage, *_) = build(dataclasses.replace(TINY, patch=3))
    with pytest.raises(UserError, match="image_size: needs a multiple of the patch, which has 3 pixels"):
        jax.eval_shape(stage.init, jax.random.key(0), None)


def test_the_default_batch_is_of_digits():
    (stage, *_) = build(TINY)
    batch = next(stage.batches(None))
    assert batch["image"].shape == (16, 8, 8, 1) and np.ptp(batch["label"]) > 0
