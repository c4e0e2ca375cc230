"""RetinaNet and Faster R-CNN through the standing stage: what is added to their loss, what they start from, what is refused."""

import dataclasses
import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.recipes import detection
from jaxface import data, inference, interop, training
from jaxface.data import encode_image
from jaxface.data.transforms.pixels import device_batch
from jaxface.errors import UserError
from jaxface.interop.architecture import abstract_variables
from jaxface.models.detection import (
    Detr,
    FasterRCNN,
    RetinaNet,
    feature_pyramid,
    init_variables,
    training_pass,
)

SCENES = data.ObjectScenes(scenes=32, held_out_scenes=4)
RECIPE = detection.DetectorRecipe(data=SCENES, batch_size=4, steps=3)
SMALL = RetinaNet.small(widths=(4, 4, 4))
FASTER = FasterRCNN.small(widths=(4, 4, 4, 4), features=4, hidden=(4,), region_size=2)


@pytest.fixture(scope="module")
def split():
    return detection.load(RECIPE)


def steps(stage, count=3):
    """The state after some steps, and how many programs that took."""
    state = jax.jit(lambda key: stage.init(key, None))(jax.random.key(0))
    step = jax.jit(lambda state, batch: stage.step(state, device_batch(batch)))
    batches, metrics = iter(stage.batches(state)), {}
    for _ in range(count):
        state, metrics = step(state, next(batches))
    return state, metrics, step._cache_size()


class _Halved:
    """The mean of the pyramid's finest map, through a scale that trains, and a constant that does not."""

    def init(self, rng):
        del rng
        return {"scale": jnp.ones(())}, {"factor": jnp.full((), 0.5)}

    def __call__(self, params, constants, trained, batch):
        assert set(trained.outputs) == {"class_logits", "box_deltas"} and batch["image"].dtype == jnp.float32
        value = constants["factor"] * jnp.square(params["scale"] * trained.levels[0].mean())
        return value, {"added": value}


def test_what_is_added_trains_with_the_detector_and_its_constants_stay(split):
    stage = detection.detection_stage("d", RECIPE, split, SMALL, evaluate=False, added=_Halved())
    state, metrics, _ = steps(stage)
    plain, without, _ = steps(detection.detection_stage("d", RECIPE, split, SMALL, evaluate=False))
    assert float(state.params["added"]["scale"]) != 1.0 and float(state.extra["added"]["factor"]) == 0.5
    assert metrics["added"] > 0 and "added" not in without and set(plain.params) == {"detector"}


@pytest.mark.parametrize(
    "detector",
    [SMALL, FASTER, Detr(), Detr(gaussian=True, focal=True)],
    ids=["retinanet", "faster", "detr", "smca"],
)
def test_rendered_faces_are_objects_of_one_class(detector, face_batch):
    batch, names = face_batch
    assert names == ["face"] and detector.num_classes == 1 and batch["box_mask"].any()
    shape = batch["image"].shape[1:3]
    params, extra = jax.eval_shape(lambda key: init_variables(detector, key, shape), jax.random.key(0))
    trained = jax.eval_shape(
        lambda variables, batch, key: training_pass(detector, variables, batch, key),
        {"params": params, **extra}, batch, jax.random.key(1),
    )  # fmt: skip
    assert trained.loss.shape == ()


@pytest.fixture(scope="module")
def face_batch():
    spec = data.Scenes(scenes=2, held_out_scenes=1, people=2, held_out_people=1, per_person=1)
    split = data.load(spec, image_size=64, seed=0)
    records = [split.train[i] for i in range(2)]
    batch = {name: np.stack([record[name] for record in records]) for name in records[0]}
    return device_batch(batch), list(split.train.class_names)


