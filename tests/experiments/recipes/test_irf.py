import numpy as np
import pytest

from experiments.recipes.irf import Joined, irf_phases, irf_schedule
from jaxface import data
from jaxface.errors import UserError

FIRST, SECOND = (
    data.ArraySource(np.full((n, 4, 4, 1), value, np.uint8), np.arange(n) % 2, ["a", "b"])
    for n, value in ((3, 0), (2, 255))
)


@pytest.mark.parametrize("steps", [0, 1, 7, 400])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_both_stages_together_have_all_steps(steps, share):
    assert sum(irf_schedule(steps, share)) == steps
    for mode in ("two_stage", "restart", "joint", "direct", "re_represented"):
        phases = irf_phases(mode, steps, share, FIRST, SECOND)
        assert sum(phase.steps for phase in phases) == steps
        assert [phase.before for phase in phases] == [
            sum(p.steps for p in phases[:i]) for i in range(len(phases))
        ]


def test_what_each_mode_learns_from():
    def sources(mode, share=0.5):
        return [phase.source for phase in irf_phases(mode, 10, share, FIRST, SECOND)]

    assert sources("two_stage") == [SECOND, FIRST] and sources("restart") == [FIRST, FIRST]
    assert sources("two_stage", 0.0) == sources("direct") == [FIRST]
    assert irf_phases("two_stage", 10, 0.0, FIRST, SECOND) == irf_phases("direct", 10, 0.5, FIRST, None)
    (joint,) = sources("joint")
    assert [int(joint[i]["image"][0, 0, 0]) for i in range(len(joint))] == [0, 0, 0, 255, 255]
    assert joint.labels.tolist() == [0, 1, 0, 0, 1] and [int(joint[i]["label"]) for i in range(5)] == [
        0,
        1,
        0,
        0,
        1,
    ]


def test_what_cannot_be_joined_or_shared_is_refused():
    other = data.ArraySource(np.zeros((2, 4, 4, 1), np.uint8), np.arange(2), ["a", "c"])
    with pytest.raises(UserError, match="the same classes in both"):
        Joined(FIRST, other)
    with pytest.raises(UserError, match="share"):
        irf_schedule(10, 1.5)
