"""Images with boxes around faces and other objects."""

import dataclasses
from typing import Annotated

import numpy as np

from jaxface.checks import AtLeast, Integers, OpenFraction, Range
from jaxface.data.render.scenes import SceneSource, SceneVariation
from jaxface.data.sources.annotated import AnnotatedSource, Surplus
from jaxface.data.sources.coco import coco
from jaxface.data.sources.fddb import FOLDS, fddb
from jaxface.data.sources.source import Source, Subset
from jaxface.data.sources.voc import CLASSES, voc
from jaxface.data.sources.wider_face import SUBSETS, wider_face
from jaxface.data.specs.base import FIRST_HELD_OUT, FIRST_SIMULATED, KINDS, DataSpec, Split
from jaxface.errors import UserError
from jaxface.paths import last_name, name_text, user_path


@KINDS.register("scenes")
@dataclasses.dataclass(frozen=True)
class Scenes(DataSpec):
    """Scenes with several rendered faces on cluttered backgrounds, for detection; nothing to download."""

    scenes: Annotated[int, AtLeast(1)] = 4096
    """Scenes to train on."""
    held_out_scenes: Annotated[int, AtLeast(1)] = 256
    """Scenes to evaluate on: other people before other backgrounds, the same ones however many are trained on."""
    people: Annotated[int, AtLeast(1)] = 256
    """People in the scenes to train on."""
    held_out_people: Annotated[int, AtLeast(1)] = 64
    """People in the scenes to evaluate on."""
    per_person: Annotated[int, AtLeast(1)] = 2
    """Rendered images of each of them, which scenes change further."""
    variation: SceneVariation = dataclasses.field(default_factory=SceneVariation)
    """How many, small, hidden and cluttered the faces are."""

    @property
    def title(self) -> str:
        return f"scenes {self.scenes}"

    def _open(self, scenes: int, people: int, first: int, image_size: int, seed: int) -> SceneSource:
        return SceneSource(
            scenes, image_size, seed, self.variation,
            people=people, per_person=self.per_person, first_scene=first, first_identity=first,
        )  # fmt: skip

    def source(self, *, image_size: int, seed: int) -> SceneSource:
        return self._open(self.scenes, self.people, 0, image_size, seed)

    def evaluation_source(self, *, image_size: int, seed: int) -> SceneSource:
        return self._open(self.held_out_scenes, self.held_out_people, FIRST_HELD_OUT, image_size, seed)

    def divide(self, *, image_size: int, seed: int) -> Split:
        arguments = dict(image_size=image_size, seed=seed)
        return Split(self.source(**arguments), self.evaluation_source(**arguments), self.title, "detection")

    def simulated(self, count: int, *, image_size: int, seed: int) -> Source:
        return self._open(count, self.held_out_people, FIRST_SIMULATED, image_size, seed)


def _split_images(source: AnnotatedSource, held_out: float, name: str, seed: int) -> Split:
    """Some images to evaluate on, drawn once."""
    count = min(max(round(held_out * len(source)), 1), len(source) - 1)
    if count < 1:
        raise UserError("data: a split needs at least 2 images, this source has 1")
    order = np.random.default_rng(seed).permutation(len(source))
    subsets = Subset(source, np.sort(order[count:])), Subset(source, np.sort(order[:count]))
    return Split(*subsets, name, "detection")


@dataclasses.dataclass(frozen=True)
class _Annotated(DataSpec):
    """Fields that all loaders of photographs with boxes have."""

    max_objects: Annotated[int, AtLeast(1)] = dataclasses.field(default=128, kw_only=True)
    """Most objects of an image."""
    surplus: Surplus = dataclasses.field(default="refuse", kw_only=True)
    """Images to train on with more: refused before anything is trained, or their largest are taken, and a line says how many are
    not. Those to evaluate on are counted whole."""
    aspects: Annotated[tuple[float, ...], Range(0.1, 10)] = dataclasses.field(default=(1.0,), kw_only=True)
    """Width over height of the shapes that images are padded to; the longer side is the image size. A batch has one shape."""

    def _options(self, *, train: bool = True) -> dict:
        surplus = self.surplus if train else "largest"  # the ground truth has them all
        return dict(max_objects=self.max_objects, aspects=self.aspects, surplus=surplus)


@KINDS.register("wider_face")
@dataclasses.dataclass(frozen=True)
class WiderFace(_Annotated):
    """WIDER FACE as it is unpacked: `WIDER_train`, `WIDER_val` and `wider_face_split` in one folder."""

    root: str
    """The folder."""
    landmarks: str | None = None
    """RetinaFace's `label.txt` for the training part, which has five landmarks of many faces; the original text unless given."""
    surplus: Surplus = dataclasses.field(default="largest", kw_only=True)
    """Images to train on with more than `max_objects` faces: the largest are taken, or the set is refused."""
    lists: str | None = None
    """Folder with `wider_easy_val.mat`, `wider_medium_val.mat` and `wider_hard_val.mat`; `<root>/wider_face_split` where they are
    there."""

    @property
    def title(self) -> str:
        return "wider-face"

    def source(self, *, image_size: int, seed: int) -> AnnotatedSource:
        root = user_path("root", self.root)
        annotations = self.landmarks or root / "wider_face_split" / "wider_face_train_bbx_gt.txt"
        return wider_face(
            root / "WIDER_train" / "images", annotations, image_size=image_size, **self._options()
        )

    def evaluation_source(self, *, image_size: int, seed: int) -> AnnotatedSource:
        root = user_path("root", self.root)
        folder = root / "wider_face_split"
        lists = self.lists
        if lists is None and all((folder / f"wider_{name}_val.mat").exists() for name in SUBSETS):
            lists = folder
        return wider_face(
            root / "WIDER_val" / "images", folder / "wider_face_val_bbx_gt.txt",
            image_size=image_size, lists=lists, **self._options(train=False),
        )  # fmt: skip

    def divide(self, *, image_size: int, seed: int) -> Split:
        arguments = dict(image_size=image_size, seed=seed)
        return Split(self.source(**arguments), self.evaluation_source(**arguments), self.title, "detection")


