"""Small data sets with boxes, written by the tests."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture():
    def write(path, height=40, width=60, seed=0):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(path, quality=95)

    return write
