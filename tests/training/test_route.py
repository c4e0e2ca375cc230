import jax
import numpy as np
import pytest
import toy

from jaxface import data, training
from jaxface.errors import UserError

MATRIX = [[1, 1.283, 1.32, 1.358], [9, 1, 1.083, 1.115], [9, 9, 1, 1.025], [9, 9, 9, 1]]


class Positions(toy.Cycle):
    """`toy.Cycle` whose position is named as that of the pipeline."""

    def get_state(self):
        return {"step": self.position}

    def set_state(self, state):
        self.position = state["step"]


def whole(steps=7, **fields):
    return toy.stage("whole", steps, batches=lambda state: Positions(), **fields)


def plain(state):
    return jax.device_get(state.replace(rng=jax.random.key_data(state.rng)))


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, plain(a), plain(b))


@pytest.mark.parametrize(
    ("epochs", "n", "expected"),
    [
        (240, 4, (60, 120, 180, 240)),
        (200, 5, (40, 80, 120, 160, 200)),
        (10, 4, (3, 5, 8, 10)),
        (3, 3, (1, 2, 3)),
        (7, 1, (7,)),
    ],
)
def test_equal_epoch_anchors(epochs, n, expected):
    assert training.equal_epoch_anchors(epochs, n) == expected


def test_anchors_increase_and_end_with_the_training():
    for epochs in range(1, 40):
        for n in range(1, epochs + 1):
            anchors = training.equal_epoch_anchors(epochs, n)
            assert len(set(anchors)) == n and list(anchors) == sorted(anchors)
            assert anchors[0] >= 1 and anchors[-1] == epochs


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(1.30, [0, 1, 3]), (1.33, [0, 2, 3]), (1.20, [0, 1, 3]), (10, [0, 3]), (1.0, [0, 1, 2, 3])],
)
def test_greedy_routes(threshold, expected):
    route = [0]
    while route[-1] < 3:
        route.append(training.greedy_next_anchor(MATRIX[route[-1]], route[-1], threshold))
    assert route == expected


@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize("at", [(7,), (3, 7), (1, 2, 6, 7)])
def test_cutting_a_training_does_not_change_it(mode, at):
    parallel = toy.parallel(2, mode)
    expected = training.run([whole()], parallel=parallel)
    cut = training.run(training.cut_stage(whole(), at), parallel=parallel)
    equal(cut.state, expected.state)
    assert cut.state.step == 7


def test_every_cut_leaves_the_state_of_that_step():
    states = {}

    def stages():
        for stage in training.cut_stage(whole(), (2, 5, 7)):
            states[stage.name] = (yield stage).state

    toy.run(stages())
    assert list(states) == ["whole_2", "whole_5", "whole"]
    for state, steps in zip(states.values(), (2, 5, 7), strict=True):
        equal(state, toy.run([whole(steps)]).state)


class Stop(Exception):
    pass


def test_a_cut_training_resumes_bit_for_bit(tmp_path):
    cadence = training.Cadence(checkpoint_every=1)
    expected = toy.run(training.cut_stage(whole(), (3, 7)), workdir=tmp_path / "whole")

    class Trap(Positions):
        def __next__(self):
            if self.position == 5:
                raise Stop
            return super().__next__()

    trapped = toy.stage("whole", 7, batches=lambda state: Trap())
    with pytest.raises(Stop):
        toy.run(training.cut_stage(trapped, (3, 7)), workdir=tmp_path / "cut", cadence=cadence)
    resumed = toy.run(training.cut_stage(whole(), (3, 7)), workdir=tmp_path / "cut", cadence=cadence)
    equal(resumed.state, expected.state)


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_stages_with_one_step_compile_it_once(mode):
    traced = []

    def counting(step):
        def traces(state, batch):
            traced.append(1)
            return step(state, batch)

        return traces

    one, three = (whole(step=counting(toy.stage().step)) for _ in range(2))
    parallel = training.make_parallel(mode, devices=jax.devices()[:2])
    training.run([one], parallel=parallel)
    once = len(traced)
    assert once >= 1
    training.run(training.cut_stage(three, (2, 4, 7)), parallel=parallel)
    assert len(traced) == 2 * once


def test_figures_come_from_the_last_part_alone():
    first, last = training.cut_stage(whole(figures=lambda state: {}), (3, 7))
    assert first.figures is training.no_figures and first.figures(None) == {}
    assert last.figures not in (None, training.no_figures)
    assert (first.steps, last.steps) == (3, 4)


