import numpy as np
import pytest

from jaxface import data
from jaxface.data.synthetic.textured_digits import textured_digits
from jaxface.data.transforms.pixels import to_bytes
from jaxface.errors import UserError


def images(source):
    return np.stack([source[i]["image"] for i in range(len(source))])


def background(source):
    """Bright pixels of the top row of each image, where no digit of the middle is: which tile it can be of."""
    return images(source)[:, :4, :, 0] > 127.5 * 1.25


def told(train, test):
    """Accuracy of telling test digits by the background alone: the label of the training images with the same tile."""
    tiles = {}
    for tile, label in zip(background(train), train.labels, strict=True):
        tiles.setdefault(tile.tobytes(), []).append(label)
    answers = [np.bincount(tiles.get(tile.tobytes(), [0])).argmax() for tile in background(test)]
    return (np.array(answers) == test.labels).mean()


def test_the_background_tells_the_class_in_training_alone():
    train, test = textured_digits(anywhere=False, seed=0)
    assert len(train) == 1078 and len(test) == 719 and train.image_shape == (16, 16, 1)
    assert told(train, train) > 0.85 and told(train, test) < 0.2
    independent = textured_digits(correlation=0.0, anywhere=False, seed=0)[0]
    assert told(independent, independent) < 0.4  # 160 tiles of offsets share 1078 images


def test_without_contrast_the_digits_are_what_they_were():
    train, _ = textured_digits(contrast=0.0, anywhere=False, seed=1)
    pixels = images(train)[..., 0]
    assert (np.delete(pixels, range(4, 12), axis=1) == 128).all()  # black
    assert (np.delete(pixels, range(4, 12), axis=2) == 128).all()
    plain = data.digits()
    digits = {to_bytes(plain[i]["image"] / 255).tobytes() for i in range(len(plain))}
    assert all(image[4:12, 4:12].tobytes() in digits for image in pixels)


def test_everything_is_a_function_of_the_seed():
    first, again, other = (textured_digits(seed=s)[0] for s in (3, 3, 4))
    np.testing.assert_array_equal(images(first), images(again))
    assert not np.array_equal(first.labels, other.labels)
    assert data.load(data.TexturedDigits(contrast=0.0), image_size=16).name == "digits on a canvas"


def test_refusals_name_the_argument():
    for name, value in (("correlation", 1.5), ("contrast", -0.1), ("side", 7), ("seed", -1)):
        with pytest.raises(UserError, match=f"^{name}: needs"):
            textured_digits(**{"seed": 0, name: value})
