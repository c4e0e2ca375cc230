import flax.linen as nn
import jax.numpy as jnp
import pytest

from jaxface import models
from jaxface.hardware import ConvSpec, layer_cycles, network_cycles, retinaface_layers
from jaxface.models.convolutions import convolution_specs, traced_layers
from jaxface.models.detection.base import create_detector


@pytest.mark.parametrize(
    ("name", "shape", "fields"), [("iresnet_pico", (48, 48, 3), {}), ("vit_tiny", (32, 32, 1), {"depth": 1})]
)
def test_the_shapes_say_how_many_multiplications(name, shape, fields):
    module = models.create(name, embedding=32, **fields)
    layers = convolution_specs(module, shape)
    assert network_cycles(layers).macs == models.multiply_accumulates(module, shape)
    assert len({layer.name for layer in layers}) == len(layers)
    assert [layer.name for layer in layers if layer.name.endswith("head_dense")] == [layers[-1].name]


@pytest.mark.parametrize("context", ["ssh", "dilated"])
def test_the_detector_is_the_table_that_was_written_out(context):
    traced = convolution_specs(create_detector("retinaface", context=context).module, (640, 640, 3))
    written = retinaface_layers(context)
    assert len(traced) == len(written)

    def shapes(layers):
        each = layer_cycles(layers)
        return sorted(zip(each.weights.tolist(), each.macs.tolist(), each.total.tolist(), strict=True))

    assert shapes(traced) == shapes(written)


def test_a_layer_keeps_what_a_machine_needs_to_know():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = nn.Conv(6, (3, 5), strides=(2, 1), feature_group_count=2, use_bias=False, name="grouped")(x)
            x = nn.Conv(4, (3, 3), kernel_dilation=2, padding="VALID", dtype=jnp.bfloat16, name="dilated")(x)
            return nn.Dense(3, name="dense")(x.reshape(1, -1))

    grouped, dilated, dense = convolution_specs(Net(), (12, 12, 4))
    bits = {"bits_in": 32, "bits_weight": 32, "bits_out": 32}
    assert grouped == ConvSpec(
        12, 12, 4, 6, (3, 5), (2, 1), (1, 1), 2, **bits, out_height=6, out_width=12, name="Net/grouped"
    )
    bits = {"bits_in": 16, "bits_weight": 16, "bits_out": 16}
    assert dilated == ConvSpec(
        6, 12, 6, 4, (3, 3), (1, 1), (2, 2), 1, **bits, out_height=2, out_width=8, name="Net/dilated"
    )
    assert (dense.height, dense.in_channels, dense.out_channels, dense.name) == (1, 64, 3, "Net/dense")


def test_products_of_several_heads_are_groups_and_layers_of_one_name_are_numbered():
    first, second = traced_layers(
        lambda x, y: jnp.einsum("hnc,hco->hno", x, y) + jnp.einsum("hnc,hco->hno", x, y + 1),
        jnp.zeros((3, 5, 8)), jnp.zeros((3, 8, 2)),
    )  # fmt: skip
    assert (first.height, first.in_channels, first.out_channels, first.groups) == (5, 24, 6, 3)
    assert layer_cycles(first).macs == 3 * 5 * 8 * 2
    assert second.name == f"{first.name}#2"
    assert traced_layers(lambda x: x @ x, jnp.zeros((2, 2)), products=False) == []


def test_a_module_may_say_what_its_convolutions_are():
    class Shifted(nn.Module):
        def conv_specs(self, input_shape):
            _, height, width, channels = input_shape
            return [ConvSpec(height, width, channels, channels, 2, groups=channels, name="a")]

        @nn.compact
        def __call__(self, x):
            return jnp.einsum("bhwc,cd->bhwd", x, jnp.eye(x.shape[-1]))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = nn.Conv(4, (1, 1), name="before")(x)
            x = Shifted(name="shifted")(x)
            return nn.Conv(4, (1, 1), name="after")(x)

    layers = convolution_specs(Net(), (6, 6, 3))
    assert [layer.name for layer in layers] == ["Net/before", "shifted/a", "Net/after"]
    assert layer_cycles(layers[1]).weights == 16
