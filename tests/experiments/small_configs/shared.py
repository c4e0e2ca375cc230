"""What several methods learn from, small."""

from experiments.recipes.teachers import TeacherSpec
from jaxface import data

PEOPLE = data.Procedural(
    identities=24, per_identity=4, held_out_identities=6, held_out_per_identity=4, groups=4
)
TEACHER = TeacherSpec(backbone="mlp_8", embedding=8, steps=4)
STUDENT = {"data": PEOPLE, "backbone": "mlp_4", "embedding": 8, "batch_size": 16, "teacher": TEACHER}
