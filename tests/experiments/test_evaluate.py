import json
import shutil

import numpy as np
import pytest
from PIL import Image

from experiments import evaluate, launch
from jaxface import data, inference, metrics, training


@pytest.mark.parametrize("pairs", ["balanced", "all", "40"])
def test_a_folder_of_photographs(finished, photographs, tmp_path, capsys, pairs):
    out = tmp_path / "out"
    evaluate.main(
        [
            str(finished),
            "--data",
            "folder",
            "--data.root",
            str(photographs),
            "--pairs",
            pairs,
            "--out",
            str(out),
        ]
    )
    written = json.loads((out / "results.json").read_text())
    source = data.FolderSource(photographs, image_size=16)
    assert len(source) == 24 and written["data"] == f"folder {photographs.name}"
    bundle = inference.open_recognizer(finished)
    assert bundle.dim == 16
    embeddings = bundle.embed_source(source, flip=True)
    chosen = {"balanced": None, "all": "all", "40": 40}[pairs]
    assert written["metrics"] == metrics.verify(embeddings, source.labels, pairs=chosen)
    assert 0 <= written["metrics"]["verification/accuracy"] <= 1
    for name in ("roc", "similarity"):
        with Image.open(out / f"{name}.png", formats=["PNG"]) as image:
            assert np.asarray(image.convert("L")).std() > 5
    assert "verification/accuracy" in capsys.readouterr().out


def test_at_a_low_resolution(finished, photographs, tmp_path, refusal):
    """LFW at 7 pixels is asked for like this: every image is shrunk to a side and enlarged again."""
    arguments = [
        str(finished),
        "--data",
        "folder",
        "--data.root",
        str(photographs),
        "--out",
        str(tmp_path / "out"),
    ]
    evaluate.main([*arguments, "--resolution", "4"])
    written = json.loads((tmp_path / "out/results.json").read_text())
    source = data.LowResolution(data.FolderSource(photographs, image_size=16), 4)
    embeddings = inference.open_recognizer(finished).embed_source(source, flip=True)
    assert written["metrics"] == metrics.verify(embeddings, source.labels)
    assert written["options"]["resolution"] == 4
    assert refusal(evaluate.main, [*arguments, "--resolution", "17"]) == (
        "resolution: needs sides from 1 to 16, got 17"
    )


def test_rendered_people_are_those_the_training_held_out(finished, tmp_path):
    arguments = ["--data.identities", "8", "--data.per-identity", "4", "--data.held-out-identities", "6"]
    arguments += ["--data.held-out-per-identity", "4", "--out", str(tmp_path / "out")]
    evaluate.main([str(finished), *arguments])
    there = json.loads((finished / "results.json").read_text())["metrics"]
    here = json.loads((tmp_path / "out/results.json").read_text())["metrics"]
    assert here.keys() == there.keys()
    np.testing.assert_allclose([*here.values()], [*there.values()], atol=1e-4)
    evaluate.main([str(finished), *arguments, "--seed", "1"])
    assert json.loads((tmp_path / "out/results.json").read_text())["metrics"] != here


@pytest.fixture(scope="module")
def improved_and_spoiled(tmp_path_factory):
    """A run on digits whose best checkpoint is not its newest: all labels are wrong, so it unlearns what chance gave."""
    workdir = tmp_path_factory.mktemp("digits") / "run"
    flags = "sface --preset digits --loss softmax --scale 16 --label-noise 1 --steps 60 --quiet"
    flags += " --cadence.evaluate-every 5 --cadence.checkpoint-every 40"
    launch.main([*flags.split(), "--workdir", str(workdir)])
    return workdir


