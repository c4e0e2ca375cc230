"""Real images that come with scikit-learn and scikit-image, and the two face sets that scikit-learn downloads."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np

from jaxface.checks import index_array
from jaxface.data.sources.images import Fit, fit_square
from jaxface.data.sources.source import Record
from jaxface.data.transforms.pixels import fractions_to_bytes
from jaxface.errors import UserError
from jaxface.extras import optional
from jaxface.paths import local_path


class ArraySource:
    """Records from arrays in memory: images uint8 [N, H, W, C], labels [N] integers and the names of the classes.

    With `groups` [N] and the names of the groups the records have a `group` besides.

    Raises:
      ValueError: another type or shape, or a label or a group that has no name.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str],
        *,
        groups: np.ndarray | None = None,
        group_names: Sequence[str] = (),
    ):
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(labels):
            raise ValueError(
                f"images: needs uint8 [{len(labels)}, H, W, C], got {images.dtype} {images.shape}"
            )
        self._images = images
        self.image_shape = images.shape[1:]
        self.class_names = list(class_names)
        self.labels = index_array("labels", labels, len(images), len(self.class_names)).astype(np.int32)
        if groups is not None:
            self.group_names = list(group_names)
            self.groups = index_array("groups", groups, len(images), len(self.group_names)).astype(np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        record = {"image": self._images[index], "label": self.labels[index]}
        return {**record, "group": self.groups[index]} if hasattr(self, "groups") else record


def _to_uint8(images: np.ndarray) -> np.ndarray:
    """[0, 1] to 0..255, rounded; [N, H, W] gains a channel axis."""
    pixels = fractions_to_bytes(images)
    return pixels[..., None] if pixels.ndim == 3 else pixels


def _squares(images: np.ndarray, size: int, fit: Fit) -> np.ndarray:
    """uint8 [N, H, W, 1 or 3] to RGB [N, size, size, 3]."""
    fitted = np.stack([fit_square(image, size, fit=fit) for image in images])
    return np.repeat(fitted, 3, axis=-1) if fitted.shape[-1] == 1 else fitted


def digits() -> ArraySource:
    """scikit-learn's 1797 handwritten digits (UCI Optdigits): uint8 [8, 8, 1], ten classes, no download."""
    data = optional("sklearn.datasets", "sets").load_digits()
    return ArraySource(_to_uint8(data.images / 16), data.target, [str(d) for d in range(10)])


def lfw_subset(*, image_size: int = 25) -> ArraySource:
    """scikit-image's 200 gray 25x25 patches: 100 faces (class 1), then 100 of background (class 0); no download."""
    images = _squares(_to_uint8(optional("skimage.data", "sets").lfw_subset()), image_size, "pad")
    return ArraySource(images, np.repeat([1, 0], 100), ["background", "face"])


def _fetch(load: Callable, name: str, **arguments):
    """Runs a scikit-learn download; without a network, with a broken file or a foreign folder: one line."""
    if arguments["data_home"] is not None:
        arguments["data_home"] = str(local_path("data_home", arguments["data_home"]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it announces every retry
            return load(n_retries=1, **arguments)
    except (OSError, ValueError) as error:  # URLError and TimeoutError are OSErrors
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        where = arguments["data_home"] or "scikit-learn's data folder"
        raise UserError(
            f"data_home: {name} is not in {where} and cannot be downloaded ({reason}); needs a network once"
        ) from error


def olivetti(*, image_size: int, data_home: str | None = None) -> ArraySource:
    """The Olivetti faces: 40 people x 10 gray photographs of 64x64 pixels; downloaded once (4 MB).

    Raises:
      UserError: not in `data_home` and no network.
    """
    load = optional("sklearn.datasets", "sets").fetch_olivetti_faces
    data = _fetch(load, "the Olivetti face set", data_home=data_home)
    people = int(data.target.max()) + 1
    return ArraySource(
        _squares(_to_uint8(data.images), image_size, "pad"),
        data.target,
        [f"person {i}" for i in range(people)],
    )


def lfw_people(
    *, image_size: int, data_home: str | None = None, min_faces: int = 2, fit: Fit = "crop"
) -> ArraySource:
    """Labeled Faces in the Wild, funneled, people with at least `min_faces` photographs; downloaded once (233 MB).

    The middle 125x94 pixels of each photograph, in color; `fit="crop"` keeps the middle 94x94.

    Raises:
      UserError: not in `data_home` and no network, or `min_faces` below 1 or above what anybody has.
    """
    fetch_lfw_people = optional("sklearn.datasets", "sets").fetch_lfw_people
    if not 1 <= min_faces <= 530:
        raise UserError(f"min_faces: needs a number from 1 to 530, got {min_faces}")
    data = _fetch(
        fetch_lfw_people,
        "Labeled Faces in the Wild",
        data_home=data_home,
        min_faces_per_person=min_faces,
        color=True,
        resize=1.0,
    )
    images = np.stack([fit_square(_to_uint8(image[None])[0], image_size, fit=fit) for image in data.images])
    return ArraySource(images, data.target, [str(name) for name in data.target_names])
