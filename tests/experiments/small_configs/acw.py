import dataclasses

from experiments.methods.acw import Config
from small_configs.shared import TEACHER

CONFIG = dataclasses.replace(
    Config.digits(),
    rgb=TEACHER,
    depth=TEACHER,
    prototypes="images",
    leave_one_out=1000,
)
REFUSES_PACKS = "acw trains one on photographs and one on depth, to compare"
