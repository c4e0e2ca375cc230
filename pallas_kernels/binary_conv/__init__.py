"""Convolutions of signs with signs, 32 products to a word.

Inference: `pack_weights` once, `pack_bits` at the entrance, then `binary_conv2d_block` from layer to layer, which hands on
bits. Training: `binary_conv2d_ste` on real arrays. `binary_conv2d` and `binary_dense` give the exact integers.
"""

from pallas_kernels.binary_conv.api import (
    binary_conv2d,
    binary_conv2d_block,
    binary_dense,
    padding_correction,
)
from pallas_kernels.binary_conv.packing import (
    no_shift_dot,
    pack_bits,
    pack_plane_major,
    pack_weights,
    plane_major_dot,
    popcount_dot,
    unpack_bits,
)
from pallas_kernels.binary_conv.ste import binary_conv2d_ste
from pallas_kernels.binary_conv.thresholds import fold_batch_norm, sign_thresholds, threshold_bits

__all__ = [
    "binary_conv2d",
    "binary_conv2d_block",
    "binary_conv2d_ste",
    "binary_dense",
    "fold_batch_norm",
    "no_shift_dot",
    "pack_bits",
    "pack_plane_major",
    "pack_weights",
    "padding_correction",
    "plane_major_dot",
    "popcount_dot",
    "sign_thresholds",
    "threshold_bits",
    "unpack_bits",
]
