from experiments.methods.rbonn import Config
from experiments.recipes.heads import HeadSpec
from experiments.recipes.teachers import TeacherSpec

CONFIG = Config(
    loss="distribution",
    real_weight_steps=2,
    teacher=TeacherSpec(backbone="mlp_8", embedding=None, head=HeadSpec(loss="linear"), steps=2),
)
