"""Models attacked by an experiment: what it refuses, what a run reports, and the published numbers."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_configs.niqa_attack import CONFIG

from experiments import configs, launch
from experiments.methods import niqa_attack
from experiments.programs import niqa_trials
from experiments.studies import niqa_attack as studies
from jaxface import attacks, data, metrics, training
from jaxface.errors import UserError
from jaxface.training.evaluations.quality_attack import DRAWS, Proxy, QualityAttack, Rater


def changed(**fields):
    return dataclasses.replace(CONFIG, **fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"models": ()}, "models: needs some, each once, got none"),
        ({"models": ("cnn", "cnn")}, "models: needs some, each once, got cnn, cnn"),
        ({"fidelities": ()}, "fidelities: needs some"),
        ({"fidelities": ("ms_ssim",)}, "image: .* at least 161 pixels, got 16x16"),
        ({"models": ("ma19",)}, "image: the pyramid needs sides of at least 24 pixels, got 16x16"),
        ({"fidelities": ("lpips",), "trunk": "vgg16.pth"}, "lpips: needs the trunk and its own weights"),
        ({"radii": ()}, "radii: needs some under the Chebyshev distance"),
        ({"attack": attacks.PerceptualAttack(optimizer="fresh_adam")}, "optimizer: a ball needs steepest"),
        ({"data": data.Digits(), "image_size": 16}, "data: needs images with opinions"),
    ],
)
def test_bad_configurations_are_refused(fields, words):
    with pytest.raises(UserError, match=words):
        niqa_attack.build(changed(**fields))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--image-size 13", "image_size: needs an integer from 16, got 13"),
        ("--start-scores 5 1", "start_scores: needs least <= greatest, got 5, 1"),
        ("--multipliers -1", "multipliers: needs a finite number above 0, got -1"),
        ("--attack.steps -1", "attack.steps: needs an integer from 0"),
        ("--proxy.similarity 2", "proxy.similarity: needs"),
    ],
)
def test_bad_flags_are_one_line(refusal, arguments, words, tmp_path):
    command = ["niqa_attack", *arguments.split(), "--workdir", tmp_path / "run"]
    assert words in refusal(launch.main, command)


def test_the_published_attack():
    """arXiv:2210.00933: γ = 1e-3, 200 steps, 12 starts; the multipliers of the released code, which weigh the similarity."""
    config = niqa_attack.Config.paper()
    assert (config.attack.steps, config.attack.step, config.starts) == (200, 1e-3, 12)
    assert config.attack.geometry == "l2" and not config.attack.ball
    assert len(config.multipliers) == 32 and list(config.multipliers) == sorted(config.multipliers)
    assert config.multipliers[0] == pytest.approx(1 / 9e6) and config.multipliers[-1] == pytest.approx(5)
    assert niqa_attack.attack_of(config, "chebyshev").ball
    assert config.radii[0] == 1 and config.radii[-1] == 33
    assert (config.proxy.levels, config.proxy.similarity) == (4, 0.985)
    assert config.models == ("nss", "cornia", "ma19", "unique")
    assert set(config.fidelities) == {"chebyshev", "ssim", "lpips", "dists"} and config.words == 10_000


def arrays(random=0.0):
    """Two starts, two models, three images of each start of which the second is chosen for the first start alone."""
    starts = np.full((2, 4, 4, 3), 100, np.uint8)
    images = np.repeat(starts[:, None], 3, axis=1)
    images[0, 1] += 2
    scores = np.full((2, 2, 3), 5.0)
    scores[0, 0] = [6.0, 3.0, 9.0]
    scores[1, 0, 1] = 6.5
    drawn = np.repeat(np.array([[7.0, 5.0], [6.0, 5.0]])[:, :, None], DRAWS, axis=2)
    drawn[0, 0, 4] += random
    return {
        "starts": starts, "opinions": np.float32([8, 4]), "rungs": np.float32([1]), "images": images,
        "distances": np.zeros((2, 3)), "last": np.array([True, False, True]),
        "below": np.array([[True, True, False], [False] * 3]), "chosen": np.int32([1, -1]),
        "start_scores": np.array([[7.0, 5.0], [6.0, 5.0]]), "scores": scores, "random_scores": drawn,
        "random_below": np.array([[True] * DRAWS, [False] * DRAWS]),
    }  # fmt: skip


def test_the_report_counts_a_start_without_a_counterexample_twice():
    state = training.create_state(jax.random.key(0), jax.tree.map(jnp.asarray, arrays(random=-3.0)))
    report = QualityAttack(("a", "b"), 0)(state)
    assert report["found"] == 1 and report["max"] == 2 and report["rms"] == pytest.approx(2)
    assert report["below"] == pytest.approx(2 / 6) and report["random_below"] == 1
    # 7, 5, and 3, 5 behind them; the other model moves up, and its order stays.
    assert report["a/srcc"] == pytest.approx(metrics.srcc([7, 5, 3, 5], [8, 4, 8, 4]))
    assert report["a/srcc"] < report["a/srcc_starts"] == pytest.approx(1)
    assert report["b/srcc"] == pytest.approx(metrics.srcc([6, 5, 6.5, 5], [8, 4, 8, 4]))
    assert report["a/change"] == 4 and report["b/change"] == 0.5
    assert report["a/robustness"] == pytest.approx(np.log(7 / 4))
    # Of ten random changes one moves the score, by 3.
    assert report["a/change_random"] == pytest.approx(0.3) and report["a/change_random_best"] == 3
    best = metrics.srcc([7, 5, 4, 5], [8, 4, 8, 4])
    assert report["a/srcc_random_best"] == pytest.approx(best)
    assert report["a/srcc_random"] == pytest.approx((9 + best) / 10)
    # Of the rungs' ends the first is below the JND, and moves the score by 1.
    assert report["a/srcc_ends"] == pytest.approx(metrics.srcc([7, 5, 6, 5], [8, 4, 8, 4]))


def test_starts_are_those_in_the_middle_of_every_scale():
    source = data.distorted_leaves(8, side=16, leaves=6, seed=0)

    def rate(lowest, image):
        return lowest + image.mean()

    raters = [Rater(str(n), jax.tree_util.Partial(rate, jnp.float32(n))) for n in (2, 3)]
    images, opinions = niqa_attack.choose_starts(changed(start_scores=(2.0, 4.0)), raters, source)
    np.testing.assert_array_equal(images[0], source[0]["image"])
    np.testing.assert_array_equal(opinions, source.opinions[:2])
    with pytest.raises(UserError, match=r"starts: needs 2 held-out images .* from 0 to 2\.1, 0 of 8 are"):
        niqa_attack.choose_starts(changed(start_scores=(0.0, 2.1)), raters, source)


def test_every_arm_of_a_study_is_one_run():
    for name, study in studies.STUDIES.items():
        model, fidelity = name.split("-")
        assert study.metric == f"{fidelity}_on_{model}/{model}/srcc" and not study.larger_is_better
        assert all(not fields for fields in study.arms.values())
        assert set(study.arm_metrics) == set(study.arms) - {study.method}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of both models under SSIM, tiny."""
    workdir = tmp_path_factory.mktemp("niqa") / "run"
    config = changed(
        data=data.DistortedLeaves(images=60, held_out_images=24, leaves=12),
        image_size=24,
        models=("cnn", "nss"),
        fidelities=("ssim",),
        attack=attacks.PerceptualAttack(steps=12, step=6e-4, keep_every=4),
        rungs=3,
        starts=4,
        proxy=Proxy(levels=None, decibels=40.0, similarity=0.9),
        steps=60,
        batch_size=16,
    )
    return workdir, launch.launch("niqa_attack", config, configs.Run(workdir=str(workdir), quiet=True))


