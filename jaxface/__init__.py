"""jaxface: efficient and robust face analysis in JAX and Flax.

`import jaxface` is cheap: a package (`jaxface.losses`, `jaxface.data`, …) is imported when it is first used.
"""

import importlib
import pkgutil

__version__ = "0.1.0"
__all__ = sorted(module.name for module in pkgutil.iter_modules(__path__))


def __getattr__(name: str):
    if name in __all__:
        return importlib.import_module(f"jaxface.{name}")
    raise AttributeError(f"module 'jaxface' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
