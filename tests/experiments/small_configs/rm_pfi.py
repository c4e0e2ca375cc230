from experiments.methods.rm_pfi import Config
from jaxface import data
from jaxface.models.detection import RetinaNet

CONFIG = Config(
    data=data.ObjectScenes(scenes=16, held_out_scenes=4),
    student=RetinaNet.small(widths=(2, 2, 2)),
    teacher=RetinaNet.small(widths=(2, 2, 4)),
    batch_size=4,
)
SMALLEST_BATCH = 1