def test_best_or_newest_checkpoint(improved_and_spoiled):
    rows = training.read_records(improved_and_spoiled / "metrics.jsonl")
    scores = {r["step"]: r["classification/accuracy"] for r in rows if r["kind"] == "evaluate"}
    held_out = data.load(data.Digits(), image_size=8, seed=0).held_out
    found = {}
    for best in (False, True):
        bundle = inference.open_recognizer(improved_and_spoiled, best=best)
        folder = improved_and_spoiled / "checkpoints/00-recognition"
        prototypes = training.restore_params(folder, best=best)["params"]["prototypes"]
        embeddings = bundle.embed_source(held_out, flip=False)
        found[best] = metrics.nearest_prototype_accuracy(embeddings, prototypes, held_out.labels)
    assert max(scores.values()) > scores[60] + 0.01
    assert found[False] == pytest.approx(scores[60], abs=2e-3)
    assert found[True] == pytest.approx(max(scores.values()), abs=2e-3)


def test_best_flag_and_default_folder(finished, photographs, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    evaluate.main([str(tmp_path / "run"), "--best", "--data=folder", f"--data.root={photographs}"])
    (folder,) = (tmp_path / "run").glob("evaluate-folder-????????")
    assert (folder / "results.json").is_file() and (folder / "roc.png").is_file()
    options = json.loads((folder / "results.json").read_text())["options"]
    assert options["data.root"] == str(photographs) and options["best"] is True


def test_results_on_other_data_or_with_other_options_have_another_place(tmp_path, monkeypatch):
    for name in ("ours", "theirs"):
        (tmp_path / name / "faces").mkdir(parents=True)
    standard = {"pairs": "balanced", "best": False, "seed": 0}

    def place(root, **options):
        description = evaluate.evaluated("folder", data.Folder(root=str(root)), **(standard | options))
        return evaluate.default_folder(tmp_path / "run", description)

    ours = place(tmp_path / "ours/faces")
    others = [place(tmp_path / "theirs/faces"), place(tmp_path / "ours/faces", seed=1)]
    others += [place(tmp_path / "ours/faces", pairs="all"), place(tmp_path / "ours/faces", best=True)]
    assert len({ours, *others}) == 5 and ours.parent == tmp_path / "run"
    monkeypatch.chdir(tmp_path / "ours")
    assert place("faces") == ours  # the same folder, however it is written


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "the following arguments are required: run"),
        ("{tmp}", "holds no bundle.json, and no run"),
        ("{claimed}", "holds no bundle.json, and no run"),
        ("{finished} --pairs few", "pairs: needs 'balanced', 'all' or a number, got 'few'"),
        ("{finished} --seed one", "--seed: invalid int value: 'one'"),
        ("{finished} --data passports", "data: needs one of "),
        ("{finished} --data folder", "--data.root"),
        ("{finished} --data folder --data.root {tmp}/nowhere", "nowhere: No such file or directory"),
        ("{finished} --data folder --data.root {people} --data.rot x", "did you mean '--data.root'"),
        ("{finished} --data folder --data.root {people} --seed -1", "seed: needs a number from 0"),
        ("{finished} --data digits", "does not take images of shape (8, 8, 1)"),
        ("gs://bucket/run", "run: needs a path of this machine, got 'gs://bucket/run'"),
        ("{finished} --out gs://bucket/out", "out: needs a path of this machine, got 'gs://bucket/out'"),
        ("{finished} --data folder --data.root {people} --pairs 100000", "10 folds need 50000 genuine"),
    ],
)
def test_bad_input_is_one_line_before_any_compile(refusal, tmp_path, finished, photographs, arguments, words):
    (tmp_path / "claimed").mkdir()
    shutil.copy(finished / "config.json", tmp_path / "claimed")
    places = dict(tmp=tmp_path, claimed=tmp_path / "claimed", finished=finished, people=photographs)
    assert words in refusal(evaluate.main, [word.format(**places) for word in arguments.split()])


@pytest.mark.parametrize("pairs", ["10", "100000"])
def test_a_number_of_pairs_that_there_is_not(finished, photographs, capsys, pairs):
    with pytest.raises(SystemExit) as caught:
        evaluate.main([str(finished), "--data", "folder", "--data.root", str(photographs), "--pairs", pairs])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1 and "pairs" in said
