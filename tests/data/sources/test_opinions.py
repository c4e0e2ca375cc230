"""Images with mean opinion scores from files: tables, KADID-10k, CSIQ and LIVE."""

import numpy as np
import pytest
import scipy.io
from PIL import Image

from jaxface import data
from jaxface.data.sources.opinions import LIVE_PARTS, csiq, live
from jaxface.errors import UserError


def picture(path, value, size=(20, 18)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size[1], size[0], 3), value, np.uint8)
    pixels[size[1] // 2, size[0] // 2] = 255
    Image.fromarray(pixels).save(path)


@pytest.fixture
def table(tmp_path):
    lines = ["image,dmos,kind,original"]
    for i in range(6):
        picture(tmp_path / "pictures" / f"p{i}.png", 10 * i)
        lines.append(f"p{i}.png,{20 * i},{'blur' if i % 2 else 'noise'},o{i // 2}.png")
    (tmp_path / "scores.csv").write_text("\n".join(lines))
    return tmp_path


def spec(root, **fields):
    fields = {"distortion": "kind", "reference": "original", "held_out": 0.4} | fields
    return data.OpinionTable(
        root=str(root),
        table="scores.csv",
        score="dmos",
        folder="pictures",
        highest=100.0,
        reverse=True,
        **fields,
    )


def test_a_table(table):
    split = data.load(spec(table), image_size=16, seed=0)
    assert split.protocol == "quality" and len(split.train) == 4 and len(split.held_out) == 2
    everything = spec(table).source(image_size=16, seed=0)
    np.testing.assert_allclose(everything.opinions, [10, 8, 6, 4, 2, 0])
    assert everything.class_names == ["blur", "noise"] and everything.labels.tolist() == [1, 0] * 3
    assert everything.references.tolist() == [0, 0, 1, 1, 2, 2] and everything.record_names[4] == "p4.png"
    record = everything[3]
    assert (
        record["image"].shape == (16, 16, 3) and record["image"][8, 8].tolist() == [255] * 3
    )  # the middle, not resized
    assert record["image"][0, 0, 0] == 30 and record["opinion"] == 4 and record["reference"] == 1
    names = [{row.reference for row in part.rows} for part in (split.train, split.held_out)]
    assert not names[0] & names[1] and split.train.class_names == split.held_out.class_names
    plain = spec(table, distortion=None, reference=None).source(image_size=16, seed=0)
    assert plain.class_names == ["image"] and plain.references.tolist() == list(range(6))


def test_an_image_that_is_damaged_and_one_that_is_small(table):
    (table / "pictures" / "p3.png").write_bytes(b"no image")
    source = spec(table).source(image_size=16, seed=0)
    record = source[3]
    assert source.shown(3) == 5 and record["opinion"] == source.opinions[5] and source.corrupt == 1
    with pytest.raises(UserError, match=r"image_size: needs at most the 18 pixels of .*p0.png, got 19"):
        spec(table).source(image_size=19, seed=0)[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.replace("dmos", "mos"), "root: needs a column dmos in .*scores.csv"),
        (lambda t: t.replace(",40,", ",140,"), "root: needs a score from 0 to 100 in line 4 of .*, got '140'"),
        (lambda t: t.replace(",40,", ",good,"), "root: needs a score from 0 to 100 in line 4"),
        (lambda t: t.replace(",40,", ",nan,"), "root: needs a score from 0 to 100 in line 4"),
        (lambda t: t.replace(",noise,o1", ",,o1"), "root: needs a value of kind in line 4"),
        (lambda t: t.replace("p2.png", "../p2.png"), r"root: .* names an image outside of its folder in line 4, '\.\./p2.png'"),
        (lambda t: t.splitlines()[0], "root: its list has no image with an opinion"),
        (lambda t: "\n".join(t.splitlines()[:3]), "root: needs distortions of at least two images to hold some out, got 1"),
    ],
)  # fmt: skip
def test_tables_that_say_something_else(table, change, words):
    path = table / "scores.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=words) as refused:
        spec(table).source(image_size=16, seed=0)
        data.load(spec(table), image_size=16)
    assert "\n" not in str(refused.value)


