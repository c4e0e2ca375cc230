import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image

from jaxface import data
from jaxface.data.sources import depth
from jaxface.errors import UserError

PAIRS = data.RenderedFaces(3, 2, held_out_identities=2, held_out_per_identity=2, modality="rgbd")


def bump(size=16, height=90.0, holes=()):
    """A face of sorts: a paraboloid `height` mm before its plane, background 0."""
    y, x = (np.mgrid[:size, :size] - (size - 1) / 2) / (size / 2)
    z = np.where(x**2 + y**2 < 0.8, height - 40 * (x**2 + y**2), 0).astype(np.float32)
    for place in holes:
        z[place] = 0
    return z


def test_the_encoding_by_hand():
    image = data.encode_depth(
        np.array([[100.0, 40.0, 70.0], [160.0, 200.0, 0.0], [39.0, -5.0, 101.0]]), 100.0
    )
    expected = [[128, 0, 64], [255, 255, 0], [0, 0, 130]]
    np.testing.assert_array_equal(image[..., 0], expected)
    assert image.dtype == np.uint8 and image.shape == (3, 3, 3) and (image[..., :1] == image).all()
    assert not data.encode_depth(np.zeros((4, 4)), None).any()


def test_the_distance_of_the_camera_is_gone():
    near, far = bump(height=90.0), bump(height=400.0)
    images = [data.encode_depth(z, data.nose_depth(z)) for z in (near, far)]
    np.testing.assert_array_equal(*images)
    assert 120 <= images[0][8, 8, 0] <= 135 and images[0][0, 0, 0] == 0


def test_the_nose_is_where_the_landmark_says():
    z = bump()
    landmarks = np.zeros((5, 2), np.float32)
    landmarks[2] = (4, 8)
    assert data.nose_depth(z, landmarks) == np.median(z[7:10, 3:6])
    assert data.nose_depth(z) > data.nose_depth(z, landmarks)
    z[7:10, 3:6] = 0  # a hole there: the nearest of the middle instead
    assert data.nose_depth(z, landmarks) == data.nose_depth(z) > 85
    assert data.nose_depth(np.zeros((8, 8)), landmarks) is None


def test_one_reading_gone_mad_does_not_move_the_nose():
    z = bump(32)
    spoiled = z.copy()
    spoiled[16, 16] = 400.0
    assert abs(data.nose_depth(spoiled) - data.nose_depth(z)) < 2


def test_modalities_of_rendered_faces_are_of_the_same_people():
    pairs, photographs, maps = (
        data.load(dataclasses.replace(PAIRS, modality=m), image_size=16, seed=3)
        for m in ("rgbd", "rgb", "depth")
    )
    for part in ("train", "held_out"):
        both, rgb, shape = (getattr(split, part) for split in (pairs, photographs, maps))
        assert len(both) == len(rgb) == len(shape) and both.image_shape == shape.image_shape == (16, 16, 3)
        for i in range(len(both)):
            np.testing.assert_array_equal(both[i]["image"], rgb[i]["image"])
            np.testing.assert_array_equal(both[i]["depth"], shape[i]["image"])
            assert both[i]["label"] == shape[i]["label"] and "depth" not in shape[i]
    assert (pairs.name, maps.name) == ("rendered rgbd 3x2", "rendered depth 3x2")
    again = pickle.loads(pickle.dumps(maps.train))
    np.testing.assert_array_equal(again[0]["image"], maps.train[0]["image"])


def test_ranges_of_people_share_nobody():
    def names(first):
        spec = dataclasses.replace(PAIRS, first_identity=first)
        return set(data.load(spec, image_size=16).train.class_names)

    assert not names(0) & names(3) and len(names(0) & names(1)) == 2
    for first in (-1, (1 << 20) - 2):
        with pytest.raises(UserError, match="needs a"):
            names(first)


def write_pairs(root, people=4, each=3, height=20, width=16):
    rng = np.random.default_rng(0)
    for person in range(people):
        folder = root / f"p{person}"
        folder.mkdir(parents=True)
        for shot in range(each):
            Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(folder / f"{shot}.png")
            z = bump(width, 100 + 5 * person)
            distance = np.where(z > 0, 700 + 50 * shot - z, 0)
            distance = np.pad(distance, ((2, 2), (0, 0))).astype(np.uint16)
            Image.fromarray(distance).save(folder / f"{shot}_depth.png")
    return root


def test_a_folder_of_pairs(tmp_path):
    root = write_pairs(tmp_path / "pairs")
    (root / "p0" / "alone.png").write_bytes((root / "p0" / "0.png").read_bytes())
    source = data.RgbdFolderSource(root, image_size=20)
    assert len(source) == 12 and source.class_names == ["p0", "p1", "p2", "p3"]
    np.testing.assert_array_equal(source.labels, np.repeat(range(4), 3))
    record = source[0]
    assert record["image"].shape == (20, 20, 3) and record["depth"].shape == (20, 20)
    assert record["depth"].dtype == np.float32
    z = record["depth"]
    assert z[10, 10] == pytest.approx(110, abs=3) and z[0, 0] == 0  # the nose is 110 mm before the plane
    # The face is nearest in its middle, and the same at any distance from the camera.
    assert z[10, 10] > z[10, 15] > 0
    np.testing.assert_allclose(source[1]["depth"], z, atol=1e-3)
    split = data.load(data.RgbdFolder(str(root), held_out=0.5), image_size=20)
    assert split.train[0]["depth"].shape == (20, 20, 3) and split.train[0]["depth"].dtype == np.uint8
    assert not set(split.train.class_names) & set(split.held_out.class_names)
    maps = data.load_all(data.RgbdFolder(str(root), modality="depth"), image_size=20)
    assert 120 < maps[0]["image"][10, 10, 0] < 136
    assert pickle.loads(pickle.dumps(source))[3]["label"] == 1


