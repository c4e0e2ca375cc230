"""Evaluation of networks that learn from wrong labels: how good they become, and what they learn from.

Methods: mda
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxface import metrics
from jaxface.data.sources.source import Source
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.training import figures
from jaxface.training.evaluations.needs import check_not_empty
from jaxface.training.map_source import map_source
from jaxface.training.recognition import network_variables
from jaxface.training.stages import Figures
from jaxface.training.step import TrainState

RECENT = 10
"""Epochs at the end whose mean accuracy is reported: the best epoch would be chosen by the test."""


class LearningFromNoise:
    """`evaluate` and `figures` of a stage whose networks are stacked, and what its `refresh` writes down of every epoch.

        classification/accuracy          of the sum of the networks' logits
        classification/recent_accuracy   its mean over the ends of the last ten epochs
        selection/precision, recall      of what the last epoch learned from: the share of right labels in it, and the share
                                         of the right labels that is in it
        ranking/precision                of the examples that the networks would choose now out of the whole training set
        noise/rate                       share of wrong labels that were drawn

    The last four are there where the true labels are known. The figure shows the first, third and fourth over the epochs.

    `extra` of the state has `history`, float32 [E] each, and `tally`, float32 [3], what was learned from since the epoch began:
    right labels, labels, and right labels that could have been.

    Args:
      model: (image [B, H, W, C], train=) -> [P, B, C]; its parameters are those named `backbone`.
      held_out: labeled records of the training classes.
      train: records with `true_labels`, or without.
      steps_per_epoch: of the run.
      choose: state -> selected [N] bool, what the networks would choose now.
    """

    def __init__(
        self,
        model: nn.Module,
        held_out: Source,
        train: Source,
        *,
        steps_per_epoch: int,
        choose: Callable[[TrainState], np.ndarray],
    ):
        check_not_empty(held_out)
        self.held_out, self.train, self.choose = held_out, train, choose
        self.steps_per_epoch = steps_per_epoch
        self.true_labels = getattr(train, "true_labels", None)

        def scores(variables, batch):
            return model.apply(variables, normalize_pixels(batch["image"]), train=False).sum(axis=0)

        self._scores = jax.jit(scores)

    @staticmethod
    def blank(epochs: int) -> dict:
        """`history` and `tally` of a run that has not begun."""
        history = {name: jnp.full((epochs,), jnp.nan) for name in ("accuracy", "precision", "recall")}
        return {"history": history, "tally": jnp.zeros(3)}

    def accuracy(self, state: TrainState) -> float:
        """On the held-out records."""
        variables = network_variables(state.averaged_params["backbone"], state.extra)
        scores = map_source(self._scores, self.held_out, variables, batch_size=min(512, len(self.held_out)))
        return float((scores.argmax(axis=1) == self.held_out.labels).mean())

    def written_down(self, state: TrainState) -> dict:
        """`history` and `tally` once the epoch that ends now is in them."""
        epoch = int(state.step) // self.steps_per_epoch - 1
        if epoch < 0:
            return {name: state.extra[name] for name in ("history", "tally")}
        history = {name: np.array(values) for name, values in state.extra["history"].items()}
        history["accuracy"][epoch] = self.accuracy(state)
        history["precision"][epoch], history["recall"][epoch] = self._shares(state)
        return {
            "history": {name: jnp.asarray(values) for name, values in history.items()},
            "tally": jnp.zeros(3),
        }

    def _shares(self, state: TrainState) -> tuple[float, float]:
        right, learned, could = np.asarray(state.extra["tally"]).tolist()
        return (right / learned if learned else np.nan, right / could if could else np.nan)

    def __call__(self, state: TrainState) -> dict[str, float]:
        before = np.asarray(state.extra["history"]["accuracy"])
        before = before[: max(int(state.step) - 1, 0) // self.steps_per_epoch]
        now = self.accuracy(state)
        recent = [*before[max(len(before) - RECENT + 1, 0) :].tolist(), now]
        report = {"classification/accuracy": now, "classification/recent_accuracy": float(np.mean(recent))}
        if self.true_labels is None:
            return report
        chosen = metrics.label_selection(self.choose(state), self.train.labels, self.true_labels)
        precision, recall = self._shares(state)
        return report | {
            "selection/precision": precision,
            "selection/recall": recall,
            "ranking/precision": chosen.precision,
            "noise/rate": float((self.train.labels != self.true_labels).mean()),
        }

    def figures(self, state: TrainState) -> Figures:
        """The epochs of the run so far; there is none after the first."""
        history = {name: np.asarray(values) for name, values in state.extra["history"].items()}
        epochs = np.arange(1, len(history["accuracy"]) + 1)
        names = {"accuracy": "test accuracy", "precision": "label precision", "recall": "label recall"}
        series = {
            names[key]: (epochs, values) for key, values in history.items() if np.isfinite(values).any()
        }
        if not series:
            return {}
        return {"epochs": functools.partial(figures.save_training_curves, series, xlabel="epoch")}
