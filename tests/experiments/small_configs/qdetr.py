from experiments.methods.qdetr import Config
from jaxface import data
from jaxface.models.detection import Detr

CONFIG = Config(
    data=data.ObjectScenes(things="shapes", scenes=16, held_out_scenes=4, sizes=(10, 16)),
    detector=Detr(dim=4, heads=1, hidden=4, encoder_layers=1, decoder_layers=1, queries=4, weight_bits=2),
    calibration=4,
    batch_size=8,
    teacher_steps=2,
    steps=2,
)
SMALLEST_BATCH = 1
