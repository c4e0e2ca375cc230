"""Accelerator kernels, each usable on its own: `from pallas_kernels import margin_softmax`.

One folder per op: `api.py` (what to call), `reference.py` (the definition, in plain XLA), `gpu.py` (Hopper, Mosaic GPU) and
`tpu.py` (Mosaic). Nothing here imports jaxface; jax, numpy, flax and optax suffice.
"""

import importlib

_MODULES = ("aot", "binary_conv", "common", "dilated_conv", "margin_softmax", "quantized_attention")

__all__ = list(_MODULES)


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f"pallas_kernels.{name}")
    raise AttributeError(f"module 'pallas_kernels' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_MODULES])