def photographs(folder, count=15):
    """A COCO folder of wide and tall images with a red or a green square in each."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for i in range(count):
        height, width = (96, 128) if i % 2 else (128, 96)
        pixels = np.full((height, width, 3), 100, np.uint8)
        pixels[8 : 8 + 16, 10 : 10 + 20, i % 2] = 255
        (folder / "images" / f"{i}.png").write_bytes(encode_image(pixels))
        images.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
        annotations.append(
            {"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [10, 8, 20, 16], "area": 320}
        )
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    (folder / "objects.json").write_text(text)
    return data.Coco(
        annotations=str(folder / "objects.json"), images=str(folder / "images"), aspects=(4 / 3, 3 / 4), max_objects=4
    )  # fmt: skip


@pytest.mark.parametrize("detector", [SMALL, pytest.param(FASTER, marks=pytest.mark.slow)])
def test_one_program_for_each_shape_of_images(tmp_path, detector):
    recipe = dataclasses.replace(
        RECIPE, data=photographs(tmp_path), image_size=128, batch_size=2, augment=data.ObjectAugment.flips()
    )
    split = detection.load(recipe)
    assert len(np.unique(split.train.buckets)) == 2
    detector = dataclasses.replace(detector, num_classes=2)
    stage = detection.detection_stage("d", recipe, split, detector, evaluate=False)
    begun, _, _ = steps(stage, 0)
    shapes = {batch["image"].shape[1:3] for batch, _ in zip(stage.batches(begun), range(8), strict=False)}
    assert shapes == {(96, 128), (128, 96)}
    _, metrics, programs = steps(stage, 8)
    assert programs == 2 and np.isfinite(metrics["loss"])


def test_images_that_are_missing_get_one_line(tmp_path):
    spec = photographs(tmp_path)
    (tmp_path / "images" / "3.png").unlink()
    with pytest.raises(
        UserError, match=r"^images: needs the 15 images of the annotations, 1 are not in .*, such as 3.png"
    ):
        data.load(spec, image_size=64)


def test_a_trunk_of_imagenet_and_what_does_not_fit(split, tmp_path, monkeypatch):
    from safetensors.numpy import save_file

    monkeypatch.setitem(
        feature_pyramid._RESNETS,
        "resnet18",
        {"stages": (1, 1, 1, 1), "channels": (4, 4, 4, 8), "bottleneck": False},
    )
    resnet = RetinaNet(
        num_classes=1,
        trunk="resnet18",
        strides=(8, 16),
        features=4,
        head_convs=0,
        scales=(2.0,),
        ratios=(1.0,),
    )
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(
        lambda x: rng.uniform(0.1, 0.5, x.shape).astype(np.float32),
        abstract_variables(resnet.module, (32, 32, 3)),
    )
    state = interop.to_state_dict(drawn, resnet.module, (32, 32, 3))
    body = {name.removeprefix("backbone.body."): x for name, x in state.items() if "body" in name}
    save_file(body, tmp_path / "resnet18.safetensors")
    recipe = dataclasses.replace(RECIPE, trunk_from=str(tmp_path / "resnet18.safetensors"))
    stage = detection.detection_stage("d", recipe, split, resnet, evaluate=False)
    begun, _, _ = steps(stage, 0)
    jax.tree.map(np.testing.assert_array_equal, begun.params["detector"]["trunk"], drawn["params"]["trunk"])
    jax.tree.map(
        np.testing.assert_array_equal, begun.extra["batch_stats"]["trunk"], drawn["batch_stats"]["trunk"]
    )
    after, _, _ = steps(stage)
    jax.tree.map(
        np.testing.assert_array_equal, after.extra["batch_stats"], begun.extra["batch_stats"]
    )  # constants
    with pytest.raises(
        UserError, match=r"^trunk_from: needs a detector on a resnet, got RetinaNet on another trunk"
    ):
        detection.detection_stage("d", recipe, split, SMALL)
    both = dataclasses.replace(recipe, init_from="somewhere")
    monkeypatch.setattr(inference, "open_detector", lambda path: None)
    with pytest.raises(UserError, match=r"^trunk_from: needs no init_from"):
        detection.detection_stage("d", both, split, resnet)


def test_classes_that_differ_are_refused_before_anything_compiles(tmp_path):
    scenes = dataclasses.replace(SCENES, things="shapes")
    recipe = dataclasses.replace(RECIPE, data=scenes)
    split = detection.load(recipe)
    with pytest.raises(
        UserError, match=r"^num_classes: needs 3, as shapes scenes 32 has \(rectangle, disc, cross\); got 1"
    ):
        detection.detection_stage("d", recipe, split, SMALL)
    three = dataclasses.replace(SMALL, num_classes=3)
    params, extra = init_variables(three, jax.random.key(0), (32, 32))
    bundle = inference.DetectorBundle(
        detector=three,
        variables=jax.device_get({"params": params, **extra}),
        image_size=32,
        class_names=("disc", "cross", "rectangle"),
    )
    inference.save_bundle(tmp_path / "bundle", bundle)
    changed = dataclasses.replace(recipe, init_from=str(tmp_path / "bundle"))
    with pytest.raises(
        UserError,
        match=r"^init_from: needs the categories of the data, rectangle, disc, cross; .* knows disc, cross, rect",
    ):
        detection.detection_stage("d", changed, split, three)


@pytest.mark.slow
def test_a_run_is_a_detector_of_its_classes(split, tmp_path):
    stage = detection.detection_stage("detector", RECIPE, split, FASTER)
    parallel = training.make_parallel(devices=jax.devices()[:1])
    run = training.run([stage], workdir=tmp_path / "run", parallel=parallel)
    assert {"detection/ap", "detection/ap50"} <= set(run.metrics)
    bundle = inference.open_detector(tmp_path / "run")
    assert bundle.detector == FASTER and bundle.class_names == ("digit",)
    flat = flax.traverse_util.flatten_dict(dict(bundle.variables))
    trained = flax.traverse_util.flatten_dict({"params": run.state.params["detector"]})
    assert flat.keys() == trained.keys()
    found = inference.PhotoDetector(bundle, threshold=0.0)([split.held_out[0]["image"]])
    assert found[0].landmarks is None and set(found[0].classes) <= {0}


def test_the_reference_on_coco():
    fields = detection.coco_reference(0.01, epochs=24, root="coco")
    recipe = detection.DetectorRecipe(**fields)
    assert recipe.steps == 24 * 7330 and recipe.batch_size == 16
    rates = recipe.optimizer.learning_rates(recipe.steps)
    for epoch, rate in ((1, 0.01), (15.9, 0.01), (16.1, 1e-3), (21.9, 1e-3), (22.1, 1e-4)):
        assert float(rates(int(epoch * 7330))) == pytest.approx(rate)
    assert float(rates(250)) == pytest.approx(0.005)
    held = recipe.optimizer.held
    assert "detector/trunk/stem_conv/kernel" in held and "detector/trunk/stage1_block2/conv1/kernel" in held
    assert "detector/trunk/stage2_block1/conv1/kernel" not in held
    assert recipe.augment.keeps_shapes and recipe.augment.flip == 0.5


def test_types_and_memory_of_the_recipe_are_the_detectors():
    asked = detection.as_asked(dataclasses.replace(RECIPE, bfloat16=True, remat="block"), SMALL)
    assert asked == dataclasses.replace(SMALL, bfloat16=True, remat="block")
    assert detection.as_asked(RECIPE, asked) == asked
