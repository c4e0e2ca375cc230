"""State, stages, the loop, parallelism, checkpoints and records of a run."""

from jaxface.training.checkpoints import Checkpoints, restore_params
from jaxface.training.loop import Cadence, Diverged, Interrupted, run
from jaxface.training.optimizer import Optimizer, decay_mask
from jaxface.training.parallel import JitParallel, PmapParallel, check_batch_size, make_parallel
from jaxface.training.records import Records, read_records
from jaxface.training.stages import Outcome, Stage
from jaxface.training.step import Objective, TrainState, create_state, gradient_step
from jaxface.training.workdir import open_workdir, read_config, write_atomically

__all__ = [
    "Cadence",
    "Checkpoints",
    "Diverged",
    "Interrupted",
    "JitParallel",
    "Objective",
    "Optimizer",
    "Outcome",
    "PmapParallel",
    "Records",
    "Stage",
    "TrainState",
    "check_batch_size",
    "create_state",
    "decay_mask",
    "gradient_step",
    "make_parallel",
    "open_workdir",
    "read_config",
    "read_records",
    "restore_params",
    "run",
    "write_atomically",
]
