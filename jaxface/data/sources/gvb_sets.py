"""The 26 data sets of GV-B (arXiv:2111.08687): classes, metric, and where they come from.

Methods: intern
"""

from typing import Literal, NamedTuple

Route = Literal["tfds", "folder", "kind", "none"]


class GvbSet(NamedTuple):
    """One data set.

    Attributes:
      name: as the benchmark's table has it.
      task: classification, detection, segmentation or depth.
      classes: how many; background not counted, 0 of depth.
      metric: accuracy (top 1), mean_class_accuracy, ap50, wider_ap, miss_rate, miou or rmse.
      route: tfds by `tfds`; folder: <root>/train/<class> and <root>/test/<class> (`ClassFolders`), or images beside pixels
        (`DenseFolders`); kind: the data kind that `tfds` names; none.
      tfds: name of TFDS' data set, or of the kind.
      train, test: splits.
      missing: what keeps it from being the benchmark's own, in a line; empty where nothing does.
    """

    name: str
    task: str
    classes: int
    metric: str
    route: Route
    tfds: str = ""
    train: str = "train"
    test: str = "test"
    missing: str = ""


_LISTS = "the published 10 % lists are at private addresses; shares are drawn here"
_ONE = "TFDS has one split; ours differs"
_MEAN = "mean_class_accuracy"


def _classes(
    name: str, classes: int, metric: str = "accuracy", route: Route = "tfds", tfds: str = "", **fields: str
) -> GvbSet:
    return GvbSet(name, "classification", classes, metric, route, tfds, **{"missing": _LISTS, **fields})


GVB_SETS: tuple[GvbSet, ...] = (
    _classes("cifar10", 10, tfds="cifar10"),
    _classes("cifar100", 100, tfds="cifar100"),
    _classes("food101", 101, tfds="food101", test="validation"),
    _classes("pets", 37, _MEAN, tfds="oxford_iiit_pet"),
    _classes("flowers", 102, _MEAN, tfds="oxford_flowers102"),
    _classes("sun397", 397, tfds="sun397"),
    _classes("cars", 196, tfds="cars196"),
    _classes("dtd", 47, tfds="dtd"),
    _classes("caltech", 102, _MEAN, tfds="caltech101"),
    _classes("aircraft", 100, _MEAN, route="folder", missing="not in TFDS; folders by class"),
    _classes("svhn", 10, tfds="svhn_cropped"),
    _classes("eurosat", 10, tfds="eurosat/rgb", train="train[:80%]", test="train[80%:]", missing=_ONE),
    _classes("resisc45", 45, tfds="resisc45", train="train[:80%]", test="train[80%:]", missing=_ONE),
    _classes("retinopathy", 5, tfds="diabetic_retinopathy_detection", missing="to be fetched from Kaggle by hand"),
    _classes("fer2013", 7, route="folder", missing="from Kaggle by hand; folders by class"),
    _classes("ucf101", 101, route="folder", missing="middle frames of videos in folders by class"),
    _classes("gtsrb", 43, route="folder", missing="not in TFDS; folders by class"),
    _classes("pcam", 2, tfds="patch_camelyon"),
    _classes("imagenet", 1000, tfds="imagenet2012", test="validation", missing="to be fetched by hand with an account"),
    _classes("kinetics700", 700, route="folder", missing="middle frames of videos in folders by class"),
    GvbSet("voc07+12", "detection", 20, "ap50", "kind", "voc", "trainval", "test"),
    GvbSet("wider_face", "detection", 1, "wider_ap", "kind", "wider_face", "train", "val"),
    GvbSet(
        "citypersons", "detection", 1, "miss_rate", "kind", "coco", "train", "val",
        missing="annotations in COCO's form, from Cityscapes' site with an account; visibility lists are not read",
    ),
    GvbSet("voc2012", "segmentation", 21, "miou", "folder", missing="images and palette masks as folders"),
    GvbSet("kitti", "depth", 0, "rmse", "folder", missing="images and 16-bit depths as folders; its crop is not applied"),
    GvbSet("nyu", "depth", 0, "rmse", "folder", missing="images and 16-bit depths as folders; TFDS' copy has no random access"),
)  # fmt: skip
"""All of them, in the order of the benchmark."""


def describe_sets() -> str:
    """The table of the sets in Markdown.

    Example:
      >>> print(describe_sets().splitlines()[11])
      | aircraft | classification | 100 | mean_class_accuracy | folder | not in TFDS; folders by class |
    """
    lines = ["| data set | task | classes | metric | from | what is missing |", "|---" * 6 + "|"]
    for entry in GVB_SETS:
        origin = f"{entry.route} {entry.tfds}".strip()
        classes = entry.classes or ""
        lines.append(
            f"| {entry.name} | {entry.task} | {classes} | {entry.metric} | {origin} | {entry.missing} |"
        )
    return "\n".join(lines)
