"""MLflow; its own variables (MLFLOW_TRACKING_URI …) say where."""

import pathlib
import re
import time
from collections.abc import Mapping

from jaxface.training.writers.base import WRITERS, Tracking


@WRITERS.register("mlflow")
class MlflowWriter:
    """A run of MLflow; a resumed run reports to the same one, as long as the server knows it.

    The configuration is its artifact `config.json`, figures are artifacts too. Letters that MLflow does not take in the name of
    a metric become `_`: tar@far=1e-3 is tar_far_1e-3.
    """

    package = ("mlflow-skinny", "mlflow")

    def __init__(self, tracking: Tracking, folder: pathlib.Path | None, run_id: str | None):
        import mlflow
        from mlflow.entities import Metric

        del folder
        self._metric = Metric
        self._client = mlflow.MlflowClient()
        if run_id is not None:
            try:
                self._client.update_run(run_id, status="RUNNING")
            except mlflow.exceptions.MlflowException:  # deleted, or of another server
                run_id = None
        if run_id is None:
            experiment = self._client.get_experiment_by_name(tracking.project)
            experiment_id = (
                self._client.create_experiment(tracking.project)
                if experiment is None
                else experiment.experiment_id
            )
            run_id = self._client.create_run(experiment_id, run_name=tracking.name).info.run_id
            self._client.log_dict(run_id, dict(tracking.config), "config.json")
        self.id = run_id

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers after a step of the run, by name."""
        now = int(1000 * time.time())
        metrics = [self._metric(_name(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def figure(self, name: str, path: pathlib.Path, step: int) -> None:
        """A PNG file."""
        del name, step
        self._client.log_artifact(self.id, str(path))

    def close(self, finished: bool) -> None:
        """Sends everything and says how the run ended."""
        self._client.set_terminated(self.id, "FINISHED" if finished else "KILLED")


def _name(name: str) -> str:
    return re.sub(r"[^\w. /:-]", "_", name, flags=re.ASCII)
