"""State, stages, the loop, parallelism, checkpoints and records of a run."""

from jaxface.training.checkpoints import Checkpoints, restore_params
from jaxface.training.distributed import start_processes, together
from jaxface.training.loop import Cadence, Diverged, Interrupted, run
from jaxface.training.optimizer import Optimizer, decay_mask
from jaxface.training.parallel import JitParallel, Mode, PmapParallel, check_batch_size, make_parallel
from jaxface.training.prototypes import prototype_loss, prototype_rows
from jaxface.training.recognition import (
    Evaluations,
    Figures,
    NearestPrototype,
    Recognizer,
    Verification,
    backbone_checkpoint,
    embed_source,
    pretrained_backbone,
    verification_figures,
)
from jaxface.training.records import Records, read_records
from jaxface.training.stages import Outcome, Stage
from jaxface.training.step import Objective, TrainState, create_state, gradient_step
from jaxface.training.workdir import (
    check_workdir,
    give_up_workdir,
    open_workdir,
    read_config,
    write_atomically,
)

__all__ = [
    "Cadence",
    "Checkpoints",
    "Diverged",
    "Evaluations",
    "Figures",
    "Interrupted",
    "JitParallel",
    "Mode",
    "NearestPrototype",
    "Objective",
    "Optimizer",
    "Outcome",
    "PmapParallel",
    "Recognizer",
    "Records",
    "Stage",
    "TrainState",
    "Verification",
    "backbone_checkpoint",
    "check_batch_size",
    "check_workdir",
    "create_state",
    "decay_mask",
    "embed_source",
    "give_up_workdir",
    "gradient_step",
    "make_parallel",
    "open_workdir",
    "pretrained_backbone",
    "prototype_loss",
    "prototype_rows",
    "read_config",
    "read_records",
    "restore_params",
    "run",
    "start_processes",
    "together",
    "verification_figures",
    "write_atomically",
]
