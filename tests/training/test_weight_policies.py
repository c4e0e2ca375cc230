"""Policies of example weights as files: written, read again, resampled, and refused where they are none."""

import json

import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.training.weight_policies import WeightPolicy, WeightRule

ACTIONS = np.arange(12, dtype=np.float32).reshape(4, 3) / 7


def policy(**changes):
    return WeightPolicy(**({"actions": ACTIONS, "warmup_stages": 1, "rule": WeightRule()} | changes))


def test_a_file_and_back(tmp_path):
    path = policy(title="digits").save(tmp_path / "policy.json")
    for source in (path, tmp_path):
        loaded = WeightPolicy.load(source)
        np.testing.assert_array_equal(loaded.actions[1:], ACTIONS[1:])
        assert not loaded.actions[0].any()  # the warm-up weighs nothing
        assert (loaded.warmup_stages, loaded.rule, loaded.title) == (1, WeightRule(), "digits")


def test_other_numbers_of_stages():
    twice = policy().resampled(8)
    np.testing.assert_array_equal(twice.actions, np.repeat(policy().actions, 2, axis=0))
    assert twice.warmup_stages == 2
    half = policy(warmup_stages=2).resampled(2)
    assert half.warmup_stages == 1 and half.actions.shape == (2, 3)
    np.testing.assert_array_equal(half.actions[1], ACTIONS[2])
    assert policy().resampled(1).warmup_stages == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"actions": ACTIONS[:, :2]}, r"actions of 3 numbers, got shape \(4, 2\)"),
        ({"actions": ACTIONS[:0]}, "actions of 3 numbers"),
        ({"actions": ACTIONS + np.inf}, "finite"),
        ({"warmup_stages": 4}, "a warm-up shorter than its 4 stages, got 4"),
    ],
)
def test_refused_policies(changes, words):
    with pytest.raises(UserError, match=words):
        policy(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "other"}, "holds no policy"),
        ({"actions": "none"}, "holds no policy"),
        ({"warmup_stages": 1.5}, "1.5 is not an integer"),
        ({"rule": {"use_label": False, "entropy_scale": "other", "num_nodes": 1}}, "entropy_scale is 'other'"),
        ({"rule": {"use_label": False, "entropy_scale": "loss", "num_nodes": 10**9}}, "is not an integer up to"),
        ({"rule": None}, "holds no policy"),
        ({"actions": [[1.0, float("nan"), 1.0]]}, "finite"),
    ],
)  # fmt: skip
def test_refused_files(tmp_path, changes, words):
    path = policy().save(tmp_path / "policy.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=words):
        WeightPolicy.load(path)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"policy: needs a policy\.json or the work directory of a search"):
        WeightPolicy.load(tmp_path)
    (tmp_path / "policy.json").write_text("{")
    with pytest.raises(UserError, match="holds no policy"):
        WeightPolicy.load(tmp_path)
