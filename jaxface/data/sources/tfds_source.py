"""Any TensorFlow Datasets data set in a random-access format, without TensorFlow.

TFDS hands out the encoded bytes of the image; they are decoded here, with the checks that bytes from outside
need.
"""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxface.data.sources.images import Fit, decode_image
from jaxface.data.sources.source import Record
from jaxface.data.sources.standin import StandInSource, any_readable
from jaxface.data.transforms import geometry
from jaxface.errors import UserError
from jaxface.extras import optional
from jaxface.paths import local_path, name_text

# Taken over where the data set has a feature of that name.
_OTHER_FIELDS = ("depth", "boxes", "box_mask", "landmarks", "spoof", "expression", "group")


def open_builder(name: str, data_dir: str | None):
    """The TFDS builder of a prepared data set: by its name, or by the folder that holds its
    `dataset_info.json`.

    Raises:
      UserError: neither.
    """
    tfds = optional("tensorflow_datasets", "data")

    root = None if data_dir is None else local_path("data_dir", data_dir)
    folder = (root or pathlib.Path()) / local_path("name", name)
    data_dir = root and str(root)
    try:
        if os.path.isfile(folder / "dataset_info.json"):
            return tfds.builder_from_directory(folder)
        return tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # TFDS raises several types here, with messages of a screen or more
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"name: TFDS has no data set {name!r} in {data_dir or 'its default folder'} ({reason[:160]})"
        ) from error


def class_label(names: Sequence[str]):
    """TFDS' feature of classes with these names, in their order.

    Raises:
      UserError: a name that would be read back as another. TFDS keeps names as the lines of a text file, strips them and
        passes over empty ones.
    """
    tfds = optional("tensorflow_datasets", "data")

    names = [str(name) for name in names]
    seen = set()
    for name in names:
        if not name or name != name.strip() or {"\n", "\r"} & set(name) or name != name_text(name):
            raise UserError(
                "source: TFDS needs names of classes in UTF-8, without line breaks and without blanks at their ends, "
                f"got {name!r}"
            )
        if name in seen:
            raise UserError(f"source: TFDS needs another name for every class, got {name!r} twice")
        seen.add(name)
    return tfds.features.ClassLabel(names=names)


class TfdsSource(StandInSource):
    """Records of one split of a TFDS data set, as RGB squares of one size.

    Landmarks, boxes and depth that the data set has under the names of a record come along and move with the
    resize. A record whose image does not decode is replaced by the next one of its class; a class none of
    whose images decodes is left out when the data set is opened.
    """

    def __init__(
        self,
        name: str,
        *,
        image_size: int,
        split: str = "train",
        data_dir: str | None = None,
        image: str = "image",
        label: str = "label",
        fit: Fit = "pad",
    ):
        """Opens a prepared data set; reads all labels, decodes one image per class.

        Args:
          name: such as "faces" or "faces/config:1.0.0"; or a folder, relative to `data_dir`, with a prepared
            data set.
          image_size: side of every image, pixels.
          split: such as "train" or "train[:80%]".
          data_dir: where TFDS keeps its data sets; its own default unless given.
          image: name of the image feature (encoded bytes).
          label: name of the class feature (an integer).
          fit: how a rectangle becomes a square, see `images.fit_square`.

        Raises:
          UserError: no such data set, split or feature, or one whose format has no random access.
        """
        tfds = optional("tensorflow_datasets", "data")

        builder = open_builder(name, data_dir)
        features = builder.info.features or {}
        for argument, feature in (("image", image), ("label", label)):
            if feature not in features:
                raise UserError(
                    f"{argument}: {name} has no feature {feature!r}, it has {', '.join(sorted(features))}"
                )
        skip = isinstance(features[image], tfds.features.Image)
        super().__init__()
        try:
            self._records = builder.as_data_source(
                split, decoders={image: tfds.decode.SkipDecoding()} if skip else None
            )
            labels = np.array([int(self._records[i][label]) for i in range(len(self._records))], np.int32)
        except NotImplementedError as error:
            raise UserError(f"name: {name} needs to be prepared with file_format='array_record'") from error
        except Exception as error:  # not prepared, no such split, damaged files: as many types
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise UserError(f"split: cannot read {split!r} of {name} ({reason})") from error
        if not len(labels):
            raise UserError(f"split: {split!r} of {name} is empty")
        names = getattr(features[label], "names", None) or [str(i) for i in range(labels.max() + 1)]
        if labels.min() < 0 or labels.max() >= len(names):
            raise UserError(f"label: {label!r} of {name} needs classes from 0 to {len(names) - 1}")
        self.class_names = list(names)
        self._image, self._size, self._fit = image, image_size, fit
        self.image_shape = (image_size, image_size, 3)
        classes = [
            k
            for k in np.unique(labels)
            if any_readable(
                lambda i: self._decode(self._records[int(i)]), np.flatnonzero(labels == k), names[k]
            )
        ]
        self._indices = np.flatnonzero(np.isin(labels, classes))
        self.labels = labels[self._indices]
        if not len(self.labels):
            raise UserError(f"image: no image of {name} can be read")

    def _decode(self, fields: dict) -> np.ndarray:
        return decode_image(bytes(fields[self._image]))

    def _read(self, index: int) -> Record:
        fields = self._records[int(self._indices[index])]
        record = {"image": self._decode(fields)}
        for name in _OTHER_FIELDS:
            if name in fields:
                value = np.asarray(fields[name])
                record[name] = value.astype(np.int32) if value.dtype == np.int64 else value
        return {**geometry.resize_square(record, self._size, fit=self._fit), "label": self.labels[index]}

    def _describe(self, index: int) -> str:
        return f"record {self._indices[index]}"
