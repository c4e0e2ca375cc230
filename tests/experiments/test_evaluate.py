import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from experiments import evaluate, launch
from jaxface import data, inference, metrics, training
from jaxface.cli import main as cli
from jaxface.cli.commands import evaluate as command


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


def views(bundle, source):
    """[N, D] embeddings of the images and of their mirror images, float64."""

    class Mirrored:
        labels, class_names, image_shape = source.labels, source.class_names, source.image_shape

        def __len__(self):
            return len(source)

        def __getitem__(self, index):
            return {**source[index], "image": source[index]["image"][:, ::-1]}

    return [bundle.embed_source(s, flip=False).astype(np.float64) for s in (source, Mirrored())]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("flip", ["none", "concat"])
def test_packs_of_a_folder(finished, packs, tmp_path, capsys, flip):
    """Oracle: areas under the curve by counting pairs of scores, accuracies by trying every threshold."""
    out = tmp_path / "out"
    cli.main(["evaluate", str(finished), "--packs", str(packs), "--flip", flip, "--out", str(out), "--json"])
    written = json.loads(capsys.readouterr().out)
    assert written == json.loads((out / "results.json").read_text())
    assert written["options"] == {
        "data": "packs",
        "data.packs": str(packs),
        "pairs": "balanced",
        "flip": flip,
        "best": False,
        "seed": 0,
    }
    bundle = inference.open_recognizer(finished)
    for name in ("first", "second"):
        pack = data.PackSource(packs / f"{name}.bin", image_size=16)
        plain, mirrored = views(bundle, pack)
        rows = unit({"none": plain, "concat": np.hstack([unit(plain), unit(mirrored)])}[flip])
        cosines, same = (rows[0::2] * rows[1::2]).sum(axis=1), pack.pairs.same
        auc = (cosines[same][:, None] > cosines[~same]).mean()
        assert written["metrics"][f"{name}/auc"] == pytest.approx(auc, abs=1e-6)
        threshold = np.sort(cosines[~same])[::-1][(~same).sum() // 10]
        assert written["metrics"][f"{name}/tar@1e-1"] == pytest.approx((cosines[same] > threshold).mean())
        accuracies = []
        for fold in np.split(np.arange(len(same)), 10):
            others = np.setdiff1d(np.arange(len(same)), fold)
            tried = np.arange(0, 4, 0.01)
            right = [((2 - 2 * cosines[others] < t) == same[others]).mean() for t in tried]
            accuracies.append(((2 - 2 * cosines[fold] < tried[np.argmax(right)]) == same[fold]).mean())
        assert written["metrics"][f"{name}/accuracy"] == pytest.approx(np.mean(accuracies))
    assert sorted(path.name for path in out.iterdir()) == ["results.json", "roc.png"]


def test_one_table_of_packs(finished, packs, tmp_path, capsys):
    shutil.copytree(packs, tmp_path / "packs")
    images, same = data.read_bin(packs / "second.bin")
    data.write_bin(tmp_path / "packs/second.bin", [b"rubbish", *images[1:]], same)
    evaluate.main([str(finished), "--packs", str(tmp_path / "packs"), "--out", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    rows = [line.replace("│", " ").split() for line in shown.splitlines() if "│" in line]
    metrics = json.loads((tmp_path / "out/results.json").read_text())["metrics"]
    assert [row[:2] for row in rows] == [["first", "20"], ["second", "19"], ["mean", "39"]]
    for name, _, *numbers in rows[:2]:
        expected = [metrics[f"{name}/{key}"] for key in ("accuracy", "accuracy_std", "tar@1e-1")]
        assert numbers == [f"{value:.4f}" for value in expected]
    mean = np.mean([metrics[f"{name}/accuracy"] for name in ("first", "second")])
    assert float(rows[2][2]) == pytest.approx(mean, abs=1e-4)
    assert all(name in shown for name in ("pack", "pairs", "accuracy", "std", "tar@1e-1"))


def test_a_benchmark_by_its_own_protocol(finished, template_set, tmp_path, capsys):
    """Oracle: images summed by medium and template one by one, pairs counted; the set has no lists of 1:N."""
    arguments = [str(finished), "--data", "ijb", "--data.root", str(template_set.root)]
    evaluate.main([*arguments, "--out", str(tmp_path / "out"), "--batch-size", "7"])
    metrics = json.loads((tmp_path / "out/results.json").read_text())["metrics"]
    source = data.TemplateSource(template_set.root, image_size=16)
    features = sum(views(inference.open_recognizer(finished), source))
    rows = []
    for template in np.unique(template_set.templates):
        media = []
        for medium in np.unique(template_set.media):
            inside = (template_set.templates == template) & (template_set.media == medium)
            media.append((features[inside] * template_set.scores[inside, None]).mean(axis=0))
        rows.append(np.sum(media, axis=0))
    rows = unit(np.array(rows))
    cosines = (rows[template_set.pairs[:, 0]] * rows[template_set.pairs[:, 1]]).sum(axis=1)
    genuine, impostor = cosines[template_set.same], cosines[~template_set.same]
    assert metrics["verification/auc"] == pytest.approx((genuine[:, None] > impostor).mean(), abs=1e-6)
    threshold = np.sort(impostor)[::-1][len(impostor) // 10]
    assert metrics["verification/tar@1e-1"] == pytest.approx((genuine > threshold).mean())
    assert metrics["data/left_out"] == 0 and not [key for key in metrics if "identification" in key]
    assert "verification/auc" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        evaluate.main([*arguments, "--resolution", "8"])
    assert capsys.readouterr().err == (
        "error: resolution: needs people or pairs of images; a benchmark is taken as it is\n"
    )


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
    standard = {"pairs": "balanced", "flip": "sum", "best": False, "seed": 0}

    def place(root, **options):
        fields = dataclasses.asdict(data.Folder(root=str(root)))
        description = command.described("folder", fields, **(standard | options))
        return command.default_folder(tmp_path / "run", description)

    ours = place(tmp_path / "ours/faces")
    others = [place(tmp_path / "theirs/faces"), place(tmp_path / "ours/faces", seed=1)]
    others += [place(tmp_path / "ours/faces", pairs="all"), place(tmp_path / "ours/faces", best=True)]
    others += [place(tmp_path / "ours/faces", flip="none")]
    assert len({ours, *others}) == 6 and ours.parent == tmp_path / "run"
    (tmp_path / "weights.pth").write_bytes(b"")
    assert command.default_folder(tmp_path / "weights.pth", {"data": "bin"}).parent == tmp_path
    monkeypatch.chdir(tmp_path / "ours")
    assert place("faces") == ours  # the same folder, however it is written


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "the following arguments are required: RUN"),
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
        ("gs://bucket/run", "run: needs a path of this machine, or the package gcsfs for 'gs://bucket/run'"),
        ("{finished} --out gs://bucket/out", "out: needs a path of this machine, got 'gs://bucket/out'"),
        ("{finished} --data folder --data.root {people} --pairs 100000", "10 folds need 50000 genuine"),
        ("{finished} --packs {packs} --data bin", "argument --data: not allowed with argument --packs"),
        ("{finished} --packs {packs} --data.root x", "--data.root: no such option"),
        ("{finished} --packs {people}", "packs: needs a folder with .bin packs; "),
        (
            "{finished} --packs {packs} --pairs all",
            "pairs: needs 'balanced' for data that comes with its own",
        ),
        ("{finished} --flip twice", "flip: needs one of none, sum, concat, got 'twice'"),
        ("{finished} --batch-size 0", "batch-size: needs a number from 1, got 0"),
        ("{finished} --data ijb --data.root {tmp}", "templates: needs one meta/<set>_face_tid_mid.txt"),
        ("{without} --packs {packs}", "no run of a recognizer"),
    ],
)
def test_bad_input_is_one_line_before_any_compile(
    refusal, tmp_path, finished, photographs, packs, arguments, words
):
    (tmp_path / "claimed").mkdir()
    shutil.copy(finished / "config.json", tmp_path / "claimed")
    (tmp_path / "without/checkpoints/00-fusion").mkdir(
        parents=True
    )  # of a method without an embedding network
    places = dict(tmp=tmp_path, claimed=tmp_path / "claimed", finished=finished, people=photographs)
    places |= dict(packs=packs, without=tmp_path / "without")
    assert words in refusal(evaluate.main, [word.format(**places) for word in arguments.split()])


@pytest.mark.parametrize("pairs", ["10", "100000"])
def test_a_number_of_pairs_that_there_is_not(finished, photographs, capsys, pairs):
    with pytest.raises(SystemExit) as caught:
        evaluate.main([str(finished), "--data", "folder", "--data.root", str(photographs), "--pairs", pairs])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1 and "pairs" in said
