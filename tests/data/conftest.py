import numpy as np
import pytest
from PIL import Image


def portrait(person, shot, *, height=28, width=23):
    """A gray picture that says whose it is: a blob at a place of the person, with noise of the shot."""
    rng = np.random.default_rng([person, shot])
    y, x = np.mgrid[:height, :width]
    blob = 200 * np.exp(-((y - 4 - 2 * person) ** 2 + (x - 12) ** 2) / 20)
    return np.clip(blob + rng.uniform(0, 40, (height, width)), 0, 255).astype(np.uint8)


@pytest.fixture
def faces_folder(tmp_path):
    """Six people x five portraits as PGM, PNG, JPEG, BMP and WebP; s10 sorts after s2; a README and rubbish beside them."""
    root = tmp_path / "photos"
    for person, name in enumerate(["s1", "s2", "s3", "s4", "s10", "s11"]):
        (root / name).mkdir(parents=True)
        for shot, suffix in enumerate(["pgm", "png", "JPG", "bmp", "webp"], start=1):
            image = Image.fromarray(portrait(person, shot))
            image.save(root / name / f"{shot}.{suffix}", "PPM" if suffix == "pgm" else None)
    (root / "README.txt").write_text("about these photographs")
    (root / "s1" / "notes.md").write_text("not an image")
    (root / "s1" / ".hidden.png").write_bytes(b"")
    (root / ".git").mkdir()
    (root / "empty").mkdir()
    return root


class FakeSource:
    """Tiny records whose every pixel is the number of the record."""

    def __init__(self, records, classes=4, size=6):
        self.labels = (np.arange(records) % classes).astype(np.int32)
        self.class_names = [f"c{k}" for k in range(classes)]
        self._size = size
        self.image_shape = (size, size, 3)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = np.full((self._size, self._size, 3), index % 256, np.uint8)
        image[0, 0] = (index // 256, 0, 255)
        landmarks = np.full((5, 2), index, np.float32)
        return {
            "image": image,
            "label": self.labels[index],
            "landmarks": landmarks,
            "spoof": np.int32(index % 2),
        }


@pytest.fixture
def fake():
    return FakeSource
