"""Packages beyond the five that jaxface always has: each belongs to an extra, which is named where its package is missing."""

import importlib
import importlib.util
import types

from jaxface.errors import UserError


class MissingExtra(UserError, ImportError):
    """A package of an extra is not installed; the message says which extra installs it."""


def need(extra: str, *modules: str) -> None:
    """Checks that modules can be imported, without importing them: the first line of a package that uses them throughout.

    Args:
      extra: of `pip install 'jaxface[extra]'`.
      *modules: names to import, such as `orbax.checkpoint`.

    Raises:
      MissingExtra: one of them is not installed.

    Example:
      >>> need("data", "json")
    """
    for module in modules:
        try:
            found = importlib.util.find_spec(module) is not None
        except (ImportError, ValueError):  # no parent; or a module without a specification
            found = False
        if not found:
            raise _missing(extra, module)


def optional(module: str, extra: str) -> types.ModuleType:
    """A module of an extra, imported where it is used.

    Raises:
      MissingExtra: it is not installed.

    Example:
      >>> optional("math", "data").sqrt(4.0)
      2.0
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # installed, and broken: what it says itself says more
        raise _missing(extra, module) from None


def _missing(extra: str, module: str) -> MissingExtra:
    package = module.partition(".")[0]
    return MissingExtra(
        f"jaxface[{extra}] is needed: the package {package} is not installed; pip install 'jaxface[{extra}]'"
    )
