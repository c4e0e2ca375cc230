"""The examples in the docstrings run."""

import doctest
import importlib
import pkgutil

import pytest

from jaxface import boxes
from jaxface.metrics import detection

MODULES = [
    f"{package.__name__}.{module.name}"
    for package in (boxes, detection)
    for module in pkgutil.iter_modules(package.__path__)
] + ["jaxface.losses.detection"]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0
