"""A step of INTERN's first stage compiled by the real TPU compiler for four chips: what is spread, and what a chip holds."""

import dataclasses
import types

import pytest

from benchmarks import intern_aot
from experiments.recipes.image_text import TextTowerSpec, UpA

pytest.importorskip("libtpu", reason="the TPU compiler; `make test-aot` installs it")
pytestmark = pytest.mark.aot

CASE = intern_aot.Case("v5e:2x2", "metanet_tiny", batch=16, image_size=64)
SPEC = UpA(batch_size=16, text=TextTowerSpec(dim=128, heads=2, length=8), bank=64)
TOKENIZER = types.SimpleNamespace(
    vocabulary=1024, length=8, pad=0, start=1, end=2, mask=3, special=(0, 1, 2, 3), digest="0" * 16
)


def compiled(shard):
    case = dataclasses.replace(CASE, shard=shard)
    return intern_aot.compile_case(case, SPEC, TOKENIZER, repeats=(1, 1, 2, 1, 2, 1))


def test_the_state_is_spread_over_the_chips():
    whole, spread = compiled("none"), compiled("fsdp")
    assert whole["chips"] == 4 and whole["parameters"] == spread["parameters"]
    # Parameters and two moments; small arrays stay on every chip.
    assert whole["state_gb"] > 3 * 4e-9 * whole["parameters"]
    assert spread["state_gb"] < 0.6 * whole["state_gb"]
    assert spread["problems"] == whole["problems"] == []
    assert spread["in_place_gb"] >= spread["state_gb"]


def test_what_is_wrong_is_said():
    result = {"total_gb": 14.0, "output_gb": 2.0, "in_place_gb": 1.5}
    first, second = intern_aot.problems(CASE, result)
    assert first == "it takes 14.0 GB, more than 12.8 GB"
    assert second == "0.500 GB of the new state are not written in place"
