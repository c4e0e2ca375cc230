from benchmarks.methods.case import Case, stage
from experiments.methods.sparsevit import Config, build

CASES = (
    Case(
        "sparsevit",
        Config(),
        "fixed counts, mean heads",
        stage(build, "pruning"),
        {"select": "top", "keep": (34, 7), "score": "mean"},
    ),
)
