from experiments.methods.law import AgentSpec, Config

CONFIG = Config(
    backbone="mlp_8",
    steps=8,
    stages=4,
    warmup_stages=1,
    episodes=2,
    validation=20,
    agent=AgentSpec(hidden=(8,), batch_size=2, passes=1),
    batch_size=8,
)
SMALLEST_BATCH = None
REFUSES_PACKS = "a classifier tells no pairs"
