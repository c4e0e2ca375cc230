"""Export of a run that trained a detector."""

import jax
import numpy as np
import pytest

from experiments.programs import weights
from jaxface import inference, training
from jaxface.models.detection import RetinaFace, init_variables
from jaxface.training.workdir import stage_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "detector"
    detector = RetinaFace()
    params, extra = jax.jit(lambda rng: init_variables(detector, rng, (64, 64)))(jax.random.key(0))
    folder = stage_folder(workdir, 0, "detector")
    checkpoints = training.Checkpoints(folder)
    checkpoints.save(0, {"params": {"detector": params}, "extra": extra}, {"score": None})
    checkpoints.close()
    training.write_description(folder, inference.bundle_description(detector, 128, ("face",)))
    return workdir


@pytest.mark.parametrize("kind", ["safetensors", "bundle"])
def test_a_detector_leaves_whole(run, tmp_path, capsys, kind):
    out = tmp_path / kind
    weights.main(f"export --run {run} --format {kind} --out {out}".split())
    assert capsys.readouterr().out.startswith(f"{kind}, ")
    ours, theirs = inference.open_run(run), inference.open_detector(out)
    assert theirs.detector == ours.detector == RetinaFace() and theirs.image_size == 128
    jax.tree.map(np.testing.assert_array_equal, dict(theirs.variables), dict(ours.variables))


def test_formats_that_hold_no_detector_are_refused(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        weights.main(f"export --run {run} --format onnx --out {tmp_path / 'x'}".split())
    assert capsys.readouterr().err == "error: format: needs safetensors or bundle for a detector; got onnx\n"
