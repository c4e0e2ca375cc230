"""Evaluation of a state class by class, where some are rare or are taken for others.

Methods: apvit
"""

import functools

import numpy as np

from jaxface import metrics
from jaxface.errors import UserError
from jaxface.training import figures
from jaxface.training.evaluations.nearest_prototype import NearestPrototype
from jaxface.training.stages import Figures
from jaxface.training.step import TrainState


class ClassReport(NearestPrototype):
    """`NearestPrototype`, and what it hides: `evaluate` and `figures` of a stage.

        classification/accuracy                 of all records
        classification/mean_class_accuracy      mean over the classes
        classification/macro_f1                 the same of F1
        classification/accuracy_of/<class>      of each class that occurs
        classification/unreadable               images that could not be read, which nothing else counts; if there are some

    The figure is the confusion matrix, row = truth, with the accuracy of each class beside it.
    """

    def __call__(self, state: TrainState) -> dict[str, float]:
        predicted, labels = np.asarray(self.answers(state)), np.asarray(self.source.labels)
        corrupt = getattr(self.source, "corrupt", None)
        corrupt = (
            sorted(corrupt) if isinstance(corrupt, set) else []
        )  # where no other image stands in for one
        if len(corrupt) == len(labels):
            raise UserError(f"data: none of the {len(labels)} images to evaluate on can be read")
        predicted, labels = np.delete(predicted, corrupt), np.delete(labels, corrupt)
        names = list(self.source.class_names)
        options = {"num_classes": len(names)}
        self._counts = metrics.confusion_matrix(predicted, labels, **options)
        of_class = metrics.per_class_accuracy(predicted, labels, **options)
        return {
            "classification/accuracy": float((predicted == labels).mean()),
            "classification/mean_class_accuracy": metrics.mean_class_accuracy(predicted, labels, **options),
            "classification/macro_f1": metrics.macro_f1(predicted, labels, **options),
            **{
                f"classification/accuracy_of/{name}": float(value)
                for name, value in zip(names, of_class, strict=True)
                if np.isfinite(value)
            },
            **({"classification/unreadable": float(len(corrupt))} if corrupt else {}),
        }

    def figures(self, state: TrainState) -> Figures:
        """The confusion matrix of the state that was evaluated last."""
        return {
            "confusion": functools.partial(
                figures.save_confusion, self._counts, list(self.source.class_names)
            )
        }
