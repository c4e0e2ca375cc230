"""What is wrong with images from outside, found without a network."""

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxface import data
from jaxface.data.sources import inspection
from jaxface.errors import UserError


def photograph(seed, size=64):
    """A smooth random image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def jpeg(image, quality=60):
    return data.encode_image(image, encoding="jpeg", quality=quality)


def smaller(image):
    return np.asarray(Image.fromarray(image).resize((48, 48)))


@pytest.fixture
def folder(tmp_path):
    """Ada: three good ones, one twice, one tiny; Bob: one of Ada's, one of hers compressed, one blank, one cut short; Cy: one."""
    files = {
        "ada/1.png": data.encode_image(photograph(1)),
        "ada/2.png": data.encode_image(photograph(2)),
        "ada/10.png": data.encode_image(photograph(3)),
        "ada/11.png": data.encode_image(photograph(2)),
        "ada/12.png": data.encode_image(photograph(4, 20)),
        "bob/1.png": data.encode_image(photograph(1)),
        "bob/2.jpg": jpeg(smaller(photograph(3))),
        "bob/3.png": data.encode_image(np.full((64, 64, 3), 90, np.uint8)),
        "bob/4.png": data.encode_image(photograph(5))[:500],
        "cy/1.png": data.encode_image(photograph(6)),
        "cy/x.heic": b"?",
        "cy/.hidden": b"?",
    }
    for name, content in files.items():
        path = tmp_path / "people" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "people"


def found(images, **options):
    return [
        (
            finding.problem,
            None if finding.image is None else images.names[finding.image],
            None if finding.other is None else images.names[finding.other],
        )
        for finding in inspection.inspect(images, **options)
    ]


def test_what_is_wrong_with_a_folder(folder):
    images = inspection.open_raw(folder)
    assert images.class_names == ["ada", "bob", "cy"] and images.ignored == {".heic": 1}
    assert found(images) == [
        ("unreadable", "bob/4.png", None),
        ("tiny", "ada/12.png", None),
        ("blank", "bob/3.png", None),
        ("two names", "bob/1.png", "ada/1.png"),
        ("alike", "bob/2.jpg", "ada/10.png"),
        ("duplicate", "ada/11.png", "ada/2.png"),
        ("few", "cy/1.png", None),
    ]
    assert found(images, smallest=10, few=0) == [
        row for row in found(images) if row[0] not in ("tiny", "few")
    ]


def test_a_folder_of_images_is_one_class(folder):
    images = inspection.open_raw(folder / "ada")
    assert images.class_names == ["ada"] and images.names[2] == "10.png"
    assert [row[:2] for row in found(images)] == [("tiny", "12.png"), ("duplicate", "11.png")]
    assert found(inspection.open_raw(folder / "cy")) == []  # not a person of too few


def test_pairs_are_compared_with_each_other_alone(tmp_path):
    one, two, three = (data.encode_image(photograph(seed)) for seed in (1, 2, 3))
    data.write_bin(
        tmp_path / "a.bin",
        [one, two, one, three, two, two, three, three, one, b"no image"],
        [True, False, True, False, False],
    )
    images = inspection.open_raw(tmp_path / "a.bin")
    assert images.class_names == ["same person", "two people"] and len(images) == 10
    assert found(images) == [
        ("unreadable", "pair 4, second", None),
        ("two names", "pair 3, second", "pair 3, first"),
        ("duplicate", "pair 2, second", "pair 2, first"),
    ]


def test_records_by_their_place_in_the_file(tmp_path):
    with data.RecordWriter(tmp_path / "set" / "train.rec") as writer:
        for label, seed in ((0, 1), (0, 2), (1, 3), (1, 1)):
            writer.write(label, jpeg(photograph(seed), 95))
    for path in (tmp_path / "set", tmp_path / "set" / "train.rec"):
        images = inspection.open_raw(path)
        assert images.kind == "recordio" and images.class_names == ["0", "1"]
        ((problem, name, other),) = found(images)
        assert problem == "two names" and name.startswith("record at byte") and other == images.names[0]


def test_stand_ins_of_a_source_are_not_taken_for_its_images(folder):
    source = data.FolderSource(folder, image_size=32)
    images = inspection.raw_source("folder", "people", source)
    assert ("unreadable", "bob/4.png", None) in found(images)


def test_data_without_images_are_refused():
    spec = data.Crowd()
    with pytest.raises(UserError, match=r"^data: crowd has no images to show"):
        inspection.raw_source("crowd", spec.title, spec.source(image_size=8, seed=0))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "source: no file or folder"),
        ("people/cy/x.heic", "source: needs a folder of images, a .bin pack or a .rec"),
        ("empty", "source: no image in"),
    ],
)
def test_a_path_that_holds_no_images(folder, name, words):
    (folder.parent / "empty").mkdir()
    with pytest.raises(UserError, match=words):
        inspection.open_raw(folder.parent / name)


def test_of_many_images_those_of_whole_classes_are_looked_at():
    labels = np.repeat(np.arange(100), 10).astype(np.int32)
    images = inspection.RawImages("x", "x", [""] * 1000, labels, [""] * 100, read=None)
    some = inspection.chosen_images(images, 200)
    assert len(some) == 200 and (np.bincount(labels[some], minlength=100) % 10 == 0).all()
    assert labels[some[0]] == 0 and labels[some[-1]] == 99
    assert len(inspection.chosen_images(images, 5)) == 5
    assert (inspection.chosen_images(images, 1000) == np.arange(1000)).all()


def test_the_hash_is_of_what_is_seen():
    def differing(a, b):
        return np.bitwise_count(inspection.difference_hash(a) ^ inspection.difference_hash(b)).sum()

    image = photograph(1)
    assert differing(image, data.decode_image(jpeg(smaller(image)))) <= inspection.ALIKE_BITS
    assert differing(image, (image * 0.7).astype(np.uint8)) <= inspection.ALIKE_BITS
    assert min(differing(image, photograph(seed)) for seed in range(2, 30)) > 60
    gray = image[..., :1]
    assert differing(gray, np.repeat(gray, 3, axis=-1)) <= 2
    ramp = np.tile(np.arange(170, dtype=np.uint8)[None, :, None], (160, 1, 1))
    assert (inspection.difference_hash(ramp) == 0xFFFF).all()
