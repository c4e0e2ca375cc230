"""DCP-NAS's recipe: phases that share a program, a search that resumes, cells as files, the paper's numbers."""

import collections
import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import small_configs.dcp_nas

from experiments.methods import dcp_nas
from experiments.recipes.recognition import load
from jaxface import data, inference, training
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.models.cells import DARTS, RELEASED, genotype_from_json, to_packed_cells
from jaxface.training.dcp_nas import CellSearch, cp_steps, halves, kernels_and_scales
from jaxface.training.evaluations.cell_search import FoundCell

CONFIG = dataclasses.replace(
    small_configs.dcp_nas.CONFIG,
    loss="labels",
    real_weight_steps=0,
    primitives=("skip_connect", "conv_1x1", "none"),
)


def one_device():
    return training.make_parallel(devices=jax.devices()[:1])


def changed(**fields):
    rule = {name: fields.pop(name) for name in list(fields) if name in CellSearch.__dataclass_fields__}
    return dataclasses.replace(CONFIG, rule=dataclasses.replace(CONFIG.rule, **rule), **fields)


@functools.cache
def searcher(**fields):
    return dcp_nas.make_searcher(changed(**fields), 10, (8, 8, 1))


@functools.cache
def batches():
    stage = next(dcp_nas.search_stages(CONFIG, load(CONFIG), searcher()))
    open_ = stage.batches(None)
    made = [next(open_) for _ in range(4)]
    return [{**batch, "image": normalize_pixels(batch["image"])} for batch in made]


@functools.cache
def started():
    return searcher().start(jax.random.key(0))


@functools.cache
def stepped(kind, **fields):
    """State and metrics after four steps of a kind."""
    step, state = jax.jit(searcher(**fields).steps[kind]), started()
    for batch in batches():
        state, metrics = step(state, batch)
    return state, {name: float(value) for name, value in metrics.items()}


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


def test_the_two_halves_of_a_batch_are_of_different_images():
    config, split = CONFIG, load(CONFIG)
    stage = next(dcp_nas.search_stages(config, split, searcher()))
    seen = collections.defaultdict(set)
    opened = stage.batches(None)
    for _ in range(30):
        for name, part in zip(("alpha", "weights"), halves(next(opened)), strict=True):
            assert len(part["label"]) == config.search_batch_size
            seen[name] |= {image.tobytes() for image in part["image"]}
    assert len(seen["alpha"]) > 100 and len(seen["weights"]) > 100
    assert not seen["alpha"] & seen["weights"]


@pytest.mark.slow
def test_a_parents_phase_leaves_the_child_and_a_childs_the_parent():
    before = started()
    after, report = stepped("parent")
    assert same(before.params["child"], after.params["child"])
    assert same(before.params["architecture"]["child"], after.params["architecture"]["child"])
    assert not same(before.params["parent"], after.params["parent"])
    assert {"loss", "arch_loss", "accuracy", "psi"} <= report.keys()

    after, report = stepped("guided")
    for part in ("parent", "psi"):
        ours = (before.params[part], after.params[part])
        assert same(*(ours if part == "parent" else (tree["parent"] for tree in ours)))
    assert same(before.extra["parent_statistics"], after.extra["parent_statistics"])
    assert not same(before.params["child"], after.params["child"])
    assert report["ratio"] == pytest.approx(0.3, rel=1e-3) and report["strength"] > 0
    assert -1 <= report["cosine"] <= 1 and -1 <= report["tangent_cosine"] <= 1

    entered = searcher().enter["parent"](after)
    assert same(entered.params["architecture"]["parent"], after.params["architecture"]["child"])


@pytest.mark.slow
def test_the_trajectory_ends_where_the_architecture_is():
    state, _ = stepped("guided")
    shares = jax.nn.softmax(state.params["architecture"]["child"])
    np.testing.assert_allclose(state.extra["trajectory"][-1], shares, atol=1e-6)
    assert int(state.extra["moved"]) == 4


@pytest.mark.slow
def test_the_printed_weight_of_the_reconstruction_turns_no_sign():
    rates = {}
    for mu in (0.2, 5e-5):
        steady = training.adam(1e-2, schedule="constant", weight_decay=0.0)
        fields = {"reconstruction": mu, "weight_optimizer": steady}
        step, state = jax.jit(searcher(**fields).steps["guided"]), searcher(**fields).start(jax.random.key(0))
        for _ in range(20):
            for batch in batches():
                state, _ = step(state, batch)
        rates[mu] = training.sign_flips(state)["signs/flip_rate"]
        kernels, scales = kernels_and_scales(state.params["child"])
        assert kernels.keys() == scales.keys() and all("cell" in name for name in kernels)
    assert rates[0.2] < 0.5 * rates[5e-5] and rates[5e-5] > 1e-3


