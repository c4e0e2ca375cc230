"""INTERN's line from experts to a table, and what it refuses before anything compiles."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_configs

from experiments.methods.intern import SOURCES, Config, build
from experiments.recipes.experts import GeneralistSpec, network, open_trunks
from experiments.recipes.general_vision import SourceSpec
from jaxface import data, training
from jaxface.errors import UserError
from jaxface.models.staged import features
from jaxface.training.workdir import stage_folders

SMALL = small_configs.of("intern", "CONFIG")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, outcome) of the smallest run."""
    folder = tmp_path_factory.mktemp("run")
    return folder, training.run(build(SMALL), workdir=folder)


@pytest.mark.slow
def test_a_run_measures_every_backbone(run):
    folder, outcome = run
    rows = {key.split("/")[1] for key in outcome.metrics if key.startswith("gvb/")}
    assert rows == {"up_a", "up_e_c", "up_e_d", "up_g_c", "squeezed"}
    assert all(np.isfinite(value) for value in outcome.metrics.values())
    table = (folder / "gvb.md").read_text()
    assert table.startswith("| backbone | classification | digits (accuracy) |") and "| up_g_c |" in table
    fine_tuned = [key for key in outcome.metrics if key.startswith("adapt_50pc_direct")]
    assert fine_tuned == ["adapt_50pc_direct_originals/downstream/accuracy"]


@pytest.mark.slow
def test_a_run_that_was_killed_ends_as_the_other(run, tmp_path):
    class Killed(Exception):
        pass

    def cut(stages, count):
        outcome = None
        for _ in range(count):
            outcome = yield stages.send(outcome)
        raise Killed

    with pytest.raises(Killed):
        training.run(cut(build(SMALL), 4), workdir=tmp_path)
    assert training.run(build(SMALL), workdir=tmp_path).metrics == run[1].metrics


@pytest.mark.slow
def test_the_classes_of_an_expert_are_written_down(run):
    folder, _ = run
    expert = next(path for path in stage_folders(folder) if path.name.endswith("up_e_c"))
    description = json.loads(expert.with_name(f"{expert.name}.json").read_text())
    assert set(description["classes"]) == set("012")
    assert description["staged"]["name"] == "plain_stages_small"


@pytest.mark.slow
def test_trunks_are_opened_without_the_method(run):
    folder, _ = run
    trunks = open_trunks(str(folder))
    assert {"up_e_c", "up_e_d", "up_g_c", "squeeze"} <= trunks.keys()
    image = np.zeros((2, 16, 16, 3), np.float32)
    pooled = {
        name: trunk.module.apply(trunk.variables, image, method=features)["pooled"]
        for name, trunk in trunks.items()
    }
    assert pooled["up_g_c"].shape == pooled["up_e_c"].shape == (2, 16)


_CANVAS = SMALL.sources[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"experts": ("c", "x")}, "experts: needs some of c, d, s, got 'x'"),
        ({"experts": ("c",)}, "experts: a generalist needs at least two"),
        ({"experts": ("c", "s")}, "sources: expert s needs one for segmentation or depth"),
        (
            {"generalist": GeneralistSpec(mains=("s",), steps=3)},
            "generalist.mains: needs experts among c, d, got 's'",
        ),
        ({"controls": True, "joint_weights": (1.0,)}, "joint_weights: needs one for each of 2 experts"),
        ({"backbone": "resnet18"}, "backbone: needs one that is computed by levels"),
        ({"tasks": ("letters",)}, "tasks: needs some of digits, .*, got 'letters'"),
        ({"sources": (_CANVAS, _CANVAS)}, "sources: needs another name for each"),
        (
            {"sources": (dataclasses.replace(_CANVAS, task="poses"),)},
            "sources: digits needs a task of classification, .*, got 'poses'",
        ),
        (
            {
                "sources": (
                    dataclasses.replace(_CANVAS, parents=(("0", "1"),)),
                    dataclasses.replace(SMALL.sources[1], parents=(("1", "0"),)),
                    SMALL.sources[2],
                )
            },
            "sources: the label graphs of digits, again contradict each other; .* is its own ancestor",
        ),
        ({"batch_size": 100}, "batch_size: needs at most the 40 records"),
        ({"gvb": dataclasses.replace(SMALL.gvb, fraction=0.0)}, "fraction"),
    ],
)
def test_refusals(changes, words):
    from experiments import configs

    with pytest.raises(UserError, match=words):
        next(configs.build("intern", dataclasses.replace(SMALL, **changes)))


def test_new_classes_must_be_new():
    config = dataclasses.replace(SMALL, data=data.TaskCanvas(scenes=40, test_scenes=12, digits=(2, 5)))
    with pytest.raises(UserError, match=r"experts: needs a run of other classes .* '2'"):
        next(build(config))


def test_the_default_has_two_sources_of_every_type_under_one_graph():
    assert Config().sources == SOURCES
    tasks = [source.task for source in SOURCES]
    assert {task: tasks.count(task) for task in tasks} == {
        "classification": 2,
        "detection": 2,
        "segmentation": 2,
    }
    assert all(isinstance(source, SourceSpec) for source in SOURCES)


def test_the_tiers_differ_in_sizes_alone():
    laptop, chip, pod = Config(), Config.accelerator(), Config.paper()
    assert [c.backbone for c in (laptop, chip, pod)] == ["plain_stages", "metanet_b4", "metanet_b15"]
    assert laptop.experts == chip.experts == pod.experts == ("c", "d", "s")
    assert {c.generalist.stages for c in (laptop, chip, pod)} == {3}
    assert {c.generalist.rate for c in (laptop, chip, pod)} == {0.1}  # a tenth of the experts' rate
    assert {c.gvb.fraction for c in (laptop, chip, pod)} == {0.1}


def test_the_pod_is_as_published():
    pod = Config.paper()
    assert (pod.up_a.steps, pod.up_a.batch_size) == (128_000, 4096)
    assert (pod.up_a.optimizer.learning_rate, pod.up_a.optimizer.weight_decay) == (1e-3, 0.1)
    assert (pod.gvb.probe.steps, pod.gvb.probe.batch_size, pod.gvb.probe.learning_rate) == (10_000, 64, 0.01)
    assert pod.adaptation.fractions == (0.01, 0.1) and pod.image_size == 224
    model = network(pod)
    assert model.level_strides == (4, 8, 16, 32) and model.level_channels == (256, 512, 768, 1536)
    # Taps at 224 pixels, nothing computed.
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    maps, _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, method=features), image)
    assert [tap.shape[1] for tap in maps["taps"]] == [56, 28, 14, 7] and maps["pooled"].shape == (1, 1280)
