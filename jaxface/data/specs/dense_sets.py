"""Images with a class or a depth for every pixel.

Methods: intern
"""

import dataclasses
from typing import Literal

from jaxface.data.sources.dense_folders import DenseFolders
from jaxface.data.specs.base import KINDS, DataSpec, Split
from jaxface.paths import last_name


@KINDS.register("dense_folders")
@dataclasses.dataclass(frozen=True)
class DensePairs(DataSpec):
    """Images beside their pixels' classes or depths, such as PASCAL VOC's segmentation, NYUv2 or KITTI."""

    root: str
    """The folder: <root>/<part>/images and <root>/<part>/labels, PNGs of class numbers (255 for none) or of millimeters."""
    labels: Literal["pixels", "depth"] = "pixels"
    """What the labels are."""
    train: str = "train"
    """Part to train on."""
    test: str = "test"
    """Part to evaluate on."""

    @property
    def title(self) -> str:
        return f"{self.labels} {last_name('root', self.root)}"

    def source(self, *, image_size: int, seed: int) -> DenseFolders:
        return DenseFolders(self.root, self.train, self.labels, image_size=image_size)

    def evaluation_source(self, *, image_size: int, seed: int) -> DenseFolders:
        """The part to evaluate on."""
        return DenseFolders(self.root, self.test, self.labels, image_size=image_size)

    def divide(self, *, image_size: int, seed: int) -> Split:
        arguments = dict(image_size=image_size, seed=seed)
        return Split(self.source(**arguments), self.evaluation_source(**arguments), self.title, "dense")
