"""The launcher with its work directory and its photographs in an object store: what it leaves is what it leaves here."""

import json

import numpy as np
import object_store
import pytest

from experiments import configs, launch
from jaxface import inference, training

ROOT = "objects://bucket"


def put(folder, root):
    for path in folder.rglob("*"):
        if path.is_file():
            object_store.OBJECTS[f"{root}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()


@pytest.mark.slow
def test_a_run_on_photographs_there_is_the_run_on_photographs_here(photographs, tmp_path):
    object_store.clear()
    put(photographs, f"{ROOT}/people")
    text = """--image-size 16 --backbone mlp --embedding 16 --batch-size 8 --steps 3 --cadence.log-every 1 --quiet
        --cadence.checkpoint-every 2 --data.held-out 0.4 --data folder"""
    flags = text.split()
    launch.main(["sface", *flags, "--data.root", f"{ROOT}/people", "--workdir", f"{ROOT}/run"])
    launch.main(["sface", *flags, "--data.root", str(photographs), "--workdir", str(tmp_path / "run")])
    store = object_store.OBJECTS
    for name in ("metrics.jsonl", "results.json", "roc.png"):
        assert store[f"{ROOT}/run/{name}"] == (tmp_path / "run" / name).read_bytes(), name
    assert configs.from_dict(training.read_config(f"{ROOT}/run"))[1].data.root == f"{ROOT}/people"

    # The same command again changes nothing; the run, and a bundle of it, are opened there.
    before = {key: value for key, value in store.items() if "tensorboard" not in key}
    launch.main(["sface", *flags, "--data.root", f"{ROOT}/people", "--workdir", f"{ROOT}/run"])
    assert before == {key: value for key, value in store.items() if "tensorboard" not in key}
    crops = np.zeros((1, 16, 16, 3), np.uint8)
    here = inference.open_recognizer(tmp_path / "run", best=True)
    inference.save_bundle(tmp_path / "bundle", here)
    put(tmp_path / "bundle", f"{ROOT}/bundle")
    for place, best in ((f"{ROOT}/run", True), (f"{ROOT}/bundle", False)):
        there = inference.open_recognizer(place, best=best)
        np.testing.assert_array_equal(there.embed(crops), here.embed(crops))
        assert there.source == place

    # And another run starts from either.
    tuned = ["sface", *flags, "--data.root", f"{ROOT}/people", "--steps", "0", "--init-from"]
    launch.main([*tuned, f"{ROOT}/bundle", "--workdir", f"{ROOT}/tuned"])
    backbone, _ = training.backbone_checkpoint(f"{ROOT}/tuned")
    np.testing.assert_array_equal(
        np.concatenate([leaf.ravel() for leaf in _leaves(backbone)]),
        np.concatenate([leaf.ravel() for leaf in _leaves(here.variables["params"])]),
    )
    assert json.loads(store[f"{ROOT}/tuned/results.json"])["best"] == "verification/accuracy"


def _leaves(tree):
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(dict(tree))]
