"""What is claimed of LAW in the small, and against what: `python -m experiments.reproduce law`.

All arms have the same digits, 40 % of whose labels were drawn anew, the same 200 clean ones, and the same final training: initial
weights and order of the batches. Those that search have 40 episodes, and all take what was best on the clean images at the end of
an episode.
"""

import dataclasses

from experiments.methods.law import AgentSpec, Config
from experiments.study import Study

_CHANCE = {
    "random actions": {"search": "random"},
    "random constant actions": {"search": "constant"},
    "one random policy": {"search": "random", "episodes": 1},
}
_RULES = {
    "small-loss rule": {"search": "none"},
    "small loss and entropy": {"search": "none", "action": (-3.0, -3.0, -3.0)},
    "focal": {"weighting": "focal"},
    "self-paced": {"weighting": "self_paced"},
}

_noise = Study(
    claim="Test accuracy on digits, 40 % of the labels drawn anew, at the end of the training",
    metric="train/target/accuracy",
    method="law",
    arms={
        "law": {},
        "uniform twin": {},
        "uniform twin, stopped": {},
        "law, stopped": {},
        **_CHANCE,
        **_RULES,
    },
    base=Config(),
    arm_metrics={
        "uniform twin": "train/reference/accuracy",
        "uniform twin, stopped": "train/reference_stopped/accuracy",
        "law, stopped": "train/target_stopped/accuracy",
    },
    baseline="uniform twin, stopped",
)

STUDIES = {
    "noise": _noise,
    "parts": dataclasses.replace(
        _noise,
        claim="The same, with one part of the search replaced",
        arms={
            "law": {},
            "accuracy as reward": {"reward": "accuracy"},
            "one mini-batch": {"agent": dataclasses.replace(AgentSpec(), update="minibatch")},
            "one stage": {
                "stages": 1,
                "warmup_stages": 0,
                "agent": dataclasses.replace(AgentSpec(), batch_size=8),
            },
            "released exploration": {
                "agent": dataclasses.replace(
                    AgentSpec(),
                    bound=None,
                    actor_rate=1e-5,
                    follow=1e-3,
                    exploration=dataclasses.replace(AgentSpec().exploration, kind="relative"),
                    greedy_actor="slow",
                )
            },
        },
        arm_metrics={},
        baseline=None,
    ),
}
