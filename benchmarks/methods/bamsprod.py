from benchmarks.methods.case import Case, stage
from experiments.methods.bamsprod import Config, build
from jaxface import training

CASES = (
    Case(
        "bamsprod",
        Config(online_steps=0),
        "Adam",
        stage(build, "network"),
        {
            "optimizer": training.Optimizer(
                name="adam", learning_rate=0.3, schedule="linear", weight_decay=0.0
            )
        },
    ),
)
