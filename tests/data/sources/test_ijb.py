import logging

import numpy as np
import pytest
from PIL import Image

from jaxface.data import TemplateSource
from jaxface.data.transforms.alignment import template
from jaxface.errors import UserError

POINTS = " ".join(f"{x + 20:.4f}" for x in template(112).ravel())
FILES = {
    "face_tid_mid": "1.png 7 4\n2.png 7 9\n3.png 30 4\n",
    "name_5pts_score": f"1.png {POINTS} 0.9\n2.png {POINTS} 0.25\n3.png {POINTS} 1\n",
    "template_pair_label": "7 30 0\n30 7 0\n7 7 1\n",
}


def write(root, **changes):
    """Three images of 160 x 152 pixels, the face 20 pixels from the top left corner of each."""
    (root / "loose_crop").mkdir(parents=True)
    (root / "meta").mkdir()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 152, 160, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(root / "loose_crop" / f"{i + 1}.png")
    for name, text in {**FILES, **changes}.items():
        if text is not None:
            (root / "meta" / f"set_{name}.txt").write_text(text)
    return images


def test_records_are_aligned_images_with_their_score(tmp_path):
    images = write(tmp_path)
    source = TemplateSource(tmp_path)
    assert (len(source), source.class_names, source.image_shape) == (3, ["7", "30"], (112, 112, 3))
    np.testing.assert_array_equal(source.template_ids, [7, 7, 30])
    np.testing.assert_array_equal(source.media_ids, [4, 9, 4])
    np.testing.assert_array_equal(source.labels, [0, 0, 1])
    np.testing.assert_array_equal(source.pairs.indices, [[0, 1], [1, 0], [0, 0]])
    np.testing.assert_array_equal(source.pairs.same, [False, False, True])
    for i, score in enumerate((0.9, 0.25, 1.0)):
        record = source[i]
        # The landmarks are the template's, moved: the crop is a window.
        np.testing.assert_allclose(record["image"].astype(int), images[i, 20:132, 20:132], atol=1)
        assert record["weight"] == np.float32(score) and record["label"] == source.labels[i]
    small = TemplateSource(tmp_path, image_size=56)[0]["image"]
    blocks = images[0, 20:132, 20:132].reshape(56, 2, 56, 2, 3).mean((1, 3))
    np.testing.assert_allclose(small, blocks, atol=2)


def test_an_image_that_cannot_be_read_has_no_weight(tmp_path, caplog):
    write(tmp_path)
    (tmp_path / "loose_crop" / "1.png").unlink()
    (tmp_path / "loose_crop" / "3.png").write_bytes(b"rubbish")
    source = TemplateSource(tmp_path)
    with caplog.at_level(logging.WARNING, logger="jaxface.data"):
        records = [source[i] for i in range(3)]
    assert [float(record["weight"]) for record in records] == [0, 0.25, 0]
    assert not records[0]["image"].any() and source.corrupt == {0, 2}
    assert len(caplog.records) == 1 and "1.png" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"face_tid_mid": None}, "needs one meta/<set>_face_tid_mid.txt, .* has 0"),
        (
            {"face_tid_mid": "1.png 7\n"},
            "cannot read .*set_face_tid_mid.txt: needs a name and 2 numbers per line",
        ),
        ({"face_tid_mid": "../1.png 7 4\n"}, "cannot read .*: names an image outside of its folder"),
        ({"name_5pts_score": None}, "cannot read .*set_name_5pts_score.txt: No such file"),
        (
            {"name_5pts_score": f"1.png {POINTS} 0.9\n"},
            "both lists of images in .* need the same names in one order",
        ),
        (
            {"name_5pts_score": FILES["name_5pts_score"].replace("0.25", "-1")},
            "landmarks and scores in .* need to be finite, scores ≥ 0",
        ),
        (
            {"template_pair_label": "7 31 0\n"},
            "template 31 of the pairs has no image in .*set_face_tid_mid.txt",
        ),
        ({"template_pair_label": "7 30 2\n"}, "the labels of pairs in .* need to be 0 or 1"),
        (
            {"template_pair_label": "7 30\n"},
            "cannot read .*set_template_pair_label.txt: needs 3 numbers per line",
        ),
    ],
)
def test_refusals(tmp_path, changes, message):
    write(tmp_path, **changes)
    with pytest.raises(UserError, match=f"^templates: {message}") as caught:
        TemplateSource(tmp_path)
    assert "\n" not in str(caught.value)
