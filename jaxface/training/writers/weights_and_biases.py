"""Weights & Biases; its own variables (WANDB_MODE, WANDB_BASE_URL, WANDB_ENTITY, WANDB_DIR …) say where and whether online."""

import os
import pathlib
import secrets
from collections.abc import Mapping

from jaxface.training.writers.base import WRITERS, Tracking


@WRITERS.register("wandb")
class WandbWriter:
    """A run of Weights & Biases; a resumed run reports to the same one. Steps are the values of `step`, which may come again."""

    package = ("wandb", "wandb")

    def __init__(self, tracking: Tracking, folder: pathlib.Path | None, run_id: str | None):
        import wandb

        self.id = run_id or secrets.token_hex(8)
        self._wandb = wandb
        self._run = wandb.init(
            project=tracking.project,
            name=tracking.name,
            config=dict(tracking.config),
            id=self.id,
            resume="allow",
            reinit="create_new",  # several runs in one process, as a sweep has
            dir=None if folder is None or "WANDB_DIR" in os.environ else folder,
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
        )
        self._run.define_metric("*", step_metric="step")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers after a step of the run, by name."""
        self._run.log({**values, "step": step})

    def figure(self, name: str, path: pathlib.Path, step: int) -> None:
        """A PNG file."""
        self._run.log({name: self._wandb.Image(str(path)), "step": step})

    def close(self, finished: bool) -> None:
        """Sends everything and says how the run ended."""
        self._run.finish(exit_code=0 if finished else 1)
