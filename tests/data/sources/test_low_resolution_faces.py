"""SCface and TinyFace in the layouts in which they are published."""

import logging
from functools import partial

import numpy as np
import pytest
from PIL import Image

from jaxface import data
from jaxface.data.transforms.alignment import template
from jaxface.errors import UserError

RNG = np.random.default_rng(3)


def save(path, height, width):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")  # whatever the suffix: the bytes tell
    return pixels


def scface(root, people=(49, 51, 52, 53)):
    """Frontal photographs and what cameras 1, 5 and 6 saw; camera 6 is infrared."""
    for person in people:
        save(root / f"mugshot_frontal_cropped_all/{person:03}_frontal.JPG", 40, 30)
        for distance, side in ((1, 6), (2, 9), (3, 14)):
            folder = root / f"surveillance_cameras_distance_{distance}"
            for camera in (1, 5, 6):
                save(folder / f"cam_{camera}/{person:03}_cam{camera}_{distance}.jpg", side, side)
    (root / "mugshot_frontal_cropped_all/Readme.txt").write_text("no image")
    save(root / "mugshot_frontal_cropped_all/montage.jpg", 4, 4)


def test_scface_is_a_gallery_and_three_distances(tmp_path):
    scface(tmp_path)
    source = data.ScfaceSource(tmp_path, image_size=12)
    assert source.class_names == ["051", "052", "053"] and source.num_gallery == 3
    assert len(source) == 3 + 3 * 3 * 2 and source.labels[:3].tolist() == [0, 1, 2]
    assert {d: (source.distances == d).sum() for d in ("", "d1", "d2", "d3")} == {
        "": 3,
        "d1": 6,
        "d2": 6,
        "d3": 6,
    }
    assert all(
        f"{source.class_names[source.labels[i]]}_" in source.record_names[i] for i in range(len(source))
    )
    small = next(i for i in range(len(source)) if source.record_names[i].endswith("052_cam5_1.jpg"))
    original = Image.open(tmp_path / source.record_names[small])
    wanted = np.asarray(original.resize((12, 12), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(source[small]["image"], wanted)
    assert source[0]["image"].shape == (12, 12, 3) and source[0]["weight"] == 1
    assert data.ScfaceSource(tmp_path, skip=0).class_names[0] == "049"


def test_scface_by_distance(tmp_path):
    """Oracle: the nearest of the gallery, counted one by one."""
    scface(tmp_path)
    source = data.ScfaceSource(tmp_path, image_size=8)
    noise = {"": 0.1, "d1": 2.0, "d2": 0.7, "d3": 0.1}
    rng = np.random.default_rng(0)
    features = np.array([np.eye(3)[source.labels[i]] for i in range(len(source))])
    features += rng.normal(size=features.shape) * [[noise[d]] for d in source.distances]
    report = source.report(features, np.ones(len(source)))
    rates = {}
    for distance in ("d1", "d2", "d3"):
        hits = []
        for i in np.flatnonzero(source.distances == distance):
            cosines = [
                features[i] @ features[g] / np.linalg.norm(features[i]) / np.linalg.norm(features[g])
                for g in range(3)
            ]
            hits.append(np.argmax(cosines) == source.labels[i])
        rates[distance] = np.mean(hits)
    assert 0 < rates["d1"] < 1 == rates["d3"]
    expected = {f"identification/rank1@{d}": rate for d, rate in rates.items()}
    expected |= {"identification/rank1": np.mean(list(rates.values())), "data/left_out": 0.0}
    assert report == pytest.approx(expected)
    weights = np.ones(len(source))
    # A photograph of the gallery, so all six probes of that person, and a probe of another.
    weights[[1, 3]] = 0
    assert source.labels[3] != source.labels[1]
    assert source.report(features, weights)["data/left_out"] == 8.0


def test_scface_aligned_by_four_points(tmp_path):
    """Points that are the template's, moved by (7, 4): the crop is a window."""
    five = template(112).astype(np.float64)
    four = np.concatenate([five[:3], five[3:].mean(0, keepdims=True)]) + (7, 4)
    line = "\t".join(f"{v:.4f}" for v in four.ravel())
    names = ["051_frontal"] + [f"051_cam1_{d}" for d in (1, 2, 3)]
    (tmp_path / "all.txt").write_text("".join(f"{name}\t{line}\n" for name in names))
    pixels = save(tmp_path / "mugshot_frontal_original_all/051_frontal.jpg", 130, 130)
    for d in (1, 2, 3):
        save(tmp_path / f"surveillance_cameras_distance_{d}/051_cam1_{d}.jpg", 130, 130)
    source = data.ScfaceSource(tmp_path, align=True)
    np.testing.assert_allclose(source[0]["image"].astype(int), pixels[4:116, 7:119], atol=2)
    (tmp_path / "all.txt").write_text(f"051_frontal\t{line}\n")
    with pytest.raises(UserError, match=r"^root: .*all.txt has no points of 051_cam1_1$"):
        data.ScfaceSource(tmp_path, align=True)
    (tmp_path / "all.txt").write_text("051_frontal\t1\t2\n")
    with pytest.raises(UserError, match=r"all.txt needs a name and 8 numbers in line 1$"):
        data.ScfaceSource(tmp_path, align=True)


def tinyface(root, **changes):
    """Two people with two and one images in the gallery, four distractors, three probes."""
    from scipy.io import savemat

    lists = {
        "gallery": (["7_1.jpg", "7_2.jpg", "9_1.jpg"], [7, 7, 9]),
        "probe": (["7_3.jpg", "9_2.jpg", "9_3.jpg"], [7, 9, 9]),
    } | changes
    test = root / "Testing_Set"
    test.mkdir(exist_ok=True)
    for name, folder, file in (
        ("gallery", "Gallery_Match", "gallery_match_img_ID_pairs.mat"),
        ("probe", "Probe", "probe_img_ID_pairs.mat"),
    ):
        names, ids = lists[name]
        cells = np.empty((len(names), 1), object)
        cells[:, 0] = names
        savemat(test / file, {f"{name}_set": cells, f"{name}_ids": np.array(ids)[:, None]})
        for image in names:
            if "/" not in image:
                save(test / folder / image, 9, 7)
    for i in range(4):
        save(test / f"Gallery_Distractor/{i}.jpg", 8, 8)


FEATURES = np.array(
    [
        [1, 0],
        [0.8, 0.6],
        [0, 1],
        [0.6, 0.8],
        [0.28, 0.96],
        [-1, 0],
        [-0.6, -0.8],
        [0.96, 0.28],
        [0.1, 1],
        [-0.8, 0.6],
    ]
)  # 7, 7, 9 | four distractors | 7, 9, 9


def test_tinyface_by_hand(tmp_path):
    tinyface(tmp_path)
    source = data.TinyFaceSource(tmp_path, image_size=10)
    assert len(source) == 10 and source.num_gallery == 7 and source.class_names == ["7", "9", "distractor"]
    assert source.labels.tolist() == [0, 0, 1, 2, 2, 2, 2, 0, 1, 1]
    assert source[0]["image"].shape == (10, 10, 3)
    report = source.report(3 * FEATURES, np.ones(10))
    # Cosines of the probes with the gallery and the distractors:
    #   7: .96 .94 .28 | .80 .54 -.96 -.80    mates at 1 and 2:  AP = ((1 + 1) + (1 + 1)) / 4 = 1
    #   9: .10 .68 .995 | .86 .98 -.1 -.86    mate at 1:         AP = 1
    #   9: -.8 -.28 .6 | 0 .35 .8 0           mate at 2:         AP = (1 / 2 + 0) / 2 = 1/4
    expected = {"rank1": 2 / 3, "rank5": 1, "rank10": 1, "rank20": 1, "rank50": 1, "map": 2.25 / 3}
    assert report == pytest.approx(
        {f"identification/{k}": v for k, v in expected.items()} | {"data/left_out": 0}
    )


def test_an_aligned_copy_of_tinyface_and_a_damaged_image(tmp_path, caplog):
    tinyface(tmp_path)
    (tmp_path / "Testing_Set").rename(tmp_path / "aligned")
    (tmp_path / "Testing_Set").mkdir()
    for file in (tmp_path / "aligned").glob("*.mat"):
        file.rename(tmp_path / "Testing_Set" / file.name)
    (tmp_path / "aligned/Gallery_Match/9_1.jpg").write_bytes(b"rubbish")
    source = data.TinyFaceSource(tmp_path, image_size=8, images=tmp_path / "aligned")
    with caplog.at_level(logging.WARNING, logger="jaxface.data"):
        weights = np.array([source[i]["weight"] for i in range(10)])
    assert weights.tolist() == [1, 1, 0] + [1] * 7 and "9_1.jpg" in caplog.text and len(caplog.records) == 1
    report = source.report(FEATURES, weights)
    assert report["identification/rank1"] == 1 and report["data/left_out"] == 3  # and both probes of 9
    weights[7] = 0
    with pytest.raises(UserError, match=r"^data: TinyFace has no probe left whose person is in the gallery$"):
        source.report(FEATURES, weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probe": (["a.jpg"], [8])}, "has no image of person 8, a probe has"),
        (
            {"probe": (["a.jpg", "b.jpg"], [7])},
            "needs names and numbers of people, as many of either: 2 names and 1",
        ),
        ({"probe": (["../a.jpg"], [7])}, "names an image outside of its folder"),
    ],
)
def test_lists_of_tinyface_that_do_not_fit(tmp_path, changes, message):
    tinyface(tmp_path, **changes)
    with pytest.raises(UserError, match=f"^root: .*{message}") as caught:
        data.TinyFaceSource(tmp_path)
    assert "\n" not in str(caught.value)


def test_folders_that_are_none_of_them(tmp_path):
    cases = [
        (lambda: data.ScfaceSource(tmp_path), "needs the folder .*mugshot_frontal_cropped_all"),
        (lambda: data.TinyFaceSource(tmp_path), "cannot read .*gallery_match_img_ID_pairs.mat: No such file"),
    ]
    for opened, message in cases:
        with pytest.raises(UserError, match=f"^root: {message}"):
            opened()
    scface(tmp_path, people=(49,))
    with pytest.raises(UserError, match=r"^root: needs people with numbers above 50, .* has none$"):
        data.ScfaceSource(tmp_path)
    (tmp_path / "mugshot_frontal_cropped_all/049_frontal.JPG").rename(
        tmp_path / "mugshot_frontal_cropped_all/048_frontal.JPG"
    )
    with pytest.raises(UserError, match=r"049_cam1_1.jpg has no frontal photograph in .*cropped_all$"):
        data.ScfaceSource(tmp_path, skip=0)
    tinyface(tmp_path)
    (tmp_path / "Testing_Set/probe_img_ID_pairs.mat").write_bytes(b"\x80\x04pickle" * 40)
    with pytest.raises(UserError, match=r"^root: needs a MATLAB 5 file, .* is none$"):
        data.TinyFaceSource(tmp_path)


def test_nobody_trains_on_a_benchmark(tmp_path):
    for kind in (data.Ijb, data.MegaFace, data.Scface, data.TinyFace):
        with pytest.raises(UserError, match=r"^data: needs people to learn from; got a benchmark"):
            data.load(kind(str(tmp_path)))
    tinyface(tmp_path)
    spec = data.TinyFace(str(tmp_path), fit="stretch")
    assert spec.title == f"tinyface {tmp_path.name}"
    assert len(data.load_all(spec, image_size=10)) == 10


def test_an_object_store(tmp_path, same_elsewhere):
    scface(tmp_path / "scface")
    (tmp_path / "tinyface").mkdir()
    tinyface(tmp_path / "tinyface")
    for kind, name in ((data.ScfaceSource, "scface"), (data.TinyFaceSource, "tinyface")):
        assert not same_elsewhere(partial(kind, image_size=8), tmp_path / name).corrupt
