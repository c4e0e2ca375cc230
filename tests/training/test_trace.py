import collections
import pathlib

import jax
import pytest
import toy
from test_loop import CADENCE, Stop, crash, interrupting

from jaxface import training
from jaxface.errors import UserError
from jaxface.training.trace import ProfiledSteps


def traced(workdir) -> list[list[int]]:
    """The steps in each trace of a run, as TensorBoard's plugin finds the traces and reads the step of an event."""
    files = sorted(pathlib.Path(workdir, "profile/plugins/profile").glob("*/*.xplane.pb"))
    found = []
    for file in files:
        steps = collections.Counter()
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for event in line.events:
                    stats = dict(event.stats)
                    if event.name == "train" and "step_num" in stats:
                        steps[int(stats["step_num"])] += 1
        found.append(sorted(steps))
    return found


def train(stages, workdir, steps, **options):
    profile = ProfiledSteps.parse(steps)
    return training.run(stages, workdir=workdir, profile=profile, parallel=toy.parallel(1), **options)


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    train([toy.stage("first", steps=4), toy.stage("second", steps=4)], folder, "4:6")
    return folder


def test_steps_are_counted_over_all_stages(two_stages):
    assert traced(two_stages) == [[4, 5, 6]]


@pytest.mark.slow
def test_the_lines_of_a_traced_run_are_those_of_another(two_stages, tmp_path):
    training.run(
        [toy.stage("first", steps=4), toy.stage("second", steps=4)],
        workdir=tmp_path,
        parallel=toy.parallel(1),
    )
    assert (tmp_path / "metrics.jsonl").read_bytes() == (two_stages / "metrics.jsonl").read_bytes()
    assert not (tmp_path / "profile").exists()


@pytest.mark.slow
def test_a_resumed_run_traces_the_steps_that_it_takes(tmp_path):
    with pytest.raises(Stop):
        train([interrupting(toy.stage(steps=11), 5, crash)], tmp_path, "4:8", cadence=CADENCE)
    train([toy.stage(steps=11)], tmp_path, "4:8", cadence=CADENCE)
    first, second = traced(tmp_path)
    assert first == [4, 5, 6]  # the batch of step 6 was asked for
    assert second == [6, 7, 8]  # the last checkpoint before was that of step 5


@pytest.mark.slow
def test_the_end_of_the_run_ends_the_trace(tmp_path):
    train([toy.stage(steps=4)], tmp_path, "3:99")
    assert traced(tmp_path) == [[3, 4]]


@pytest.mark.parametrize("text", ["", "5", "0:3", "5:4", "-1:3", "a:b", "1:2:3", "1.5:3", "3:"])
def test_what_is_no_range_is_one_line(text):
    with pytest.raises(UserError, match=r"^profile: needs FIRST:LAST, two steps with 1 ≤ FIRST ≤ LAST, got"):
        ProfiledSteps.parse(text)


def test_steps_behind_the_end_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"^profile: needs steps from 1 to 8, .*, got 9:12$"):
        train([toy.stage("first", steps=4), toy.stage("second", steps=4)], tmp_path / "run", "9:12")
    with pytest.raises(UserError, match=r"^profile: needs a workdir"):
        train([toy.stage()], None, "1:2")
    assert not list(tmp_path.iterdir())
