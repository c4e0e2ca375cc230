"""Policies of example weights (LAW, arXiv:1905.11058): what a search leaves, as a file that another training replays.

Methods: law
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from jaxface.errors import UserError
from jaxface.losses.law import EntropyScale, action_size, num_features
from jaxface.paths import user_path
from jaxface.training.workdir import write_atomically, writing

POLICY_FILE = "policy.json"
"""Name of the file in the work directory of a search."""
_LARGEST_FILE = 1 << 24  # bytes
_MOST_STAGES, _MOST_NODES = 4096, 256


@dataclasses.dataclass(frozen=True)
class WeightRule:
    """How an action becomes weights (`jaxface.losses.sample_features`, `weights_from_action`)."""

    use_label: bool = False
    """Whether the class of an example counts; classes are to be ordered by their frequency then."""
    entropy_scale: EntropyScale = "loss"
    """What the entropies are divided by: the standard deviation of the losses, or their own."""
    num_nodes: int = 1
    """Hidden nodes of the rule; 1 for a weighted sum."""

    @property
    def size(self) -> int:
        """Numbers of an action."""
        return action_size(num_features(self.use_label), self.num_nodes)


@dataclasses.dataclass(frozen=True)
class WeightPolicy:
    """An action for every stage of a training.

    Attributes:
      actions: [S, A] float32; those of the warm-up are 0, which is weight 1.
      warmup_stages: W in [0, S), stages at the beginning with equal weights.
      rule: how actions become weights.
      title: of the data on which it was found.
    """

    actions: np.ndarray
    warmup_stages: int
    rule: WeightRule
    title: str = ""

    def __post_init__(self):
        actions = np.asarray(self.actions, np.float32)
        if actions.ndim != 2 or not len(actions) or actions.shape[1] != self.rule.size:
            raise UserError(f"policy: needs actions of {self.rule.size} numbers, got shape {actions.shape}")
        if not np.isfinite(actions).all():
            raise UserError("policy: needs finite actions")
        if not 0 <= self.warmup_stages < len(actions):
            raise UserError(
                f"policy: needs a warm-up shorter than its {len(actions)} stages, got {self.warmup_stages}"
            )
        actions = actions * (np.arange(len(actions)) >= self.warmup_stages)[:, None]
        object.__setattr__(self, "actions", actions)

    @classmethod
    def constant(cls, action, stages: int, warmup_stages: int, rule: WeightRule) -> "WeightPolicy":
        """One action in all stages after the warm-up."""
        return cls(np.tile(np.asarray(action, np.float32), (stages, 1)), warmup_stages, rule, "a rule")

    def resampled(self, stages: int) -> "WeightPolicy":
        """The same for a training of another number of stages: stage s has the action of the old stage that it begins in."""
        if stages == len(self.actions):
            return self
        old = np.arange(stages) * len(self.actions) // stages
        warmup = min(int((old < self.warmup_stages).sum()), stages - 1)
        return dataclasses.replace(self, actions=self.actions[old], warmup_stages=warmup)

    def save(self, path: str | os.PathLike) -> pathlib.Path:
        """Writes it as JSON and returns the path."""
        path = pathlib.Path(path)
        written = {
            "method": "law",
            "data": self.title,
            "warmup_stages": self.warmup_stages,
            "rule": dataclasses.asdict(self.rule),
            "actions": [[float(x) for x in action] for action in self.actions],
        }
        with writing(path):
            write_atomically(path, json.dumps(written, indent=1) + "\n")
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> "WeightPolicy":
        """Reads what `save` wrote, or what the run with that work directory did.

        Raises:
          UserError: no such file, or one that holds no policy.
        """
        path = user_path("policy", path)
        file = path / POLICY_FILE if path.is_dir() else path
        if not file.is_file():
            raise UserError(
                f"policy: needs a policy.json or the work directory of a search, {path} is neither"
            )
        if file.stat().st_size > _LARGEST_FILE:
            raise UserError(f"policy: {file} is too large for a policy")
        try:
            return cls._from_json(json.loads(file.read_text()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"policy: {file} holds no policy ({reason[:80]})") from None

    @classmethod
    def _from_json(cls, written: Any) -> "WeightPolicy":
        if not isinstance(written, dict) or written.get("method") != "law":
            raise ValueError("it says of no policy")
        rule, actions, warmup = written["rule"], written["actions"], written["warmup_stages"]
        if rule["entropy_scale"] not in EntropyScale.__args__:
            raise ValueError(f"entropy_scale is {rule['entropy_scale']!r}")
        for value, most in (
            (warmup, _MOST_STAGES),
            (rule["num_nodes"], _MOST_NODES),
            (len(actions), _MOST_STAGES),
        ):
            if type(value) is not int or not 0 <= value <= most:
                raise ValueError(f"{value!r} is not an integer up to {most}")
        rule = WeightRule(bool(rule["use_label"]), rule["entropy_scale"], rule["num_nodes"])
        return cls(np.array(actions, np.float32), warmup, rule, str(written.get("data", "")))
