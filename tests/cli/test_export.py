"""`jaxface export` and `jaxface weights import`: what a run, a bundle and a published file become."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxface import inference, interop, models, training
from jaxface.cli import main as cli
from jaxface.interop.architecture import abstract_variables
from jaxface.models.detection import RetinaFace, init_variables
from jaxface.training.workdir import stage_folder

SHAPE = (16, 16, 3)


def write_run(workdir, part, params, extra, description, metrics=None):
    folder = stage_folder(workdir, 0, "stage")
    checkpoints = training.Checkpoints(folder)
    checkpoints.save(0, {"params": {part: params}, "extra": extra}, {"score": None, "metrics": metrics or {}})
    checkpoints.close()
    training.write_description(folder, description)
    return workdir


@pytest.fixture(scope="module")
def module():
    return models.create("iresnet_pico", embedding=16)


@pytest.fixture(scope="module")
def variables(module):
    return jax.device_get(
        jax.jit(lambda x: module.init(jax.random.key(4), x, train=False))(np.zeros((1, *SHAPE)))
    )


@pytest.fixture(scope="module")
def run(module, variables, tmp_path_factory):
    description = inference.recognizer_description(module, SHAPE, flip=True) | {"held_out": "some people"}
    metrics = {"verification/threshold@1e-2": 0.25, "verification/threshold@1e-1": 0.125}
    workdir = tmp_path_factory.mktemp("runs") / "recognizer"
    statistics = {"batch_stats": variables["batch_stats"]}
    return write_run(workdir, "backbone", variables["params"], statistics, description, metrics)


@pytest.fixture(scope="module")
def detector_run(tmp_path_factory):
    detector = RetinaFace()
    shapes = jax.eval_shape(lambda rng: init_variables(detector, rng, (64, 64)), jax.random.key(0))
    rng = np.random.default_rng(0)
    params, extra = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes)
    description = inference.detector_description(detector, 128, ("face",))
    return write_run(tmp_path_factory.mktemp("runs") / "detector", "detector", params, extra, description)


@pytest.fixture(scope="module")
def published(module, variables, tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "pico.safetensors"
    interop.save_safetensors(path, module, variables, SHAPE)
    return path


@pytest.fixture(scope="module")
def perceptron(tmp_path_factory):
    folder, module = tmp_path_factory.mktemp("mlp") / "bundle", models.create("mlp_8", embedding=4)
    variables = module.init(jax.random.key(0), np.zeros((1, *SHAPE), np.float32), train=False)
    bundle = inference.RecognizerBundle(module=module, variables=variables, image_shape=SHAPE)
    inference.save_bundle(folder, bundle)
    return folder


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, dict(first), dict(second))


def test_a_bundle_says_all_that_the_run_does(run, module, variables, tmp_path, capsys):
    cli.main(f"export {run} --bundle {tmp_path / 'b'} --license mine".split())
    assert capsys.readouterr().out.startswith("bundle, ")
    bundle = inference.open_recognizer(tmp_path / "b")
    assert bundle.module == module and bundle.image_shape == SHAPE and bundle.flip
    assert bundle.threshold == inference.Threshold(0.25, 0.01, "some people")
    assert (bundle.license, bundle.color, bundle.alignment) == ("mine", "rgb", "arcface")
    same(bundle.variables, variables)
    assert bundle.identity == inference.open_recognizer(run).identity


def test_the_network_in_every_format(run, module, variables, tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (2, *SHAPE), np.uint8)
    floats = (images.astype(np.float32) - 127.5) / 127.5
    expected = np.asarray(jax.jit(lambda x: module.apply(variables, x, train=False))(floats))
    for kind in ("safetensors", "onnx"):
        out = tmp_path / f"net.{kind}"
        cli.main(f"export {run} --format {kind} --out {out}".split())
        same(interop.load_weights(out, module, SHAPE), variables)
        assert f"{kind}, {out.stat().st_size:,} bytes" in capsys.readouterr().out
    assert safetensors.numpy.load_file(tmp_path / "net.safetensors")["conv1.weight"].shape == (16, 3, 3, 3)
    assert inference.open_recognizer(tmp_path / "net.safetensors").threshold.value == 0.25
    for flags, inputs in (([], floats), (["--pixels"], images)):
        out = tmp_path / "net.stablehlo"
        cli.main(f"export {run} --format stablehlo --out {out}".split() + flags)
        np.testing.assert_allclose(interop.load_stablehlo(out)(inputs), expected, atol=1e-5)


@pytest.mark.parametrize("arguments", ["--format safetensors --out {}", "--bundle {}"])
def test_a_detector_leaves_whole(detector_run, tmp_path, arguments):
    cli.main(["export", str(detector_run), *arguments.format(tmp_path / "out").split()])
    ours, theirs = inference.open_detector(detector_run), inference.open_detector(tmp_path / "out")
    assert theirs.detector == ours.detector == RetinaFace() and theirs.image_size == 128
    same(ours.variables, theirs.variables)


def test_published_weights_become_a_bundle(published, variables, tmp_path, capsys):
    arguments = f"--network iresnet_pico --embedding 16 --image-size 16 --bundle {tmp_path / 'named'}"
    cli.main(["weights", "import", str(published), *arguments.split()])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"iresnet_pico, {models.parameter_count(variables):,} parameters: {tmp_path / 'named'}"
    assert said[1].startswith("license: non-commercial research only")
    cli.main(["weights", "import", str(published), "--bundle", str(tmp_path / "found"), "--license", "mine"])
    assert capsys.readouterr().out.splitlines()[1] == "license: mine"
    named, found = (inference.open_recognizer(tmp_path / name) for name in ("named", "found"))
    assert named.identity == found.identity and named.threshold is None and not named.flip
    same(named.variables, variables)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["found", "named"]


def test_a_transformer_under_timms_names(tmp_path, capsys):
    module, shape = models.create("vit_tiny", embedding=8), (32, 32, 3)
    rng = np.random.default_rng(0)
    shapes = abstract_variables(module, shape)
    variables = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes)
    file, named = tmp_path / "vit.safetensors", "--network vit_tiny --embedding 8 --image-size 32"
    interop.save_safetensors(file, module, variables, shape)
    with pytest.raises(SystemExit):
        cli.main(f"weights import {file} --bundle {tmp_path / 'b'}".split())
    assert "is of a transformer, whose tensors do not say its heads" in capsys.readouterr().err
    cli.main(f"weights import {file} {named} --normalization imagenet --bundle {tmp_path / 'b'}".split())
    assert "license: Apache-2.0, where" in capsys.readouterr().out
    bundle = inference.open_recognizer(tmp_path / "b")
    assert (
        bundle.module == module and bundle.alignment is None and (bundle.mean, bundle.std) == (127.5, 127.5)
    )
    first, rest = (dict(tree["params"]) for tree in (bundle.variables, variables))
    kernel = first.pop("patches")["kernel"]
    np.testing.assert_allclose(
        kernel, rest.pop("patches")["kernel"] / (2 * np.array([[0.229], [0.224], [0.225]])), rtol=1e-6
    )
    same(first, rest)
    cli.main(f"export {tmp_path / 'b'} --format onnx --out {tmp_path / 'vit.onnx'}".split())
    same(interop.load_weights(tmp_path / "vit.onnx", module, shape), bundle.variables)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("weights", "the following arguments are required: import"),
        ("weights import {file}", "the following arguments are required: --bundle"),
        ("weights import {file} --network iresnet_pika --bundle {tmp}/x", "did you mean 'iresnet_pico'"),
        ("weights import {file} --network iresnet_pico --bundle {tmp}/x", "fc.weight is (16, 64), and (512, 3136)"),
        ("weights import {file} --network mobilefacenet --bundle {tmp}/x", "layers.0.layers.0.weight is nothing, and"),
        ("weights import {file} --network mlp --bundle {tmp}/x", "backbone: needs an IResNet"),
        ("weights import {file} --image-size 16 --bundle {tmp}/x", "image-size: needs --network"),
        (
            "weights import {file} --network iresnet_pico --normalization imagenet --bundle {tmp}/x",
            "normalization: iresnet_pico needs centered, since it is no transformer; got imagenet",
        ),
        ("weights import {tmp}/none.pth --network iresnet18 --bundle {tmp}/x", "No such file or directory"),
        ("weights import {full}/text.pth --network iresnet18 --bundle {tmp}/x", "is damaged, or not a state dict"),
        ("weights import {full}/text.onnx --network iresnet18 --bundle {tmp}/x", "is not an ONNX model"),
        ("weights import {full}/text.onnx --bundle {tmp}/x", "does not say its network"),
        ("weights import {file} --bundle {full}", "bundle: needs a new or empty folder"),
        ("weights import {run} --bundle {tmp}/x", "weights: needs a file, got the folder"),
        ("weights import {file} --network iresnet18 --image-size 0 --bundle {tmp}/x", "image_size: needs an integer from 1"),
        ("weights import {file} --network iresnet18 --embedding 0 --bundle {tmp}/x", "embedding: needs at least 1"),
        ("export {tmp} --format onnx --out {tmp}/x", "holds no bundle.json, and no run"),
        ("export {run}", "needs --bundle DIR, or --format with --out FILE"),
        ("export {run} --format onnx", "out: needs --format and --out together"),
        ("export {run} --format keras --out {tmp}/x", "invalid choice: 'keras'"),
        ("export {run} --format onnx --pixels --out {tmp}/x", "pixels: only stablehlo takes them; onnx"),
        ("export {run} --bundle {tmp}/x --pixels", "pixels: only stablehlo takes them; a bundle"),
        ("export {run} --format onnx --out {tmp}/a/b", "out: cannot write"),
        ("export {file} --best --bundle {tmp}/x", "best: needs a run"),
        ("export {detector} --format stablehlo --out {tmp}/x", "safetensors, onnx or a bundle for a detector; got stablehlo"),
        ("export {mlp} --format safetensors --out {tmp}/x", "got MLP, which has no PyTorch names"),
    ],
)  # fmt: skip
def test_refusals_are_one_line_and_leave_nothing(
    run, detector_run, published, perceptron, tmp_path, capsys, arguments, words
):
    full, empty = tmp_path / "full", tmp_path / "empty"
    full.mkdir(), empty.mkdir()
    for suffix in ("pth", "onnx"):
        (full / f"text.{suffix}").write_text("not a file of weights")
    places = dict(file=published, tmp=empty, full=full, run=run, detector=detector_run, mlp=perceptron)
    with pytest.raises(SystemExit) as caught:
        cli.main([word.format(**places) for word in arguments.split()])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count("\n") == 1 and said.startswith("error: ") and words in said
    assert not list(empty.iterdir())
    assert len(list(full.iterdir())) == 2


def test_an_interrupted_import_leaves_nothing(published, tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(inference.bundle, "write_atomically", full_disk)
    with pytest.raises(SystemExit):
        cli.main(["weights", "import", str(published), "--bundle", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())


def test_a_bundle_there_is_replaced_whole(run, published, tmp_path):
    cli.main(["weights", "import", str(published), "--bundle", str(tmp_path / "out")])
    (tmp_path / "out" / "notes.txt").write_text("mine")
    cli.main(["export", str(run), "--bundle", str(tmp_path / "out")])
    assert inference.open_recognizer(tmp_path / "out").flip
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"bundle.json", "weights.safetensors", "notes.txt"}
    assert json.loads((tmp_path / "out" / "bundle.json").read_text())["format"] == 1