@KINDS.register("fddb")
@dataclasses.dataclass(frozen=True)
class Fddb(_Annotated):
    """FDDB, faces as ellipses in ten folds: `FDDB-folds` and `originalPics` in one folder."""

    root: str
    """The folder."""
    surplus: Surplus = dataclasses.field(default="largest", kw_only=True)
    """Images to train on with more than `max_objects` faces: the largest are taken, or the set is refused."""
    held_out_folds: Annotated[tuple[int, ...], Integers(1, 10)] = (10,)
    """Folds to evaluate on, where others are trained on; a detector that was trained elsewhere is evaluated on all ten."""

    @property
    def title(self) -> str:
        return "fddb"

    def _open(self, folds: tuple[int, ...], image_size: int, *, train: bool = True) -> AnnotatedSource:
        return fddb(self.root, folds=folds, image_size=image_size, **self._options(train=train))

    def source(self, *, image_size: int, seed: int) -> AnnotatedSource:
        return self._open(FOLDS, image_size)

    def divide(self, *, image_size: int, seed: int) -> Split:
        train = tuple(fold for fold in FOLDS if fold not in self.held_out_folds)
        if not train or not self.held_out_folds:
            raise UserError(
                f"held_out_folds: needs some of the ten folds, and not all, got {self.held_out_folds}"
            )
        held_out = tuple(sorted(set(self.held_out_folds)))
        return Split(
            self._open(train, image_size),
            self._open(held_out, image_size, train=False),
            self.title,
            "detection",
        )


@KINDS.register("coco")
@dataclasses.dataclass(frozen=True)
class Coco(_Annotated):
    """A folder of images with a COCO JSON file of their objects."""

    annotations: str
    """The JSON."""
    images: str | None = None
    """Folder of the images; that of the JSON unless given."""
    evaluation_images: str | None = None
    """Folder of the images to evaluate on; `images` unless given."""
    evaluation_annotations: str | None = None
    """JSON of what to evaluate on; a fraction of the images unless given."""
    held_out: Annotated[float, OpenFraction] = 0.2
    """That fraction."""
    categories: tuple[str, ...] = ()
    """Names of the classes to take, in order; all unless given."""

    @property
    def title(self) -> str:
        return f"coco {name_text(user_path('annotations', self.annotations).stem)}"

    def _open(
        self, images: str | None, annotations: str, image_size: int, *, train: bool = True
    ) -> AnnotatedSource:
        images = images or user_path("annotations", annotations).parent
        options = self._options(train=train)
        return coco(images, annotations, categories=self.categories, image_size=image_size, **options)

    def source(self, *, image_size: int, seed: int) -> AnnotatedSource:
        return self._open(self.images, self.annotations, image_size)

    def evaluation_source(self, *, image_size: int, seed: int) -> AnnotatedSource:
        return self._open(
            self.evaluation_images or self.images,
            self.evaluation_annotations or self.annotations,
            image_size,
            train=False,
        )

    def divide(self, *, image_size: int, seed: int) -> Split:
        arguments = dict(image_size=image_size, seed=seed)
        train = self.source(**arguments)
        if self.evaluation_annotations is None:
            return _split_images(train, self.held_out, self.title, seed)
        held_out = self.evaluation_source(**arguments)
        if held_out.class_names != train.class_names:
            raise UserError(
                "evaluation_annotations: needs the categories of annotations, "
                f"got {', '.join(held_out.class_names)[:120]}"
            )
        return Split(train, held_out, self.title, "detection")


@KINDS.register("voc")
@dataclasses.dataclass(frozen=True)
class Voc(_Annotated):
    """A folder in the layout of PASCAL VOC: images with an XML file each."""

    root: str
    """The folder with `Annotations`, `JPEGImages` and `ImageSets`."""
    train: str = "trainval"
    """Part of `ImageSets/Main` to train on."""
    test: str = "test"
    """Part to evaluate on."""
    held_out: Annotated[float, OpenFraction] = 0.2
    """Fraction of the images to evaluate on, in a folder without `ImageSets`."""
    categories: tuple[str, ...] = CLASSES
    """Names of the classes, in order."""

    @property
    def title(self) -> str:
        return f"voc {last_name('root', self.root)}"

    def _open(self, part: str | None, image_size: int, *, train: bool = True) -> AnnotatedSource:
        options = self._options(train=train)
        return voc(self.root, part, categories=self.categories, image_size=image_size, **options)

    @property
    def _has_parts(self) -> bool:
        return (user_path("root", self.root) / "ImageSets").is_dir()

    def source(self, *, image_size: int, seed: int) -> AnnotatedSource:
        return self._open(self.train if self._has_parts else None, image_size)

    def evaluation_source(self, *, image_size: int, seed: int) -> AnnotatedSource:
        return self._open(self.test if self._has_parts else None, image_size, train=False)

    def divide(self, *, image_size: int, seed: int) -> Split:
        arguments = dict(image_size=image_size, seed=seed)
        if not self._has_parts:
            return _split_images(self.source(**arguments), self.held_out, self.title, seed)
        return Split(self.source(**arguments), self.evaluation_source(**arguments), self.title, "detection")
