"""A method, a kind of data and a model each come from one file, and no list is edited for them."""

import importlib.util
import json

import pytest

from experiments import launch, methods
from jaxface import data, inference, models
from jaxface.errors import UserError
from jaxface.registry import Registry


@pytest.fixture
def entries(monkeypatch):
    """Undoes what a test registers."""
    for table in (data.KINDS, models.MODELS):
        table.names()
        for name in ("_entries", "_names"):
            monkeypatch.setattr(table, name, dict(getattr(table, name)))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODEL = """
import flax.linen as nn
import jax.numpy as jnp
from jaxface.models import MODELS

@MODELS.register("mean_color")
class MeanColor(nn.Module):
    embedding: int = 8
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, image, *, train):
        return nn.Dense(self.embedding)(image.mean((1, 2))).astype(jnp.float32)
"""

KIND = """
import dataclasses
from jaxface.data import KINDS, DataSpec, Split, digits

@KINDS.register("all_digits")
@dataclasses.dataclass(frozen=True)
class AllDigits(DataSpec):
    '''Every digit to learn from and to test on.'''

    title = "all digits"

    def source(self, *, image_size, seed):
        return digits()

    def divide(self, *, image_size, seed):
        return Split(digits(), digits(), self.title, "classification")
"""

METHOD = """
'''Plain: a softmax and nothing else (arXiv:0000.00000).'''

import dataclasses
from experiments.recipes.heads import HeadSpec
from experiments.recipes.recognition import Recipe, load, network, recognition_stage

@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    pass

def build(config):
    return [recognition_stage("recognition", config, load(config), network(config), HeadSpec().build())]
"""


def test_one_of_each_from_a_file_of_its_own(entries, monkeypatch, tmp_path):
    for name, code in (("mean_color", MODEL), ("all_digits", KIND)):
        (tmp_path / f"{name}.py").write_text(code)
        load(tmp_path / f"{name}.py")
    assert "mean_color" in models.names() and "all_digits" in data.KINDS.names()

    (tmp_path / "methods").mkdir()
    (tmp_path / "methods/plain.py").write_text(METHOD.strip())
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path / "methods")])
    assert methods.descriptions()["plain"].startswith("Plain: a softmax")

    flags = "--data all_digits --backbone mean_color --embedding 4 --image-size 8 --steps 3 --batch-size 16 --quiet"
    launch.main(["plain", *flags.split(), "--augment.flip", "0", "--workdir", str(tmp_path / "run")])
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["data"] == {"kind": "all_digits"}
    assert json.loads((tmp_path / "run/results.json").read_text())["metrics"]["classification/accuracy"] >= 0
    model = inference.open_recognizer(tmp_path / "run").module
    assert type(model).__name__ == "MeanColor"


def test_a_name_is_registered_once():
    table = Registry("thing", "jaxface.cli.commands")
    table.update({"a": 1})
    with pytest.raises(ValueError, match="'a' is registered twice"):
        table.register("a")(2)
    assert table["a"] == 1 and table.name_of(1) == "a" and "b" not in table
    with pytest.raises(UserError, match=r"^thing: needs one of a, got 'aa'; did you mean 'a'"):
        table["aa"]
