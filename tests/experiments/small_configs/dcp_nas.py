import dataclasses

from experiments.methods.dcp_nas import Config
from experiments.recipes.heads import HeadSpec
from experiments.recipes.teachers import TeacherSpec

CONFIG = Config(
    primitives=("conv_1x1", "none"),
    nodes=1,
    search_channels=2,
    search_cells=1,
    search_reductions=(),
    rounds=1,
    phase_steps=2,
    search_batch_size=8,
    channels=2,
    cells=1,
    reductions=(),
    real_weight_steps=2,
    steps=2,
    batch_size=8,
    teacher=TeacherSpec(backbone="mlp_8", embedding=None, head=HeadSpec(loss="linear"), steps=2),
)
CONFIG = dataclasses.replace(CONFIG, rule=dataclasses.replace(CONFIG.rule, eps=0.5))
SMALLEST_BATCH = 1
REFUSES_PACKS = "a classifier tells no pairs"