@pytest.mark.slow
def test_sampling_ends_with_one_operation_on_every_edge():
    config = changed(search="cp", repeats=2)
    found = dcp_nas.make_searcher(config, 10, (8, 8, 1))
    state, step = found.start(jax.random.key(0)), jax.jit(found.steps["cp"])
    stages = list(dcp_nas.search_stages(config, load(config), found))
    assert [stage.steps for stage in stages] == [cp_steps(3, 2)] == [10]
    for index in range(10):
        state, metrics = step(state, batches()[index % 4])
        alive = state.extra["sampled"]["alive"]
        expected = 3 if index < 5 else 2 if index < 9 else 1
        assert alive.sum(axis=1).tolist() == [expected] * len(alive)
        if index in (
            2,
            5,
        ):  # every operation was there once, on every edge; at the end of a round the counts begin again
            assert (state.extra["sampled"]["counts"] == (1 if index == 2 else 0)).all()
    survivors = state.extra["sampled"]["alive"]
    best = state.params["architecture"]["parent"].argmax(axis=1)
    assert survivors[np.arange(len(best)), best].all()
    assert {"parent_accuracy", "accuracy", "child_loss"} <= metrics.keys()


def compiled_programs(rounds, monkeypatch, tmp_path):
    """How many programs a search of so many rounds compiles in steps and exchanges."""
    made = collections.Counter()
    config = changed(rounds=rounds)
    search = dcp_nas.make_searcher(config, 10, (8, 8, 1))
    parallel = one_device()
    training.run(list(dcp_nas.search_stages(config, load(config), search)), parallel=parallel)
    made["steps"] = parallel._compiled.cache_info().misses
    made["exchanges"] = sum(enter._cache_size() for enter in search.enter.values())
    return made


@pytest.mark.slow
def test_more_rounds_compile_nothing_more(monkeypatch, tmp_path):
    one, three = (compiled_programs(rounds, monkeypatch, tmp_path) for rounds in (2, 4))
    assert one == three and one["steps"] == 2 and one["exchanges"] == 2


@pytest.mark.slow
def test_a_search_that_is_killed_ends_where_the_other_ends(tmp_path):
    config = dataclasses.replace(CONFIG, rounds=2, phase_steps=3)
    whole = training.run(dcp_nas.build(config), workdir=tmp_path / "whole", parallel=one_device())

    class Killed(Exception):
        pass

    def until(count):
        """The stages, of which the one of that number is killed after its second step."""
        generator, outcome = dcp_nas.build(config), None
        for number in range(100):
            try:
                stage = generator.send(outcome)
            except StopIteration:
                return
            if number == count:
                inner = stage.batches

                def dying(state, inner=inner):
                    opened = inner(state)

                    class Dying:
                        def __init__(self):
                            self.left = 2

                        def __next__(self):
                            self.left -= 1
                            if self.left < 0:
                                raise Killed
                            return next(opened)

                        def __getattr__(self, name):
                            return getattr(opened, name)

                    return Dying()

                stage = dataclasses.replace(stage, batches=dying)
            outcome = yield stage

    cadence = training.Cadence(checkpoint_every=1)
    for count in (1, 2):  # in a Child's phase, then in the Parent's after it
        with pytest.raises(Killed):
            training.run(until(count), workdir=tmp_path / "cut", parallel=one_device(), cadence=cadence)
    again = training.run(dcp_nas.build(config), workdir=tmp_path / "cut", parallel=one_device())
    assert again.metrics == whole.metrics
    assert same(again.state.params, whole.state.params)
    texts = [(tmp_path / name / "genotype.json").read_text() for name in ("whole", "cut")]
    assert texts[0] == texts[1]
    genotype = genotype_from_json(texts[0], config.primitives)
    # The folder of a search is a genotype for the next run, whose network is one for others.
    given = dcp_nas.given_genotype(dataclasses.replace(config, genotype=str(tmp_path / "whole")))
    assert given == genotype
    for figure in ("cells.png", "search.png"):
        assert (tmp_path / "whole" / figure).stat().st_size > 5000
    bundle = inference.open_recognizer(tmp_path / "whole")
    images = np.linspace(-1, 1, 2 * 64, dtype=np.float32).reshape(2, 8, 8, 1)
    packed, variables = to_packed_cells(bundle.module, bundle.variables)
    np.testing.assert_allclose(
        packed.apply(variables, images), bundle.module.apply(bundle.variables, images), rtol=1e-4, atol=1e-5
    )


