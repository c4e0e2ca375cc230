"""Small data sets with boxes, written by the tests."""

import numpy as np
import object_store
import pytest
from PIL import Image


@pytest.fixture
def picture():
    def write(path, height=40, width=60, seed=0):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(path, quality=95)

    return write


@pytest.fixture
def same_elsewhere():
    """Puts a folder into the object store, opens both places, and compares what they hold record by record."""

    def compare(open_source, folder):
        object_store.clear()
        root = "objects://bucket/set"
        for path in folder.rglob("*"):
            if path.is_file():
                object_store.OBJECTS[f"{root}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
        near, far = open_source(str(folder)), open_source(root)
        assert len(near) == len(far) > 0
        assert list(near.record_names) == list(far.record_names)
        for index in range(len(near)):
            one, other = near[index], far[index]
            assert one.keys() == other.keys()
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])
        return far

    return compare