def test_batches_go_on_from_a_step():
    split = data.load(data.Digits(), image_size=8)
    first = data.batches(split.train, batch_size=50, seed=3)
    ahead = [next(first)["label"] for _ in range(25)]
    later = training.batches_from(data.batches(split.train, batch_size=50, seed=3), 23)
    np.testing.assert_array_equal(next(later)["label"], ahead[23])


def test_a_run_leaves_its_route(tmp_path):
    cadence = training.Cadence(checkpoint_every=2, keep=10)
    goal = toy.objective()

    def init(rng, previous):
        state = toy.stage().init(rng, previous)
        return training.create_state(rng, {"backbone": state.params}, goal, extra=state.extra)

    def step(state, batch):
        inner = state.replace(
            params=state.params["backbone"], opt_state=goal.optimizer.init(state.params["backbone"])
        )
        inner, metrics = training.gradient_step(goal)(inner.replace(opt_state=(inner.opt_state,)), batch)
        return state.replace(params={"backbone": inner.params}, extra=inner.extra, step=inner.step), metrics

    stage = toy.stage("teacher", 5, step=step)
    stage = training.Stage(**{**vars(stage), "init": init})
    outcome = training.run([stage], workdir=tmp_path, cadence=cadence)
    anchors = training.run_anchors(tmp_path)
    assert [anchor.step for anchor in anchors] == [2, 4, 5]
    last = anchors[-1].load()
    jax.tree.map(np.testing.assert_array_equal, last.params, jax.device_get(outcome.state.params))
    jax.tree.map(np.testing.assert_array_equal, last.extra, jax.device_get(outcome.state.extra))
    kernels = [anchor.load().params["backbone"]["hidden"]["kernel"] for anchor in anchors]
    assert (kernels[0] != kernels[1]).any() and (kernels[1] != kernels[2]).any()
    recorded = training.Anchor.recorded(5, outcome.state)
    on_host = recorded.load()
    assert recorded.step == 5
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves((on_host.params, on_host.extra)))
    jax.tree.map(np.testing.assert_array_equal, on_host.params, last.params)
    assert on_host.opt_state == ()
    with pytest.raises(UserError, match="has steps 2, 4, 5, got 3"):
        training.restore_params(tmp_path / "checkpoints/00-teacher", step=3)


def state_of(**params):
    return training.create_state(jax.random.key(0), params)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: training.equal_epoch_anchors(3, 4), "anchors: needs an integer from 1 to 3, got 4"),
        (lambda: training.equal_epoch_anchors(3, 0), "anchors: needs an integer from 1 to 3, got 0"),
        (lambda: training.greedy_next_anchor([1, 2], 0, 0.0), "threshold: needs a finite number above 0"),
        (
            lambda: training.greedy_next_anchor([1, 2], 0, float("nan")),
            "threshold: needs a finite number above 0",
        ),
        (lambda: training.greedy_next_anchor([1, 2], 0, -1.0), "threshold: needs a finite number above 0"),
        (lambda: training.check_steps([]), "route: needs at least one anchor"),
        (lambda: training.check_steps([2, 1]), "route: needs increasing steps from 1, got 2, 1"),
        (lambda: training.check_steps([0, 1]), "route: needs increasing steps"),
        (lambda: training.check_steps([1, 1]), "route: needs increasing steps"),
        (
            lambda: training.cut_stage(whole(), (3, 6)),
            "needs to end at the teacher's last step, 7, got 6",
        ),
        (
            lambda: training.check_same_network(state_of(a=np.ones(2)), state_of(a=np.ones(3))),
            r"anchors: need one network, params/a is \(2,\) in one and \(3,\) in another",
        ),
        (
            lambda: training.check_same_network(state_of(a=np.ones(2), b=np.ones(1)), state_of(a=np.ones(2))),
            "params/b is .* in one and nothing in another",
        ),
        (lambda: training.run_anchors("/nowhere"), "checkpoint: /nowhere holds no checkpoints"),
    ],
)
def test_refusals_in_one_line(call, words):
    with pytest.raises(UserError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_mistaken_ratio_is_refused():
    with pytest.raises(ValueError, match="finite"):
        training.greedy_next_anchor([1.0, float("nan")], 0, 1.3)
    with pytest.raises(ValueError, match="before the last"):
        training.greedy_next_anchor([1.0, 2.0], 1, 1.3)
