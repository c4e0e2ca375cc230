import json

import numpy as np
import pytest

from jaxface import data
from jaxface.errors import UserError


def content():
    return {
        "images": [
            {"id": 7, "file_name": "a.jpg", "height": 40, "width": 60},
            {"id": 3, "file_name": "sub/b.jpg"},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 5, "name": "kite"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 18, "bbox": [10, 5, 20, 10], "area": 150.5, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [50, 30, 30, 30], "area": 500, "iscrowd": 1},
            {"id": 3, "image_id": 7, "category_id": 1, "bbox": [1, 1, 0, 5], "area": 0, "iscrowd": 0},
            {"id": 4, "image_id": 7, "category_id": 99, "bbox": [1, 1, 5, 5]},
            {"id": 5, "image_id": 7, "category_id": 1, "bbox": "everywhere"},
            {"id": 6, "image_id": 3, "category_id": 5, "bbox": [0, 0, 4, 6]},
            {"id": 7, "image_id": 404, "category_id": 5, "bbox": [0, 0, 4, 6]},
        ],
    }


@pytest.fixture
def folder(tmp_path, picture):
    picture(tmp_path / "images" / "a.jpg")
    picture(tmp_path / "images" / "sub" / "b.jpg", 30, 30)
    (tmp_path / "a.json").write_text(json.dumps(content()))
    return tmp_path


def test_boxes_crowds_areas_and_categories(folder):
    source = data.coco(folder / "images", folder / "a.json", image_size=60)
    assert source.class_names == ["person", "kite", "dog"] and source.category_ids == [1, 5, 18]
    truth = source.ground_truth(0)
    np.testing.assert_array_equal(truth["boxes"], [[5, 10, 15, 30], [30, 50, 40, 60]])  # the crowd is clipped
    assert truth["labels"].tolist() == [2, 0] and truth["crowd"].tolist() == [False, True]
    assert truth["area"].tolist() == [150.5, 500]
    assert source.dropped == {"degenerate": 1, "of an unknown class": 1, "not finite": 1}
    assert source[0]["box_crowd"][:2].tolist() == [False, True]
    assert source.ground_truth(1)["area"].tolist() == [24]  # the box's own where the file has none
    assert source[1]["original_size"].tolist() == [30, 30]


def test_some_categories_in_the_order_asked_for(folder):
    source = data.coco(folder / "images", folder / "a.json", categories=("dog", "person"), image_size=60)
    assert source.class_names == ["dog", "person"] and source.category_ids == [18, 1]
    assert source.ground_truth(0)["labels"].tolist() == [0, 1]
    assert len(source.ground_truth(1)["boxes"]) == 0


def test_splits(folder):
    paths = str(folder / "a.json"), str(folder / "images")
    split = data.load(data.Coco(*paths, held_out=0.5), image_size=60)
    assert {*split.train.record_names, *split.held_out.record_names} == {"a.jpg", "sub/b.jpg"}
    split = data.load(data.Coco(*paths, evaluation_annotations=paths[0]), image_size=60)
    assert len(split.train) == len(split.held_out) == 2 and split.protocol == "detection"
    other = content()
    other["categories"][0]["name"] = "cat"
    (folder / "b.json").write_text(json.dumps(other))
    with pytest.raises(
        UserError,
        match=r"^evaluation_annotations: needs the categories of annotations, got person, kite, cat",
    ):
        data.load(data.Coco(*paths, evaluation_annotations=str(folder / "b.json")), image_size=60)


def test_images_to_train_on_have_no_more_objects_than_there_is_room_for(folder):
    few = dict(max_objects=1, held_out=0.5)
    spec = data.Coco(str(folder / "a.json"), str(folder / "images"), **few)
    for opened in (data.load, lambda spec, **options: spec.source(seed=0, **options)):
        with pytest.raises(
            UserError, match=r"^max_objects: needs at least 2 for the 1 images with more than 1"
        ):
            opened(spec, image_size=60)
    assert len(spec.evaluation_source(image_size=60, seed=0).ground_truth(0)["boxes"]) == 2
    largest = data.Coco(str(folder / "a.json"), str(folder / "images"), surplus="largest", **few)
    assert len(data.load(largest, image_size=60).train) == 1


def test_the_metric_of_coco_takes_it(folder):
    metrics = pytest.importorskip("jaxface.metrics.detection")
    pytest.importorskip("pycocotools")
    source = data.coco(folder / "images", folder / "a.json", image_size=60)
    truth = [source.ground_truth(i) for i in range(2)]
    found = [{"boxes": t["boxes"], "scores": np.ones(len(t["boxes"])), "classes": t["labels"]} for t in truth]
    assert metrics.coco_evaluate(found, truth, num_classes=3)["AP"] == pytest.approx(1.0)


def changed(**tables):
    return json.dumps({**content(), **tables})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json", "annotations: needs a JSON file"),
        ("[" * 100_000, "annotations: needs a JSON file"),
        ("[]", "annotations: needs COCO's JSON, .* has no list of categories"),
        (changed(annotations=5), "annotations: needs COCO's JSON, .* has no list of annotations"),
        (changed(images=[{"id": 1}]), "annotations: needs COCO's JSON, .* has an image without a file_name"),
        (changed(images=[{"id": "x", "file_name": "a.jpg"}]), "annotations: .* has an image without a id"),
        (changed(categories=[]), "annotations: needs at least one category"),
        (changed(images=[]), "data: .* has no image"),
        (changed(images=[{"id": 1, "file_name": "/etc/a.jpg"}]), "annotations: needs images inside of"),
    ],
)
def test_another_file_gets_one_line(text, words, folder):
    (folder / "a.json").write_text(text)
    with pytest.raises(UserError, match=f"^{words}") as refused:
        data.coco(folder / "images", folder / "a.json", image_size=60)
    assert "\n" not in str(refused.value)


def test_a_category_that_there_is_not(folder):
    with pytest.raises(UserError, match=r"^categories: needs some of dog, kite, person, got cat"):
        data.coco(folder / "images", folder / "a.json", categories=("cat",), image_size=60)


def test_an_object_store(folder, same_elsewhere):
    def spec(root):
        return data.Coco(f"{root}/a.json", f"{root}/images")

    far = same_elsewhere(lambda root: spec(root).source(image_size=16, seed=0), folder)
    assert far[1]["original_size"].tolist() == [
        30,
        30,
    ]  # from the header, which the annotation does not repeat
    assert spec("objects://bucket/set").title == "coco a"
