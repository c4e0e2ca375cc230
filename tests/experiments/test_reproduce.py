import dataclasses
import json

import jax
import numpy as np
import pytest
import scipy.stats
from PIL import Image

from experiments import reproduce
from experiments.methods import sface
from experiments.reproduce import Effect, Study
from experiments.studies import sface as studies
from jaxface import training
from jaxface.errors import UserError


def test_interval_by_hand():
    # Differences 1, 2, 3: mean 2, s = 1, t_{0.975, 2} = 4.302653, half = 4.302653 / √3.
    mean, low, high = reproduce.interval(np.array([1.0, 2.0, 3.0]))
    assert (mean, low, high) == pytest.approx((2.0, 2 - 2.4841377, 2 + 2.4841377), abs=1e-6)
    assert reproduce.interval([0.5, 0.5]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("count", [2, 5, 30])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_interval_is_that_of_the_t_test(count, level):
    values = np.random.default_rng(count).normal(0.3, 2.0, count)
    expected = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(level)
    found = reproduce.interval(values, level=level)
    np.testing.assert_allclose(found, (values.mean(), expected.low, expected.high), rtol=1e-10)


@pytest.mark.parametrize("values", [[], [1.0], [[1.0, 2.0]]])
def test_interval_needs_two_values(values):
    with pytest.raises(ValueError, match="at least two"):
        reproduce.interval(np.array(values))


def study(**fields):
    return Study(
        claim="It is better.", metric="score", method="ours",
        arms={"ours": {}, "theirs": {}, "plain": {}}, base=None, conditions={"easy": {}, "hard": {}}, **fields,
    )  # fmt: skip


SCORES = {
    "easy": {
        "ours": np.array([3.0, 4.0, 5.0]),
        "theirs": np.array([1.0, 2.1, 2.9]),
        "plain": np.array([3.0, 4.1, 4.9]),
    },
    "hard": {
        "ours": np.array([1.0, 1.0, 2.0]),
        "theirs": np.array([1.5, 0.5, 2.0]),
        "plain": np.array([9.0, 8.9, 10.1]),
    },
}


def test_effects_are_paired_and_favor_the_method_when_positive():
    rows = reproduce.effects(study(), SCORES)
    verdicts = {(row.condition, row.baseline): row.verdict for row in rows}
    assert verdicts == {
        ("easy", "theirs"): "better",
        ("easy", "plain"): "inconclusive",
        ("hard", "theirs"): "inconclusive",
        ("hard", "plain"): "worse",
    }
    first = rows[0]
    assert (first.mean, first.low, first.high) == reproduce.interval([2.0, 1.9, 2.1])


def test_effects_where_smaller_is_better():
    larger = reproduce.effects(study(), SCORES)
    smaller = reproduce.effects(study(larger_is_better=False), SCORES)
    for a, b in zip(larger, smaller, strict=True):
        np.testing.assert_allclose((b.mean, b.low, b.high), (-a.mean, -a.high, -a.low), atol=1e-12)
    assert [row.verdict for row in smaller] == ["worse", "inconclusive", "inconclusive", "better"]


def test_every_arm_is_compared_with_the_named_baseline():
    named = study(baseline="plain")
    rows = reproduce.effects(named, SCORES)
    assert [(row.condition, row.arm, row.baseline) for row in rows] == [
        (condition, *pair)
        for condition in ("easy", "hard")
        for pair in (("", "theirs"), ("", "plain"), ("theirs", "plain"))
    ]
    assert rows[2].mean == pytest.approx(-2)  # (1 + 2.1 + 2.9) / 3 - (3 + 4.1 + 4.9) / 3
    lines = reproduce.markdown(named, SCORES, rows, 3).splitlines()
    second = lines.index("| condition | minus plain | difference | 95 % interval | verdict |")
    assert [line.split(" | ")[1] for line in lines[second + 2 :]] == ["theirs", "theirs"]
    assert [line.split(" | ")[1] for line in lines[second - 5 : second - 1]] == ["theirs", "plain"] * 2


def test_verdict_at_the_edge():
    assert Effect("", "b", 0.1, 0.0, 0.2).verdict == "inconclusive"
    assert Effect("", "b", -0.1, -0.2, 0.0).verdict == "inconclusive"


def test_markdown():
    text = reproduce.markdown(study(), SCORES, reproduce.effects(study(), SCORES), 3)
    lines = text.splitlines()
    assert lines[0] == "It is better. (score, 3 seeds)"
    assert "| condition | ours | theirs | plain |" in lines
    assert "| easy | 4.0000 ± 1.0000 | 2.0000 ± 0.9539 | 4.0000 ± 0.9539 |" in lines
    assert "| easy | theirs | +2.0000 | +1.7516 … +2.2484 | better |" in lines
    assert all(line.count("|") == lines[2].count("|") for line in lines[2:6] if line)


@pytest.fixture
def runs(monkeypatch):
    """Seeds of the runs that were made."""
    ran = []
    real = training.run

    def run(stages, *, seed, **arguments):
        ran.append(seed)
        return real(stages, seed=seed, **arguments)

    monkeypatch.setattr(training, "run", run)
    return ran


@pytest.fixture
def small(monkeypatch):
    digits = Study(
        claim="SFace is better on digits.",
        metric="classification/accuracy",
        method="sface",
        arms={"sface": {}, "softmax": {"loss": "softmax", "scale": 16.0}},
        base=dataclasses.replace(sface.Config.digits(), steps=3),
        conditions={"0 %": {}, "40 %": {"label_noise": 0.4}},
    )
    unheard = dataclasses.replace(digits, metric="verification/accuracy")
    monkeypatch.setattr(studies, "STUDIES", {"small": digits, "unheard": unheard}, raising=False)
    return digits


def test_a_study_end_to_end_and_resumed(small, runs, tmp_path, capsys):
    command = ["sface", "--study", "small", "--seeds", "2", "--workdir", str(tmp_path / "study")]
    reproduce.main(command)
    assert runs == [1] * 4 + [2] * 4
    folder = tmp_path / "study"
    record = json.loads((folder / "small.json").read_text())
    assert record["metric"] == small.metric and record["seeds"] == 2 and record["claim"] == small.claim
    kept = sorted(path.relative_to(folder).as_posix() for path in folder.glob("small/**/*.json"))
    assert len(kept) == 8 and len({path.rpartition("/")[0] for path in kept}) == 4
    for condition, by_arm in record["scores"].items():
        assert set(by_arm) == {"sface", "softmax"} and condition in small.conditions
        for arm, values in by_arm.items():
            (there,) = (
                p for p in kept if f"/{condition.split()[0]}-" in p and p.endswith(f"{arm}/seed-2.json")
            )
            one = json.loads((folder / there).read_text())
            assert one["metrics"][small.metric] == values[1] and one["config"]["config"]["seed"] == 2
            assert one["config"]["config"]["label_noise"] == (0.4 if condition == "40 %" else 0.0)
    for row in record["effects"]:
        ours, theirs = (np.array(record["scores"][row["condition"]][arm]) for arm in ("sface", "softmax"))
        assert (row["mean"], row["low"], row["high"]) == pytest.approx(reproduce.interval(ours - theirs))
        assert row["verdict"] in ("better", "worse", "inconclusive")
    text = (folder / "small.md").read_text()
    assert text.startswith(small.claim) and "| 40 % | softmax |" in text
    with Image.open(folder / "small.png", formats=["PNG"]) as image:
        assert np.asarray(image.convert("L")).std() > 3

    (folder / kept[0]).unlink()
    (folder / kept[1]).write_text("{")  # cut off while it was written
    runs.clear()
    reproduce.main(command)
    assert len(runs) == 2
    assert json.loads((folder / "small.json").read_text())["scores"] == record["scores"]
    runs.clear()
    reproduce.main([*command[:-3], "3", *command[-2:]])
    assert runs == [3] * 4
    assert "12/12" in capsys.readouterr().out


def test_arms_of_one_configuration_are_one_run(small, monkeypatch, tmp_path):
    """They differ in what is measured of it; every seed and condition has a run of its own."""
    ran = []

    def run_once(method, config, path, **options):
        ran.append((config.seed, config.label_noise, config.loss))
        return {"a": len(ran), "b": -len(ran)}

    monkeypatch.setattr(reproduce, "run_once", run_once)
    arms = {"first": {}, "second": {}, "softmax": {"loss": "softmax"}}
    two = dataclasses.replace(small, metric="a", method="first", arms=arms, arm_metrics={"second": "b"})
    scores = reproduce.measure("sface", "two", two, 2, tmp_path, say=lambda line: None)
    assert scores["0 %"] == {"first": [1, 5], "second": [-1, -5], "softmax": [2, 6]}
    assert scores["40 %"] == {"first": [3, 7], "second": [-3, -7], "softmax": [4, 8]}
    assert len(ran) == len(set(ran)) == 8
    missing = dataclasses.replace(two, arm_metrics={"second": "c"})
    with pytest.raises(UserError, match=r"^study: two needs 'c', the run reports \['a', 'b'\]"):
        reproduce.measure("sface", "two", missing, 2, tmp_path, say=lambda line: None)


def test_studies_of_the_same_runs_share_them(small, runs, tmp_path):
    def quiet(line):
        del line

    small = dataclasses.replace(small, conditions={"0 %": {}})
    first = reproduce.measure("sface", "first", small, 2, tmp_path, quiet)
    ran = len(runs)
    other = dataclasses.replace(small, claim="The same runs, told another way.")
    assert reproduce.measure("sface", "second", other, 2, tmp_path, quiet) == first and len(runs) == ran
    longer = dataclasses.replace(other, base=dataclasses.replace(small.base, steps=2))
    assert reproduce.measure("sface", "third", longer, 2, tmp_path, quiet) != first and len(runs) == 2 * ran


def test_a_changed_configuration_is_run_again(small, runs, tmp_path):
    config = small.base
    first = reproduce.run_once("sface", config, tmp_path / "one.json")
    assert reproduce.run_once("sface", config, tmp_path / "one.json") == first and len(runs) == 1
    other = reproduce.run_once("sface", dataclasses.replace(config, steps=2), tmp_path / "one.json")
    assert other != first and len(runs) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("sface --study small --seeds 1", "seeds: an interval needs at least 2, got 1"),
        ("sface --study small --seeds two", "--seeds: invalid int value: 'two'"),
        ("sface --study large", "study: needs one of small, unheard, got 'large'"),
        ("sfce", "method: 'sfce' is unknown; did you mean 'sface'?"),
        ("", "required: method"),
        ("sface --sedes 3", "--sedes"),
        ("sface --workdir {tmp}/letter.txt/here", "workdir: cannot use"),
        ("sface --workdir gs://bucket/studies", "workdir: needs a path of this machine"),
    ],
)
def test_bad_input_is_one_line_before_any_run(refusal, small, runs, tmp_path, arguments, words):
    (tmp_path / "letter.txt").write_text("dear")
    assert words in refusal(reproduce.main, [word.format(tmp=tmp_path) for word in arguments.split()])
    assert not runs


