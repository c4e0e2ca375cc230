"""Numbers are those of the methods' descriptions, computed there from first principles."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxface.errors import UserError
from jaxface.hardware import (
    CONVENTIONAL,
    PROPOSED,
    Accelerator,
    ConvSpec,
    depthwise_separable,
    dilated_cycles,
    layer_cycles,
    network_cycles,
    taps,
)

# The branch of a context module: 64 -> 16 channels on 80 x 80 places, dilation 2.
BRANCH = ConvSpec(80, 80, 64, 16, dilation=2)
SERIAL = Accelerator(positions=9, out_channels=1)
WINDOW = Accelerator(positions=1, out_channels=1, order="window")


@pytest.mark.parametrize(
    ("dilation", "ratio"), [(1, 1), (2, 2.777778), (3, 5.444444), (4, 9), (8, 32.111111)]
)
def test_zeros_between_taps_cost_their_places(dilation, ratio):
    found = dilated_cycles(3, dilation, "zero") / dilated_cycles(3, dilation, "address")
    np.testing.assert_allclose(found, ratio, atol=5e-7)


def test_zeros_of_a_larger_filter():
    assert dilated_cycles(5, 2, "zero") / dilated_cycles(5, 2, "address") == 3.24


@pytest.mark.parametrize(
    ("size", "ratio", "utilization"),
    [
        (1, 9, 0.1111), (2, 2.25, 0.4444), (3, 1, 1), (4, 2.25, 0.4444), (5, 1.44, 0.6944), (6, 1, 1), (7, 1.653061, 0.6049),
        (9, 1, 1), (11, 1.190083, 0.8403),
    ],
)  # fmt: skip
def test_a_window_of_three_against_as_many_multipliers_one_tap_at_a_time(size, ratio, utilization):
    layer = ConvSpec(9, 9, 4, 4, size)
    serial, window = layer_cycles(layer, SERIAL), layer_cycles(layer, WINDOW)
    assert SERIAL.multipliers == WINDOW.multipliers == 9
    np.testing.assert_allclose(window.total / serial.total, ratio, atol=5e-7)
    np.testing.assert_allclose(window.utilization, utilization, atol=5e-5)
    np.testing.assert_allclose(serial.utilization, 1, rtol=1e-12)


def test_a_window_sees_the_zeros_of_a_dilated_filter():
    assert taps(3, 2, order="window", dilated="zero") == 4  # 5 x 5 in windows of 3 x 3
    assert taps(3, 2, order="window") == 1
    assert taps(np.array([[3, 3], [1, 7]]), np.array([[2, 1], [1, 1]]), dilated="zero").tolist() == [15, 7]


def test_cycles_of_a_dilated_branch():
    assert layer_cycles(BRANCH).total == 57_600
    assert layer_cycles(BRANCH, CONVENTIONAL).total == 160_000
    assert [layer_cycles(part).total for part in depthwise_separable(BRANCH)] == [3600, 6400]
    assert 57_600 / network_cycles(depthwise_separable(BRANCH)).total == 5.76


def test_depthwise_layers_leave_summing_units_idle():
    layer = ConvSpec(8, 8, 32, 32, groups=32)
    wide = Accelerator(positions=64, out_channels=1, in_channels=16)
    assert layer_cycles(layer, wide).utilization == 1 / 16
    assert layer_cycles(dataclasses.replace(layer, groups=1), wide).utilization == 1


def test_groups_in_between_take_the_faster_way():
    layer = ConvSpec(8, 8, 64, 64, 1, groups=4)  # 16 -> 16 in each
    one_by_one = Accelerator(positions=64, out_channels=16, in_channels=16)
    assert layer_cycles(layer, one_by_one).total == 4
    assert (
        layer_cycles(layer, Accelerator(positions=64, out_channels=64)).total == 16
    )  # all groups side by side


def test_memory_time():
    layer = ConvSpec(10, 10, 4, 8, bits_in=8, bits_weight=4, bits_out=16)
    assert layer_cycles(layer).traffic == 400 + 144 + 1600
    fed = Accelerator(positions=100, out_channels=8, bytes_per_cycle=8)
    cycles = layer_cycles(layer, fed)
    assert (cycles.compute, cycles.memory, cycles.total) == (36, 268, 268)
    assert layer_cycles(layer, dataclasses.replace(fed, double_buffer=False)).total == 304
    assert layer_cycles(layer, dataclasses.replace(fed, zero_blocks=0.5)).compute == 18


def test_a_network_is_the_sum_of_its_layers():
    layers = [BRANCH, ConvSpec(20, 20, 3, 7, (1, 7), stride=(1, 2), name="odd")]
    each, whole = layer_cycles(layers), network_cycles(layers)
    assert (
        whole.total == each.total.sum() == 57_600 + 4 * 1 * 3 * 7
    )  # 200 places in fours, 7 channels at once
    assert whole.macs == 80 * 80 * 9 * 64 * 16 + 200 * 7 * 3 * 7
    np.testing.assert_allclose(whole.utilization, whole.macs / (whole.total * 1024), rtol=1e-12)


sizes = st.integers(1, 40)


@settings(max_examples=40)
@given(
    height=sizes, width=sizes, in_channels=sizes, out_channels=sizes, kernel_size=st.integers(1, 7), dilation=st.integers(1, 4),
    positions=sizes, machine_out=sizes, machine_in=sizes, order=st.sampled_from(["serial", "window"]),
)  # fmt: skip
def test_properties(
    height, width, in_channels, out_channels, kernel_size, dilation, positions, machine_out, machine_in, order
):
    layer = ConvSpec(height, width, in_channels, out_channels, kernel_size, dilation=dilation)
    machine = Accelerator(positions, machine_out, machine_in, order=order)
    cycles = layer_cycles(layer, machine)
    assert 0 < cycles.utilization <= 1
    # More work never takes fewer cycles; an addressed dilation costs none; zeros cost nothing where there are none.
    for field in ("height", "width", "in_channels", "out_channels", "kernel_size"):
        larger = dataclasses.replace(layer, **{field: getattr(layer, field) + 1})
        assert layer_cycles(larger, machine).total >= cycles.total
    dense = dataclasses.replace(layer, dilation=1)
    assert layer_cycles(dense, machine).total == cycles.total
    zeros = dataclasses.replace(machine, dilated="zero")
    assert layer_cycles(dense, zeros).total == cycles.total <= layer_cycles(layer, zeros).total


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dilation": 0}, "dilation: needs an integer from 1, got 0"),
        ({"kernel_size": (3, 0)}, "kernel_size: needs"),
        ({"groups": 3}, "groups: needs a number that divides in_channels 64, got 3"),
        ({"channel_pool": 3}, "channel_pool: needs a number that divides out_channels 16, got 3"),
        ({"height": 0}, "height: needs"),
    ],
)
def test_impossible_layers_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(BRANCH, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": 0}, "positions: needs an integer from 1, got 0"),
        ({"out_channels": -1}, "out_channels: needs"),
        ({"bytes_per_cycle": 0.0}, "bytes_per_cycle: needs"),
        ({"zero_blocks": 1.0}, "zero_blocks: needs"),
        ({"order": "parallel"}, "order: needs one of serial, window, got 'parallel'"),
        ({"dilated": "skip"}, "dilated: needs one of address, zero, got 'skip'"),
    ],
)
def test_impossible_machines_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(PROPOSED, **change)
    with pytest.raises(UserError, match="dilation: needs at least 1"):
        taps(3, 0)
    with pytest.raises(UserError, match="layers: needs at least one"):
        layer_cycles([])
