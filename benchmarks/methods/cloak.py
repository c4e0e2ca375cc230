from benchmarks.methods.case import EARLIER, Case, stage
from experiments.methods import cloak
from experiments.recipes.teachers import TeacherSpec

MASKS = cloak.methods(cloak.Config())
# The black boxes, which no mask is made on, are whatever is quick to make.
BASE = cloak.Config(baselines=False, people=4, steps=EARLIER, targets=(TeacherSpec(backbone="mlp"),))
CASES = (
    Case("cloak", BASE, "FI-UAP, equal steps", stage(cloak.build, "cloak"), {"cloak": MASKS["fi_uap"]}),
    Case(
        "cloak, equal gradients",
        BASE,
        "OPOM, equal gradients",
        stage(cloak.build, "cloak"),
        {"cloak": MASKS["opom_equal_gradients"]},
    ),
)
