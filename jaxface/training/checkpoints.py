"""Checkpoints: the state, the position in the data and the numbers not yet logged, written asynchronously and atomically."""

import json
import logging
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as preserve

from jaxface.errors import UserError

logger = logging.getLogger(__name__)


class Saved(NamedTuple):
    """A checkpoint read back."""

    step: int
    state: Any
    position: dict


def _is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_plain(state):
    """Typed random keys as their integers; the rest as it is."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)


def _from_plain(state, abstract):
    return jax.tree.map(lambda x, a: jax.random.wrap_key_data(x) if _is_key(a) else x, state, abstract)


class Checkpoints:
    """The checkpoints of one stage: the newest `keep`, and the best by a metric.

    Args:
      directory: made where it does not exist.
      keep: how many of the newest to keep, ≥ 1.
      best: key of the metrics whose largest value is kept besides.
    """

    def __init__(self, directory: pathlib.Path, *, keep: int = 2, best: str | None = None):
        self.directory = pathlib.Path(directory).absolute()
        policies = [preserve.LatestN(keep)]
        if best is not None:
            policies.append(
                preserve.BestN(get_metric_fn=lambda m: m[best], n=1, keep_checkpoints_without_metrics=False)
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preserve.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        self._best = best
        self._manager = ocp.CheckpointManager(
            self.directory, options=options, item_names=("state", "position")
        )

    def save(self, step: int, state, position: dict, metrics: dict[str, float] | None = None) -> None:
        """Starts writing a checkpoint and returns once the device may go on; a half-written one is never taken for whole.

        Args:
          step: of the stage.
          state: pytree of arrays.
          position: JSON-like; whatever else the run needs to go on.
          metrics: evaluation results at this step, if it was evaluated.
        """
        if self._manager.latest_step() == step:
            return
        plain = _to_plain(state)
        if jax.default_backend() == "cpu":
            # On the CPU a host view shares the buffer that the next step is free to reuse.
            plain = jax.tree.map(jnp.copy, plain)
        scored = metrics if metrics and (self._best is None or self._best in metrics) else None
        args = ocp.args.Composite(state=ocp.args.StandardSave(plain), position=ocp.args.JsonSave(position))
        self._manager.save(step, args=args, metrics=scored, force=True)

    def restore(self, abstract, shardings) -> Saved | None:
        """The newest checkpoint that can be read, or None where there is none.

        Args:
          abstract: pytree of ShapeDtypeStruct, what the state looks like.
          shardings: pytree of shardings, where its leaves go.

        Raises:
          UserError: there are checkpoints but none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return self._read(step, abstract, shardings)
            except Exception as error:  # any damage to the files may surface as any exception
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                logger.warning(
                    "checkpoint %s cannot be read (%s); trying the one before",
                    self.directory / str(step),
                    reason,
                )
        if steps:
            raise UserError(f"workdir: none of the {len(steps)} checkpoints in {self.directory} can be read")
        return None

    def _read(self, step: int, abstract, shardings) -> Saved:
        plain = jax.eval_shape(_to_plain, abstract)
        target = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), plain, shardings
        )
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target), position=ocp.args.JsonRestore())
        read = self._manager.restore(step, args=args)
        return Saved(step, _from_plain(read["state"], abstract), read["position"])

    def latest_step(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def latest(self) -> pathlib.Path | None:
        """Its folder."""
        step = self.latest_step()
        return None if step is None else self.directory / str(step)

    def wait(self) -> None:
        """Returns once everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of the folder."""
        self._manager.wait_until_finished()
        self._manager.close()


def restore_params(directory: pathlib.Path, *, best: bool = False) -> dict:
    """Parameters and statistics of a checkpoint, whatever method wrote it: for teachers, fine-tuning and evaluation.

    Args:
      directory: a stage's folder of checkpoints.
      best: the checkpoint with the best metric instead of the newest.

    Returns:
      {"params": …, "extra": …} as nested dicts of numpy arrays; the moving average of the parameters where there is one.

    Raises:
      UserError: no checkpoint there.
    """
    directory = pathlib.Path(directory).absolute()
    steps = sorted(int(p.name) for p in directory.glob("*") if p.name.isdigit()) if directory.is_dir() else []
    if not steps:
        raise UserError(f"checkpoint: no checkpoint in {directory}")
    step = steps[-1]
    if best:
        scores = {
            s: json.loads((directory / str(s) / "position" / "metadata").read_text())["score"] for s in steps
        }
        step = max((s for s in steps if scores[s] is not None), key=scores.get, default=step)
    reader = ocp.PyTreeCheckpointer()
    path = directory / str(step) / "state"
    wanted = {
        k: v for k, v in reader.metadata(path).item_metadata.tree.items() if k in ("params", "extra", "ema")
    }
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    state = reader.restore(
        path, args=ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True)
    )
    average = state.get("ema")
    return {"params": average or state["params"], "extra": state.get("extra") or {}}
