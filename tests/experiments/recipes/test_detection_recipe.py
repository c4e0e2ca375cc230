"""Training of a detector through the standing loop: resumed, replicated, in micro-batches; and what it leaves behind."""

import dataclasses
import json

import flax.traverse_util
import jax
import numpy as np
import pytest
import tiny_detector

from experiments.recipes import detection
from jaxface import data, inference, training
from jaxface.errors import UserError
from jaxface.models.detection import TinyYolo

SCENES = data.Scenes(
    scenes=64,
    held_out_scenes=8,
    people=4,
    held_out_people=2,
    per_person=1,
    variation=data.SceneVariation.plain(),
)
TINY = detection.DetectionRecipe(
    data=SCENES, image_size=64, batch_size=8, steps=4, optimizer=training.adam(1e-3), **tiny_detector.FIELDS
)


@pytest.fixture(scope="module")
def split():
    return detection.load(TINY)


def on_one_device():
    return training.make_parallel(devices=jax.devices()[:1])


def run(split, recipe=TINY, parallel=None):
    stage = detection.detection_stage("detector", recipe, split, detection.retinaface(recipe), evaluate=False)
    return training.run([stage], parallel=parallel or on_one_device()).state


@pytest.fixture(scope="module")
def finished(split):
    return run(split)


def check_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_resumed_run_ends_where_the_whole_one_does_and_says_what_it_trained(split, finished, tmp_path):
    stage = detection.detection_stage("detector", TINY, split, detection.retinaface(TINY), evaluate=False)
    every = training.Cadence(checkpoint_every=2)

    class Stop(Exception):
        pass

    def stops(state):
        batches = stage.batches(state)
        take = type(batches).__next__
        taken = []

        class Interrupted(type(batches)):
            def __next__(self):
                if len(taken) == 3:
                    raise Stop
                taken.append(1)
                return take(self)

        batches.__class__ = Interrupted
        return batches

    with pytest.raises(Stop):
        training.run(
            [dataclasses.replace(stage, batches=stops)],
            parallel=on_one_device(),
            cadence=every,
            workdir=tmp_path,
        )
    resumed = training.run([stage], parallel=on_one_device(), cadence=every, workdir=tmp_path).state
    check_equal(resumed.params, finished.params)
    check_equal(resumed.extra, finished.extra)

    bundle = inference.open_detector(tmp_path)
    assert bundle.detector == detection.retinaface(TINY) and bundle.image_size == 64
    check_equal(bundle.variables["params"], finished.params["detector"])
    described = json.loads((tmp_path / "checkpoints" / "00-detector.json").read_text())
    assert described["network"]["name"] == "retinaface" and described["class_names"] == ["face"]
    # Fine-tuning starts from there.
    tuned = run(split, dataclasses.replace(TINY, init_from=str(tmp_path), steps=0))
    check_equal(tuned.params, finished.params)


def distance(first, second):
    """Of all parameters together."""
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return sum(float(np.square(np.subtract(a, b)).sum()) for a, b in pairs) ** 0.5


@pytest.mark.slow
def test_micro_batches_replicas_and_half_precision_train_alike(split):
    recipe = dataclasses.replace(TINY, optimizer=training.sgd(1e-3, decay_at=()))
    start = run(split, dataclasses.replace(recipe, steps=0)).params
    alone = run(split, recipe).params
    moved = distance(alone, start)
    assert moved > 1e-3
    for parallel in (training.make_parallel("pmap"), training.make_parallel("jit")):
        assert distance(run(split, recipe, parallel).params, alone) < 0.05 * moved
    halves = run(split, dataclasses.replace(recipe, accumulate=2, ema_decay=0.5))
    # Statistics, and the positives that the loss is divided by, are of four images instead of eight: near, not equal.
    assert distance(halves.params, alone) < 0.8 * moved
    assert 0 < distance(halves.ema, start) < distance(halves.params, start)
    assert distance(run(split, dataclasses.replace(recipe, bfloat16=True)).params, alone) < 0.8 * moved


def test_other_data_and_other_detectors_are_refused(split, tmp_path):
    with pytest.raises(
        UserError, match=r"data: needs images with boxes, such as scenes; .* is for classification"
    ):
        detection.load(dataclasses.replace(TINY, data=data.Digits()))
    other = dataclasses.replace(TINY, features=16)
    params, extra = jax.jit(lambda rng: detection.init_variables(detection.retinaface(other), rng, (64, 64)))(
        jax.random.key(0)
    )
    bundle = inference.DetectorBundle(
        detector=detection.retinaface(other), variables={"params": params, **extra}, image_size=64
    )
    inference.save_bundle(tmp_path, bundle)
    with pytest.raises(UserError, match="another architecture"):
        run(split, dataclasses.replace(TINY, init_from=str(tmp_path)))
    inference.save_bundle(
        tmp_path, dataclasses.replace(bundle, detector=dataclasses.replace(bundle.detector, pixels="bgr"))
    )
    with pytest.raises(UserError, match="pixels: needs 'bgr'"):
        run(split, dataclasses.replace(other, init_from=str(tmp_path)))
    with pytest.raises(UserError, match="batch_size: needs at most the 64 records"):
        run(split, dataclasses.replace(TINY, batch_size=65))


def test_a_head_for_other_classes_starts_afresh(split, tmp_path):
    def detector(classes):
        return TinyYolo(num_classes=classes, widths=(4, 4, 8, 8), pools=(2, 2), ccp_layers=(2, 3, 4))

    def bundle(detector, names):
        params, extra = jax.jit(lambda rng: detection.init_variables(detector, rng, (64, 64)))(
            jax.random.key(3)
        )
        return inference.DetectorBundle(
            detector=detector, variables={"params": params, **extra}, image_size=64, class_names=names
        )

    one = detector(1)
    inference.save_bundle(tmp_path / "three", bundle(detector(3), ("cat", "dog", "face")))
    recipe = dataclasses.replace(TINY, init_from=str(tmp_path / "three"), steps=0)
    stage = detection.detection_stage("detector", recipe, split, one, evaluate=False)
    started = training.run([stage], parallel=on_one_device()).state.params["detector"]
    given = inference.open_detector(tmp_path / "three").variables["params"]
    same = jax.tree.map(lambda a, b: a.shape == b.shape and np.array_equal(a, b), started, dict(given))
    head = same.pop("head")
    assert not any(jax.tree.leaves(head)) and all(jax.tree.leaves(same)) and len(jax.tree.leaves(same)) > 5
    # The same classes: everything is taken over, and what does not fit is named.
    inference.save_bundle(tmp_path / "one", bundle(one, ("face",)))
    recipe = dataclasses.replace(recipe, init_from=str(tmp_path / "one"))
    check_equal(
        {path: leaf for path, leaf in detection.pretrained(recipe, one, (64, 64)).items()},
        flax.traverse_util.flatten_dict(dict(inference.open_detector(tmp_path / "one").variables)),
    )