def test_the_phases_of_every_search_are_as_many_steps():
    for search in ("dcp", "parent", "child"):
        named = dcp_nas.phases(changed(search=search, rounds=3))
        assert len(named) == len(dict(named)) == 6
    assert [kind for _, kind in dcp_nas.phases(changed(rounds=2))] == ["parent", "guided"] * 2
    assert dcp_nas.phases(changed(search="cp")) == [("sampled", "cp")]
    assert cp_steps(8, 1) == 35


def test_the_cell_is_that_of_the_network_that_moved_last():
    split, few = load(CONFIG), CONFIG.primitives
    high = {name: np.tile(np.eye(3)[column], (4, 1)) for column, name in enumerate(("parent", "child"))}
    state = training.create_state(jax.random.key(0), {"architecture": high})
    for trained, operation in ((("parent",), few[0]), (("child",), few[1]), (("parent", "child"), few[1])):
        found = FoundCell(split.held_out, few, {name: searcher().networks[name] for name in trained})
        assert {name for kind in found.genotype(state) for name, _ in kind} == {operation}


def test_genotypes_from_outside(tmp_path):
    config = dcp_nas.Config.paper()
    assert dcp_nas.given_genotype(config) == RELEASED
    (tmp_path / "cell.json").write_text(RELEASED.to_json())
    for given in (RELEASED.to_json(), str(tmp_path / "cell.json")):
        assert dcp_nas.given_genotype(dataclasses.replace(config, genotype=given)) == RELEASED
    (tmp_path / "noise").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match="genotype: needs a JSON object, got other text"):
        dcp_nas.given_genotype(dataclasses.replace(config, genotype=str(tmp_path / "noise")))
    drawn = [dcp_nas.given_genotype(changed(search="random", seed=seed)) for seed in range(4)]
    assert len(set(drawn)) > 1 and dcp_nas.given_genotype(CONFIG) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"genotype": "nowhere"},
            "genotype: needs JSON, a file of it, a search's work directory or released",
        ),
        ({"genotype": "released"}, "genotype: normal node 2 needs an operation among skip_connect, conv_1x1"),
        ({"genotype": json.dumps({"normal": 3, "reduce": []})}, "genotype: normal needs a list"),
        ({"backbone": "binary_small"}, "backbone: needs a network of cells, dcp_nas_"),
        ({"init_from": "runs/a"}, "init_from: supernets and found networks start from weights of their own"),
        ({"primitives": ("conv_1x1",)}, "primitives: needs 'none'"),
        ({"data": data.Procedural()}, "data: needs classes to be told apart"),
        ({"search_reductions": (1,)}, "reductions: needs cells from 0 to 0"),
        ({"aside": 1e-4}, "aside: needs images on both sides"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_compiled(fields, message):
    with pytest.raises(UserError, match=message):
        list(dcp_nas.build(changed(**fields)))


def test_the_papers_numbers():
    paper, search = dcp_nas.Config.paper(), dcp_nas.Config.searched()
    assert paper.batch_size == 512 and paper.steps == 256 * (1_281_167 // 512) == paper.real_weight_steps
    for optimizer, decay in ((paper.real_weight_optimizer, 1e-5), (paper.optimizer, 0.0)):
        assert (optimizer.name, optimizer.learning_rate, optimizer.schedule) == ("adamw", 1e-3, "cosine")
        assert optimizer.weight_decay == decay and optimizer.warmup == 0
    assert paper.teacher.backbone == "resnet34" and paper.loss == "distribution"
    assert paper.augment.crop_scale[0] == pytest.approx(0.08**0.5) and paper.image_size == 224
    net = dcp_nas.network(paper, RELEASED)
    assert (net.channels, net.cells, net.reductions, net.scale) == (108, 10, (3, 6), "released")

    assert (search.rule.strength, search.rule.ratio, search.rule.eps) == (5e-3, None, 0.75)
    assert search.primitives == DARTS and search.nodes == 4 and search.aside == 0.5
    assert (search.search_cells, search.search_channels) == (8, 16)
    assert search.rounds * search.phase_steps == 50 * (25_000 // 64) and search.search_batch_size == 64
    weights, arch = search.weight_optimizer, search.arch_optimizer
    assert (weights.learning_rate, weights.momentum, weights.weight_decay) == (0.025, 0.9, 3e-4)
    assert (arch.name, arch.learning_rate, arch.momentum, arch.weight_decay) == ("adam", 3e-4, 0.5, 1e-3)
    net = dcp_nas.supernet(search, "binary", 10)
    assert net.alpha_shape == (28, 8) and net.remat == "block"
