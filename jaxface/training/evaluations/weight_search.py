"""What a search for a policy of example weights found, and how the twins of a training by it end (LAW, arXiv:1905.11058).

Methods: law
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.data.sources.source import Source
from jaxface.losses.law import weights_from_action
from jaxface.training import figures
from jaxface.training.evaluations.needs import check_not_empty
from jaxface.training.recognition import embed_source
from jaxface.training.stages import Figures
from jaxface.training.weight_policies import POLICY_FILE, WeightPolicy, WeightRule
from jaxface.training.weight_search import PolicyReplay, ReplayState, SearchState, WeightSearch

_EXAMPLES = {
    "easy (loss 1 std below the mean)": -1.0,
    "average": 0.0,
    "hard (1 std above)": 1.0,
    "2 std above": 2.0,
}


def weight_curves(actions: np.ndarray, rule: WeightRule) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What a policy gives to examples of four losses and an average entropy, of class 0, over its stages.

    Args:
      actions: [S, A].
      rule: how they become weights.

    Returns:
      name of an example -> (stages [S], weights [S]), for `figures.save_training_curves`.
    """
    features = np.zeros((len(_EXAMPLES), 3 if rule.use_label else 2), np.float32)
    features[:, 0] = list(_EXAMPLES.values())
    weigh = functools.partial(weights_from_action, num_nodes=rule.num_nodes)
    weights = np.asarray(jax.vmap(weigh, (0, None))(jnp.asarray(actions), jnp.asarray(features)))
    stages = np.arange(len(actions))
    return {name: (stages, weights[:, i]) for i, name in enumerate(_EXAMPLES)}


def _policy_figures(policy: WeightPolicy) -> Figures:
    curves = weight_curves(policy.actions, policy.rule)
    draw = functools.partial(figures.save_training_curves, curves, xlabel="stage", ylabel="weight")
    return {"policy": draw, POLICY_FILE: policy.save}


class SearchReport:
    """How well the search did on the clean validation split; draws it and the best policy, which it writes too.

    Reported are `validation/accuracy` and `validation/reference`, of the episode whose policy is taken, `validation/mean_gap`,
    how much better the weighted networks of the last quarter of the episodes were than their twins, and `policy/episode`.

    Args:
      search: that made the state.
      title: of the data.
    """

    def __init__(self, search: WeightSearch, title: str):
        self.search, self.title = search, title

    def __call__(self, state: SearchState) -> dict[str, float]:
        last = self._accuracies(state)
        best = int(last[:, 0].argmax())
        late = last[-max(len(last) // 4, 1) :]
        return {
            "validation/accuracy": float(last[best, 0]),
            "validation/reference": float(last[best, 1]),
            "validation/mean_gap": float((late[:, 0] - late[:, 1]).mean()),
            "policy/episode": float(best),
        }

    @staticmethod
    def _accuracies(state: SearchState) -> np.ndarray:
        """[E, 2], fractions, of the networks at the end of every episode."""
        return np.asarray(state.accuracies)[:, -1] / 100

    def policy(self, state: SearchState) -> WeightPolicy:
        """The policy of the best episode."""
        training = self.search.training
        return WeightPolicy(np.asarray(state.best_actions), training.warmup_stages, training.rule, self.title)

    def figures(self, state: SearchState) -> Figures:
        """Accuracies by episode, the policy over its stages, and its file."""
        last, episodes = self._accuracies(state), np.arange(self.search.episodes)
        curves = {"weighted": (episodes, last[:, 0]), "uniform twin": (episodes, last[:, 1])}
        draw = functools.partial(
            figures.save_training_curves, curves, xlabel="episode", ylabel="validation accuracy at its end"
        )
        return {"search": draw, **_policy_figures(self.policy(state))}


class TwinAccuracy:
    """Test accuracy of the weighted network and of its uniform twin, where they ended and where either was best on the clean
    validation split: `target/accuracy`, `reference/accuracy`, `target_stopped/accuracy`, `reference_stopped/accuracy`; with
    `gap/accuracy`, the first less the second, and `gap/stopped`, the first less the last, which is the honest one.

    Args:
      replay: that made the state.
      source: test records.
      title: of the data.
    """

    def __init__(self, replay: PolicyReplay, source: Source, title: str):
        check_not_empty(source)
        self.replay, self.source, self.title = replay, source, title

    def __call__(self, state: ReplayState) -> dict[str, float]:
        reported = {}
        ends = {
            "": (state.twins.params, state.twins.extra),
            "_stopped": (state.best_params, state.best_extra),
        }
        for suffix, networks in ends.items():
            for index, name in enumerate(("target", "reference")):
                params, extra = jax.tree.map(lambda x, i=index: x[i], networks)
                reported[f"{name}{suffix}/accuracy"] = self._accuracy(params, extra)
        validated = np.asarray(state.accuracies) / 100
        return reported | {
            "gap/accuracy": reported["target/accuracy"] - reported["reference/accuracy"],
            "gap/stopped": reported["target/accuracy"] - reported["reference_stopped/accuracy"],
            "validation/target": float(validated[-1, 0]),
            "validation/reference": float(validated[-1, 1]),
            "validation/reference_stopped": float(validated[:, 1].max()),
        }

    def _accuracy(self, params, extra) -> float:
        scores = embed_source(self.replay.training.model, params, extra, self.source, flip=False)
        return float((scores.argmax(axis=1) == self.source.labels).mean())

    def figures(self, state: ReplayState) -> Figures:
        """Validation accuracy over the stages, the policy that was followed, and its file."""
        training = self.replay.training
        validated, stages = np.asarray(state.accuracies) / 100, np.arange(training.stages)
        curves = {"weighted": (stages, validated[:, 0]), "uniform twin": (stages, validated[:, 1])}
        draw = functools.partial(
            figures.save_training_curves, curves, xlabel="stage", ylabel="validation accuracy at its end"
        )
        drawn = {"training": draw}
        if training.weighting == "policy":
            policy = WeightPolicy(
                np.asarray(state.actions), training.warmup_stages, training.rule, self.title
            )
            drawn |= _policy_figures(policy)
        return drawn
