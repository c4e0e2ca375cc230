import numpy as np
import pytest

from jaxface import data
from jaxface.data.sources.fddb import ellipse_boxes
from jaxface.errors import UserError


@pytest.fixture
def folder(tmp_path, picture):
    for fold in range(1, 11):
        picture(tmp_path / "originalPics" / "2002" / f"img_{fold}.jpg")
        path = tmp_path / "FDDB-folds" / f"FDDB-fold-{fold:02d}-ellipseList.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"2002/img_{fold}\n2\n12.0 8.0 1.5707963 20.0 18.0  1\n{fold} 3 0.0 50 30 1\n")
    return tmp_path


def test_the_box_bounds_the_ellipse():
    ellipses = np.array([[12.0, 8.0, 1.2, 20.0, 18.0], [5, 5, 0.3, 0, 0], [9, 2, 0, 1, 2]])
    t = np.linspace(0, 2 * np.pi, 100_001)
    for (a, b, angle, x, y), box in zip(ellipses, ellipse_boxes(ellipses), strict=True):
        px = x + a * np.cos(t) * np.cos(angle) - b * np.sin(t) * np.sin(angle)
        py = y + a * np.cos(t) * np.sin(angle) + b * np.sin(t) * np.cos(angle)
        np.testing.assert_allclose(box, [py.min(), px.min(), py.max(), px.max()], atol=1e-6)


def test_folds(folder):
    split = data.load(data.Fddb(str(folder), held_out_folds=(3, 7)), image_size=60)
    assert split.held_out.record_names == ["2002/img_3", "2002/img_7"] and len(split.train) == 8
    assert len(data.load_all(data.Fddb(str(folder)), image_size=60)) == 10
    truth = split.held_out.ground_truth(0)
    np.testing.assert_allclose(truth["boxes"], [[6, 12, 30, 28], [27, 47, 33, 53]], atol=1e-4)
    np.testing.assert_allclose(truth["ellipses"][1], [3, 3, 0, 50, 30])
    assert truth["image_size"].tolist() == [40, 60]
    assert split.held_out[0]["box_mask"].sum() == 2


def test_ellipses_that_are_none_are_left_out(folder):
    path = folder / "FDDB-folds" / "FDDB-fold-01-ellipseList.txt"
    path.write_text("2002/img_1\n3\n-12 8 0 20 18 1\nnan 8 0 20 18 1\n8 4 0 20 18 1\n")
    source = data.fddb(folder, folds=(1,), image_size=60)
    assert source.dropped == {"degenerate": 1, "not finite": 1}
    assert source.ground_truth(0)["ellipses"].tolist() == [[8, 4, 0, 20, 18]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2002/img_1\nx\n", "has no number of faces in line 2"),
        ("2002/img_1\n1\n1 2 3\n", "has no ellipse of 5 numbers in line 3"),
        ("2002/img_1\n2\n1 2 3 4 5\n", "has no ellipse 2 of 2"),
        ("/etc/img_1\n0\n", "has no image in line 1"),
    ],
)
def test_another_text_gets_one_line(text, words, folder):
    (folder / "FDDB-folds" / "FDDB-fold-04-ellipseList.txt").write_text(text)
    with pytest.raises(UserError, match=rf"^root: needs FDDB's ellipses, .*{words}") as refused:
        data.load_all(data.Fddb(str(folder)), image_size=60)
    assert "\n" not in str(refused.value)


def test_folds_that_there_are_not(folder):
    with pytest.raises(UserError, match=r"^folds: needs numbers from 1 to 10, got \[11\]"):
        data.fddb(folder, folds=(1, 11), image_size=60)
    with pytest.raises(UserError, match=r"^held_out_folds: needs some of the ten"):
        data.load(data.Fddb(str(folder), held_out_folds=tuple(range(1, 11))), image_size=60)
    with pytest.raises(UserError, match=r"^root: cannot read"):
        data.fddb(folder / "nowhere", image_size=60)


def test_an_object_store(folder, same_elsewhere):
    same_elsewhere(lambda root: data.Fddb(root).source(image_size=16, seed=0), folder)