def test_photographs_say_which_subset_they_are_of(tmp_path):
    root = write_pairs(tmp_path / "pairs")
    for folder in root.iterdir():
        for shot, name in enumerate(("001_NU_2", "x-FE-NUance", "TM")):
            for suffix in ("", "_depth"):
                (folder / f"{shot}{suffix}.png").rename(folder / f"{name}{suffix}.png")
    spec = data.RgbdFolder(str(root), held_out=0.5, subsets=("NU", "FE", "TM"))
    split = data.load(spec, image_size=16)
    for source in (split.train, split.held_out):
        assert list(source.subset_names) == ["NU", "FE", "TM"]
        names = [name.rpartition("/")[2] for name in source.record_names]
        expected = [["001_NU_2.png", "x-FE-NUance.png", "TM.png"].index(name) for name in names]
        np.testing.assert_array_equal(source.subsets, expected)
        assert np.bincount(source.subsets).tolist() == [2, 2, 2]
    assert not hasattr(data.load(dataclasses.replace(spec, subsets=()), image_size=16).train, "subsets")
    for names in (("NU", "FE"), ("NU", "FE", "TM", "001")):  # none of them, or two
        with pytest.raises(
            UserError, match=r"^subsets: needs one of NU, FE.* in the name of every photograph, got p0/"
        ):
            data.load(dataclasses.replace(spec, subsets=names), image_size=16)


def test_holes_are_not_averaged_with_their_neighbors():
    z = np.full((8, 8), 600.0, np.float32)
    z[0:2, 0:2] = 0
    z[4, 4] = 0
    small = depth.fit_depth(z, 4)
    assert set(np.unique(small)) == {0.0, 600.0} and small[0, 0] == 0 and small[2, 2] == 600


def test_broken_pairs(tmp_path):
    root = write_pairs(tmp_path / "pairs")
    (root / "p1" / "0_depth.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((5, 5), np.uint16)).save(root / "p2" / "1_depth.png")  # another size
    Image.fromarray(np.zeros((20, 16, 3), np.uint8)).save(root / "p3" / "2_depth.png")  # color
    source = data.RgbdFolderSource(root, image_size=16)
    for bad, stand_in in ((3, 4), (7, 8), (11, 9)):
        np.testing.assert_array_equal(source[bad]["image"], source[stand_in]["image"])
        assert source[bad]["label"] == source.labels[bad]
    assert source.corrupt == 3
    with pytest.raises(UserError, match="root: no pair in"):
        empty = tmp_path / "empty"
        empty.mkdir()
        data.RgbdFolderSource(empty, image_size=16)
    with pytest.raises(UserError, match="root: needs a folder of pairs"):
        data.RgbdFolderSource(tmp_path / "nowhere", image_size=16)
    for file in (root / "p0").glob("*_depth.png"):
        file.unlink()
    assert data.RgbdFolderSource(root, image_size=16).class_names == ["p1", "p2", "p3"]


def test_digit_halves():
    left, right, both = (
        data.load(data.DigitHalves(modality=m), image_size=8, seed=5) for m in ("rgb", "depth", "rgbd")
    )
    assert [len(s.train) for s in (left, right, both)] == [450, 450, 300]
    assert {len(s.held_out) for s in (left, right, both)} == {597} and both.protocol == "classification"
    record = both.held_out[7]
    assert record["image"].shape == record["depth"].shape == (8, 4, 1)
    np.testing.assert_array_equal(record["image"], left.held_out[7]["image"])
    np.testing.assert_array_equal(record["depth"], right.held_out[7]["image"])
    digits = data.digits()
    whole = {digits[i]["image"].tobytes() for i in range(1797)}
    assert np.concatenate([record["image"], record["depth"]], axis=1).tobytes() in whole
    with pytest.raises(UserError, match="paired: needs an integer from 10 to 300, got 301"):
        data.load(data.DigitHalves(paired=301), image_size=8)


def test_fields_beside_a_source():
    source = data.digits()
    more = data.WithFields(source, number=np.arange(1797))
    assert more[5]["number"] == 5 and (more[5]["image"] == source[5]["image"]).all() and len(more) == 1797
    with pytest.raises(ValueError, match="number: needs one row for each of 1797 records, got 3"):
        data.WithFields(source, number=np.arange(3))


def test_an_object_store(tmp_path, same_elsewhere):
    root = write_pairs(tmp_path / "pairs", people=2, each=1)
    same_elsewhere(lambda root: data.RgbdFolderSource(root, image_size=16), root)
