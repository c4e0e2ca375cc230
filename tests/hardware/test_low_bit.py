import pytest

from jaxface.errors import UserError
from jaxface.hardware import Product, low_bit_cost


def test_an_operation_of_b_bits_is_b_32nds_of_one():
    rows = [
        Product("patches", macs=640, weights=64, inputs=10, weight_bits=8, input_bits=8),
        Product("dense", macs=3200, weights=320, inputs=10, weight_bits=2, input_bits=4),
        Product("scores", macs=100, weights=0, inputs=20),
    ]
    cost = low_bit_cost(rows, elementwise=7)
    assert cost.macs == 3940 and cost.operations == 640 / 4 + 3200 / 8 + 100 + 7
    assert cost.weight_bytes == 64 + 320 / 4 and cost.input_bytes == 10 + 5 + 80


def test_of_nothing():
    with pytest.raises(UserError, match="products: needs at least one, got none"):
        low_bit_cost([])