@pytest.mark.slow
def test_a_run_attacks_every_model(run):
    workdir, outcome = run
    report = outcome.metrics
    assert report["nss/srcc"] > 0.5 and abs(report["cnn/srcc"]) <= 1
    for attacked, other in (("cnn", "nss"), ("nss", "cnn")):
        stage = f"ssim_on_{attacked}"
        assert report[f"{stage}/found"] >= 3 and report[f"{stage}/max"] >= 1
        assert {f"{stage}/{other}/srcc", f"{stage}/{other}/robustness"} <= report.keys()
        # The attack moves its model farther than ten random changes of its size do.
        assert report[f"{stage}/{attacked}/change"] > report[f"{stage}/{attacked}/change_random_best"]
    sheets = {sheet.name for sheet in workdir.glob("*.png")}
    assert sheets == {"counterexamples_ssim_on_cnn.png", "counterexamples_ssim_on_nss.png"}


@pytest.mark.slow
def test_the_images_of_a_run_are_shown_and_selected_from(run, tmp_path, capsys, refusal):
    workdir, _ = run
    folder = tmp_path / "trials"
    arguments = ["export", "--run", str(workdir), "--images", str(folder), "--per-start", "3"]
    niqa_trials.main(arguments)
    table = niqa_trials.read_table(folder)
    groups = {trial.group for trial in table.trials}
    assert groups == {"", "ssim_on_cnn", "ssim_on_nss"}
    assert len(table.starts) == 4 and str(len(table.trials)) in capsys.readouterr().out
    niqa_trials.main(arguments)  # again: the same
    assert niqa_trials.read_table(folder) == table
    answers = niqa_trials.Answers(folder / niqa_trials.ANSWERS)
    for trial in table.trials:
        for observer in "abcd":
            answers.add(observer, trial.id, trial.group.endswith("cnn"))
    answers.close()
    niqa_trials.main(["select", "--images", str(folder)])
    told = json.loads((folder / "selection.json").read_text())
    assert told["ssim_on_cnn"]["metrics"]["found"] == 0  # everybody saw everything
    assert told["ssim_on_nss"]["metrics"]["found"] == 4 and told["ssim_on_nss"]["metrics"]["nss/change"] > 0
    changes = [
        abs(t.scores["nss"] - table.starts[t.start]["nss"]) for t in table.trials if t.group == "ssim_on_nss"
    ]
    assert told["ssim_on_nss"]["metrics"]["nss/change"] <= max(changes)
    assert "per_start is 3 there and 2 here" in refusal(niqa_trials.main, [*arguments[:-1], "2"])
