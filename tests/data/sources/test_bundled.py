import types
import urllib.error

import numpy as np
import pytest
import sklearn.datasets

from jaxface.data.sources import bundled
from jaxface.data.sources.source import Source
from jaxface.errors import UserError


def test_digits():
    source = bundled.digits()
    assert isinstance(source, Source) and len(source) == 1797 and len(source.class_names) == 10
    images = np.stack([source[i]["image"] for i in range(len(source))])
    assert images.shape == (1797, *source.image_shape) == (1797, 8, 8, 1) and images.dtype == np.uint8
    assert images.min() == 0 and images.max() == 255
    data = sklearn.datasets.load_digits()
    np.testing.assert_allclose(images[..., 0] * (16 / 255), data.images, atol=0.04)
    np.testing.assert_array_equal(source.labels, data.target)
    assert source[5]["label"] == data.target[5] and source[5]["label"].dtype == np.int32


@pytest.mark.parametrize("size", [25, 32])
def test_lfw_subset(size):
    source = bundled.lfw_subset(image_size=size)
    assert len(source) == 200 and source.class_names == ["background", "face"]
    np.testing.assert_array_equal(source.labels, [1] * 100 + [0] * 100)
    images = np.stack([source[i]["image"] for i in range(200)]).astype(int)
    assert images.shape == (200, size, size, 3) and images.max() > 200
    np.testing.assert_array_equal(images[..., 0], images[..., 2])
    # Faces look alike, backgrounds do not: the class order is the documented one.
    spread = [part.std(0).mean() for part in (images[:100], images[100:])]
    assert spread[0] < spread[1]


def offline(**_):
    raise urllib.error.URLError("[Errno -2] Name or service not known")


def broken(**_):
    raise ValueError("unreadable archive\non two lines")


@pytest.mark.parametrize("fetch", [offline, broken])
def test_downloads_without_a_network_are_one_line(monkeypatch, tmp_path, fetch):
    monkeypatch.setattr(sklearn.datasets, "fetch_olivetti_faces", fetch)
    monkeypatch.setattr(sklearn.datasets, "fetch_lfw_people", fetch)
    for load in (bundled.olivetti, bundled.lfw_people):
        with pytest.raises(UserError, match=r"^data_home: .*needs a network once$") as caught:
            load(image_size=32, data_home=str(tmp_path))
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_lfw_refuses_a_count_that_nobody_has(tmp_path):
    with pytest.raises(UserError, match="min_faces"):
        bundled.lfw_people(image_size=32, data_home=str(tmp_path), min_faces=0)


def test_downloads_become_sources(monkeypatch):
    rng = np.random.default_rng(0)
    asked = {}

    def faces(**arguments):
        asked.update(arguments)
        return types.SimpleNamespace(
            images=rng.random((6, 64, 64), np.float32), target=np.repeat([0, 1, 2], 2)
        )

    def people(**arguments):
        asked.update(arguments)
        images = np.zeros((4, 125, 94, 3), np.float32)
        images[:, 15:110] = (1.0, 0.5, 0.0)
        names = np.array(["Ada", "Bob"])
        return types.SimpleNamespace(images=images, target=np.array([0, 0, 1, 1]), target_names=names)

    monkeypatch.setattr(sklearn.datasets, "fetch_olivetti_faces", faces)
    source = bundled.olivetti(image_size=32, data_home="here")
    assert asked["data_home"] == "here" and len(source) == 6 and len(source.class_names) == 3
    assert source[0]["image"].shape == (32, 32, 3)
    monkeypatch.setattr(sklearn.datasets, "fetch_lfw_people", people)
    source = bundled.lfw_people(image_size=47, min_faces=2)
    assert asked["min_faces_per_person"] == 2 and source.class_names == ["Ada", "Bob"]
    np.testing.assert_array_equal(source.labels, [0, 0, 1, 1])
    image = source[3]["image"]
    assert (
        image.shape == (47, 47, 3) and (np.abs(image.astype(int) - (255, 128, 0)) <= 1).all()
    )  # color, cropped


def test_array_source_checks_its_arrays():
    for images in (np.zeros((2, 4, 4, 3)), np.zeros((3, 4, 4, 3), np.uint8), np.zeros((2, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match="images"):
            bundled.ArraySource(images, np.zeros(2, int), ["a"])
