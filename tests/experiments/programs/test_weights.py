import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from experiments import configs, evaluate, launch
from experiments.programs import weights
from jaxface import interop, models, training

SHAPE = (16, 16, 3)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Weights of an iresnet_pico as safetensors, and its variables."""
    module = models.create("iresnet_pico", embedding=16)
    variables = jax.jit(lambda x: module.init(jax.random.key(4), x, train=False))(np.zeros((1, *SHAPE)))
    path = tmp_path_factory.mktemp("published") / "pico.safetensors"
    interop.save_safetensors(path, module, variables, SHAPE)
    return path, jax.device_get(variables)


def importing(path, out, *more):
    return f"import --backbone iresnet_pico --embedding 16 --image-size 16 {path} --out {out}".split() + [
        *more
    ]


@pytest.fixture(scope="module")
def imported(file, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "pico"
    weights.main(importing(file[0], out))
    return out


def test_import_makes_a_run_that_evaluation_takes(file, imported, photographs, tmp_path):
    variables = file[1]
    model, backbone, extra, config = configs.load_network(imported)
    assert (config.backbone, config.embedding, config.image_size) == ("iresnet_pico", 16, 16)
    jax.tree.map(np.testing.assert_array_equal, {"params": backbone, **extra}, variables)
    assert configs.load_network(imported, best=True)[0] == model
    assert sorted(p.name for p in imported.parent.iterdir()) == ["pico"]
    arguments = f"{imported} --data folder --data.root {photographs} --out {tmp_path / 'out'}".split()
    evaluate.main(arguments)
    metrics = json.loads((tmp_path / "out/results.json").read_text())["metrics"]
    assert 0 <= metrics["verification/accuracy"] <= 1


def test_it_serves_as_a_pretrained_backbone(file, imported):
    recognizer = training.Recognizer(models.create("iresnet_pico", embedding=16), 5, SHAPE)
    backbone, extra = training.pretrained_backbone(imported, recognizer)
    jax.tree.map(np.testing.assert_array_equal, {"params": backbone, **extra}, file[1])


@pytest.mark.slow
def test_the_launcher_starts_from_it(imported, tiny, tmp_path):
    workdir = tmp_path / "run"
    flags = ["--backbone", "iresnet_pico", "--steps", "1", "--optimizer.learning-rate", "1e-9", "--init-from"]
    launch.main(["sface", *tiny, *flags, str(imported), "--workdir", str(workdir)])
    start, _ = training.backbone_checkpoint(imported)
    end, _ = training.backbone_checkpoint(workdir)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), start, end)


def test_export_in_every_format(file, imported, tmp_path, capsys):
    variables = file[1]
    module = models.create("iresnet_pico", embedding=16)
    images = np.random.default_rng(0).integers(0, 256, (2, *SHAPE), np.uint8)
    floats = (images.astype(np.float32) - 127.5) / 127.5
    expected = np.asarray(jax.jit(lambda x: module.apply(variables, x, train=False))(floats))
    for kind in ("safetensors", "onnx"):
        out = tmp_path / f"net.{kind}"
        weights.main(f"export --run {imported} --format {kind} --out {out}".split())
        again = interop.load_weights(out, module, SHAPE)
        jax.tree.map(np.testing.assert_array_equal, again, variables)
        assert f"{kind}, {out.stat().st_size:,} bytes" in capsys.readouterr().out
    assert safetensors.numpy.load_file(tmp_path / "net.safetensors")["conv1.weight"].shape == (16, 3, 3, 3)
    for flags, inputs in (([], floats), (["--pixels"], images)):
        out = tmp_path / "net.stablehlo"
        weights.main(f"export --run {imported} --format stablehlo --out {out}".split() + flags)
        np.testing.assert_allclose(interop.load_stablehlo(out)(inputs), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "the following arguments are required: import|export"),
        ("import {file} --out {tmp}/x", "the following arguments are required: --backbone"),
        ("import {file} --backbone iresnet_pika --out {tmp}/x", "the nearest are iresnet_pico"),
        ("import {file} --backbone iresnet_pico --out {tmp}/x", "fc.weight is (16, 64), and (512, 3136) in the network"),
        ("import {file} --backbone mobilefacenet --out {tmp}/x", "layers.0.layers.0.weight is nothing, and"),
        ("import {file} --backbone mlp --out {tmp}/x", "backbone: needs an IResNet"),
        ("import {tmp}/none.pth --backbone iresnet18 --out {tmp}/x", "No such file or directory"),
        ("import {full}/text.pth --backbone iresnet18 --out {tmp}/x", "is damaged, or not a state dict"),
        ("import {full}/text.onnx --backbone iresnet18 --out {tmp}/x", "is not an ONNX model"),
        ("import {file} --backbone iresnet18 --out {full}", "out: needs a new or empty folder"),
        ("import {file} --backbone iresnet18 --out {tmp}/a/b", "out: needs a new or empty folder"),
        ("import {file} --backbone iresnet18 --image-size 0 --out {tmp}/x", "image-size: needs at least 1"),
        ("import {file} --backbone iresnet18 --embedding 0 --out {tmp}/x", "embedding: needs at least 1"),
        ("export --run {tmp} --format onnx --out {tmp}/x", "holds no config.json"),
        ("export --run {run} --format keras --out {tmp}/x", "invalid choice: 'keras'"),
        ("export --run {run} --format onnx --pixels --out {tmp}/x", "pixels: only stablehlo takes them"),
        ("export --run {run} --format onnx --out {tmp}/a/b", "out: cannot write"),
        ("export --run {finished} --format safetensors --out {tmp}/x", "got MLP, which has no PyTorch names"),
    ],
)  # fmt: skip
def test_refusals_are_one_line_and_leave_nothing(
    refusal, file, imported, finished, tmp_path, arguments, words
):
    full, empty = tmp_path / "full", tmp_path / "empty"
    full.mkdir(), empty.mkdir()
    for suffix in ("pth", "onnx"):
        (full / f"text.{suffix}").write_text("not a file of weights")
    places = dict(file=file[0], tmp=empty, full=full, run=imported, finished=finished)
    assert words in refusal(weights.main, [word.format(**places) for word in arguments.split()])
    assert not list(empty.iterdir())
    assert len(list(full.iterdir())) == 2


def test_an_interrupted_import_leaves_no_run(file, tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training, "write_atomically", full_disk)
    with pytest.raises(SystemExit):
        weights.main(importing(file[0], tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_taken(file, tmp_path):
    (tmp_path / "out").mkdir()
    weights.main(importing(file[0], tmp_path / "out"))
    assert (tmp_path / "out/config.json").is_file()