def test_a_method_without_a_study(refusal, monkeypatch):
    monkeypatch.setattr(studies, "STUDIES", {}, raising=False)
    assert "method: sface has no study" in refusal(reproduce.main, ["sface"])


def test_a_metric_that_the_runs_do_not_report(small, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        reproduce.main(["sface", "--study", "unheard", "--seeds", "2", "--workdir", str(tmp_path)])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count("\n") == 1
    assert "unheard needs 'verification/accuracy', the run reports ['classification/accuracy']" in said


def test_shared_stages_run_once_and_give_what_they_gave():
    started = []

    def stages():
        def init(name):
            def made(rng, previous):
                started.append(name)
                return {
                    "value": np.float32(len(started)) + (0 if previous is None else 10 * previous["value"])
                }

            return made

        def score(state):
            return {"value": float(state["value"])}

        return [
            training.Stage(name, init=init(name), evaluate=score, compile_init=False)
            for name in ("teacher", "student")
        ]

    done = []
    first = training.run(reproduce.sharing(stages(), 1, done)).metrics
    second = training.run(reproduce.sharing(stages(), 1, done)).metrics
    assert started == ["teacher", "student", "student"]
    assert first == {"teacher/value": 1.0, "student/value": 12.0}
    assert second == {"teacher/value": 1.0, "student/value": 13.0}
    started.clear()
    training.run(reproduce.sharing(stages(), 0, []))
    assert started == ["teacher", "student"]


def test_shared_stages_stay_on_disk_with_their_random_keys(tmp_path):
    ran = []

    def stages(width=3):
        def init(rng, previous):
            values = jax.random.normal(rng, (width,))
            return {"values": values if previous is None else values + previous["values"], "rng": rng}

        def score(name):
            def total(state):
                ran.append(name)
                return {"total": float(jax.random.normal(state["rng"]) + state["values"].sum())}

            return total

        return [training.Stage(name, init=init, evaluate=score(name)) for name in ("teacher", "student")]

    first = training.run(reproduce.sharing(stages(), 1, [], tmp_path / "kept")).metrics
    assert [path.name for path in tmp_path.glob("kept/*")] == ["teacher.msgpack"]
    assert training.run(reproduce.sharing(stages(), 1, [], tmp_path / "kept")).metrics == first
    assert ran == ["teacher", "student", "student"]
    training.run(
        reproduce.sharing(stages(width=2), 1, [], tmp_path / "kept")
    )  # another network is trained again
    (tmp_path / "kept/teacher.msgpack").write_bytes(b"cut off")
    assert training.run(reproduce.sharing(stages(), 1, [], tmp_path / "kept")).metrics == first
    assert ran[3:] == ["teacher", "student"] * 2


def test_studies_of_one_name_share_stages_of_one_base(small, monkeypatch, tmp_path):
    folders = {}

    def run_once(method, config, path, *, kept, **options):
        folders.setdefault(path.parts[-4], []).append(kept)
        return {small.metric: 0.5}

    monkeypatch.setattr(reproduce, "run_once", run_once)
    named = dataclasses.replace(small, shared=1, shared_as="teacher")
    longer = dataclasses.replace(named, base=dataclasses.replace(small.base, steps=2))
    for name, study in {"one": named, "two": named, "longer": longer, "none": small}.items():
        reproduce.measure("sface", name, study, 2, tmp_path, say=lambda line: None)
    assert folders["one"] == folders["two"] and set(folders["none"]) == {None}
    assert len(set(folders["one"])) == 4  # of two conditions and seeds, one for all arms
    assert not set(folders["one"]) & set(folders["longer"])
