import errno
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import configs, launch, methods
from jaxface import training
from pallas_kernels.common import KernelError

DIGITS = ["--preset", "digits", "--quiet"]


def losses(workdir):
    rows = training.read_records(workdir / "metrics.jsonl")
    return np.array([row["loss"] for row in rows if row["kind"] == "train"])


def test_what_a_run_leaves(finished):
    results = json.loads((finished / "results.json").read_text())
    rows = training.read_records(finished / "metrics.jsonl")
    assert results["method"] == "sface" and results["devices"] == 8 and results["jax"] == jax.__version__
    assert results["metrics"].items() <= rows[-1].items()
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 5] and rows[-1]["kind"] == "evaluate"
    assert {"verification/accuracy", "verification/auc", "verification/eer"} <= results["metrics"].keys()
    assert all(np.isfinite(value) for value in results["metrics"].values())
    assert np.isfinite(losses(finished)).all()
    assert configs.from_dict(training.read_config(finished))[1].steps == 5
    assert list((finished / "tensorboard").glob("events.*"))
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == [
        "00-recognition",
        "00-recognition.json",
    ]
    assert (finished / "checkpoints/00-recognition/5").is_dir()
    for name in ("roc", "similarity"):
        with Image.open(finished / f"{name}.png", formats=["PNG"]) as image:
            pixels = np.asarray(image.convert("L"))
        assert min(pixels.shape) >= 200 and pixels.std() > 5


