"""The docstrings: every public name has one, and the examples in them run."""

import doctest
import importlib
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "site"))

import inventory  # noqa: E402

EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in inventory.PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text("utf-8")
]


def test_every_public_name_is_documented():
    names = inventory.names()
    silent = [name.path for name in names if not name.doc.strip()]
    silent += [f"{name.module}.{member}" for name in names for member in name.undocumented]
    assert len(names) > 500 and not silent, f"no docstring: {', '.join(silent)}"


def test_names_are_found_where_python_finds_them():
    """The sources are read without importing them; what is read must be what an import gives."""
    for package in ("jaxface.boxes", "jaxface.losses", "jaxface.metrics", "pallas_kernels.margin_softmax"):
        module = importlib.import_module(package)
        listed = {name.path.rpartition(".")[2] for name in inventory.packages()[package]}
        assert listed == set(module.__all__)


@pytest.mark.parametrize("package", ["losses", "metrics", "boxes", "search"])
def test_every_function_shows_how_it_is_called(package):
    functions = [name for name in inventory.packages()[f"jaxface.{package}"] if name.kind == "function"]
    missing = [name.path for name in functions if ">>> " not in name.doc]
    assert functions and not missing, f"no example: {', '.join(missing)}"


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted and not result.failed
