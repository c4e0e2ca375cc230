"""A TFDS builder that writes any source of faces to disk: images as encoded bytes, ArrayRecord files, no TensorFlow.

Read it back with `TfdsSource("faces", data_dir=...)` or `tfds.builder("faces", data_dir=...).as_data_source()`.
"""

import dataclasses
import functools
import io
import operator
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from jaxface.data.sources.images import encode_image
from jaxface.data.sources.source import Source
from jaxface.data.sources.tfds_source import class_label
from jaxface.errors import UserError
from jaxface.extras import optional
from jaxface.paths import local_path

tfds = optional("tensorflow_datasets", "data")


class Faces(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Face images with whatever labels their source knows.

    Features: `image` (encoded bytes), `label` (with the names of the classes), and every other field of the
    source's first record (`landmarks`, `boxes`, `depth`, `spoof`, ...) as a tensor of its shape. Records keep their
    order.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}

    def __init__(
        self,
        *,
        source: Source | None = None,
        encoding: Literal["png", "jpeg"] = "png",
        quality: int = 95,
        **arguments: Any,
    ):
        """`source` is needed to prepare the data set, not to read it; the rest goes to TFDS (`data_dir`, ...)."""
        self._source, self._encoding, self._quality = source, encoding, quality
        super().__init__(**{"file_format": "array_record", **arguments})

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel()}
        if self._source is not None:
            first = self._source[0]
            channels = first["image"].shape[-1]
            features = {
                "image": tfds.features.Image(shape=(None, None, channels), encoding_format=self._encoding),
                "label": class_label(self._source.class_names),
            }
            for name, value in first.items():
                value = np.asarray(value)
                if name not in features:
                    large = (
                        value.ndim >= 2 and value.size > 64
                    )  # depth maps are mostly zeros: worth compressing
                    features[name] = tfds.features.Tensor(
                        shape=value.shape,
                        dtype=value.dtype,
                        encoding=tfds.features.Encoding.ZLIB if large else tfds.features.Encoding.NONE,
                    )
        return tfds.core.DatasetInfo(
            builder=self,
            description="Face images with identities and what else their source knows about them.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        if self._source is None:
            raise UserError(
                "source: preparing the face data set needs a source, see jaxface.data.faces_builder.build_faces"
            )
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(len(self._source)):
            record = dict(self._source[index])
            encoded = encode_image(record.pop("image"), encoding=self._encoding, quality=self._quality)
            yield index, {"image": io.BytesIO(encoded), "label": int(record.pop("label")), **record}


def build_faces(
    source: Source,
    directory: str | pathlib.Path,
    *,
    encoding: Literal["png", "jpeg"] = "png",
    quality: int = 95,
) -> pathlib.Path:
    """Writes a source as the TFDS data set `faces` under `directory`.

    TFDS writes beside the final folder and renames when it is complete: an interrupted build leaves nothing
    that could be read as whole.

    Args:
      source: the records.
      directory: where TFDS data sets lie; the set comes into `directory/faces/1.0.0`.
      encoding: "png" is exact; "jpeg" is about a fifth of the size for photographs.
      quality: of JPEG, 1 to 100.

    Returns:
      The folder of the data set.

    Raises:
      UserError: the folder exists, or cannot be written; or the source has names of classes that TFDS cannot hold.
    """
    directory = local_path("directory", directory)
    target = directory / "faces" / str(Faces.VERSION)
    if target.exists():
        raise UserError(f"directory: {target} exists already; choose another directory or remove it")
    if not 1 <= quality <= 100:
        raise UserError(f"quality: needs a number from 1 to 100, got {quality}")
    class_label(source.class_names)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.mkdtemp(dir=directory, prefix=".downloads-")
    except OSError as error:
        raise UserError(f"directory: cannot write to {directory}: {error.strerror}") from error
    try:
        builder = Faces(source=source, encoding=encoding, quality=quality, data_dir=directory)
        builder.download_and_prepare(download_dir=scratch, file_format="array_record")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def main() -> None:
    """Command line: which faces, and where to."""
    tyro = optional("tyro", "train")
    from jaxface.data.specs.base import KINDS
    from jaxface.data.specs.rendered_people import RenderedFaces

    kinds = functools.reduce(operator.or_, (KINDS[name] for name in KINDS.names()))

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        """Writes faces as a TFDS data set, read back without TensorFlow."""

        directory: str
        """Where TFDS data sets lie; this one comes into <directory>/faces."""
        data: kinds = dataclasses.field(default_factory=RenderedFaces)
        """Which faces."""
        image_size: int = 112
        """Side of every image, pixels."""
        seed: int = 0
        """Of rendered people."""
        encoding: Literal["png", "jpeg"] = "png"
        """png is exact, jpeg is smaller."""
        quality: int = 95
        """Of jpeg, 1 to 100."""

    arguments = tyro.cli(Arguments, prog="python -m jaxface.data.faces_builder")
    try:
        source = arguments.data.source(image_size=arguments.image_size, seed=arguments.seed)
        build_faces(source, arguments.directory, encoding=arguments.encoding, quality=arguments.quality)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
