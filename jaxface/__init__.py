"""jaxface: efficient and robust face analysis in JAX and Flax.

`import jaxface` is cheap: a room (`jaxface.losses`, `jaxface.data`, …) is imported when it is first used.
"""

import importlib

_ROOMS = (
    "attacks",
    "axes",
    "data",
    "errors",
    "interop",
    "layers",
    "losses",
    "metrics",
    "models",
    "optimizers",
    "training",
)

__version__ = "0.1.0"
__all__ = list(_ROOMS)


def __getattr__(name: str):
    if name in _ROOMS:
        return importlib.import_module(f"jaxface.{name}")
    raise AttributeError(f"module 'jaxface' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_ROOMS])