def test_the_same_command_again_changes_nothing(finished, tiny, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setattr(
        training.JitParallel, "compile", lambda *_: pytest.fail("a finished run was trained again")
    )
    launch.main(["sface", *tiny, "--workdir", str(tmp_path / "run")])
    for name in ("results.json", "metrics.jsonl", "config.json", "roc.png"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes(), name


def test_the_outcome_is_what_is_written(finished, capsys):
    method, config, run = configs.from_dict(training.read_config(finished))
    outcome = launch.launch(method, config, configs.Run(str(finished), cadence=run.cadence))
    assert outcome.metrics == json.loads((finished / "results.json").read_text())["metrics"]
    shown = capsys.readouterr().out
    assert all(key in shown for key in outcome.metrics)


@pytest.mark.parametrize(
    "flags",
    [
        ["--parallel", "pmap"],
        ["--model-shards", "2"],
        ["--accumulate", "2"],
        pytest.param(["--shard", "fsdp", "--remat", "block"], marks=pytest.mark.slow),
    ],
)
def test_every_way_to_compute_gives_the_losses_of_one_device(one_device, tiny, tmp_path, flags):
    launch.main(["sface", *tiny, *flags, "--workdir", str(tmp_path / "run")])
    np.testing.assert_allclose(losses(tmp_path / "run"), one_device, rtol=2e-4)


@pytest.fixture(scope="module")
def one_device(tiny, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one") / "run"
    with pytest.MonkeyPatch.context() as patch:
        make = training.make_parallel
        patch.setattr(training, "make_parallel", lambda *a, **k: make(*a, **k, devices=jax.devices()[:1]))
        launch.main(["sface", *tiny, "--workdir", str(workdir)])
    return losses(workdir)


def test_eight_devices_give_the_losses_of_one(one_device, finished):
    np.testing.assert_allclose(losses(finished), one_device, rtol=2e-4)
    assert len(set(one_device)) == 5


def test_bfloat16(finished, tiny, tmp_path):
    launch.main(["sface", *tiny, "--bfloat16", "--workdir", str(tmp_path / "run")])
    rounded = losses(tmp_path / "run")
    exact = losses(finished)
    assert np.isfinite(rounded).all() and rounded.shape == exact.shape and (rounded != exact).any()
    # The first loss is of the same parameters: rounding alone. The later ones magnify it, each processor in its own way.
    np.testing.assert_allclose(rounded[0], exact[0], rtol=0.05)
    params = training.restore_params(tmp_path / "run/checkpoints/00-recognition")["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_the_moving_average_is_what_is_evaluated_and_restored(tmp_path):
    config, run = configs.parse("sface", [*DIGITS, "--steps", "4", "--ema-decay", "0.9"])
    run = configs.Run(workdir=str(tmp_path / "run"), cadence=run.cadence, quiet=True)
    outcome = launch.launch("sface", config, run)
    (stage,) = configs.method_module("sface").build(config)
    state = outcome.state
    averaged, last = state.replace(params=state.ema, ema=None), state.replace(ema=None)
    assert outcome.metrics == stage.evaluate(averaged)
    assert outcome.metrics != stage.evaluate(last)
    kept = training.restore_params(tmp_path / "run/checkpoints/00-recognition")["params"]
    jax.tree.map(np.testing.assert_array_equal, kept, jax.device_get(state.ema))


def test_list_shows_each_method_with_a_line(capsys):
    launch.main(["--list"])
    shown = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0].strip() for line in shown] == list(methods.descriptions())
    assert any(line.startswith("sface") and "arXiv:2205.12010" in line for line in shown)
    assert all(len(line.split()) > 3 for line in shown)


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_usage(capsys, arguments):
    launch.main(arguments)
    assert "METHOD" in capsys.readouterr().out


def flags(text, **paths):
    return [word.format(**paths) for word in text.split()]


RENDERED = """sface --data rendered --data.identities 8 --data.per-identity 4 --backbone mlp --image-size 17
    --batch-size 16 """
FOLDER = (
    "sface --data folder --data.root {people} --backbone mlp --image-size 16 --batch-size 8 --embedding 16 "
)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("sfase", "method: 'sfase' is unknown; did you mean 'sface'?"),
        ("--steps 4", "the first argument names the method, got '--steps'"),
        ("sface --imagesize 8", "--imagesize: no such option; did you mean '--image-size'?"),
        ("sface --optimizer.learning-rte 1", "did you mean '--optimizer.learning-rate'?"),
        ("sface --data digits --data.held-out .3", "--data.held-out: no such option"),
        ("sface nonsense", "nonsense: no such option"),
        ("sface --steps many", "--steps: invalid literal for int() with base 10: 'many'"),
        ("sface --steps 1.5", "--steps: invalid literal"),
        ("sface --loss hinge", "loss: needs one of softmax, cosface, arcface, sface, linear, got 'hinge'"),
        ("sface --steps", "--steps"),
        ("sface --preset", "--preset: expected one argument"),
        ("sface --preset big", "preset: sface has paper, photographs, digits, got 'big'"),
        ("sface --data foldr", "got 'foldr'; did you mean 'folder'?"),
        ("sface --data folder", "--data.root"),
        ("sface --data folder --data.root {tmp}/nowhere", "nowhere: No such file or directory"),
        ("sface --data folder --data.root {one}", "needs at least two people"),
        ("sface --data folder --data.root {one}/s0", "no image in"),
        ("sface --data folder --data.root {broken} --data.strict", "broken/s1/0.png cannot be read"),
        ("sface --preset digits --batch-size 12", "batch_size: 12 does not divide over 8 devices"),
        ("sface --preset digits --batch-size 24 --accumulate 2", "8 devices × 2 micro-batches"),
        ("sface --preset digits --accumulate 0", "accumulate: needs an integer from 1, got 0"),
        ("sface --preset digits --batch-size 0", "batch_size: needs an integer from 1, got 0"),
        ("sface --preset digits --batch-size 1008", "batch_size: needs at most the 1000 records"),
        (RENDERED + "--batch-size 64", "batch_size: needs at most the 32 records"),
        ("sface --preset digits --workdir {tmp}/letter.txt/run", "letter.txt is not a folder"),
        (RENDERED + "--workdir {tmp}/letter.txt", "letter.txt is not a folder"),
        (RENDERED + "--workdir {one}", "is not empty and holds no run"),
        (RENDERED + "--workdir {finished}", "holds a run with another configuration: config."),
        ("sface --config {finished} --steps 6 --workdir {finished}", "config.steps is 5 there and 6 here"),
        ("sface --config {finished} --parallel pmap --workdir {finished}", "run.parallel is 'jit' there"),
        (RENDERED + "--backbone iresnet12", "did you mean 'iresnet1"),
        (RENDERED + "--image-size 7", "image_size: needs an integer from 8, got 7"),
        (RENDERED + "--data.identities 1", "identities: needs an integer from 2"),
        (RENDERED + "--embedding 0", "embedding: needs an integer from 1"),
        ("sface --preset digits --model-shards 3", "model_shards: needs a divisor of the 8 devices, got 3"),
        ("sface --preset digits --model-shards 4", "prototypes of size 10 cannot be split over 4"),
        ("sface --preset digits --parallel pmap --model-shards 2", "model_shards: pmap replicates"),
        ("sface --preset digits --parallel threads", "invalid choice 'threads'"),
        ("sface --preset digits --label-noise 1.5", "label_noise: needs a number from 0 to 1"),
        ("sface --preset digits --augment.flip 2", "flip: needs a number from 0 to 1, got 2"),
        ("sface --preset digits --ema-decay 1", "ema_decay: needs a number from 0 and below 1, got 1"),
        ("sface --preset digits --steps -5", "steps: needs an integer from 0, got -5"),
        ("sface --preset digits --seed -1", "seed: needs an integer from 0, got -1"),
        ("sface --preset digits --data-seed -1", "data_seed: needs an integer from 0, got -1"),
        (
            "sface --preset digits --optimizer.learning-rate 0",
            "optimizer.learning_rate: needs a finite number above 0",
        ),
        ("sface --preset digits --parallel pmap --shard fsdp", "shard: pmap replicates every parameter"),
        ("sface --preset digits --optimizer.name lyon", "got 'lyon'; did you mean 'lion'?"),
        (RENDERED + "--optimizer.rates head", "optimizer.rates: needs NAME=FACTOR, got 'head'"),
        (RENDERED + "--optimizer.rates head=ten", "optimizer.rates: needs NAME=FACTOR, got 'head=ten'"),
        (RENDERED + "--optimizer.rates head=-1", "optimizer.rates of head: needs a finite number above 0"),
        (RENDERED + "--optimizer.rates haed=2", "'haed' selects no parameter; did you mean 'head'?"),
        (RENDERED + "--optimizer.frozen hidden3", "'hidden3' selects no parameter; did you mean 'hidden"),
        (RENDERED + "--optimizer.frozen-statistics", "optimizer.frozen_statistics: needs frozen parts"),
        (RENDERED + "--optimizer.layer-decay 0", "optimizer.layer_decay: needs a number above 0"),
        (
            "cckd --preset procedural --teacher.optimizer.frozen hiden1",
            "'hiden1' selects no parameter; did you mean 'hidden1'?",
        ),
        ("sface --preset digits --cadence.keep 0", "cadence.keep: needs an integer from 1, got 0"),
        (FOLDER + "--init-from {tmp}/nowhere", "nowhere: No such file or directory"),
        (
            FOLDER + "--init-from {finished} --embedding 8",
            "another network: backbone/head_dense/bias is (16,)",
        ),
        (FOLDER + "--init-from {finished} --backbone iresnet_nano", "has another network: backbone/"),
        (RENDERED + "--image-size 16 --init-from {finished}", "has another network: backbone/"),
        (RENDERED + "--backbone vit_tiny", "image_size: needs a multiple of the patch, which has 16 pixels"),
        (RENDERED + "--scale 0", "scale: needs a finite number above 0, got 0"),
        ("sface --config {finished}/roc.png", "cannot be read as JSON"),
        (
            "sface --data folder --data.root {singles} --batch-size 8",
            "to verify: verification needs two people and two genuine",
        ),
        (
            "rco --data folder --data.root {singles} --batch-size 8",
            "to verify: verification needs two people and two genuine",
        ),
        (
            RENDERED + "--workdir gs://bucket/run",
            "workdir: needs a path of this machine, or the package gcsfs for 'gs://bucket/run'",
        ),
        ("sface --data folder --data.root gs://bucket/faces", "root: needs a path of this machine"),
        ("sface --preset digits --workdir=", "workdir: needs a path, got an empty one"),
        (
            "sface --config s3://bucket/run",
            "config: needs a path of this machine, or the package s3fs for 's3://bucket/run'",
        ),
        (
            FOLDER + "--init-from ftp://host/run",
            "init_from: needs a path of this machine or an address from gs://, s3://",
        ),
        ("cckd --preset procedural --teacher.run gs://bucket/run", "run: needs a path of this machine"),
    ],
)
def test_bad_input_is_one_line_before_any_compile(
    refusal, monkeypatch, tmp_path, photographs, finished, arguments, words
):
    monkeypatch.setattr(training, "run", lambda *_, **__: pytest.fail("the run was started"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "letter.txt").write_text("dear")
    shutil.copytree(photographs / "s0", tmp_path / "one/s0")
    shutil.copytree(photographs, tmp_path / "broken")
    (tmp_path / "broken/s1/0.png").write_bytes(b"\x89PNG\r\n\x1a\nand nothing more")
    before = sorted(finished.rglob("*"))
    for person in range(16):
        (tmp_path / f"singles/p{person}").mkdir(parents=True)
        shutil.copy(photographs / "s0/0.pgm", tmp_path / f"singles/p{person}")
    places = dict(
        one=tmp_path / "one",
        singles=tmp_path / "singles",
        broken=tmp_path / "broken",
        people=photographs,
        finished=finished,
    )
    assert words in refusal(launch.main, flags(arguments, tmp=tmp_path, **places))
    assert not (
        tmp_path / "runs"
    ).exists()  # the work directory is not claimed, so the corrected command may have it
    assert sorted(finished.rglob("*")) == before
    assert not any(path.name.endswith(":") for path in tmp_path.iterdir())
    assert not (tmp_path / "letter.txt/run").exists() and not (tmp_path / "one/config.json").exists()


def test_a_folder_with_a_broken_image_serves_unless_strict(tmp_path, photographs):
    shutil.copytree(photographs, tmp_path / "broken")
    (tmp_path / "broken/s1/1.png").write_bytes(b"\x89PNG\r\n\x1a\nand nothing more")
    arguments = flags(FOLDER, people=tmp_path / "broken")
    arguments += ["--steps", "2", "--quiet", "--data.held-out", "0.4", "--workdir", str(tmp_path / "run")]
    launch.main(arguments)
    assert (tmp_path / "run/results.json").is_file()


def test_a_run_that_diverged_before_its_first_checkpoint_may_be_corrected(tiny, tmp_path, capsys):
    command = ["sface", *tiny, "--workdir", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        launch.main([*command, "--optimizer.name", "sgd", "--optimizer.learning-rate", "1e30"])
    assert "there is no checkpoint before it" in capsys.readouterr().err
    launch.main(command)
    rows = training.read_records(tmp_path / "run/metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 5] and np.isfinite(losses(tmp_path / "run")).all()


def test_a_run_starts_from_the_network_of_another(tmp_path, photographs, finished):
    arguments = flags(FOLDER, people=photographs)
    arguments += ["--data.held-out", "0.4", "--quiet", "--steps", "0", "--init-from", str(finished)]
    launch.main([*arguments, "--workdir", str(tmp_path / "run")])
    there, _ = training.backbone_checkpoint(finished)
    here, _ = training.backbone_checkpoint(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, here, there)


def test_what_a_kernel_cannot_do_is_one_line_too(tiny, tmp_path, monkeypatch, capsys):
    words = "implementation: 'pallas_gpu' cannot run: it needs a Hopper GPU (H100, H200), this is cpu; 'xla' would work"
    command = ["sface", *tiny, "--workdir", str(tmp_path / "run")]

    def step(state, batch):
        raise KernelError(words)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(training.JitParallel, "compile", lambda *_: jax.jit(step))
        launch.main([*command, "--steps", "6"])
    assert caught.value.code == 2 and capsys.readouterr().err == f"error: {words}\n"
    launch.main(command)  # another configuration may have the folder


def no_room(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", ["config.json", "results.json"])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    finished, tiny, tmp_path, monkeypatch, capsys, name
):
    replace = os.replace
    command = ["sface", *tiny, "--workdir", str(tmp_path / "run")]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(
            os, "replace", lambda a, b: (no_room if pathlib.Path(b).name == name else replace)(a, b)
        )
        launch.main(command)
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count("\n") == 1
    assert said.startswith("error: workdir: cannot write to ") and "No space left on device" in said
    assert not (tmp_path / "run" / name).exists()
    launch.main(command)
    for name in ("config.json", "metrics.jsonl", "results.json", "roc.png"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes(), name
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
