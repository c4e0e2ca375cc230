import io
import zlib

import numpy as np
import pytest

from jaxface import data
from jaxface.data.sources import matlab, wider_face
from jaxface.errors import UserError

TEXT = """0--Parade/a.jpg
3
10 5 20 10 0 0 0 0 0 0
30 10 4 6 2 1 1 1 2 1
1 2 0 0 0 0 0 0 0 0
0--Parade/empty.jpg
0
0 0 0 0 0 0 0 0 0 0
1--Handshaking/b.jpg
1
0 0 60 40 1 0 0 0 0 0
"""
LANDMARKS = """# 0--Parade/a.jpg
10 5 20 10 14.5 8 0.0 25 8 0.0 20 10 1.0 15 13 0.0 25 13 0.0 0.82
30 10 4 6 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 -1.0 0.2
# 1--Handshaking/b.jpg
1 1 9 9
"""


@pytest.fixture
def folder(tmp_path, picture):
    for part in ("train", "val"):
        for name in ("0--Parade/a", "0--Parade/empty", "1--Handshaking/b"):
            picture(tmp_path / f"WIDER_{part}" / "images" / f"{name}.jpg")
        split = tmp_path / "wider_face_split"
        split.mkdir(exist_ok=True)
        (split / f"wider_face_{part}_bbx_gt.txt").write_text(TEXT)
    (split / "label.txt").write_text(LANDMARKS)
    return tmp_path


def cells(values):
    column = np.empty((len(values), 1), object)
    for row, value in enumerate(values):
        column[row, 0] = value
    return column


def write_list(path, kept):
    from scipy.io import savemat

    tables = {
        "event_list": cells(["0--Parade", "1--Handshaking"]),
        "file_list": cells([cells(["a", "empty"]), cells(["b"])]),
        "gt_list": cells([cells([np.array(rows, np.uint8)[:, None] for rows in event]) for event in kept]),
    }
    savemat(path, tables, do_compression=True)


def lists(folder):
    for name, kept in (
        ("easy", [[[1], []], [[1]]]),
        ("medium", [[[1, 2], []], [[1]]]),
        ("hard", [[[2], []], [[]]]),
    ):
        write_list(folder / "wider_face_split" / f"wider_{name}_val.mat", kept)


def test_faces_flags_and_lists(folder, caplog):
    lists(folder)
    split = data.load(data.WiderFace(str(folder), max_objects=4), image_size=60)
    assert split.protocol == "detection" and len(split.train) == len(split.held_out) == 3
    assert split.held_out.record_names == ["0--Parade/a.jpg", "0--Parade/empty.jpg", "1--Handshaking/b.jpg"]
    truth = split.held_out.ground_truth(0)
    np.testing.assert_array_equal(truth["boxes"], [[5, 10, 15, 30], [10, 30, 16, 34]])
    assert truth["blur"].tolist() == [0, 2] and truth["invalid"].tolist() == [0, 1]
    assert truth["easy"].tolist() == [True, False]
    assert truth["medium"].tolist() == [True, True]
    assert truth["hard"].tolist() == [False, True]
    record = split.held_out[0]
    assert record["box_crowd"].tolist() == [False, True, False, False]
    assert not split.held_out[1]["box_mask"].any()
    assert len(split.held_out.ground_truth(1)["easy"]) == 0
    assert split.held_out.dropped == {"degenerate": 1}
    assert "easy" not in split.train.ground_truth(0)


def test_lists_feed_the_metric(folder):
    metrics = pytest.importorskip("jaxface.metrics.detection")
    lists(folder)
    source = data.load_all(data.WiderFace(str(folder)), image_size=60)
    truth = [source.ground_truth(i) for i in range(3)]
    found = [{"boxes": image["boxes"], "scores": np.linspace(1, 0.5, len(image["boxes"]))} for image in truth]
    assert metrics.wider_face_evaluate(found, truth) == {"easy": 1.0, "medium": 1.0, "hard": 1.0}


def test_landmarks_of_retinaface(folder):
    spec = data.WiderFace(str(folder), landmarks=str(folder / "wider_face_split" / "label.txt"))
    record = data.load(spec, image_size=60).train[0]
    assert record["landmark_mask"][:3].tolist() == [True, False, False]
    np.testing.assert_allclose(record["landmarks"][0], [[14.5, 8], [25, 8], [20, 10], [15, 13], [25, 13]])
    assert (record["landmarks"][1] == 0).all() and record["box_mask"][:3].tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("not an annotation\n", "has no image in line 1"),
        ("a.jpg\nmany\n", "has no number of faces in line 2"),
        ("a.jpg\n2\n1 2 3 4 0 0 0 0 0 0\n", "has no face 2 of 2 in line 4"),
        ("a.jpg\n1\n1 2 3\n", "has no face of 10 numbers in line 3"),
        ("a.jpg\n-1\n", "has no number of faces in line 2"),
        ("a.jpg\n99999999999\n1 2 3 4 0 0 0 0 0 0\n", "has no face 2 of"),
        ("# a.jpg\nx y\n", "has no face in line 2"),
        ("../../secret.jpg\n0\n", "needs images inside of"),
    ],
)
def test_another_text_gets_one_line(text, words, folder):
    path = folder / "wider_face_split" / "wider_face_train_bbx_gt.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as refused:
        data.load(data.WiderFace(str(folder)), image_size=60)
    assert str(refused.value).startswith("annotations: ") and "\n" not in str(refused.value)
    path.write_bytes(b"\xff\xfe\x00\x80" * 9)
    with pytest.raises(UserError, match=r"^annotations: needs a text file"):
        data.load(data.WiderFace(str(folder)), image_size=60)
    path.unlink()
    with pytest.raises(UserError, match=r"^annotations: cannot read .*No such file"):
        data.load(data.WiderFace(str(folder)), image_size=60)


def bomb():
    """A header of MATLAB 5 and one element of some kilobytes that unpacks to four megabytes."""
    body = zlib.compress(bytes(1 << 22))
    length = len(body).to_bytes(4, "little")
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + (15).to_bytes(4, "little") + length + body


def test_another_list_gets_one_line(tmp_path, folder, monkeypatch):
    from scipy.io import savemat

    other = io.BytesIO()
    savemat(other, {"x": np.zeros(3)})
    path = tmp_path / "list.mat"
    monkeypatch.setattr(matlab, "MAX_UNPACKED", 1 << 20)
    for content, words in (
        (b"\x80\x04pickle" * 40, "is none"),
        (other.getvalue(), "is none: KeyError"),
        (bomb(), "unpacks to more"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"^lists: needs .*{words}") as refused:
            wider_face.kept_faces(path)
        assert "\n" not in str(refused.value)
    lists(folder)
    write_list(folder / "wider_face_split" / "wider_easy_val.mat", [[[9], []], [[1]]])
    with pytest.raises(
        UserError, match=r"^lists: needs faces of 0--Parade/a.jpg, which has 3; easy keeps number 9"
    ):
        data.load_all(data.WiderFace(str(folder)), image_size=60)


def test_an_object_store(folder, same_elsewhere):
    lists(folder)
    far = same_elsewhere(lambda root: data.WiderFace(root).evaluation_source(image_size=16, seed=0), folder)
    assert far.ground_truth(0)["hard"].tolist() == [False, True]