def test_no_table_and_no_scale(table):
    with pytest.raises(UserError, match=r"root: .*missing.csv"):
        data.OpinionTable(root=str(table), table="missing.csv").source(image_size=16, seed=0)
    with pytest.raises(UserError, match="highest: needs a finite number above 0, got 0"):
        data.OpinionTable(root=str(table), lowest=10.0).source(image_size=16, seed=0)


def test_kadid10k(tmp_path):
    lines = ["dist_img,ref_img,dmos,var"]
    for photo in (1, 2):
        for kind in (4, 25):
            name = f"I{photo:02}_{kind:02}_03.png"
            picture(tmp_path / "images" / name, photo * kind)
            lines.append(f"{name},I{photo:02}.png,{photo + 1.5},0.4")
    (tmp_path / "dmos.csv").write_text("\n".join(lines))
    source = data.Kadid10k(root=str(tmp_path)).source(image_size=16, seed=0)
    assert source.class_names == ["04", "25"] and source.references.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(source.opinions, 10 * (np.array([2.5, 2.5, 3.5, 3.5]) - 1) / 4)
    assert source[3]["image"][0, 0, 0] == 50
    assert len(data.load(data.Kadid10k(root=str(tmp_path), held_out=0.5), image_size=16).held_out) == 2


def test_csiq_in_folders_and_in_one(tmp_path):
    picture(tmp_path / "dst_imgs" / "awgn" / "1600.AWGN.1.png", 7)
    picture(tmp_path / "dst_imgs" / "boston.contrast.2.png", 9)
    (tmp_path / "csiq_label.txt").write_text("1600.AWGN.1.png 0.062\nboston.contrast.2.png\t1\n")
    source = data.Csiq(root=str(tmp_path)).source(image_size=16, seed=0)
    assert source.class_names == ["awgn", "contrast"] and [row.reference for row in source.rows] == [
        "1600",
        "boston",
    ]
    np.testing.assert_allclose(source.opinions, [9.38, 0], atol=1e-5)
    assert [int(source[i]["image"][0, 0, 0]) for i in range(2)] == [7, 9]
    for text, words in (
        ("1600.AWGN.1.png", "root: needs a name such as 1600.AWGN.1.png and a score in line 1"),
        ("1600.png 0.1", "root: needs a name such as"),
        ("1600.AWGN.1.png 1.5", "root: needs a score from 0 to 1 in line 1"),
    ):
        (tmp_path / "csiq_label.txt").write_text(text)
        with pytest.raises(UserError, match=words):
            csiq(tmp_path)


def test_live(tmp_path):
    total = sum(LIVE_PARTS.values())
    assert total == 982
    originals = np.zeros((1, total))
    originals[0, [2, 300]] = 1
    dmos = np.linspace(0, 114.4147, total)[None]
    names = np.empty((1, total), object)
    names[0] = [f"photo{i % 29}.bmp" for i in range(total)]
    scipy.io.savemat(tmp_path / "dmos_realigned.mat", {"dmos_new": dmos, "orgs": originals})
    scipy.io.savemat(tmp_path / "refnames_all.mat", {"refnames_all": names})
    picture(tmp_path / "jpeg" / "img1.bmp", 5)
    source = data.LiveIqa(root=str(tmp_path)).source(image_size=16, seed=0)
    assert len(source) == 980 and source.class_names == sorted(LIVE_PARTS)
    assert len(live(tmp_path, originals=True)) == 982 and len(set(source.references)) == 29
    np.testing.assert_allclose(source.opinions[[0, 979]], [10, 0], atol=1e-5)
    first_of_jpeg = 227 - 1
    assert source.record_names[first_of_jpeg] == "img1.bmp" and source[first_of_jpeg]["image"][0, 0, 0] == 5
    scipy.io.savemat(tmp_path / "dmos_realigned.mat", {"dmos_new": dmos[:, :9], "orgs": originals})
    with pytest.raises(UserError, match=r"root: needs 982 values of dmos_new in .*, got 9"):
        live(tmp_path)
    (tmp_path / "refnames_all.mat").unlink()
    with pytest.raises(UserError, match=r"root: .*refnames_all\.mat"):
        live(tmp_path)
