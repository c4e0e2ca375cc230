"""Totals of the host networks, as the methods' descriptions derive them."""

import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.hardware import (
    CONVENTIONAL,
    RETINAFACE_PARAMETERS,
    cascade_layers,
    layer_cycles,
    network_cycles,
    retinaface_layers,
    separable_where,
    tiny_yolo_layers,
)

SSH = retinaface_layers("ssh")


def named(layers, prefix):
    return [layer for layer in layers if layer.name.startswith(prefix)]


@pytest.mark.parametrize(
    ("context", "weights", "macs", "address", "zero", "of_context"),
    [
        ("ssh", 419_824, 981_145_600, 1_011_100, 1_011_100, (285_120, 285_120)),
        ("dilated", 426_736, 1_000_499_200, 1_030_108, 1_503_196, (304_128, 777_216)),
        ("ddc", 333_616, 739_763_200, 774_028, 803_596, (48_048, 77_616)),
        ("cassod", 397_552, 918_784_000, 949_852, 1_102_444, (223_872, 376_464)),
    ],
)
def test_regression_totals(context, weights, macs, address, zero, of_context):
    layers = retinaface_layers(context)
    found = network_cycles(layers)
    assert (found.weights, found.macs, found.total) == (weights, macs, address)
    assert network_cycles(layers, CONVENTIONAL).total == zero
    modules = named(layers, "context")
    assert (network_cycles(modules).total, network_cycles(modules, CONVENTIONAL).total) == of_context
    if context == "ssh":
        np.testing.assert_allclose(found.utilization, 0.947631, atol=5e-7)


def test_where_the_weights_of_the_host_are():
    parts = {"backbone": 207_600, "lateral": 28_672, "merge": 73_728, "context": 103_680}
    assert {name: network_cycles(named(SSH, name)).weights for name in parts} == parts
    heads = [layer for layer in SSH if layer.name.startswith(("class", "box", "point"))]
    assert network_cycles(heads).weights == 6144
    macs = {"backbone": 332.9, "lateral": 45.9, "merge": 294.9, "context": 290.3}
    for name, millions in macs.items():
        np.testing.assert_allclose(network_cycles(named(SSH, name)).macs / 1e6, millions, atol=0.05)


@pytest.mark.parametrize(
    ("layers", "middle_channels", "weights", "with_norms", "macs"),
    [
        ([f"context{i}.{name}" for i in (1, 2, 3) for name in ("large", "stem", "medium", "small1", "small2")],
         3 * (2 * 64 + 3 * 16), -20.49, -20.24, -24.94),
        (["merge1", "merge2", *(f"context{i}.{name}" for i in (1, 2, 3) for name in ("medium", "small1", "small2"))],
         None, -19.11, None, -31.14),
        (["merge1", "merge2"], None, -15.09, None, -26.25),
    ],
)  # fmt: skip
def test_where_ddc_might_go(layers, middle_channels, weights, with_norms, macs):
    """Changes in per cent; none is both the paper's -20 % of size and -30 % of computation."""
    base, changed = network_cycles(SSH), network_cycles(separable_where(SSH, layers))
    fewer = changed.weights - base.weights
    np.testing.assert_allclose(100 * fewer / RETINAFACE_PARAMETERS, weights, atol=0.005)
    np.testing.assert_allclose(100 * (changed.macs / base.macs - 1), macs, atol=0.005)
    if with_norms is not None:
        norms = 2 * middle_channels
        np.testing.assert_allclose(100 * (fewer + norms) / RETINAFACE_PARAMETERS, with_norms, atol=0.005)
    if weights == -19.11:
        np.testing.assert_allclose(100 * fewer / base.weights, -19.42, atol=0.005)


def test_the_default_place_of_ddc():
    base, changed = network_cycles(SSH), network_cycles(retinaface_layers("ddc"))
    fewer = changed.weights - base.weights
    # Three middle normalizations of 64 channels per level; the context's own have 64 channels instead of 96.
    norms = 2 * 3 * (3 * 64 + 64 - 96)
    np.testing.assert_allclose(100 * fewer / RETINAFACE_PARAMETERS, -20.21, atol=0.005)
    np.testing.assert_allclose(100 * (fewer + norms) / RETINAFACE_PARAMETERS, -19.98, atol=0.005)
    np.testing.assert_allclose(100 * (changed.macs / base.macs - 1), -24.60, atol=0.005)


def test_the_cascade_has_47_percent_of_the_dilated_weights():
    (medium,) = named(retinaface_layers("dilated"), "context1.medium")
    cascade = cascade_layers(medium)
    assert layer_cycles(cascade).weights.tolist() == [256, 4096] and layer_cycles(medium).weights == 9216
    np.testing.assert_allclose(network_cycles(cascade).weights / 9216, 0.472222, atol=5e-7)
    assert layer_cycles(cascade).total.tolist() == [1600, 25_600]


def test_tiny_yolo():
    found = layer_cycles(tiny_yolo_layers())
    weights = [432, 4608, 18_432, 73_728, 294_912, 1_179_648, 4_718_592, 9_437_184, 30_720]
    assert found.weights.tolist() == weights and sum(weights) == 15_758_256
    np.testing.assert_allclose(found.macs[:8].sum() / 1e9, 3.464, atol=5e-4)
    doubled = layer_cycles(tiny_yolo_layers(pooled_layers=range(2, 9), channel_pool=2)).weights
    assert found.weights[1:8].sum() == 15_727_104 and doubled[1:8].sum() == 31_454_208


def test_refusals():
    with pytest.raises(UserError, match="context: needs one of ssh, dilated, ddc, cassod, got 'fpn'"):
        retinaface_layers("fpn")
    with pytest.raises(UserError, match="names: needs names of layers, got merge9"):
        separable_where(SSH, ["merge9"])
